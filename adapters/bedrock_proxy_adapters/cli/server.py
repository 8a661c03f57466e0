"""``bedrock-proxy serve``: the proxy as it stands, on uvicorn."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.cli.output import not_listening
from bedrock_proxy_adapters.config import Settings, proxy_from_env, store_name
from bedrock_proxy_adapters.loading import for_good

if TYPE_CHECKING:
    import uvicorn

    from bedrock_proxy_adapters.proxy import Proxy

GRACE = 30.0
"""Seconds that streams may take to finish once the server is told to stop."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    metavar="NUMBER",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--usage-log/--no-usage-log",
    default=True,
    show_default=True,
    help="A line on standard output for every request that reached Bedrock.",
)
def serve(host: str, port: int, usage_log: bool) -> None:
    """Serve the proxy that the environment describes, until Ctrl-C or SIGTERM."""
    from bedrock_proxy_adapters.telemetry.usage_log import usage_writer

    settings = Settings.from_env()
    with listening(host, port) as listener:
        with for_good():
            proxy = proxy_from_env(finished=usage_writer() if usage_log else None)
        where = store_name(settings.store)
        if where == "memory:":
            where += " no customers, and gone when this ends"
        click.echo(f"Store: {where}", err=True)
        run(proxy, listener)


def run(proxy: "Proxy", listener: socket.socket) -> None:
    """
    Serve *proxy* until SIGTERM or SIGINT; then up to 30 s for what is under way.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    logging.getLogger("bedrock_proxy").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn.error").addFilter(_worth_saying)
    _allow_files()
    with for_good():
        from bedrock_proxy_adapters.hosts.asgi import Application

        server = server_for(Application(proxy, holds=False))
        server.config.load()
    # Requests leave few cycles behind.
    gc.set_threshold(10_000, 20, 50)
    # uvicorn raises a signal once more when it has stopped, for whoever waits for it above.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _worth_saying(record: logging.LogRecord) -> bool:
    """
    Not that a client asked for another protocol, and which library would speak it: any client
    can, before it is known to anyone, and the operator has nothing to do about it.
    """
    return not str(record.msg).startswith(("Unsupported upgrade", "No supported WebSocket"))


def _allow_files() -> None:
    """
    Let this process have as many files as the system lets it: a stream is two connections, and
    the usual 1,024 would be used up by a twentieth of the streams that it can hold.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listening(host: str, port: int) -> socket.socket:
    """
    A socket that is bound to *host* and *port*.

    uvicorn would bind it too, but ends the process with a log line where it cannot.

    Raises:
        ConfigurationError: The address is taken, or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise not_listening(host, port, error) from None


def server_for(app: Any, *, announce: bool = True) -> "uvicorn.Server":
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
    from bedrock_proxy_adapters.hosts.asgi import Application

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
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        http=_protocol(),
        ws="none",  # nothing here speaks it; a library for it may be installed all the same
        timeout_keep_alive=75,
        proxy_headers=False,  # nothing here depends on the client's address
    )
    server = Server(config)
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets=sockets)
        if server.started and announce:
            for listener in sockets or ():
                click.echo(f"Listening on {url_of(listener)}", err=True)

    server.startup = announced  # type: ignore[method-assign]
    return server


def _protocol() -> "type[asyncio.Protocol] | Literal['auto']":
    """With uvicorn's faster parser, if it is there; the other one needs no help."""
    try:
        from bedrock_proxy_adapters.cli.upgrades import Http11Protocol
    except ImportError:
        return "auto"
    return Http11Protocol


def url_of(listener: socket.socket) -> str:
    """Where *listener* is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
