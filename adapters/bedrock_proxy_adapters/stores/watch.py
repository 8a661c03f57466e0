"""
The thread that sees to it that no event loop of a process keeps its turn to write for too long.

A loop ends its tenure by a timer. But its thread may be busy with something else, of whoever mounted
the proxy; and others wait.
"""

from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Final, Protocol

LONGEST_S: Final = 0.05
"""How long a turn is kept at most; see :data:`.loop_writer.SYNC_EVERY_S` for how long it should be."""

_WATCHED_S: Final = 1.0
"""How long a keeper is watched after its last turn: it will soon keep another."""


class Keeper(Protocol):
    """
    Who may keep its turn for a moment.

    Attributes:
        began_at: When it last began to (monotonic seconds).
    """

    began_at: float

    def end_tenure(self) -> None:
        """Give the turn back now, if it keeps one; from any thread."""
        ...


class Watch:
    """The thread; it begins at once, and sleeps while nobody keeps a turn."""

    def __init__(self) -> None:
        self.keepers: set[Keeper] = set()
        self.asleep = False
        self._queue: SimpleQueue[bool] = SimpleQueue()
        Thread(target=self._run, name="bedrock-proxy-watch", daemon=True).start()

    def watch(self, keeper: Keeper) -> None:
        """See to it that *keeper*, which has begun to, keeps its turn for :data:`LONGEST_S` at most."""
        self.keepers.add(keeper)
        # Who falls asleep says so first and looks for keepers then; here it is the other way round.
        if self.asleep:
            self._queue.put(True)

    def close(self) -> None:
        """End the thread; it is not waited for."""
        self._queue.put(False)

    def _run(self) -> None:
        open_ = True
        while open_:
            self.asleep = True
            if self.keepers:
                self.asleep = False
                try:
                    open_ = self._queue.get(timeout=self._patience())
                except Empty:
                    self._look()
            else:
                open_ = self._queue.get()
                self.asleep = False

    def _patience(self) -> float:
        now = monotonic()
        left = [keeper.began_at + LONGEST_S - now for keeper in tuple(self.keepers)]
        return min((each for each in left if each > 0), default=LONGEST_S)

    def _look(self) -> None:
        now = monotonic()
        for keeper in tuple(self.keepers):
            since = now - keeper.began_at
            if since >= LONGEST_S:
                keeper.end_tenure()
            if since > _WATCHED_S:
                self.keepers.discard(keeper)
                if keeper.began_at > now:
                    self.keepers.add(keeper)
