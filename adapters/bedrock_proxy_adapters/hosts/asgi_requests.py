"""
The request as an ASGI server tells it: its head, and its body piece by piece.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from bedrock_proxy import front
from bedrock_proxy.http import Request
from bedrock_proxy.memo import Memo
from bedrock_proxy.ports import PortKind
from bedrock_proxy_adapters.hosts.direct import Resumed
from bedrock_proxy_adapters.hosts.paths import below, below_encoded
from bedrock_proxy_adapters.hosts.watching import Watcher

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

_USUAL_NAME = 40
"""Bytes of a header's name up to which it is remembered."""

_NAMES: Final = Memo[bytes, str](lambda field: field.decode("latin-1").lower())

_DISCARDED = 256 * 1024
"""Bytes of an unwanted body that are read away, so that the refusal can be heard."""


def to_request(scope: Scope, base_path: str, request_id: str) -> Request:
    """The scope as the core sees it."""
    raw: bytes | None = scope.get("raw_path")
    mounted: str = scope.get("root_path", "")
    if raw:
        path, decoded = raw.decode("latin-1").partition("?")[0], False
        if mounted or base_path:
            path = below_encoded(path, mounted, base_path)
    else:
        path, decoded = below(scope["path"], mounted, base_path), True
    headers = tuple(
        [
            (
                _NAMES[name] if len(name) <= _USUAL_NAME else name.decode("latin-1").lower(),
                value.decode("latin-1"),
            )
            for name, value in scope["headers"]
        ]
    )
    if scope.get("http_version") == "1.0" and not any(name == "host" for name, _ in headers):
        # HTTP/1.0 knows no Host; some health checks still speak it.
        headers = (*headers, ("host", ""))
    return Request(
        request_id,
        scope["method"].upper(),
        path,
        headers,
        scope.get("query_string", b"").decode("latin-1"),
        decoded,
    )


class Body:
    """
    The request's body, read when the flow asks.

    Attributes:
        came: Whether any of it has come.
    """

    kind: PortKind = "native"

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._started = False
        self.came = False
        self.watcher: Watcher | None = None

    async def receive(self, limit: int, within: float) -> bytes:
        self._started = True
        reading = self._read(limit).__await__()
        try:
            try:
                waits_for = next(reading)
            except StopIteration as end:  # all of it was there: no timer was needed
                whole: bytes = end.value
                return whole
            async with asyncio.timeout(within):
                return await Resumed(waits_for, reading)
        except TimeoutError:
            raise front.body_late(within) from None
        finally:
            self._taken()

    async def _read(self, limit: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise front.body_torn()
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise front.too_large(limit)
            pieces.append(piece)
            if not message.get("more_body", False):
                self.came = size > 0
                return b"".join(pieces)

    def _taken(self) -> None:
        watcher, self.watcher = self.watcher, None
        if watcher is not None:
            watcher.begin()

    async def discard(self) -> None:
        """Read away a body that nobody asked for, within reason, before the refusal."""
        if self._started:
            return
        self._started = True
        size = 0
        try:
            async with asyncio.timeout(0.5):
                while size <= _DISCARDED:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
        except TimeoutError:
            pass
        finally:
            self.came = size > 0
            self._taken()
