"""
Connections whose client takes nothing any more.

uvicorn closes a connection once all that was written to it has gone out. With a client that has
lost its network, or never reads, that is never: the connection and what waits on it stay. So
they are looked at from time to time. An answer that is still under way is none of our
business: the proxy has its own bound for a write (``Proxy.write_timeout``).
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

EVERY_S: Final = 10.0
"""Seconds between two looks: at ten thousand connections at rest one takes a few milliseconds."""

GIVEN_UP_S: Final = 15.0
"""
How long the client of an answer that was broken off may take nothing. It is told why by what is
still on its way; the proxy has waited before, if it was the client that did not read.
"""


class Served(Protocol):
    """What uvicorn's protocols have in common."""

    transport: asyncio.Transport
    cycle: Any


class Stalled:
    """
    Looks at connections, and breaks those that are over but for a client that takes nothing.

    Args:
        connections: Those that are open, by their protocols.
        within: Seconds in which the client of a whole answer must take something.
        clock: Seconds, as the event loop counts them.
    """

    def __init__(
        self, connections: Collection[Served], within: float, clock: Callable[[], float]
    ) -> None:
        self._connections = connections
        self._within = within
        self._clock = clock
        self._noted: dict[Served, tuple[int, float]] = {}

    def look(self) -> None:
        """Break what has stood still for too long."""
        now = self._clock()
        noted: dict[Served, tuple[int, float]] = {}
        for connection in list(self._connections):
            transport = connection.transport
            try:
                size = transport.get_write_buffer_size()
            except RuntimeError:  # uvloop's, of one that has been closed and is not forgotten yet
                continue
            if not size:
                continue
            cycle = connection.cycle
            whole = cycle is None or cycle.response_complete
            if not (whole or transport.is_closing()):
                continue
            before, since = self._noted.get(connection, (0, now))
            if size != before:
                since = now
            if now - since >= (self._within if whole else min(GIVEN_UP_S, self._within)):
                transport.abort()
            else:
                noted[connection] = (size, since)
        self._noted = noted

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.look()
