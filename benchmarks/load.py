"""
The load: connections that send requests and keep every byte of the answers, to be checked
once the clock has stopped.

``python -m benchmarks.load`` reads one order a line on standard input (the fields of
:class:`Order` as JSON) and writes one result a line. It has a process of its own so that its
work is nobody else's.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterable
from typing import Any, cast

from attrs import asdict, define, field, frozen

from benchmarks import answers


@frozen(kw_only=True)
class Order:
    """
    What to send.

    Attributes:
        port: Where to, on the loopback interface.
        dialect: See :data:`benchmarks.answers.EXPECTED`.
        streams: Connections at once.
        repeat: Requests one after the other on each.
        seconds: Go on for so long instead, on each connection.
        ramp: Seconds over which the connections begin.
        wait: Seconds that a connection waits after a refusal.
        abort: Share of the requests whose client leaves once the answer has begun.
        events: Of a stream.
        tokens: Bearer tokens, dealt out in turn; none sends no header.
        record: Report when every event came, by the number of its request.
        watch: Processes whose CPU counts as the load's side.
        any_status: Count other statuses than 200 instead of failing.
    """

    port: int
    dialect: str
    streams: int = 1
    repeat: int = 1
    seconds: float = 0.0
    ramp: float = 0.0
    wait: float = 0.0
    abort: float = 0.0
    events: int = 200
    tokens: tuple[str, ...] = ()
    record: bool = False
    watch: tuple[int, ...] = ()
    any_status: bool = False


@define
class Answer:
    """One request: when it was sent, what came when."""

    number: str = ""
    sent: float = 0.0
    pieces: list[bytes] = field(factory=list)
    times: list[float] = field(factory=list)
    first: float = 0.0
    ended: float = 0.0
    aborted: bool = False


class Client(asyncio.Protocol):
    """One connection's requests, one after the other."""

    def __init__(self, order: Order, place: int, loop: asyncio.AbstractEventLoop) -> None:
        self.order = order
        self.place = place
        self.loop = loop
        self.done = loop.create_future()
        self.answers: list[Answer] = []
        self.ready: list[bytes] = []
        self.until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def prepare(self) -> None:
        """Make the requests beforehand, where it is known how many there are."""
        if not self.order.seconds:
            self.ready = [self.request(turn) for turn in range(self.order.repeat)]

    def request(self, turn: int) -> bytes:
        tokens = self.order.tokens
        token = tokens[self.place % len(tokens)] if tokens else None
        return request_bytes(self.order, f"{self.place}-{turn}", token)

    def begin(self) -> None:
        self.until = time.monotonic() + self.order.seconds
        self.next()

    def next(self) -> None:
        turn = len(self.answers)
        if self.order.seconds:
            if time.monotonic() >= self.until:
                self.finish()
                return
            request = self.request(turn)
        elif turn < len(self.ready):
            request = self.ready[turn]
        else:
            self.finish()
            return
        self.tail = b""
        self.left = -1
        self.answer = Answer(number=f"{self.place}-{turn}", sent=time.monotonic())
        self.answers.append(self.answer)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        answer = self.answer
        answer.pieces.append(data)
        answer.times.append(now)
        if not answer.first:
            self.head(data, now)
        elif self.left > 0:
            self.left -= len(data)
        if self.left >= 0:
            ended = self.left == 0
        else:
            # A body that ends otherwise is found out by the check.
            self.tail = data[-5:] if len(data) >= 5 else (self.tail + data)[-5:]
            ended = self.tail == b"0\r\n\r\n"
        if not answer.first:
            return
        if ended:
            answer.ended = now
            if self.order.wait and not answer.pieces[0].startswith(b"HTTP/1.1 200"):
                self.loop.call_later(self.order.wait, self.next)
            else:
                self.next()
        elif self.order.abort and self.place < self.order.abort * self.order.streams:
            answer.aborted = True
            self.transport.abort()
            self.finish()

    def head(self, data: bytes, now: float) -> None:
        so_far = data if len(self.answer.pieces) == 1 else b"".join(self.answer.pieces)
        end = so_far.find(b"\r\n\r\n")
        if end < 0 or len(so_far) == end + 4:
            return
        self.answer.first = now
        head = so_far[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            self.left = int(head[at + 15 :].split(b"\r\n", 1)[0]) - (len(so_far) - end - 4)

    def finish(self) -> None:
        self.transport.close()
        if not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def cpu_of(process: int) -> float:
    """Seconds of CPU that a process has taken, threads that ended included."""
    # clock_getcpuclockid(3) of Linux, which Python does not offer for other processes.
    return time.clock_gettime((~process << 3) | 2)


def body_of(answer: Answer) -> tuple[int, bytes, list[tuple[int, int]]]:
    """The status, the body, and which bytes of the whole hold which of the body's."""
    raw = b"".join(answer.pieces)
    head, _, rest = raw.partition(b"\r\n\r\n")
    status = int(head[9:12])
    start = len(head) + 4
    if b"transfer-encoding: chunked" not in head.lower():
        return status, rest, [(start, 0)]
    pieces: list[bytes] = []
    where: list[tuple[int, int]] = []
    at = length = 0
    while True:
        end = rest.index(b"\r\n", at)
        size = int(rest[at:end], 16)
        at = end + 2
        if size == 0:
            break
        where.append((start + at, length))
        pieces.append(rest[at : at + size])
        length += size
        at += size + 2
        if rest[at - 2 : at] != b"\r\n":
            raise ValueError("a chunk that is longer than it says")
    if rest[at:] != b"\r\n":
        raise ValueError("bytes after the end")
    return status, b"".join(pieces), where


def arrivals(answer: Answer, body: bytes, where: list[tuple[int, int]], mark: bytes) -> list[float]:
    """When the last byte of every event came."""
    times = iter(zip(answer.pieces, answer.times, strict=True))
    piece, when = next(times)
    received = len(piece)
    spans = iter(where)
    raw, start = next(spans)
    following = next(spans, None)
    found: list[float] = []
    at = body.find(mark)
    while at >= 0:
        last = at + len(mark) - 1
        while following is not None and following[1] <= last:
            raw, start = following
            following = next(spans, None)
        while received <= raw + last - start:
            piece, when = next(times)
            received += len(piece)
        found.append(when)
        at = body.find(mark, at + len(mark))
    return found


def check(order: Order, made: Iterable[Answer]) -> dict[str, Any]:
    """
    Compare every answer with what it must be.

    Raises:
        ValueError: One is not.
    """
    expected = answers.EXPECTED[order.dialect](order.events)
    statuses: dict[int, int] = {}
    came: dict[str, list[float]] = {}
    first: list[float] = []
    took: list[float] = []
    refused: list[float] = []
    pings = aborted = 0
    for answer in made:
        if answer.aborted:
            aborted += 1
            continue
        try:
            status, body, where = body_of(answer)
        except ValueError as error:
            raise ValueError(f"answer {answer.number} is torn ({error})") from None
        statuses[status] = statuses.get(status, 0) + 1
        if status != 200 and order.any_status:
            refused.append((answer.ended - answer.sent) * 1000)
            continue
        whole = body
        if order.dialect == "sse" and answers.PING in body:
            pings += body.count(answers.PING)
            whole = body.replace(answers.PING, b"")
        if status != 200 or whole != expected:
            raise ValueError(
                f"answer {answer.number} is {status}, {len(body)} bytes: {body[:300]!r}"
            )
        first.append((answer.first - answer.sent) * 1000)
        took.append((answer.ended - answer.sent) * 1000)
        if order.record:
            came[answer.number] = arrivals(answer, body, where, answers.ENDS[order.dialect])
    return {
        "requests": sum(statuses.values()) + aborted,
        "aborted": aborted,
        "statuses": statuses,
        "pings": pings,
        "first_ms": first,
        "took_ms": took,
        "refused_ms": refused,
        "came": came,
    }


async def run(order: Order) -> dict[str, Any]:
    """
    Do what *order* says and check what came.

    Raises:
        ValueError: An answer is wrong.
        OSError: There is no connection to be had.
    """
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(64)

    async def connect(place: int) -> Client:
        async with gate:
            _, client = await loop.create_connection(
                lambda: Client(order, place, loop), "127.0.0.1", order.port
            )
        client.prepare()
        return client

    clients = await asyncio.gather(*(connect(place) for place in range(order.streams)))
    cpu, wall = time.process_time() + sum(map(cpu_of, order.watch)), time.monotonic()
    for place, client in enumerate(clients):
        if order.ramp:
            loop.call_later(order.ramp * place / order.streams, client.begin)
        else:
            client.begin()
    await asyncio.gather(*(client.done for client in clients))
    spent = time.process_time() + sum(map(cpu_of, order.watch)) - cpu
    wall = time.monotonic() - wall
    made = [answer for client in clients for answer in client.answers]
    if not order.seconds and not order.abort and len(made) != order.streams * order.repeat:
        raise ValueError(f"{len(made)} requests were sent: connections ended early")
    return {**check(order, made), "wall": wall, "load_cpu": spent}


def request_bytes(order: Order, number: str, token: str | None) -> bytes:
    path, body, headers = answers.request(order.dialect, number)
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{order.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
        *([] if token is None else [f"Authorization: Bearer {token}"]),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def main() -> None:
    import uvloop

    for line in sys.stdin:
        said = json.loads(line)
        order = Order(**{**said, "tokens": tuple(said["tokens"]), "watch": tuple(said["watch"])})
        try:
            result = uvloop.run(run(order))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


def line_of(order: Order) -> str:
    """*order* as :func:`main` reads it."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
