"""aiohttp to Bedrock, uvicorn (uvloop, httptools) to the client. ``… PORT_OF_BEDROCK``."""

import sys
from typing import Any

import aiohttp
import uvicorn
from yarl import URL

from benchmarks.spikes import DONE, Frames, upstream_path

BEDROCK = f"http://127.0.0.1:{sys.argv[1]}"
SSE = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
sessions: list[aiohttp.ClientSession] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        sessions.append(aiohttp.ClientSession(connector=connector, auto_decompress=False))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await sessions[0].close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    stream, path, body = upstream_path(body)
    url = URL(BEDROCK + path, encoded=True)
    async with sessions[0].post(url, data=body) as reply:
        if not stream:
            whole = await reply.read()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(whole)).encode()),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": whole})
            return
        await send({"type": "http.response.start", "status": 200, "headers": SSE})
        frames = Frames()
        async for data in reply.content.iter_any():
            said = frames.feed(data)
            if said:
                await send({"type": "http.response.body", "body": said, "more_body": True})
        await send({"type": "http.response.body", "body": DONE})


if __name__ == "__main__":
    from benchmarks.spikes.listening import announced

    uvicorn.Server(
        uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    ).run(sockets=[announced()])
