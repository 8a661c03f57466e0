"""
The simulated Bedrock as an ASGI application, for those who have a server already.

ASGI has no way to reset a connection or to leave a body unfinished. There, a cut raises
:class:`ConnectionCut` inside the application, upon which servers drop the connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from bedrock_proxy_adapters.simulator.bedrock import Bedrock, play
from bedrock_proxy_adapters.simulator.calls import Call
from bedrock_proxy_adapters.simulator.replies import Headers, Reply
from bedrock_proxy_adapters.simulator.scripts import Hangup

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class ConnectionCut(Exception):
    """The script cuts the connection here."""


class _AsgiSink:
    def __init__(self, send: Send) -> None:
        self._send = send

    async def head(self, status: int, headers: Headers, length: int | None) -> None:
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        if length is not None:
            encoded.append((b"content-length", str(length).encode()))
        start = {"type": "http.response.start", "status": status, "headers": encoded}
        await self._send(start)

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def cut(self, how: Hangup) -> None:
        raise ConnectionCut(how)


class SimulatorApp:
    """
    The ASGI application.

    Attributes:
        bedrock: What answers: script it, ask it for its calls.
    """

    def __init__(self, bedrock: Bedrock) -> None:
        self.bedrock = bedrock

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, or take part in the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"the simulator does not speak {scope['type']}")
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"], safe="/:")
        pairs = cast("list[tuple[bytes, bytes]]", scope["headers"])
        headers = tuple((k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in pairs)
        answer, request_id, call = self.bedrock.receive(
            scope["method"], path.partition("?")[0], headers, body
        )
        await self._play(answer, request_id, call, receive, send)

    async def _play(
        self, answer: Reply, request_id: str, call: Call | None, receive: Receive, send: Send
    ) -> None:
        playing = asyncio.ensure_future(play(answer, request_id, call, _AsgiSink(send)))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((playing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
        finally:
            for task in (playing, leaving):
                task.cancel()
            await asyncio.gather(playing, leaving, return_exceptions=True)
            if call is not None:
                call.over(aborted=True)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
