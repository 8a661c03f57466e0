"""``bedrock-proxy serve``: the proxy as it stands, on uvicorn."""

import contextlib
import gc
import logging
import socket
import sys
from typing import TYPE_CHECKING, Final

import click

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy_adapters.cli.output import not_listening
from bedrock_proxy_adapters.config import Settings, proxy_from_env, store_name
from bedrock_proxy_adapters.loading import for_good
from bedrock_proxy_adapters.telemetry.lines import LinesHandler

if TYPE_CHECKING:
    from bedrock_proxy_adapters.cli.serving import Server
    from bedrock_proxy_adapters.hosts.asgi import Application
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
        writer = usage_writer() if usage_log else None
        with for_good():
            proxy = proxy_from_env(finished=writer)
        where = store_name(settings.store)
        if where == "memory:":
            where += " no customers, and gone when this ends"
        click.echo(f"Store: {where}", err=True)
        try:
            run(proxy, listener)
        finally:
            if writer is not None:
                writer.close()


def run(proxy: "Proxy", listener: socket.socket) -> None:
    """
    Serve *proxy* until SIGTERM or SIGINT; then up to 30 s for what is under way.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    # All that anything here logs: a handler that waits for its reader stops every request.
    logging.getLogger().addHandler(LinesHandler(lambda: sys.stderr))
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


_NOT_WORTH_SAYING: Final = (
    # That a client asked for what cannot be understood or for another protocol, and which library
    # would speak it: any client can, before it is known to anyone, and the operator has nothing to
    # do about it.
    "Invalid HTTP request",
    "Unsupported upgrade",
    "No supported WebSocket",
    # An answer that was broken off is left so, which is what tells its client; the ledger says why.
    "ASGI callable returned without completing response",
)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NOT_WORTH_SAYING)


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


def server_for(app: "Application", *, announce: bool = True) -> "Server":
    """
    A server for *app*; see :mod:`.serving`.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    try:
        from bedrock_proxy_adapters.cli.serving import Server
    except ImportError:
        raise ConfigurationError(
            "Serving needs uvicorn: pip install 'bedrock-proxy[serve]'."
        ) from None
    return Server(app, GRACE, announce=announce)
