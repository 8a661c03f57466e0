"""
Writing to SQLite from an event loop, where that costs no waiting.

A transaction here takes a tenth of a millisecond; handing it to a thread and its result back
takes longer, and the two contend for the interpreter. What takes time is other processes'
turns and the disk. So the pieces of work that a turn of the loop brings are done at its end,
in one transaction, if nobody else is writing; otherwise they wait in the writing thread's
queue. The disk is waited for on a thread (:class:`Syncer`), which shares one wait among all
that was committed before it.

The disk is asked at most every :data:`SYNC_EVERY_S`. A settlement is told when it has reached it,
as ever; nobody waits for that but the end of a request whose answer is out. So it also waits a
moment for the next admission, to be committed with it (:data:`COMPANY_S`). An admission is told
at once: it survives the death of this process from the first moment (the kernel has it), and
that of the machine soon after, before Bedrock can have answered.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from bedrock_proxy.errors import store_unavailable
from bedrock_proxy_adapters.stores import schema
from bedrock_proxy_adapters.stores.transactions import (
    Job,
    Outcome,
    Ticket,
    Transactions,
    Work,
    arrive,
    deliver,
    give_up,
)
from bedrock_proxy_adapters.stores.writer import MAX_GROUP, PATIENCE_S, Writer

T = TypeVar("T")

SYNC_EVERY_S: Final = 0.01
"""How long what was committed may be in the kernel's memory alone before the disk is asked."""

COMPANY_S: Final = 0.002
"""
How long a settlement waits for others to share its transaction: a client that asks again at once
has sent its next request by then. Its customer's next admission on this loop never overtakes it.
"""

CHECKPOINT_EVERY: Final = 200
"""
Syncs after which the log is copied into the file: some megabytes, as by SQLite's own default
(``PRAGMA wal_autocheckpoint``), which the loop's connection does without.
"""

_fdatasync: Final = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Syncer:
    """
    The thread that waits for the disk. What SQLite has committed lies in its write-ahead log,
    and a later sync of that file covers all that was written to it before.
    """

    def __init__(self, path: Path, ticket_path: Path) -> None:
        self._path = path
        self._ticket_path = ticket_path
        self._log = path.with_name(path.name + "-wal")
        self._syncs = 0
        self._queue: SimpleQueue[list[Outcome] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="bedrock-proxy-sync", daemon=True)
        self._thread.start()

    def sync(self, outcomes: list[Outcome]) -> None:
        """Tell *outcomes* once all that has been committed so far is on the disk."""
        self._queue.put(outcomes)

    def close(self) -> None:
        """Sync what is waiting, and end."""
        self._queue.put(None)
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        open_ = True
        while open_:
            waiting: list[Outcome] = []
            more = self._queue.get()
            while True:
                if more is None:
                    open_ = False
                    break
                waiting += more
                try:
                    more = self._queue.get_nowait()
                except Empty:
                    break
            try:
                self._sync()
            except OSError as error:
                unavailable = store_unavailable()
                unavailable.__cause__ = error
                waiting = [(job, None, unavailable) for job, _, _ in waiting]
            deliver(waiting)
            self._syncs += 1
            if self._syncs % CHECKPOINT_EVERY == 0:
                # Whatever keeps it from being done does not keep the next one from it.
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._checkpoint()

    def _checkpoint(self) -> None:
        with contextlib.closing(schema.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            # The log begins anew only if all of it has been copied. What has come meanwhile is
            # little; it is copied while nobody adds to it.
            ticket = Ticket(self._ticket_path)
            try:
                with ticket.held():
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                ticket.close()

    def _sync(self) -> None:
        # The log has no locks that closing it would drop: SQLite's are on its other files.
        try:
            log = os.open(self._log, os.O_RDONLY)
        except FileNotFoundError:
            # The last connection has been closed, which copied the log into the file.
            log = os.open(self._path, os.O_RDONLY)
        try:
            _fdatasync(log)
        finally:
            os.close(log)


class LoopWriter:
    """
    The writing of one event loop.

    Args:
        loop: The loop whose thread it works on.
        path: The file.
        ticket_path: Whose turn it is.
        writer: Who does what cannot be done at once.
        syncer: Who waits for the disk.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        ticket_path: Path,
        writer: Writer,
        syncer: Syncer,
    ) -> None:
        self._loop = loop
        self._transactions = Transactions(path, ticket_path, "NORMAL")
        self._writer = writer
        self._syncer = syncer
        self._asked: list[Job[Any]] = []
        self._turn_comes = False
        self._company: asyncio.TimerHandle | None = None
        self._later: list[Outcome] = []
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._patience: asyncio.TimerHandle | None = None
        self._closed = False

    def do(self, work: Work[T], durable: bool) -> "asyncio.Future[T]":
        """
        Have *work* done and committed; on the loop's own thread.

        Args:
            durable: Whether it is told only when it has reached the disk.

        Returns:
            What it gives, or StoreUnavailable where it could not be done, or not soon enough.

        Raises:
            StoreUnavailable: The store is closed.
        """
        if self._closed:
            raise store_unavailable()
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.append(Job(work, future, self._loop, durable))
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
        later, self._later = self._later, []
        self._syncer.sync(later)
        self._transactions.let_go()

    def leave_to_parent(self) -> None:
        """In the child of a fork; see :meth:`.transactions.Transactions.leave_to_parent`."""
        self._closed = True
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
        if not group:
            return
        done = None
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
            self._later += later
            self._be_patient([job for job, _, _ in later])
        if (later or changed) and self._timer is None:
            self._timer = self._loop.call_later(SYNC_EVERY_S, self._sync)

    def _sync(self) -> None:
        self._timer = None
        later, self._later = self._later, []
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
