"""
A small HTTP/1.1 server for the simulated Bedrock.

A server of its own, because faults need the connection: a reset, a body that stops inside a
frame, a chunked body that is never ended. It speaks what AWS clients speak: persistent
connections, bodies by length or in chunks, ``Expect: 100-continue``.
"""

import asyncio
import contextlib
import socket
import struct
from email.utils import formatdate
from typing import Final, cast

from bedrock_proxy_adapters.simulator.bedrock import Bedrock, play
from bedrock_proxy_adapters.simulator.calls import Call
from bedrock_proxy_adapters.simulator.replies import Headers
from bedrock_proxy_adapters.simulator.scripts import Hangup

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    424: "Failed Dependency",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_SENDS_IN_A_ROW: Final = 32
"""After so many sends the others have a turn, and a caller that left is noticed."""
_RESET: Final = struct.pack("ii", 1, 0)


class BadRequest(ValueError):
    """Bytes that are not an HTTP request."""


class Connection(asyncio.Protocol):
    """One client connection: requests in, replies played, one after the other."""

    def __init__(self, bedrock: Bedrock, connections: "set[Connection]") -> None:
        self._bedrock = bedrock
        self._connections = connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._call: Call | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._chunked = False
        self._keep = True
        self._continued = False
        self._sends = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it
        """The caller left, or we did: stop playing."""
        self._connections.discard(self)
        self._transport = None
        if self._call is not None:
            self._call.over(aborted=True)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The reader is behind."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The reader caught up."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Collect a request; answer it once it is whole."""
        self._buffer += data
        self._next()

    def close(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        if self._task is not None or self._transport is None:
            return
        try:
            request = self._take()
        except BadRequest:
            self._transport.write(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            self._transport.close()
            return
        if request is None:
            return
        method, path, headers, body = request
        answer, request_id, self._call = self._bedrock.receive(method, path, headers, body)
        self._keep = dict(headers).get("connection", "").lower() != "close"
        self._task = asyncio.get_running_loop().create_task(
            play(answer, request_id, self._call, self)
        )
        self._task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._task = self._call = None
        if task.cancelled() or self._transport is None:
            return
        failure = task.exception()
        if failure is not None:
            self._transport.abort()
            raise failure
        if not self._keep:
            self._transport.close()
        else:
            self._next()

    def _take(self) -> tuple[str, str, Headers, bytes] | None:
        """The next whole request, taken out of the buffer; None while it is not whole."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise BadRequest("the head is too long")
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest("no request line")
        headers = tuple(
            (name.strip().lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines[1:])
        )
        named = dict(headers)
        if named.get("expect", "").lower() == "100-continue" and not self._continued:
            self._continued = True
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        start = end + 4
        if named.get("transfer-encoding", "").lower() == "chunked":
            found = self._take_chunks(start)
        else:
            length = named.get("content-length", "0")
            if not (length.isascii() and length.isdigit() and int(length) <= _MAX_BODY_BYTES):
                raise BadRequest("no length")
            stop = start + int(length)
            found = None if len(self._buffer) < stop else (bytes(self._buffer[start:stop]), stop)
        if found is None:
            return None
        body, stop = found
        del self._buffer[:stop]
        self._continued = False
        return words[0], words[1].partition("?")[0], headers, body

    def _take_chunks(self, at: int) -> tuple[bytes, int] | None:
        body = bytearray()
        while (line := self._buffer.find(b"\r\n", at)) >= 0:
            try:
                size = int(self._buffer[at:line].split(b";")[0], 16)
            except ValueError:
                raise BadRequest("no chunk size") from None
            at = line + 2
            if size < 0 or len(body) + size > _MAX_BODY_BYTES:
                raise BadRequest("the body is too long")
            if len(self._buffer) < at + size + 2:
                return None
            body += self._buffer[at : at + size]
            at += size + 2
            if size == 0:
                return bytes(body), at
        return None

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        """Send status and headers."""
        self._chunked = length is None
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        close = "" if self._keep else "Connection: close\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        date = formatdate(usegmt=True)
        self._write(
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}\r\n"
            f"Date: {date}\r\n{framing}\r\n{close}{lines}\r\n".encode("latin-1")
        )

    async def send(self, data: bytes) -> None:
        """
        Send a part of the body, as one HTTP chunk where it goes in chunks. Once the
        connection is closing this never returns: the loss cancels us.
        """
        if self._transport is None or self._transport.is_closing():
            await asyncio.Event().wait()
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self._sends += 1
        if self._sends % _SENDS_IN_A_ROW == 0:
            await asyncio.sleep(0)
        if not self._writable.is_set():
            await self._writable.wait()

    async def end(self) -> None:
        """Send the last chunk."""
        if self._chunked:
            self._write(b"0\r\n\r\n")

    async def cut(self, how: Hangup) -> None:
        """Close the connection, what was written before it goes first; or reset it."""
        transport = self._transport
        if transport is None:
            return
        if how == "fin":
            transport.close()
            return
        transport.set_write_buffer_limits(high=0)
        await self._writable.wait()
        raw = cast("socket.socket", transport.get_extra_info("socket"))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Listener:
    """
    A listening simulator, on the running event loop.

    Attributes:
        url: Where it listens: ``http://host:port``.
    """

    def __init__(self, server: asyncio.Server, connections: set[Connection]) -> None:
        self._server = server
        self._connections = connections
        host, port = server.sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), 5)


async def listen(bedrock: Bedrock, host: str = "127.0.0.1", port: int = 0) -> Listener:
    """
    Serve *bedrock* on the running event loop.

    Args:
        bedrock: What answers.
        host: Where to listen: loopback, unless you mean otherwise.
        port: 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bedrock, connections), host, port)
    return Listener(server, connections)
