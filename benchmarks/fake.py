"""
A Bedrock that costs next to nothing: answers made beforehand, written to the socket.

It reads as much of HTTP as Bedrock's clients send and no more. ``python -m benchmarks.fake``
prints its port and serves until its standard input ends; ``POST /_fake`` says how it answers:

    {"events": 200, "size": 0, "pace": 0.02, "delay": 0, "record": false}

``size`` is the length of each event's text in InvokeModelWithResponseStream; 0 means a word.
``pace`` is the time between two events of a stream in seconds; 0 writes a stream in one go.
With ``record``, ``GET /_fake`` tells when each event of each numbered request was sent.
"""

import asyncio
import json
import os
import re
import sys
import time
from typing import Any, cast

from benchmarks import answers

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb"<([0-9a-z-]+)>")
_TEMPLATE = (
    "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2035 00:00:00 GMT\r\nContent-Type: {}\r\n"
    "x-amzn-RequestId: 01234567-89ab-cdef-0123-456789abcdef\r\nConnection: keep-alive\r\n{}\r\n\r\n"
)
END = b"0\r\n\r\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Bedrock:
    """How it answers, and what it sent."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = 0
        self.sent: dict[str, list[float]] = {}
        self.set({})

    def set(self, said: dict[str, Any]) -> None:
        events = int(said.get("events", 200))
        self.pace = float(said.get("pace", 0.0))
        self.delay = float(said.get("delay", 0.0))
        self.record = bool(said.get("record", False))
        self.sent.clear()
        head = _TEMPLATE.format(answers.EVENT_STREAM, "Transfer-Encoding: chunked").encode()
        self.streams: dict[bytes, list[bytes]] = {}
        for operation, frames in (
            (
                b"invoke-with-response-stream",
                answers.invoke_stream(events, int(said.get("size", 0))),
            ),
            (b"converse-stream", answers.converse_stream(events)),
        ):
            pieces = [_chunked(frame) for frame in frames]
            pieces[0] = head + pieces[0]
            pieces[-1] += END
            self.streams[operation] = pieces if self.pace else [b"".join(pieces)]
        self.plain: dict[bytes, bytes] = {}
        for operation, body in (
            (b"invoke", answers.plain()),
            (b"converse", answers.converse_plain()),
        ):
            counts = (
                "\r\nX-Amzn-Bedrock-Input-Token-Count: 25\r\nX-Amzn-Bedrock-Output-Token-Count: 180"
            )
            announced = f"Content-Length: {len(body)}{counts if operation == b'invoke' else ''}"
            self.plain[operation] = _TEMPLATE.format("application/json", announced).encode() + body

    def control(self, body: bytes) -> bytes:
        if body:
            self.set(json.loads(body))
        said = json.dumps({"calls": self.calls, "open": self.open, "sent": self.sent}).encode()
        return _TEMPLATE.format("application/json", f"Content-Length: {len(said)}").encode() + said


class Connection(asyncio.Protocol):
    """One client; a request at a time."""

    def __init__(self, bedrock: Bedrock, loop: asyncio.AbstractEventLoop) -> None:
        self.bedrock = bedrock
        self.loop = loop
        self.pending = b""
        self.busy = False
        self.paused = False
        self.pieces: list[bytes] = []
        self.timer: asyncio.TimerHandle | None = None
        self.sent: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.bedrock.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.bedrock.open -= 1
        if self.timer is not None:
            self.timer.cancel()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def data_received(self, data: bytes) -> None:
        self.pending = self.pending + data if self.pending else data
        if not self.busy:
            self.take()

    def take(self) -> None:
        end = self.pending.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self.pending, 0, end)
        length = int(found[1]) if found else 0
        if len(self.pending) < end + 4 + length:
            return
        body = self.pending[end + 4 : end + 4 + length]
        path = self.pending[: self.pending.find(b"\r\n")].split(b" ")[1]
        self.pending = self.pending[end + 4 + length :]
        if path == b"/_fake":
            self.transport.write(self.bedrock.control(body))
            return
        self.bedrock.calls += 1
        self.busy = True
        if self.bedrock.delay:
            self.timer = self.loop.call_later(self.bedrock.delay, self.answer, path, body)
        else:
            self.answer(path, body)

    def answer(self, path: bytes, body: bytes) -> None:
        operation = path.rpartition(b"/")[2]
        whole = self.bedrock.plain.get(operation)
        if whole is not None:
            self.transport.write(whole)
            self.done()
            return
        if self.bedrock.record:
            number = _NUMBER.search(body)
            self.sent = self.bedrock.sent.setdefault(number[1].decode() if number else "", [])
        self.pieces = self.bedrock.streams[operation]
        if not self.bedrock.pace:
            if self.bedrock.record:
                self.sent.append(time.monotonic())
            self.transport.write(self.pieces[0])
            self.done()
            return
        self.due = self.loop.time()
        self.pace = self.bedrock.pace
        self.record = self.bedrock.record
        self.at = 0
        self.say()

    def say(self) -> None:
        # A client that does not read stops its own stream, as Bedrock's would stop.
        if not self.paused:
            if self.record:
                self.sent.append(time.monotonic())
            self.transport.write(self.pieces[self.at])
            self.at += 1
            if self.at == len(self.pieces):
                self.done()
                return
        # By the clock of the stream's beginning: a late event does not delay those after it.
        self.due += self.pace
        self.timer = self.loop.call_at(self.due, self.say)

    def done(self) -> None:
        self.busy = False
        if self.pending:
            self.take()


async def serve() -> None:
    loop = asyncio.get_running_loop()
    bedrock = Bedrock()
    server = await loop.create_server(
        lambda: Connection(bedrock, loop), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = loop.create_future()
    loop.add_reader(0, lambda: os.read(0, 4096) or ended.done() or ended.set_result(None))
    await ended


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve())
    sys.exit(0)
