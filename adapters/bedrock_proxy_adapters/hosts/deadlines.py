"""When an answer must be cut so that it is still settled before its host's time is up."""

import threading
from typing import Final

from bedrock_proxy.drive import Deadline
from bedrock_proxy_adapters.proxy import Passage

MARGIN: Final = 5.0
"""Seconds before the end of the time at which an answer is cut (RELIABILITY.md, S18)."""


def seconds_for(whole: float) -> float:
    """How long an answer may take where its host allows *whole* seconds in all."""
    whole = max(0.0, whole)
    # A function with hardly any time gets half of it: better than none.
    return max(whole - MARGIN, whole / 2)


def cut_after(passage: Passage, seconds: float | None) -> threading.Timer | None:
    """
    Post :class:`~bedrock_proxy.drive.Deadline` in *seconds*; cancel the timer when the
    answer has ended. None where there is nothing to wait for.
    """
    if seconds is None or seconds > threading.TIMEOUT_MAX:
        return None
    if seconds <= 0:
        # No call may begin: a timer's thread might be later than the call.
        passage.interrupts.post(Deadline())
        return None
    timer = threading.Timer(seconds, lambda: passage.interrupts.post(Deadline()))
    timer.daemon = True
    timer.start()
    return timer
