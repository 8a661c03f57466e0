"""boto3 in a thread a stream, uvicorn (uvloop, httptools) to the client. ``… PORT_OF_BEDROCK``."""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import uvicorn
from botocore.config import Config

from benchmarks.spikes import DONE
from benchmarks.spikes.listening import announced

THREADS = 1_000
SSE = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
pool = ThreadPoolExecutor(THREADS)
client: Any = boto3.client(
    "bedrock-runtime",
    region_name="us-east-1",
    endpoint_url=f"http://127.0.0.1:{sys.argv[1]}",
    aws_access_key_id="benchmark",
    aws_secret_access_key="benchmark",
    config=Config(max_pool_connections=THREADS),
)


def stream(said: dict[str, Any], model: str, put: Any) -> None:
    reply = client.invoke_model_with_response_stream(modelId=model, body=json.dumps(said))
    for part in reply["body"]:
        event = json.loads(part["chunk"]["bytes"])
        if event["type"] == "content_block_delta":
            put(f'data: {{"content": {json.dumps(event["delta"]["text"])}}}\n\n'.encode())
    put(None)


def whole(said: dict[str, Any], model: str) -> bytes:
    answer: bytes = client.invoke_model(modelId=model, body=json.dumps(said))["body"].read()
    return answer


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    loop = asyncio.get_running_loop()
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    said = json.loads(body)
    model = said.pop("modelId")
    if not said.pop("stream"):
        answer = await loop.run_in_executor(pool, whole, said, model)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
        return
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    task = loop.run_in_executor(
        pool, stream, said, model, lambda said: loop.call_soon_threadsafe(queue.put_nowait, said)
    )
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    while (event := await queue.get()) is not None:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": DONE})
    await task


if __name__ == "__main__":
    uvicorn.Server(
        uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    ).run(sockets=[announced()])
