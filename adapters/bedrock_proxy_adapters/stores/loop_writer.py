"""
Writing to SQLite from an event loop, where that costs no waiting.

Handing a transaction to a thread and its result back takes longer than the transaction, and the two
contend for the interpreter. What takes time is other processes' turns and the disk. So the loop
writes by itself, if nobody else is writing; otherwise its work waits in the writing thread's queue.

The usual, an admission or the settlement of one, is decided in a tenure (:mod:`.tenure`): the loop
keeps its turn for :data:`SYNC_EVERY_S`, unless it is wanted. A request that comes alone is decided where
it comes; of several, all that a turn of the loop brings at its end (:data:`COMPANIONS`). The rest, and all of it for
:data:`CROWDED_S` after somebody wanted the turn, is done at the end of the loop's turn that brought
it, in one transaction. There a settlement waits a moment for the next admission, to be committed with
it (:data:`COMPANY_S`).

The disk is waited for on a thread (:class:`.syncer.Syncer`), which shares one wait among all that was
committed before it, at most every :data:`SYNC_EVERY_S`. A settlement is told when it has reached the
disk; nobody waits for that but the end of a request whose answer is out. An admission is told at
once: it survives the death of this process from the first moment (the kernel has it), and that of the
machine soon after, before Bedrock can have answered.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Final, TypeVar

from bedrock_proxy.admission import AdmissionRequest, Grant, Refusal
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores import ledger
from bedrock_proxy_adapters.stores.syncer import Syncer
from bedrock_proxy_adapters.stores.tenure import Tenure
from bedrock_proxy_adapters.stores.transactions import (
    Job,
    Outcome,
    Transactions,
    Work,
    arrive,
    deliver,
    give_up,
)
from bedrock_proxy_adapters.stores.watch import Watch
from bedrock_proxy_adapters.stores.writer import MAX_GROUP, PATIENCE_S, Writer

T = TypeVar("T")

SYNC_EVERY_S: Final = 0.01
"""How long what was committed may be in the kernel's memory alone before the disk is asked."""

CROWDED_S: Final = 0.25
"""How long a turn is not kept any more once somebody else wanted it."""

LOOK_EVERY_S: Final = 0.001
"""How often whoever keeps a turn looks, when a request comes, whether somebody else wants it."""

MOST_KEPT: Final = 64
"""How many leases and rows a tenure gathers: while they are written the loop does nothing else."""

COMPANIONS: Final = 3
"""
How many requests must have been under way at once, lately, for one that comes to wait for the end of
the loop's turn, and be decided with the others that it brings: each step done for several in a row
makes a request cheaper than all of them done for each where it comes. Alone, it would wait for nothing.
"""

COMPANY_S: Final = 0.002
"""
How long a settlement waits for others to share its transaction: a client that asks again at once
has sent its next request by then. Its customer's next admission on this loop never overtakes it.
"""


class LoopWriter:
    """
    The writing of one event loop.

    Args:
        loop: The loop whose thread it works on.
        path: The file.
        ticket_path: Whose turn it is.
        writer: Who does what cannot be done at once.
        syncer: Who waits for the disk.
        watch: Who sees to it that a turn is not kept for too long.
        admission: What admits a request in a transaction.
        heed: Told of every decision in a tenure.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        ticket_path: Path,
        writer: Writer,
        syncer: Syncer,
        watch: Watch,
        admission: Callable[[AdmissionRequest], Work[Grant | Refusal]],
        heed: Callable[[AdmissionRequest, Grant | Refusal], None],
    ) -> None:
        self._loop = loop
        self._transactions = Transactions(path, ticket_path, "NORMAL")
        self._writer = writer
        self._syncer = syncer
        self._watch = watch
        self._admission = admission
        self._heed = heed
        self._under_way = 0
        # At once, in this tenure and the one before.
        self._most = self._most_before = 0
        self._asked: list[Job[Any]] = []
        self._turn_comes = False
        self._company: asyncio.TimerHandle | None = None
        self._later: list[Outcome] = []
        self._changed = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._patience: asyncio.TimerHandle | None = None
        self._closed = False
        # Of the tenure: whoever needs the turn in this process ends it, on whatever thread.
        self._lock = Lock()
        self._tenure: Tenure | None = None
        self._told: list[Outcome] = []
        self._crowded_until = 0.0
        self._look_at = 0.0
        self.began_at = 0.0

    def admit(
        self, request: AdmissionRequest
    ) -> "Grant | Refusal | asyncio.Future[Grant | Refusal]":
        """See :meth:`~bedrock_proxy.ports.Gate.admit`; on the loop's own thread."""
        if not self._asked and self._most < COMPANIONS and self._most_before < COMPANIONS:
            decision = self._decide(request)
            if decision is not None:
                return decision
        return self.do(self._admission(request), durable=False, request=request)

    def finish(self, record: UsageRecord) -> "asyncio.Future[None]":
        """
        See :meth:`~bedrock_proxy.ports.Ledger.finish`; on the loop's own thread. It is told once it
        has reached the disk.
        """
        if self._under_way:
            self._under_way -= 1
        return self._settle(record) or self.do(partial(ledger.finish, record=record), durable=True)

    def release(self, work: Work[None]) -> "asyncio.Future[None]":
        """See :meth:`~bedrock_proxy.ports.Gate.release`; on the loop's own thread."""
        if self._under_way:
            self._under_way -= 1
        return self.do(work, durable=False)

    def look_up(self, work: Work[T]) -> "T | asyncio.Future[T]":
        """Have *work* done, which reads what no request changes."""
        with self._lock:
            if self._tenure is not None:
                try:
                    return self._tenure.look_up(work)
                except sqlite3.Error:
                    self._end(crowded=False)
        return self.do(work, durable=False)

    def end_tenure(self, *, crowded: bool = False) -> None:
        """
        Write what was decided into the file and give the turn back; from any thread.

        Args:
            crowded: Somebody else wants it.
        """
        with self._lock:
            self._end(crowded=crowded)

    def _decide(self, request: AdmissionRequest) -> Grant | Refusal | None:
        """Admit or refuse in the tenure; None where that cannot be."""
        with self._lock:
            try:
                tenure = self._keep()
                decision = None if tenure is None else tenure.admit(request)
            except Exception:  # noqa: BLE001 -- its own transaction will meet it again, and tell
                self._end(crowded=False)
                return None
        if decision is not None:
            self._heed(request, decision)
            if isinstance(decision, Grant):
                self._under_way += 1
                self._most = max(self._most, self._under_way)
        return decision

    def _settle(self, record: UsageRecord) -> "asyncio.Future[None] | None":
        """Settle in the tenure; None where that cannot be."""
        with self._lock:
            try:
                tenure = self._keep()
                if tenure is None or not tenure.finish(record):
                    return None
            except Exception:  # noqa: BLE001 -- as above
                self._end(crowded=False)
                return None
            future: asyncio.Future[None] = self._loop.create_future()
            job = Job(_nothing, future, self._loop)
            self._told.append((job, None, None))
        self._be_patient((job,))
        return future

    def _usual(self, group: list[Job[Any]]) -> int:
        """How many of *group*, from the first on, are admissions that the tenure can do; they are done."""
        for place, job in enumerate(group):
            decision = None if job.request is None else self._decide(job.request)
            if decision is None:
                return place
            arrive([(job, decision, None)])
        return len(group)

    def _keep(self) -> Tenure | None:
        """The tenure, or a new one, if that may be; within the lock."""
        now = monotonic()
        tenure = self._tenure
        if tenure is not None:
            wanted = False
            if now >= self._look_at:
                self._look_at = now + LOOK_EVERY_S
                wanted = self._transactions.is_wanted
            if not wanted and tenure.size < MOST_KEPT:
                return tenure
            self._end(crowded=wanted)
        if self._closed or now < self._crowded_until or self._writer.waited_for:
            return None
        tenure = self._transactions.begin_tenure()
        if tenure is None:
            self._crowded_until = now + CROWDED_S
            return None
        self._tenure = tenure
        self._most, self._most_before = self._under_way, self._most
        self.began_at = now
        self._watch.watch(self)
        if self._timer is None:
            self._timer = self._loop.call_later(SYNC_EVERY_S, self._sync)
        return tenure

    def _end(self, *, crowded: bool) -> None:
        """End the tenure, if there is one; within the lock."""
        if crowded:
            self._crowded_until = monotonic() + CROWDED_S
        tenure, self._tenure = self._tenure, None
        if tenure is None:
            return
        told, self._told = self._told, []
        try:
            self._changed |= self._transactions.end_tenure(tenure)
        except BaseException as error:
            deliver([(job, None, error) for job, _, _ in told])
            if not isinstance(error, Exception):
                raise
        else:
            self._later += told

    def do(
        self,
        work: Work[T],
        durable: bool,
        request: AdmissionRequest | None = None,
    ) -> "asyncio.Future[T]":
        """
        Have *work* done and committed; on the loop's own thread.

        Args:
            durable: Whether it is told only when it has reached the disk.
            request: What it admits, where that may be done in a tenure.

        Returns:
            What it gives, or StoreUnavailable where it could not be done, or not soon enough.

        Raises:
            StoreUnavailable: The store is closed.
        """
        if self._closed:
            raise store_unavailable()
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.append(Job(work, future, self._loop, durable, request))
        if not self._turn_comes:
            if not durable or len(self._asked) >= MAX_GROUP:
                self._turn_comes = True
                self._loop.call_soon(self._turn)
            elif self._company is None:
                self._company = self._loop.call_later(COMPANY_S, self._turn)
        return future

    def close(self) -> None:
        """
        Let go of the file. Settlements that wait for company are left to the writing thread;
        whatever else was asked and not done yet fails. Before its syncer, and its writer.
        """
        self._closed = True
        asked, self._asked = self._asked, []
        for job in asked:
            if job.durable:
                self._writer.submit(job)
            else:
                self._asked.append(job)
        with self._lock:
            self._end(crowded=False)
            later, self._later = self._later, []
        self._syncer.sync(later)
        self._transactions.let_go()

    def leave_to_parent(self) -> None:
        """In the child of a fork; see :meth:`.transactions.Transactions.leave_to_parent`."""
        self._closed = True
        self._lock = Lock()  # another thread of the parent's may have had it
        self._tenure = None
        self._transactions.leave_to_parent()

    def _turn(self) -> None:
        self._turn_comes = False
        if self._company is not None:
            self._company.cancel()
            self._company = None
        asked, self._asked = self._asked, []
        for begin in range(0, len(asked), MAX_GROUP):
            self._do(asked[begin : begin + MAX_GROUP])

    def _do(self, asked: list[Job[Any]]) -> None:
        # Some may have been cancelled meanwhile.
        group = [job for job in asked if job.future is None or not job.future.done()]
        group = group[self._usual(group) :]
        if not group:
            return
        done = None
        self.end_tenure()
        if not self._closed and not self._writer.waited_for:
            done = self._transactions.try_commit(group)
        if done is None:
            self._hand_over(group)
            return
        outcomes, changed = done
        later: list[Outcome] = []
        at_once: list[Outcome] = []
        for outcome in outcomes:
            (later if outcome[0].durable else at_once).append(outcome)
        arrive(at_once)
        if later:
            self._be_patient([job for job, _, _ in later])
        with self._lock:
            self._later += later
            self._changed |= changed
        if (later or changed) and self._timer is None:
            self._timer = self._loop.call_later(SYNC_EVERY_S, self._sync)

    def _sync(self) -> None:
        self._timer = None
        with self._lock:
            self._end(crowded=False)
            later, self._later = self._later, []
            changed, self._changed = self._changed, False
        if later or changed:
            self._syncer.sync(later)

    def _hand_over(self, group: list[Job[Any]]) -> None:
        try:
            if self._closed:
                raise store_unavailable()
            for job in group:
                self._writer.submit(job)
        except Exception as error:  # noqa: BLE001 -- it goes to whoever waits
            arrive([(job, None, error) for job in group])
            return
        self._be_patient(group)

    def _be_patient(self, jobs: Iterable[Job[Any]]) -> None:
        """One timer for all who wait: they come in the order in which they would give up."""
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        until = self._loop.time() + PATIENCE_S
        waiting.extend(
            (until, job.future) for job in jobs if isinstance(job.future, asyncio.Future)
        )
        if self._patience is None and waiting:
            self._patience = self._loop.call_later(PATIENCE_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        now = self._loop.time()
        while self._waiting and (self._waiting[0][0] <= now or self._waiting[0][1].done()):
            give_up(self._waiting.popleft()[1])
        if self._waiting:
            self._patience = self._loop.call_at(self._waiting[0][0], self._give_up)


def _nothing(connection: sqlite3.Connection) -> None:
    """What is still to be done where a tenure has done it."""
