"""
Settling on Lambda, where nothing outlives the invocation: a file in ``/tmp`` is lost with the
sandbox, a thread stands still between two events. What is to be kept must be kept now.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from attrs import evolve

from bedrock_proxy.admission import Lease
from bedrock_proxy.errors import StoreUnavailable, store_unavailable
from bedrock_proxy.ports import PortKind
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.proxy import Faces, Proxy, Store

TRIES: Final = 3
"""How often the store is asked to take a row (RELIABILITY.md, section 2)."""

PAUSE: Final = 0.2
"""Seconds, at most, before the second try; twice that before the third."""

LAST_WORDS: Final = 1.0
"""Seconds kept for the log line at the end of an invocation; a quarter of a shorter one."""

STOP_WAIT: Final = 0.15
"""
Seconds a settlement may take once the function was told to stop: it may be killed after 0.3
(:data:`~bedrock_proxy_adapters.hosts.lambda_runtime.STOP_GRACE`). A store that is well takes a
fraction of it.
"""

_LEAST: Final = 0.1
_LOOK: Final = 0.05


def settling_within(proxy: Proxy, faces: Faces, left: float | None) -> Faces:
    """
    *faces* for one invocation: its row is tried several times, and given up in time for the
    log line that stands for it.

    Args:
        left: Seconds until the function is killed, or nobody waits for it any more; None is
            without bound.
    """
    until = None if left is None else time.monotonic() + left - min(LAST_WORDS, left / 4)
    return evolve(faces, ledger=InsistentLedger(faces.store, until, lambda: not proxy.ready))


class InsistentLedger:
    """
    A ledger that is asked :data:`TRIES` times, and no longer than it has time.

    Trying again is safe: a row that was taken, though its reply was lost, is not taken twice.

    Args:
        store: The ledger; not a native one.
        until: When to give up, on the monotonic clock; None is never.
        stopping: Whether the process was told to stop.
    """

    def __init__(self, store: Store, until: float | None, stopping: Callable[[], bool]) -> None:
        self._store = store
        self._until = until
        self._stopping = stopping

    @property
    def kind(self) -> PortKind:
        """That of the store behind it."""
        return self._store.kind

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """
        See :meth:`~bedrock_proxy.ports.Ledger.finish`.

        Raises:
            StoreUnavailable: No try succeeded, or the time is up. The store may still have
                taken the row, or take it yet.
        """
        tries = _Tries(self._store, record, lease)
        if self._until is None:
            tries.run()
        else:
            # On a thread: what hangs in the store must not hold up the last words.
            thread = threading.Thread(target=tries.run, name="bedrock-proxy-settle", daemon=True)
            thread.start()
            self._wait(thread, self._until)
        tries.end()

    def _wait(self, thread: threading.Thread, until: float) -> None:
        until = max(until, time.monotonic() + _LEAST)
        told = False
        while thread.is_alive() and (left := until - time.monotonic()) > 0:
            if not told and self._stopping():
                told = True
                until = min(until, time.monotonic() + STOP_WAIT)
                continue
            thread.join(min(left, _LOOK))


class _Tries:
    """The tries of one row, perhaps on a thread of their own."""

    def __init__(self, store: Store, record: UsageRecord, lease: Lease) -> None:
        self._store = store
        self._record = record
        self._lease = lease
        self._given_up = threading.Event()
        self._done = False
        self._error: BaseException | None = None

    def run(self) -> None:
        for number in range(TRIES):
            pause = random.uniform(0.5, 1.0) * PAUSE * number  # noqa: S311 -- jitter, not a secret
            if self._given_up.wait(pause):
                return
            try:
                self._store.finish(self._record, self._lease)
            except StoreUnavailable as error:
                self._error = error
            except BaseException as error:  # noqa: BLE001 -- raised again by `end`; another try would end alike
                self._error = error
                return
            else:
                self._done = True
                return

    def end(self) -> None:
        """Try no more. Raises what the last try did, unless one succeeded."""
        self._given_up.set()
        if self._done:
            return
        raise (
            store_unavailable("no answer in the time there was")
            if self._error is None
            else self._error
        )
