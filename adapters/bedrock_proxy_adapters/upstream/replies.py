"""
One reply on its way in, between the connection that brings it and whoever reads it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Literal, Protocol, TypeVar

from bedrock_proxy.ports import (
    END,
    SILENCE,
    Last,
    Signal,
    Trouble,
    UpstreamHead,
    UpstreamUnreachable,
)

T = TypeVar("T")


class Carrier(Protocol):
    """
    The connection that brings a reply.

    Attributes:
        paused: Whether nothing is read until there is room.
    """

    paused: bool

    def go_on(self) -> None:
        """There is room for more of the reply."""
        ...

    def abort(self) -> None:
        """Let go of the socket at once."""
        ...


class Reply:
    """
    One reply on its way in; see :class:`bedrock_proxy.ports.UpstreamReply`.

    ``begin`` and ``read`` give what is there at once, and an awaitable where nothing is.
    What arrived before a failure or the end is handed over before it; after ``close`` the
    reader gets END at once.

    Attributes:
        begun: Whether its head has come.
        size: Bytes that wait for their reader.
        closed: Whether nobody wants it any more.
    """

    kind: Literal["native"] = "native"

    __slots__ = (
        "_chunks", "_deadline", "_ended", "_failure", "_head", "_hear", "_late", "_loop", "_thread",
        "_time", "_timer", "_timer_at", "again", "begun", "carrier", "closed", "opening", "size",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._time = loop.time
        self._thread = threading.get_ident()
        self._head: UpstreamHead | None = None
        self._chunks: list[bytes] = []
        self.begun = False
        self.size = 0
        self._ended = False
        self.closed = False
        # Not the exception itself: it would keep the frames alive that raised it.
        self._failure: tuple[Trouble, str] | None = None
        self._hear: Callable[[], None] | None = None
        self._deadline = 0.0
        self._late = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.carrier: Carrier | None = None
        self.opening: asyncio.Task[None] | None = None
        self.again: Callable[[], None] | None = None

    # --- the flow's side

    def begin(
        self, within: float
    ) -> (
        "UpstreamHead | Literal[Signal.SILENCE] | Awaitable[UpstreamHead | Literal[Signal.SILENCE]]"
    ):
        """Bedrock's head, or SILENCE after *within* seconds."""
        got = self._headed()
        return self._wait(self._headed, within) if got is None else got

    def read(self, within: float) -> "bytes | Signal | Awaitable[bytes | Signal]":
        """What has arrived, SILENCE after *within* seconds, or END."""
        got = self.poll()
        return self._wait(self.poll, within) if got is None else got

    def close(self) -> None:
        """End the call now, from any thread; repeatable."""
        if self.closed:
            return
        if threading.get_ident() == self._thread:
            self._cut()
        else:
            # A loop that has ended has no connections left either.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cut)

    def _headed(self) -> UpstreamHead | None:
        if self._head is not None:
            return self._head
        if self.closed:
            raise UpstreamUnreachable(Trouble.CLOSED)
        if self._failure is not None:
            raise UpstreamUnreachable(*self._failure)
        return None

    async def _wait(
        self, take: Callable[[], T | None], within: float
    ) -> "T | Literal[Signal.SILENCE]":
        loop = self._loop
        waiter: asyncio.Future[None] = loop.create_future()
        self.listen(partial(_wake, waiter), within)
        try:
            while True:
                await waiter
                got = take()
                if got is not None:
                    return got
                if self._late:
                    return SILENCE
                # Something came that is no piece yet; the time to wait does not begin anew.
                waiter = loop.create_future()
                self._hear = partial(_wake, waiter)
        finally:
            self.deafen()

    def poll(self) -> bytes | Signal | None:
        """
        What ``read`` would give now: None if it would wait.

        Raises:
            UpstreamUnreachable: The connection broke.
        """
        if self.closed:
            return END
        chunks = self._chunks
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self.size = 0
            carrier = self.carrier
            if carrier is not None and carrier.paused:
                carrier.go_on()
            return Last(data) if self._ended and self._failure is None else data
        if self._failure is not None:
            raise UpstreamUnreachable(*self._failure)
        if self._ended:
            return END
        return SILENCE if self._late else None

    def listen(self, hear: Callable[[], None], within: float) -> None:
        """
        Call *hear* whenever there is something new, and once *within* seconds are over, until
        :meth:`deafen`.
        """
        self._hear = hear
        self._late = False
        self._deadline = deadline = self._time() + within
        timer = self._timer
        if timer is None or self._timer_at > deadline:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(deadline, self._tick)
            self._timer_at = deadline

    def listen_on(self, within: float) -> None:
        """
        Call the same one for *within* seconds from now on: not less than what :meth:`listen` was
        given, so that its timer will do.
        """
        self._late = False
        self._deadline = self._time() + within
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._tick)
            self._timer_at = self._deadline

    def deafen(self) -> None:
        """Call nobody any more."""
        self._hear = None
        self._late = False

    def _tick(self) -> None:
        # Reads follow one another faster than they give up: the timer is not moved for each,
        # it looks for itself how far the last one's deadline still is.
        self._timer = None
        if self._hear is None:
            return
        if self._deadline > self._loop.time():
            self._timer = self._loop.call_at(self._deadline, self._tick)
            self._timer_at = self._deadline
        else:
            self._late = True
            self._hear()

    def _cut(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.again = None
        self._chunks.clear()
        self.size = 0
        if self.opening is not None:
            self.opening.cancel()
        if self.carrier is not None:
            self.carrier.abort()
        self._settle()

    # --- the connection's side

    def headed(self, head: UpstreamHead) -> None:
        """Its head has come."""
        self._head = head
        self.begun = True
        self.again = None  # which knows this reply

    def push(self, data: bytes) -> None:
        """A piece of its body has come."""
        self._chunks.append(data)
        self.size += len(data)

    def end(self, error: tuple[Trouble, str] | None = None) -> None:
        """Nothing more will come."""
        self.carrier = None
        self.again = None
        if not self._ended:
            self._ended = True
            self._failure = error
        self._settle()

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.wake()

    def wake(self) -> None:
        """Whoever waits may look."""
        if self._hear is not None:
            self._hear()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
