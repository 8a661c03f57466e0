"""
Requests that ask to go on in another protocol, on uvicorn: they are answered in this one.

A server may ignore ``Upgrade`` (RFC 9110, section 7.8), and clients that would speak HTTP/2 over
plain TCP count on it: Java's ``HttpClient`` asks with the first request of every connection.
httptools, though, takes whatever follows the head of such a request for that other protocol: its
body would be lost. So its parser is not told.
"""

import re
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bedrock_proxy import front

_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_IGNORED: Final = b"\r\nx-ignored-upgrade:"
_HEAD: Final = front.MAX_HEADER_BYTES + front.MAX_URI


class Http11Protocol(HttpToolsProtocol):
    """uvicorn's protocol for one connection, which stays in HTTP/1.1."""

    def data_received(self, data: bytes) -> None:
        """The socket has brought *data*."""
        cycle = self.cycle
        if not (cycle and cycle.more_body) and (  # else it is a body
            data.find(b"pgrade", 0, _HEAD) >= 0 or data.find(b"PGRADE", 0, _HEAD) >= 0
        ):
            data = without_upgrade(data)
        super().data_received(data)


def without_upgrade(data: bytes) -> bytes:
    """*data*, which begins with a head or within one, without its wish to upgrade."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(_IGNORED, head) + data[len(head) :]
