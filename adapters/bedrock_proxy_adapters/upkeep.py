"""
What a serving process does on the side: it settles the leases that dead processes left
behind, and gives the ledger the rows that it could not take earlier.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from bedrock_proxy.admission import Lease
from bedrock_proxy.customers import Customer, CustomerNotFound
from bedrock_proxy.errors import BedrockProxyError, StoreUnavailable
from bedrock_proxy.usage import UsageRecord

if TYPE_CHECKING:
    from bedrock_proxy_adapters.operator_log import Seldom

_log = logging.getLogger("bedrock_proxy")

REPLAY_EVERY: Final = 5.0
"""Seconds between attempts while rows are waiting in the spool."""

_REAPED_AT_ONCE: Final = 1_000


class Books(Protocol):
    """What is kept up: the blocking or instant face of a store."""

    def reap(self, now: int, limit: int = 1_000) -> int:
        """See :meth:`bedrock_proxy.store.Books.reap`."""
        ...

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """See :meth:`bedrock_proxy.ports.Ledger.finish`."""
        ...

    def get_customer(self, customer_id: str) -> Customer:
        """See :meth:`bedrock_proxy.store.Customers.get_customer`."""
        ...


class WaitingRows(Protocol):
    """Rows that the store could not take: a spool."""

    @property
    def size(self) -> int:
        """How much is waiting, in bytes."""
        ...

    def replay(self, finish: Callable[[UsageRecord, Lease], object]) -> object:
        """Give every row to *finish*; those it refuses stay."""
        ...


class Upkeep:
    """
    A thread of this process; begun with its first request, or with its server.

    Args:
        books: The store.
        every: Seconds between two looks for overdue leases: half a lease's time.
        spool: Rows that wait for the store, if there is a place for them.
    """

    def __init__(self, books: Books, every: float, spool: WaitingRows | None = None) -> None:
        self._books = books
        self._every = every
        self._spool = spool
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._begun_in: int | None = None
        self._seldom: Seldom | None = None

    def begin(self) -> None:
        """Begin, once in each process; harmless when repeated."""
        if self._begun_in == os.getpid():
            return
        with self._lock:
            if self._begun_in == os.getpid():
                return
            self._begun_in = os.getpid()  # threads do not cross a fork
            self._stop = threading.Event()
            threading.Thread(
                target=self._run, args=(self._stop,), name="bedrock-proxy-upkeep", daemon=True
            ).start()

    def end(self) -> None:
        """Stop at the next look."""
        self._stop.set()

    def once(self) -> None:
        """
        One look: replay the spool, then settle what is overdue. In this order, so that a
        true figure is not preceded by an estimate of it.

        Raises:
            BedrockProxyError: The store is down.
        """
        try:
            if self._spool is not None and self._spool.size:
                rows = _Known(self._books)
                done = self._spool.replay(rows.finish)
                if rows.strangers:
                    self._warn(
                        f"{rows.strangers} usage row(s) in the spool are of customers whom this "
                        "store does not know, and stay there: is it the spool of another store?"
                    )
                settled: int = getattr(done, "settled", 0)
                if settled and not self._spool.size:
                    _log.warning("The spool is empty again: %d usage row(s) were settled.", settled)
        finally:
            # Whatever keeps the spool from being read must not keep leases open.
            while self._books.reap(time.time_ns() // 1_000_000, _REAPED_AT_ONCE) == _REAPED_AT_ONCE:
                pass

    def _run(self, stop: threading.Event) -> None:
        reaped = 0.0
        while not stop.is_set():
            now = time.monotonic()
            waiting = self._spool is not None and self._spool.size > 0
            if waiting or not reaped or now - reaped >= self._every:
                try:
                    self.once()
                    reaped = now
                except BedrockProxyError as error:
                    # A store that is being closed refuses too, and nobody need hear of that.
                    if not stop.is_set():
                        self._put_off(error)
                except Exception as error:  # noqa: BLE001 -- the next look may fare better
                    _log.error("upkeep met %s", type(error).__name__)
            stop.wait(min(REPLAY_EVERY, self._every))

    def _put_off(self, error: BedrockProxyError) -> None:
        from bedrock_proxy_adapters.causes import cause_of
        from bedrock_proxy_adapters.operator_log import sentence_of

        why = sentence_of(error) if isinstance(error, StoreUnavailable) else f"{cause_of(error)}."
        self._warn(f"upkeep was put off: {why}")

    def _warn(self, sentence: str) -> None:
        from bedrock_proxy_adapters.operator_log import Seldom

        if self._seldom is None:
            self._seldom = Seldom()
        self._seldom.warn(sentence)


class _Known:
    """
    The ledger, for rows of customers that the store knows. A spool may be that of another store:
    there its rows would be gone, and here nobody would see them.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._known: set[str] = set()
        self.strangers = 0

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """
        See :meth:`bedrock_proxy.ports.Ledger.finish`.

        Raises:
            CustomerNotFound: The row is of somebody else's customer.
        """
        if record.customer_id not in self._known:
            try:
                self._books.get_customer(record.customer_id)
            except CustomerNotFound:
                self.strangers += 1
                raise
            self._known.add(record.customer_id)
        self._books.finish(record, lease)
