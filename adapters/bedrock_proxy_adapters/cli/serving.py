"""
uvicorn as the server of a proxy: it ends its streams before its connections, and waits for no
client that takes nothing.

uvicorn itself closes what it can on SIGTERM and sends ``lifespan.shutdown`` only after every
connection has ended: a stream would keep it waiting for ever.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from types import FrameType
from typing import Any, Final, Literal, cast

import click
import uvicorn

from bedrock_proxy_adapters.cli.output import url_of
from bedrock_proxy_adapters.cli.stalled import Served, Stalled
from bedrock_proxy_adapters.hosts.asgi import Application

_log = logging.getLogger("bedrock_proxy")

ENDING: Final = 10.0
"""Seconds in which whatever has not finished by itself is told to, and settled."""

HURRY: Final = 2.0
"""The same once the server is told a second time to stop."""

CLOSING: Final = 5.0
"""Seconds in which a client may take the rest of its answer when all else has ended."""

_FORCED: Final = 3
"""How often the server is told to stop until it drops everything: stop, hurry, now."""


class Server(uvicorn.Server):
    """
    Stops in steps: no new work is advertised, then everything ends, then its connections.

    Args:
        app: What it serves.
        grace: Seconds that requests may take to finish once it is told to stop.
        announce: Whether it says on standard error where it listens.
    """

    def __init__(self, app: Application, grace: float, *, announce: bool) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,  # its own handler would wait for whoever reads it
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                http=_protocol(),
                ws="none",  # nothing here speaks it; a library for it may be installed all the same
                timeout_keep_alive=75,
                proxy_headers=False,  # nothing here depends on the client's address
            )
        )
        self._app = app
        self._grace = grace
        self._announce = announce
        self._told = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """A signal says to stop."""
        self._told += 1
        if self._told >= _FORCED:
            self.should_exit = self.force_exit = True
            return
        step = self._stop if self._told == 1 else self._hurry
        asyncio.get_running_loop().call_soon_threadsafe(lambda: self._go_on(step()))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets=sockets)
        if self.started:
            connections = cast("set[Served]", self.server_state.connections)
            clock = asyncio.get_running_loop().time
            self._go_on(Stalled(connections, self._app.write_timeout, clock).watch())
            if self._announce:
                for listener in sockets or ():
                    click.echo(f"Listening on {url_of(listener)}", err=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the connections; a client that does not read would keep its own open."""
        patience = CLOSING if self._told <= 1 else HURRY
        breaking = asyncio.get_running_loop().call_later(patience, self._break)
        await super().shutdown(sockets=sockets)
        breaking.cancel()

    def _go_on(self, step: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(step)
        self._tasks.add(task)
        # One that fails is not held any longer, so that asyncio says why.
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        if self._app.under_way:
            _log.warning(
                "Stopping: up to %g s for %d request(s) under way.",
                self._grace,
                self._app.under_way,
            )
        await self._app.shutdown(self._grace, ENDING)
        self.should_exit = True

    async def _hurry(self) -> None:
        await self._app.interrupt(HURRY)
        self.should_exit = True

    def _break(self) -> None:
        for connection in list(self.server_state.connections):
            cast("Served", connection).transport.abort()


def _protocol() -> "type[asyncio.Protocol] | Literal['auto']":
    """With uvicorn's faster parser, if it is there; the other one needs no help."""
    try:
        from bedrock_proxy_adapters.hosts.http11 import Http11Protocol
    except ImportError:
        return "auto"
    return Http11Protocol
