"""A FastAPI application of your own, with the proxy mounted under /ai."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import asgi_app, end_on_sigterm

proxy = proxy_from_env()
bedrock = asgi_app(proxy)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # FastAPI does not tell mounted applications that it stops.
    end_on_sigterm(bedrock, grace=20)
    yield
    await bedrock.shutdown()
    proxy.close()


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
def hello() -> dict[str, str]:
    return {"hello": "from my own route"}


app.mount("/ai", bedrock)
