"""
An HTTP/1.1 server on 127.0.0.1 that does exactly what a test tells it, byte by byte, and
the ways to Bedrock behind one synchronous interface.
"""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from attrs import define, field, frozen

from bedrock_proxy.ports import END, SILENCE, UpstreamCall, UpstreamHead, UpstreamUnreachable

SOON = 20.0
"""Seconds that nothing in these tests ever needs: a bound against hanging."""


@frozen
class Received:
    """One request as it was on the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Wire:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.alive = True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(self, status: int = 200, *headers: tuple[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers)]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def answer(self, body: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        self.head(status, ("Content-Length", str(len(body))), *headers)
        self.send(body)

    def begin_stream(self, *headers: tuple[str, str]) -> None:
        self.head(
            200,
            ("Content-Type", "application/vnd.amazon.eventstream"),
            ("Transfer-Encoding", "chunked"),
            *headers,
        )

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    def stream(self, chunks: Iterable[bytes]) -> None:
        self.begin_stream()
        for chunk in chunks:
            self.chunk(chunk)
        self.end_stream()

    def hang_up(self) -> None:
        self.alive = False
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        self.alive = False
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def wait_for_hang_up(self) -> bool:
        """Whether the client closed its end."""
        self.sock.settimeout(SOON)
        with suppress(TimeoutError):
            try:
                return self.sock.recv(1) == b""
            except ConnectionError:
                return True
        return False


Script = Callable[[Wire, Received], None]


class Server:
    """Runs ``script`` for every request; ``received`` keeps them."""

    def __init__(self, wrap: Callable[[socket.socket], socket.socket] | None = None) -> None:
        self.script: Script = lambda wire, _: wire.answer(b"{}")
        self.received: list[Received] = []
        self.connections = 0
        self._wrap = wrap
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'https' if wrap else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, name="scripted-accept", daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(
                target=self._serve,
                args=(sock, self.connections),
                name="scripted-connection",
                daemon=True,
            ).start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        self._open.add(sock)
        plain = sock
        try:
            if self._wrap is not None:
                sock = self._wrap(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(sock)
            with sock.makefile("rb") as file:
                while wire.alive and (line := file.readline()):
                    method, target, _ = line.decode("latin-1").split(" ", 2)
                    headers: dict[str, str] = {}
                    while (line := file.readline()) not in {b"\r\n", b""}:
                        name, _, value = line.decode("latin-1").partition(":")
                        assert name.lower() not in headers, f"{name} was sent twice"
                        headers[name.lower()] = value.strip()
                    body = file.read(int(headers.get("content-length", "0")))
                    request = Received(method, target, headers, body, connection)
                    self.received.append(request)
                    self.script(wire, request)
        except OSError:
            pass
        finally:
            self._open.discard(plain)
            sock.close()
            plain.close()


class Reply:
    """A reply of any way, read synchronously."""

    def __init__(self, reply, run) -> None:
        self.reply = reply
        self._run = run

    @property
    def size(self) -> int:
        """Bytes that wait for the reader."""
        return getattr(self.reply, "_pipe", self.reply).size

    def begin(self, within: float = SOON):
        return self._run(lambda: self.reply.begin(within))

    def read(self, within: float = SOON):
        return self._run(lambda: self.reply.read(within))

    def close(self) -> None:
        self.reply.close()

    def head(self) -> UpstreamHead:
        head = self.begin()
        assert isinstance(head, UpstreamHead)
        return head

    def rest(self) -> bytes:
        """Everything up to the end."""
        got = []
        while (data := self.read()) is not END:
            assert data is not SILENCE, "nothing came for long"
            assert data, "an empty read"
            got.append(data)
        return b"".join(got)

    def whole(self) -> tuple[UpstreamHead, bytes]:
        return self.head(), self.rest()

    def read_until_failure(self) -> tuple[bytes, UpstreamUnreachable]:
        """What came before the failure, and the failure."""
        got = []
        try:
            while (data := self.read()) is not END:
                assert data is not SILENCE, "nothing came for long"
                got.append(data)
        except UpstreamUnreachable as failure:
            return b"".join(got), failure
        raise AssertionError("the body ended as if it were whole")


async def answered(ask: Callable[[], object]):
    """What a native port answers: at once, or when it is there."""
    answer = ask()
    return await answer if hasattr(answer, "__await__") else answer


@define
class Face:
    """
    Opens calls on an upstream.

    Attributes:
        kind: ``blocking`` and ``native`` are the faces of the boto3 upstream, ``loops`` is the
            upstream without threads.
    """

    kind: str
    loop: asyncio.AbstractEventLoop | None = None
    opened: list[Reply] = field(factory=list)

    def run(self, ask: Callable[[], object]):
        if self.loop is None:
            return ask()
        return asyncio.run_coroutine_threadsafe(answered(ask), self.loop).result(2 * SOON)

    def open(self, upstream, call: UpstreamCall) -> Reply:
        port = upstream.native() if self.kind == "native" else upstream
        kind = "blocking" if self.kind == "blocking" else "native"
        assert port.kind == kind
        reply = Reply(self.run(lambda: port.open(call)), self.run)
        assert reply.reply.kind == kind
        self.opened.append(reply)
        return reply


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true soon."""
    deadline = time.monotonic() + SOON
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def pumps() -> list[threading.Thread]:
    """The pump threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "bedrock-pump"]
