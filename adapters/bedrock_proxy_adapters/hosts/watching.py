"""
Listening for clients that leave while they wait for their answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bedrock_proxy_adapters.proxy import Passage

_WATCHED_AFTER = 0.1
"""
Seconds after which a client that left is listened for (RELIABILITY.md, S02: it is noticed
within one).
"""

_TIMERS_ARE_EARLY = 0.001
"""Seconds that an event loop may be too early: uvloop counts in milliseconds."""


class Watcher:
    """
    Listens for the client to leave, once the body is in and the answer takes its time.

    A task for each short answer would cost more than what it could notice: an answer that
    is out sooner is out whether anybody listens or not.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        passage: Passage,
        watchers: "Watchers",
    ) -> None:
        self._receive = receive
        self._passage = passage
        self._watchers = watchers
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def begin(self) -> None:
        """The body is in: nothing but a disconnect can come now."""
        if not self._ended:
            self._watchers.add(self)

    def end(self) -> None:
        """The answer is out, or nobody is left to serve it."""
        self._ended = True
        task, self._task = self._task, None  # what ends it knows it, by its own frame
        if task is None:
            self._watchers.drop(self)
        else:
            task.cancel()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """It takes its time."""
        self._task = loop.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._receive()
            except Exception:  # noqa: BLE001 -- a receive that fails has nobody at its other end
                self._passage.leave()
                return
            if message["type"] == "http.disconnect":
                self._passage.leave()
                return


class Watchers:
    """
    Those of one event loop whose answers have not taken their time yet: one timer for all of
    them, for to set one and to cancel it costs more than the rest of watching.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: dict[Watcher, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watcher: Watcher) -> None:
        """Start *watcher* after :data:`_WATCHED_AFTER`, unless it is dropped by then."""
        due = self._waiting[watcher] = self.loop.time() + _WATCHED_AFTER
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._look)

    def drop(self, watcher: Watcher) -> None:
        """It need not watch any more."""
        self._waiting.pop(watcher, None)

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time() + _TIMERS_ARE_EARLY
        for watcher, due in list(self._waiting.items()):  # the longest waiting first
            if due > now:
                self._timer = self.loop.call_at(due, self._look)
                return
            del self._waiting[watcher]
            watcher.start(self.loop)
