"""
RELIABILITY.md section 4 on real sockets: uvicorn with both parsers, gunicorn with threads.

Where the server itself rejects a request first, that passes: its answer is not our object.
"""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from attrs import evolve, frozen
from tests.faults.malformed import BODIES, CREDENTIALS, FRAMING, ROUTING, ROWS, VALID, Row
from tests.flows import TOKEN
from tests.hosts.malformed_app import make_proxy

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy_adapters.hosts import asgi, asgi_requests, wsgi
from bedrock_proxy_adapters.hosts.http11 import MAX_FRUITLESS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds after which a server that says nothing hangs."""

LIMIT = 20 * 1024 * 1024
BOUNDED = "bedrock_proxy_adapters.hosts.http11:Http11Protocol"
"""As it is given to a uvicorn of one's own, and as ``serve`` has it."""
GOOD = Row("valid", 200)


@frozen
class Server:
    name: str
    port: int
    calls: Callable[[], int]


@contextlib.contextmanager
def _uvicorn(parser: Any) -> Iterator[Server]:
    proxy, upstream = make_proxy()
    config = uvicorn.Config(
        asgi.asgi_app(proxy),
        host="127.0.0.1",
        port=0,
        http=BOUNDED if parser == "serve" else parser,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < until, "uvicorn did not start"
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Server(parser, port, lambda: len(upstream.calls))
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@contextlib.contextmanager
def _gunicorn() -> Iterator[Server]:
    command = [sys.executable, "-m", "gunicorn", "tests.hosts.malformed_app:application",
               "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "8",
               "--graceful-timeout", "1"]  # fmt: skip
    path = [str(ROOT / folder) for folder in ("src", "adapters", ".")]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={"PYTHONPATH": ":".join(path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    port = 0
    for line in process.stderr:
        lines.append(line)
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line)
        port = int(found[1]) if found else port
        if "Booting worker" in line:
            break
    assert port, "".join(lines)
    # Nobody else reads what it writes: a full pipe would stop it.
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()

    def calls() -> int:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as wire:
            wire.sendall(b"GET /test-calls HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            reply = receive(wire)
            assert reply is not None
            return int(reply.body)

    try:
        yield Server("gunicorn", port, calls)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(PATIENCE)
        process.stderr.close()


@pytest.fixture(scope="module", params=["h11", "httptools", "serve", "gunicorn"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with _gunicorn() if request.param == "gunicorn" else _uvicorn(request.param) as running:
        yield running


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes
    """What came behind it."""

    @property
    def ours(self) -> dict[str, Any] | None:
        """The error object, if the answer is of our making."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value if isinstance(value, dict) and "request_id" in value else None


def receive(wire: socket.socket, had: bytes = b"") -> Answer | None:
    """The next answer; None where the connection is closed instead."""
    wire.settimeout(PATIENCE)

    def more() -> bool:
        nonlocal had
        try:
            piece = wire.recv(65536)
        except ConnectionResetError:
            piece = b""
        had += piece
        return bool(piece)

    while b"\r\n\r\n" not in had:
        if not more():
            assert not had, f"half an answer: {had!r}"
            return None
    head, _, had = had.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
    if "content-length" in headers:
        length = int(headers["content-length"])
        while len(had) < length:
            assert more(), "half a body"
        body, had = had[:length], had[length:]
    elif headers.get("transfer-encoding") == "chunked":
        while b"0\r\n\r\n" not in had:
            assert more(), "half a chunked body"
        body, _, had = had.partition(b"0\r\n\r\n")
    else:
        while more():
            pass
        body, had = had, b""
    return Answer(int(status.split(" ")[1]), headers, body, had)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def send(wire: socket.socket, data: bytes) -> None:
    """All of it, unless the server closes before: then what it said is still to be read."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wire.sendall(data)


def closed(wire: socket.socket, answer: Answer) -> bool:
    """Whether the server ends the connection, and says nothing more before."""
    wire.settimeout(PATIENCE)
    try:
        return answer.rest == b"" and wire.recv(65536) == b""
    except ConnectionResetError:
        return True


FOLDED = {"M40 two authorizations", "M40 the same twice", "M41 differing keys"}
"""WSGI servers fold repeated fields into one: the two tokens are then one that is no token."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_malformed_request_is_refused_by_a_real_server(server: Server, row: Row) -> None:
    calls = server.calls()
    with connect(server) as wire:
        send(wire, row.wire)
        answer = receive(wire)
        assert answer is not None, "closed without a word"
        assert 400 <= answer.status < 500
        assert not [name for name in answer.headers if name.startswith("access-control")]
        if row.is_native and "x-amzn-errortype" in answer.headers:
            assert (answer.status, list(json.loads(answer.body))) == (row.status, ["message"])
        error = answer.ours
        if error is not None:
            expected = (row.status, row.code)
            if server.name == "gunicorn" and row.id in FOLDED:
                expected = (401, "unauthorized")
            assert (answer.status, error["code"]) == expected
            assert answer.headers["x-request-id"] == error["request_id"]
            if server.name != "gunicorn":
                assert answer.headers["connection"] == "close"
        if answer.headers.get("connection", "").lower() == "close":
            assert closed(wire, answer)
    assert server.calls() == calls


def test_the_rows_the_servers_let_through_are_refused_by_us(server: Server) -> None:
    """RELIABILITY.md says which: should a server learn to check them, this says so."""
    rows = {"h11": ["M18 65 headers", "M19 long query"],
            "httptools": ["M14 no host", "M18 one large header", "M18 65 headers", "M19 long path"],
            "serve": ["M14 no host", "M18 one large header", "M18 65 headers", "M19 long path"],
            "gunicorn": ["M14 no host", "M18 65 headers"]}[server.name]  # fmt: skip
    for row in ROWS:
        if row.id in rows:
            with connect(server) as wire:
                send(wire, row.wire)
                answer = receive(wire)
                assert answer is not None
                assert answer.ours is not None, (row.id, answer)


def test_the_same_request_unspoilt_is_answered(server: Server) -> None:
    calls = server.calls()
    with connect(server) as wire:
        wire.sendall(GOOD.wire)
        answer = receive(wire)
    assert answer is not None
    assert (answer.status, server.calls()) == (200, calls + 1)


@pytest.mark.parametrize(
    "row", [row for row in CREDENTIALS if row.promise == "M43"], ids=lambda row: row.id
)
def test_M43_on_the_wire_too_tokens_cannot_be_told_apart(server: Server, row: Row) -> None:
    def told(row: Row) -> tuple[int, bytes, list[str]]:
        with connect(server) as wire:
            wire.sendall(row.wire)
            answer = receive(wire)
        assert answer is not None
        assert answer.ours is not None
        own = answer.ours["request_id"].encode()
        return answer.status, answer.body.replace(own, b"-"), sorted(answer.headers)

    assert told(row) == told(next(r for r in CREDENTIALS if r.id == "M43 unknown"))


def test_M14_HTTP_1_0_which_knows_no_host_is_served_without_one(server: Server) -> None:
    with connect(server) as wire:
        wire.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        answer = receive(wire)
        assert answer is not None
        assert (answer.status, answer.body) == (200, b'{"status": "ok"}\n')


@pytest.mark.parametrize(("version", "told"), [("1.1", True), ("1.0", True), ("2", False)])
def test_M84_only_HTTP_1_is_told_of_the_close_in_a_header(version: str, told: bool) -> None:
    """RFC 9113, section 8.2.2: such a field would make an HTTP/2 reply malformed."""
    proxy, _ = make_proxy()
    said: list[Any] = []

    arriving = [{"type": "http.request", "body": b"", "more_body": False}]

    async def take() -> dict[str, Any]:
        if not arriving:
            await asyncio.Event().wait()  # the client stays
        return arriving.pop()

    async def keep(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "http_version": version, "method": "POST", "path": "/bedrock",
             "headers": [(b"host", b"h")]}  # fmt: skip
    asyncio.run(asgi.asgi_app(proxy)(scope, take, keep))
    assert said[0]["status"] == 401
    assert ((b"connection", b"close") in said[0]["headers"]) is told


# --- time and size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["h11", "httptools"], indirect=True)  # WSGI: the server's own
def test_M20_a_trickled_body_is_a_408_and_the_connection_is_closed(server: Server) -> None:
    head = evolve(GOOD, framed=False, body=b"", headers=(("content-length", "1000"),)).wire
    with connect(server) as wire:
        wire.sendall(head + VALID[:5])
        wire.settimeout(0.1)
        # A byte now and then does not buy more time.
        for byte in VALID[5:]:
            try:
                wire.sendall(bytes([byte]))
                if wire.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        answer = receive(wire)
        assert answer is not None
        assert answer.ours is not None
        assert (answer.status, answer.ours["code"]) == (408, "timeout")
        assert closed(wire, answer)


def test_M26_a_body_declared_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    row = next(row for row in FRAMING if row.promise == "M26")
    with connect(server) as wire:
        wire.sendall(row.wire)  # and not one byte of the body
        answer = receive(wire)
    assert answer is not None
    assert answer.ours is not None
    assert (answer.status, answer.ours["code"]) == (413, "too_large")


def test_M27_a_chunked_body_without_end_is_a_413(server: Server) -> None:
    head = evolve(GOOD, framed=False, body=b"", headers=(("transfer-encoding", "chunked"),)).wire
    piece = b"%x\r\n%b\r\n" % (65536, b" " * 65536)
    calls = server.calls()
    with connect(server) as wire:
        wire.sendall(head)
        wire.settimeout(PATIENCE)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 4 * LIMIT:
                wire.sendall(piece)
                sent += 65536
                wire.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    wire.recv(1, socket.MSG_PEEK)
                    break
                wire.settimeout(PATIENCE)
        answer = receive(wire)
    assert sent < 4 * LIMIT
    assert answer is not None
    assert answer.ours is not None
    assert (answer.status, answer.ours["code"]) == (413, "too_large")
    assert server.calls() == calls


# --- what follows an error ----------------------------------------------------------------------------


def everything(wire: socket.socket) -> list[Answer]:
    """Every answer until the server closes."""
    answers: list[Answer] = []
    rest = b""
    while (answer := receive(wire, rest)) is not None:
        answers.append(answer)
        rest = answer.rest
    return answers


UNSURE = [row for row in FRAMING if row.promise in {"M01", "M02", "M04", "M26"}]
"""Where it is not plain, or not yet known, where the request ends."""
REFUSED = [*FRAMING, *CREDENTIALS[:8], *ROUTING[:8], *BODIES[:8]]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.id)
def test_M84_a_request_pipelined_behind_an_error_is_not_executed(server: Server, row: Row) -> None:
    calls = server.calls()
    with connect(server) as wire:
        send(wire, row.wire + GOOD.wire)
        if server.name == "gunicorn":
            wire.shutdown(socket.SHUT_WR)  # it would wait for the rest of a body
        first, *others = everything(wire)
    assert 400 <= first.status < 500
    if server.name == "gunicorn" and row not in UNSURE:
        # A WSGI application cannot close the connection (PEP 3333, "Other HTTP Features"):
        # what is served then is what the server itself took for a request of its own.
        assert [answer.status for answer in others] in ([], [200])
        assert server.calls() == calls + len(others)
    else:
        assert (others, server.calls()) == ([], calls)


def test_M84_a_request_pipelined_behind_an_answer_is_executed(server: Server) -> None:
    calls = server.calls()
    with connect(server) as wire:
        last = evolve(GOOD, headers=(("connection", "close"),))
        wire.sendall(GOOD.wire + last.wire)
        assert [answer.status for answer in everything(wire)] == [200, 200]
    assert server.calls() == calls + 2


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/usage"])
@pytest.mark.parametrize("framing", ["content-length: %d", "transfer-encoding: chunked"])
def test_M84_the_body_of_a_request_that_asks_to_upgrade_is_no_request(
    server: Server, path: str, framing: str
) -> None:
    """uvicorn's faster parser, on its own, would take it for one."""
    inner = b"GET /healthz HTTP/1.1\r\nhost: evil\r\n\r\n"
    head = f"GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\n"
    head += "connection: uPgRaDe\r\nUpGrade: h2c\r\n"
    head += f"{framing % len(inner) if '%' in framing else framing}\r\n\r\n"
    with connect(server) as wire:
        wire.sendall(head.encode())
        time.sleep(0.2)
        # Of a chunked body the size line, which is no request, is all that a parser refuses.
        send(wire, inner if "length" in framing else b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_WR)
        assert [answer.status for answer in everything(wire)] == [200]


# --- the bound on what is held --------------------------------------------------------------------------


class Endless:
    """A body without end, in pieces; counts what was taken."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0

    def _next(self) -> bytes:
        self.taken += self._size
        return bytes(self._size)

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": self._next(), "more_body": True}

    def read(self, size: int) -> bytes:
        return self._next()[:size]


async def _asgi(endless: Endless, limit: int) -> None:
    await asgi_requests.Body(endless.receive).receive(limit, 30.0)


async def _wsgi(endless: Endless, limit: int) -> None:
    environ = {"wsgi.input": endless, "wsgi.input_terminated": True}
    wsgi._Body(environ).receive(limit, 30.0)


@pytest.mark.parametrize("read", [_asgi, _wsgi], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("size", [1_000, 65_536])
def test_M27_no_more_than_the_limit_and_64_KiB_are_held(read: Any, size: int) -> None:
    limit = 2 * 1024 * 1024
    endless = Endless(size)

    async def peak() -> int:
        tracemalloc.start()
        try:
            with pytest.raises(ClientFault) as caught:
                await read(endless, limit)
            assert caught.value.code is Code.TOO_LARGE
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    held = asyncio.run(peak())
    assert endless.taken <= limit + 65_536
    # What a piece costs beside its bytes is not the body's.
    assert held <= limit + 65_536 + (limit // size + 1) * 64 + 32 * 1024


GET = b"GET /healthz HTTP/1.1\r\nhost: h\r\n"
CHUNKED = evolve(GOOD, framed=False, body=b"", headers=(("transfer-encoding", "chunked"),)).wire
CHUNK = b"%x\r\n%b\r\n" % (len(VALID), VALID)

ENDLESS = {
    "headers": (GET, b"x-a: b\r\n" * 1_000),
    "one header": (GET + b"x-a: ", b"b" * 10_000),
    "name": (GET, b"b" * 10_000),
    "url": (b"GET /", b"b" * 10_000),
    "trailers": (CHUNKED + CHUNK + b"0\r\n", b"x-a: b\r\n" * 1_000),
    "one trailer": (CHUNKED + CHUNK + b"0\r\nx-a: ", b"b" * 10_000),
    "chunk extension": (CHUNKED + b"5;", b"b" * 10_000),
}


@pytest.mark.parametrize("server", ["h11", "serve"], indirect=True)
@pytest.mark.parametrize("part", ENDLESS)
def test_M18_M19_a_part_of_a_request_without_an_end_is_not_read_on(
    server: Server, part: str
) -> None:
    begin, more = ENDLESS[part]
    calls = server.calls()
    most = 4 * 1024 * 1024  # the sockets of both sides take some of it
    with connect(server) as wire:
        sent = wire.send(begin)
        try:
            while sent < most:
                sent += wire.send(more)
        except OSError:
            pass
        assert sent < most, "it is still being read"
    assert server.calls() == calls


@pytest.mark.parametrize(("part", "status"), [("headers", 431), ("one header", 431), ("url", 414)])
def test_M18_M19_a_head_without_an_end_is_refused_in_our_words(part: str, status: int) -> None:
    begin, more = ENDLESS[part]
    with _uvicorn("serve") as server, connect(server) as wire:
        wire.sendall(begin)
        for _ in range(MAX_FRUITLESS // len(more) + 1):
            send(wire, more)
        answer = receive(wire)
        assert answer is not None
        assert answer.ours is not None
        assert (answer.status, answer.ours["code"]) == (status, "too_large")
        assert answer.headers["x-request-id"] == answer.ours["request_id"]
        assert answer.headers["connection"] == "close"
        assert closed(wire, answer)


@pytest.mark.parametrize("parts", [1, 2], ids=["at once", "in two"])
def test_M36_a_credential_among_the_trailers_is_none(parts: int) -> None:
    """RFC 9110, section 6.5.1: a trailer is no header, whenever it comes."""
    head = CHUNKED.replace(b"authorization", b"x-nothing")
    trailer = b"0\r\nauthorization: Bearer %b\r\n\r\n" % TOKEN.encode()
    assert head != CHUNKED
    with _uvicorn("serve") as server, connect(server) as wire:
        if parts == 1:
            wire.sendall(head + CHUNK + trailer)
        else:
            wire.sendall(head)
            time.sleep(0.1)
            send(wire, CHUNK + trailer)
        answer = receive(wire)
        assert answer is not None
        assert (answer.status, server.calls()) == (401, 0)


def test_many_requests_on_one_connection_are_not_taken_for_one_without_an_end() -> None:
    small = CHUNKED + CHUNK + b"0\r\nx-trailer: there\r\n\r\n"
    count = 2 * MAX_FRUITLESS // (len(small) - len(VALID))
    with _uvicorn("serve") as server, connect(server) as wire:
        rest = b""
        for _ in range(count):
            wire.sendall(small)
            answer = receive(wire, rest)
            assert answer is not None
            assert answer.status == 200
            rest = answer.rest


def test_M42_a_token_in_the_query_is_in_no_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in CREDENTIALS if row.promise == "M42")
    with caplog.at_level("DEBUG"):
        for parser in ("h11", "httptools", "serve"):
            with _uvicorn(parser) as server, connect(server) as wire:
                wire.sendall(row.wire)
                answer = receive(wire)
                assert answer is not None
                assert answer.status == 401
    out, err = capfd.readouterr()
    assert TOKEN not in caplog.text + out + err
