"""A Starlette application of your own, with the proxy mounted under /ai."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import asgi_app, end_on_sigterm

proxy = proxy_from_env()
bedrock = asgi_app(proxy)


async def hello(request: Request) -> JSONResponse:
    return JSONResponse({"hello": "from my own route"})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Starlette does not tell mounted applications that it stops.
    end_on_sigterm(bedrock, grace=20)
    yield
    await bedrock.shutdown()
    proxy.close()


app = Starlette(routes=[Route("/hello", hello), Mount("/ai", bedrock)], lifespan=lifespan)
