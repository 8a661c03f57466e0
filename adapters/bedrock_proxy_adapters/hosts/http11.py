"""
One connection in HTTP/1.1 on uvicorn, and what its parser leaves open. ``serve`` has it; a uvicorn of
one's own takes it as ``--http bedrock_proxy_adapters.hosts.http11:Http11Protocol``.

*Requests that ask to go on in another protocol.* A server may ignore ``Upgrade`` (RFC 9110, section
7.8), and clients that would speak HTTP/2 over plain TCP count on it: Java's ``HttpClient`` asks
with the first request of every connection. httptools, though, takes whatever follows the head of
such a request for that other protocol: its body would be lost. So its parser is not told.

*Heads, trailers and chunk extensions without an end.* httptools keeps what it cannot hand over
yet, however much that is, and copies it with every piece that comes: some hundred megabytes
of one header, from anybody, and nobody else is served for seconds.

*Trailers.* uvicorn adds their fields to the headers of a request that has not been looked at yet.
They are none (RFC 9110, section 6.5.1): whoever stands in front of us judges headers alone.
"""

import re
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bedrock_proxy import front
from bedrock_proxy.dialects.simple import SIMPLE
from bedrock_proxy_adapters.proxy import new_request_id

MAX_FRUITLESS: Final = 64 * 1024
"""
Bytes that may come without ending a head or belonging to a body. A head that has an end is
judged by :func:`~bedrock_proxy.front.check_head`, whose bounds are below this.
"""

_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_IGNORED: Final = b"\r\nx-ignored-upgrade:"
_HEAD: Final = front.MAX_HEADER_BYTES + front.MAX_URI


class Http11Protocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, which stays in HTTP/1.1 and within bounds."""

    _fruitless = 0

    def data_received(self, data: bytes) -> None:
        """The socket has brought *data*."""
        cycle = self.cycle
        if not (cycle and cycle.more_body) and (  # else it is a body
            data.find(b"pgrade", 0, _HEAD) >= 0 or data.find(b"PGRADE", 0, _HEAD) >= 0
        ):
            data = without_upgrade(data)
        self._fruitless += len(data)
        super().data_received(data)
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


def without_upgrade(data: bytes) -> bytes:
    """*data*, which begins with a head or within one, without its wish to upgrade."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(_IGNORED, head) + data[len(head) :]
