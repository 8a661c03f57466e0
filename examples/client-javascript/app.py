"""
The page, the client and the proxy from one origin, so that the browser needs no CORS.

    uvicorn --timeout-graceful-shutdown 30 app:app     then open http://127.0.0.1:8000
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import asgi_app

HERE = Path(__file__).parent

proxy = proxy_from_env()
bedrock = asgi_app(proxy)


async def page(request: Request) -> FileResponse:
    return FileResponse(HERE / "index.html")


async def client(request: Request) -> FileResponse:
    return FileResponse(HERE / "client-integration.js", media_type="text/javascript")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
    await bedrock.shutdown()
    proxy.close()


app = Starlette(
    routes=[Route("/", page), Route("/client-integration.js", client), Mount("/ai", bedrock)],
    lifespan=lifespan,
)
