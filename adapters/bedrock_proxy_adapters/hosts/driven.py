"""
Flows that threads drive, for the hosts without an event loop.

A bill is settled at the end of its flow. So whoever lets go of one, on whatever thread and at
whatever moment, it goes on; and a process that ends waits for it, within a bound.
"""

import atexit
import logging
import os
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Final

from bedrock_proxy.drive import Shutdown, drive
from bedrock_proxy.errors import Unavailable
from bedrock_proxy.http import Head
from bedrock_proxy_adapters.proxy import Passage, Proxy

PATIENCE: Final = 15.0
"""
Seconds in which what is under way may finish when a process ends that was not told to stop
(:meth:`Proxy.shutdown` says how long else). Together with :data:`SETTLING` they are less than the
30 after which gunicorn kills a worker of which it hears nothing.
"""

SETTLING: Final = 10.0
"""Seconds in which whatever has not finished then is told to, and settled."""

_LOOK: Final = 0.02

_log = logging.getLogger("bedrock_proxy")

# Here, and not only known to whoever iterates: an answer that is a part of garbage is then none
# itself. The collector finalises all of what it finds, the flow too, which would end it unsettled.
_under_way: "set[Driven]" = set()
# What a parent drives is for the parent to end: to finalise it here would end its connections.
_crossed_a_fork: list[object] = []


class Driven:
    """
    The flow of *passage*, from its first step to its last; one thread at a time drives it.

    Attributes:
        over: Whether it has ended.
    """

    __slots__ = ("_left", "_lock", "_passage", "_said", "_thread", "over")

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._said: Iterator[Head | bytes] = drive(passage.flow, passage.ports, passage.interrupts)
        self._lock = threading.Lock()
        self._left = False
        self._thread = threading.get_ident()
        self.over = False
        _settle_at_the_end()
        _under_way.add(self)

    def next(self) -> Head | bytes:
        """
        What the flow says next.

        Raises:
            StopIteration: It has ended.
        """
        with self._lock:
            try:
                return next(self._said)
            except BaseException:  # StopIteration among them
                self.over = True
                self._passage.ended()
                _under_way.discard(self)
                raise

    def leave(self) -> None:
        """
        Nobody takes the rest: it goes on in a thread of its own. Returns at once; harmless when
        repeated, and while another thread still drives.
        """
        if self.over or self._left:
            return
        self._left = True
        self._passage.leave()
        # A daemon: how long a process that ends waits for a model, it decides itself (see _end).
        rest = threading.Thread(target=self._rest, name="bedrock-proxy-rest", daemon=True)
        try:
            rest.start()
        except RuntimeError:
            # No thread is to be had: there are too many, or the process is ending (Python 3.12.0
            # and 3.12.1 begin none from then on). It is cut, which takes no time, and settled here.
            self._passage.interrupts.post(Shutdown())
            self._rest()

    def let_go(self) -> None:
        """
        :meth:`leave`, for those who may be called by a garbage collection: it comes while this
        thread holds any lock, one of ours or one of ``threading`` itself.
        """
        if not self.over and not self._left:
            with suppress(RuntimeError):  # none is to be had: it is for the process's end, then
                start_new_thread(self.leave, ())

    def _rest(self) -> None:
        with suppress(StopIteration):
            while True:
                self.next()

    # --- what the process is in for -----------------------------------------------------

    @property
    def proxy(self) -> Proxy:
        """Whose request it is."""
        return self._passage.proxy

    def is_of(self, thread: int) -> bool:
        """Whether it was begun by *thread*."""
        return self._thread == thread

    def leave_to_parent(self) -> None:
        """In the child of a fork: touch nothing of it any more."""
        self.over = True
        self._lock = threading.Lock()
        _crossed_a_fork.append((self._passage, self._said))
        self._said = _elsewhere()


def _elsewhere() -> Iterator[Head | bytes]:
    raise Unavailable("This answer is another process's, from which this one was forked.")
    yield b""  # which makes it an iterator


# --- the end of the process ------------------------------------------------------------------


@cache
def _settle_at_the_end() -> None:
    # Threads' own hooks come before the others, while pools are not yet waited for and threads
    # may still be begun; and they come in the children of multiprocessing too. The later a hook,
    # the earlier it is called: so not before there is something to be settled, when the pool
    # that serves it has its hook already.
    register = getattr(threading, "_register_atexit", atexit.register)
    with suppress(RuntimeError):  # too late: the process is ending
        register(_end)


def _end() -> None:
    """Settle what is under way, before the process ends."""
    here = threading.get_ident()
    for each in list(_under_way):
        if each.is_of(here):
            each.leave()  # this thread takes no more of it
    begun = time.monotonic()
    stops = [each.proxy.interrupts_at for each in list(_under_way)]
    if _quiet(max((begun + PATIENCE if at is None else at for at in stops), default=begun)):
        return
    for proxy in {each.proxy for each in list(_under_way)}:
        proxy.interrupt_all()
    told = time.monotonic()
    if _quiet(told + SETTLING / 2):
        return
    for each in list(_under_way):
        each.leave()  # whoever took nothing until now never will
    if not _quiet(told + SETTLING):
        _log.error(
            "The process ends, and %d request(s) under way could not be settled in time.",
            len(_under_way),
        )


def _quiet(until: float) -> bool:
    """Wait for nothing to be under way, not after *until* (monotonic); whether it is so."""
    while _under_way:
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK)
    return True


def _after_fork() -> None:
    for each in list(_under_way):
        each.leave_to_parent()
    _under_way.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
