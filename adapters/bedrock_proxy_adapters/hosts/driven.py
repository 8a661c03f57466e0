"""
Flows that threads drive, for the hosts without an event loop.

A bill is settled at the end of its flow. So whoever lets go of one, on whatever thread and at
whatever moment, it goes on.
"""

import os
import sys
import threading
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import suppress

from bedrock_proxy.drive import Shutdown, drive
from bedrock_proxy.errors import Unavailable
from bedrock_proxy.http import Head
from bedrock_proxy_adapters.proxy import Passage

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

    __slots__ = ("_left", "_lock", "_passage", "_said", "over")

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._said: Iterator[Head | bytes] = drive(passage.flow, passage.ports, passage.interrupts)
        self._lock = threading.Lock()
        self._left = False
        self.over = False
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
        # A daemon: a process that is told to stop must not wait for a model.
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
            with suppress(RuntimeError):  # none is to be had
                start_new_thread(self.leave, ())

    def _rest(self) -> None:
        with suppress(StopIteration):
            while True:
                self.next()

    def leave_to_parent(self) -> None:
        """In the child of a fork: touch nothing of it any more."""
        self.over = True
        self._lock = threading.Lock()
        _crossed_a_fork.append((self._passage, self._said))
        self._said = _elsewhere()


def _elsewhere() -> Iterator[Head | bytes]:
    raise Unavailable("This answer is another process's, from which this one was forked.")
    yield b""  # which makes it an iterator


def _after_fork() -> None:
    for each in list(_under_way):
        each.leave_to_parent()
    _under_way.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
