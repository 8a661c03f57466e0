"""
One connection in HTTP/1.1 on uvicorn, and what its parser leaves open. ``serve`` has it; a uvicorn of
one's own takes it as ``--http bedrock_proxy_adapters.hosts.http11:Http11Protocol``.

*Requests that ask to go on in another protocol.* A server may ignore ``Upgrade`` (RFC 9110, section
7.8), and clients that would speak HTTP/2 over plain TCP count on it: Java's ``HttpClient`` asks
with the first request of every connection. httptools, though, takes whatever follows the head of
such a request for that other protocol, and what comes later for a new request: its body would be
lost, or be a request itself. So where the parser stops, a new one is given the same head without
its wish, and then what follows. What follows a ``CONNECT`` is nobody's, and is not read.

*Heads, trailers and chunk extensions without an end.* httptools keeps what it cannot hand over
yet, however much that is, and copies it with every piece that comes: some hundred megabytes
of one header, from anybody, and nobody else is served for seconds.

*Trailers.* uvicorn adds their fields to the headers of a request that has not been looked at yet.
They are none (RFC 9110, section 6.5.1): whoever stands in front of us judges headers alone.
"""

from contextlib import suppress
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bedrock_proxy import front
from bedrock_proxy.dialects.simple import SIMPLE
from bedrock_proxy_adapters.proxy import new_request_id

MAX_FRUITLESS: Final = 64 * 1024
"""
Bytes that may come without ending a head or belonging to a body. A head that has an end is
judged by :func:`~bedrock_proxy.front.check_head`, whose bounds are below this.
"""


class Http11Protocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, which stays in HTTP/1.1 and within bounds."""

    _fruitless = 0
    _at_end = False

    def data_received(self, data: bytes) -> None:
        """The socket has brought *data*."""
        if self._at_end:
            return
        self._unset_keepalive_if_required()
        self._fruitless += len(data)
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                self._go_on(memoryview(data)[stopped.args[0] :])
        except httptools.HttpParserError:
            self._malformed()
            return
        if self._fruitless > MAX_FRUITLESS and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """The parser has the whole of a head."""
        super().on_headers_complete()
        self._fruitless = 0
        self.headers = []  # what comes from now on is a trailer

    def on_body(self, body: bytes) -> None:
        """The parser has a piece of a body."""
        self._fruitless = 0
        super().on_body(body)

    def _should_upgrade(self) -> bool:
        # Asked where the parser stops behind a head. Yes keeps uvicorn from taking that for a
        # whole request; the application refuses a CONNECT.
        return self.scope["method"] != "CONNECT"

    def _go_on(self, rest: memoryview) -> None:
        """The parser has stopped behind a head, before *rest*."""
        while True:
            if self.scope["method"] == "CONNECT":
                self._end_with_this()
                return
            self.parser = httptools.HttpRequestParser(self)
            with suppress(AttributeError):  # httptools < 0.6.3; uvicorn has it so, too
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            # Nothing but the field that is left out makes it stop.
            self.parser.feed_data(self._without_upgrade())
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as stopped:
                rest = rest[stopped.args[0] :]
            else:
                return

    def _without_upgrade(self) -> bytes:
        """The head that the parser has just read, without its wish to upgrade."""
        scope = self.scope
        method, version = scope["method"].encode(), scope["http_version"].encode()
        fields = [b"%b: %b\r\n" % field for field in scope["headers"] if field[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(fields))

    def _malformed(self) -> None:
        """What has come cannot be understood. No log tells of it: anybody may send it."""
        cycle = self.cycle
        answered = not cycle or cycle.response_complete
        if answered or (cycle.more_body and not cycle.response_started and not self.pipeline):
            self.send_400_response("Invalid HTTP request received.")
        else:
            # Behind a request: what we said would be taken for its answer, or for a part of it.
            self._end_with_this()

    def _end_with_this(self) -> None:
        """Answer what has been asked, and read no more."""
        self._at_end = True
        self.cycle.keep_alive = False

    def _refuse(self) -> None:
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            # In the middle of a request, or behind one: whatever we said would be taken for its answer.
            self.transport.abort()
            return
        error = front.url_too_long() if len(self.url) > front.MAX_URI else front.headers_too_large()
        request_id = new_request_id()
        reply = SIMPLE.refusal(error, request_id)
        own = (("content-length", str(len(reply.body))), ("x-request-id", request_id))
        fields = (*reply.headers, *own, *error.headers)
        said = "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")
        self.transport.write(STATUS_LINE[error.status] + said + b"\r\n" + reply.body)
        self.transport.close()
