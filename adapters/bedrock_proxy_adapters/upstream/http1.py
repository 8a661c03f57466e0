"""
HTTP/1.1 to one origin, on an event loop: connections that are kept, and replies as they come.

One read from the socket is parsed by httptools (llhttp) into whatever it holds of a reply;
whoever waits for that reply is woken once. No task, queue or timer belongs to a piece of a
body: a reply has one future while somebody waits, and one timer that is moved along.

Sources: RFC 9112 (framing, persistence), RFC 9110, section 15.2 (interim responses).
"""

import asyncio
import os
import ssl
from collections import deque
from contextlib import suppress
from typing import Final, cast

import httptools

from bedrock_proxy.memo import Memo
from bedrock_proxy.ports import Loggable, Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy_adapters.causes import cause_of
from bedrock_proxy_adapters.upstream.replies import Reply

READ_SIZE: Final = 32 * 1024
"""Bytes that one read from the socket may bring."""

BUFFER_LIMIT: Final = 64 * 1024
"""
Bytes of one reply that may wait for their reader. As many may be on their way to the client,
and the whole is to be 256 KiB at most (RELIABILITY.md, S14).
"""

IDLE_SECONDS: Final = 60.0
"""
How long a connection may wait for its next request. Bedrock's own front lets go of an idle
one later; a shorter wait on our side means that a request seldom meets a closing door.
"""

LET_GO_WITHIN: Final = 0.5
"""
Seconds after a request was sent within which the loss of its kept connection means that the
server had let go of it before: word of that is a round trip away, half a second from anywhere.
Whoever hangs up later had the request and was at work on it, and a second one would be a second
call.
"""

_MAX_HEAD: Final = 64 * 1024
"""Bytes of names and values that a reply's head may have."""

_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})


_NAMES: Final = Memo[bytes, str](lambda field: field.decode("latin-1").lower())


class Connection(asyncio.BufferedProtocol):
    """
    One connection of a :class:`Pool`. It carries one reply at a time.

    Args:
        pool: Where it goes when it is free.
        buffer: What the socket is read into. Loops that fill it and hand it over in one step
            let all their connections share one.

    Attributes:
        paused: Whether nothing is read until there is room.
        idle_since: When it was last used, in the loop's time.
    """

    def __init__(self, pool: "Pool", buffer: memoryview) -> None:
        self._pool = pool
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._interim = False
        self._whole = True
        self._kept = False
        self._heard = False
        self._excess = False
        self._lasts = False
        self._sent_at = 0.0
        self.paused = False
        self.idle_since = 0.0

    # --- the pool's and the reply's side

    def send(self, reply: Reply, request: bytes, body: bytes) -> None:
        """Send a request; its answer goes to *reply*."""
        assert self._transport is not None
        self._reply = reply
        reply.carrier = self
        self._whole = False
        self._heard = False
        self._sent_at = self._pool.time()
        self._transport.writelines((request, body))

    def go_on(self) -> None:
        """There is room for more of the reply."""
        if self._transport is not None:
            self.paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Let go of the socket at once."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    # --- the event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(self._buffer[:nbytes])
        except httptools.HttpParserError as error:
            if self._reply is None or not self._whole:
                self._fail(Trouble.BROKEN, f"the reply is not HTTP: {type(error).__name__}")
                return
            self._excess = True  # what follows a whole reply spoils the connection, not the reply
        reply = self._reply
        if reply is None:
            self.abort()  # nobody asked for this
        elif self._whole:
            self._finished(reply)
        elif reply.begun:
            reply.wake()
            if reply.size > BUFFER_LIMIT - READ_SIZE and not self.paused:
                transport = self._transport
                if transport is not None:
                    self.paused = True
                    transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None  # which knows us
        self._pool.lost(self)
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if exc is None and reply.begun and not self._framed():
            reply.end()  # RFC 9112, section 6.3: such a body ends with its connection
            return
        if self._kept and not self._heard and self._pool.time() - self._sent_at <= LET_GO_WITHIN:
            # The server let go of it just as the request set out, as it may at any time
            # (RFC 9112, section 9.3.1).
            again, reply.again = reply.again, None
            if again is not None:
                reply.carrier = None
                again()
                return
        kind = "the connection ended" if exc is None else type(exc).__name__
        where = "within its body" if reply.begun else "before its head"
        reply.end((Trouble.BROKEN, f"{kind} {where}"))

    # --- the parser's side (httptools calls these by their names)

    def on_message_begin(self) -> None:
        self._excess = self._excess or self._whole
        self._fields = []
        self._head_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > _MAX_HEAD:
            raise ValueError("the head is too long")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._interim = status < 200
        if not self._interim and not self._excess and self._reply is not None:
            headers = tuple(
                [(_NAMES[name], value.decode("latin-1")) for name, value in self._fields]
            )
            self._reply.headed(UpstreamHead(status, headers))

    def on_body(self, body: bytes) -> None:
        if self._reply is not None and not self._excess:
            self._reply.push(body)

    def on_message_complete(self) -> None:
        if not self._interim:
            self._whole = True
            # Asked here: the parser forgets with the next step what the head said of it.
            assert self._parser is not None
            self._lasts = self._parser.should_keep_alive()

    # --- endings

    def _framed(self) -> bool:
        """Whether the reply's head says where its body ends."""
        return any(_NAMES[name] in _FRAMING for name, _ in self._fields)

    def _finished(self, reply: Reply) -> None:
        self._reply = None
        transport = self._transport
        if self.paused and transport is not None:
            self.paused = False
            transport.resume_reading()
        if transport is not None and self._lasts and not self._excess:
            self._kept = True
            self._pool.free(self)
        else:
            self.abort()
        reply.end()

    def _fail(self, kind: Trouble, detail: str) -> None:
        reply, self._reply = self._reply, None
        self.abort()
        if reply is not None:
            reply.end((kind, detail))


class Pool:
    """
    The connections of one event loop to one origin.

    Args:
        loop: The event loop.
        host: Name or address, without brackets.
        port: Its port.
        tls: How to speak TLS; None for plain HTTP.
        connect_timeout: Seconds to a connection, TLS included.

    Attributes:
        time: The loop's clock, in seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        connect_timeout: float,
    ) -> None:
        self._loop = loop
        self.time = loop.time
        self._host = host
        self._port = port
        self._place = f"{host}:{port}"
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._shared = memoryview(bytearray(READ_SIZE))

    def take(self) -> Connection | None:
        """A connection that is open and free, the one that was used last; None if none is."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self) -> Connection:
        """
        A new connection.

        Raises:
            UpstreamUnreachable: ``unreachable``.
        """
        # A proactor reads into the buffer while others are at work.
        own = os.name == "nt"
        made = Connection(self, memoryview(bytearray(READ_SIZE)) if own else self._shared)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._loop.create_connection(
                    lambda: made,
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
        except TimeoutError:
            made.abort()
            raise UpstreamUnreachable(
                Trouble.UNREACHABLE,
                Loggable(f"no connection to {self._place} within {self._connect_timeout:g} s"),
            ) from None
        except (OSError, ssl.SSLError) as error:
            made.abort()
            raise UpstreamUnreachable(
                Trouble.UNREACHABLE, Loggable(f"{cause_of(error)}, at {self._place}")
            ) from None
        except BaseException:
            made.abort()
            raise
        self._open.add(made)
        return made

    def free(self, connection: Connection) -> None:
        """*connection* may carry another request."""
        if self._closed:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(IDLE_SECONDS, self._sweep)

    def lost(self, connection: Connection) -> None:
        """*connection* is closed."""
        self._open.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def close(self) -> None:
        """Close every connection. On the loop's own thread."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.abort()

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= IDLE_SECONDS:
            self._idle.popleft().abort()
        if self._idle:
            left = self._idle[0].idle_since + IDLE_SECONDS - now
            self._sweeper = self._loop.call_later(left, self._sweep)
