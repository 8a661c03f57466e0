"""asyncio protocols and httptools on both sides, on uvloop. ``… PORT_OF_BEDROCK``."""

import asyncio
import sys
from typing import Any, cast

import httptools

from benchmarks.spikes import DONE, Frames, upstream_path
from benchmarks.spikes.listening import announced

BEDROCK = int(sys.argv[1])
SSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
idle: "list[Upstream]" = []


class Upstream(asyncio.Protocol):
    """A kept-alive connection to Bedrock."""

    def __init__(self) -> None:
        self.client: Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, client: "Client", path: str, body: bytes) -> None:
        self.client = client
        self.frames = Frames()
        self.got: list[bytes] = []
        self.parser = httptools.HttpResponseParser(self)
        head = f"POST {path} HTTP/1.1\r\nHost: bedrock\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)

    def on_body(self, body: bytes) -> None:
        self.got.append(body)

    def on_message_complete(self) -> None:
        self.whole = True

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:
            return
        self.whole = False
        self.parser.feed_data(data)
        if not client.stream:
            if self.whole:
                body = b"".join(self.got)
                head = (
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n"
                )
                client.transport.write(head.encode() + body)
        else:
            said = self.frames.feed(b"".join(self.got))
            self.got.clear()
            client.say(said + DONE if self.whole else said, last=self.whole)
        if self.whole:
            self.client = None
            idle.append(self)


class Client(asyncio.Protocol):
    """A client's connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.stream, path, body = upstream_path(self.body)
        self.begun = False
        if idle:
            idle.pop().ask(self, path, body)
        else:
            self.task = asyncio.ensure_future(self.connect(path, body))

    async def connect(self, path: str, body: bytes) -> None:
        loop: Any = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(Upstream, "127.0.0.1", BEDROCK)
        upstream.ask(self, path, body)

    def say(self, said: bytes, *, last: bool) -> None:
        head = b"" if self.begun else SSE
        self.begun = True
        body = b"%x\r\n%b\r\n" % (len(said), said) if said else b""
        self.transport.write(head + body + (b"0\r\n\r\n" if last else b""))


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Client, sock=announced())
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
