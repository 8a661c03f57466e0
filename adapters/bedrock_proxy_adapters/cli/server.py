"""``bedrock-proxy serve``: the proxy as it stands, on uvicorn."""

import asyncio
import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.config import Settings, proxy_from_env, store_path
from bedrock_proxy_adapters.hosts.asgi import Application, asgi_app
from bedrock_proxy_adapters.proxy import Proxy
from bedrock_proxy_adapters.telemetry.usage_log import usage_writer

if TYPE_CHECKING:
    import uvicorn

GRACE = 30.0
"""Seconds that streams may take to finish once the server is told to stop."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--usage-log/--no-usage-log", default=True, help="Usage lines on standard output.")
def serve(host: str, port: int, usage_log: bool) -> None:
    """Serve the proxy that the environment describes."""
    settings = Settings.from_env()
    proxy = proxy_from_env(finished=usage_writer() if usage_log else None)
    path = store_path(settings.store)
    click.echo(f"Store: {'memory, gone when this ends' if path is None else path}", err=True)
    run(proxy, host, port)


def run(proxy: Proxy, host: str, port: int) -> None:
    """
    Serve *proxy* until SIGTERM or SIGINT; then up to 30 s for what is under way.

    Raises:
        ConfigurationError: uvicorn is not installed, or the address is taken.
    """
    logging.getLogger("bedrock_proxy").addHandler(logging.StreamHandler())
    server = server_for(asgi_app(proxy), host, port)
    server.run()
    if not server.started:
        raise ConfigurationError(f"Could not listen on {host}:{port}; is something else there?")


def server_for(app: Any, host: str, port: int, *, announce: bool = True) -> "uvicorn.Server":
    """
    A uvicorn server for *app* that ends its streams before its connections.

    uvicorn itself closes what it can on SIGTERM and sends ``lifespan.shutdown`` only
    after every connection has ended: a stream would keep it waiting for ever.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise ConfigurationError(
            "Serving needs uvicorn: pip install 'bedrock-proxy[serve]'."
        ) from None

    class Server(uvicorn.Server):
        """Stops in two steps: no new work is advertised, then everything ends."""

        stopping: "asyncio.Future[Any] | None" = None
        told = 0

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
            self.told += 1
            if self.told > 1:
                self.should_exit = True
                self.force_exit = sig == signal.SIGINT
                return
            asyncio.get_running_loop().call_soon_threadsafe(self._begin)

        def _begin(self) -> None:
            self.stopping = asyncio.ensure_future(self._stop())

        async def _stop(self) -> None:
            if isinstance(app, Application):
                if app.under_way:
                    click.echo(
                        f"Stopping: up to {GRACE:g} s for {app.under_way} request(s) under way.",
                        err=True,
                    )
                await app.shutdown(GRACE)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=75,
    )
    server = Server(config)
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets=sockets)
        if server.started and announce:
            for listener in server.servers:
                for socket in listener.sockets:
                    name = socket.getsockname()
                    click.echo(f"Listening on http://{name[0]}:{name[1]}", err=True)

    server.startup = announced  # type: ignore[method-assign]
    return server
