"""
SIGTERM, where a server tells its applications nothing: what a proxy does then, before or beside
whatever is done otherwise.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import ClassVar, TypeAlias

Begin: TypeAlias = Callable[[Callable[[], None]], None]
"""Begins to end a proxy, and returns; calls what it is given when that is done."""

_log = logging.getLogger("bedrock_proxy")


def on_sigterm(begin: Begin) -> None:
    """
    From now on SIGTERM calls *begin*, once. Whatever handled the signal before still does; where
    that was nothing, the process ends as it would have, once all that was begun is done.

    Only the main thread can ask for this: on another nothing comes of it but a warning.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is None:  # not Python's: it could be neither called nor put back
        _warn_once("something other than Python handles SIGTERM")
        return
    try:
        signal.signal(signal.SIGTERM, _Handler(begin, before))
    except ValueError:
        _warn_once("end_on_sigterm was not called on the main thread")


class _Handler:
    """
    One of those that *begin* to end something, and of those before it.

    Attributes:
        ending: Those that have begun and are not done. No locks: a signal may come in the middle
            of a handler.
        last: Whether nothing but them keeps the process from ending as it does by default.
        done: Whether it is time for that.
    """

    ending: ClassVar[set["_Handler"]] = set()
    last: ClassVar[bool] = False
    done: ClassVar[bool] = False

    def __init__(
        self, begin: Begin, before: Callable[[int, FrameType | None], object] | int
    ) -> None:
        self._begin = begin
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self not in _Handler.ending and not _Handler.done:
            _Handler.ending.add(self)
            self._begin(self._done)
        before = self._before
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            _Handler.last = True
            if not _Handler.ending:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

    def _done(self) -> None:
        _Handler.ending.discard(self)
        if _Handler.last and not _Handler.ending:
            # Only a handler may put the default back: it is called once more, for that.
            _Handler.done = True
            os.kill(os.getpid(), signal.SIGTERM)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_Handler.ending.clear)


@cache
def _warn_once(why: str) -> None:
    _log.warning("Streams will not be told when this process gets SIGTERM: %s.", why)
