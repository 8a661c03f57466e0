"""
Pieces of work on the SQLite file, several in one transaction, in this process's turn to write.

A commit costs an fsync however much is in it, so requests that arrive together share one.
Between processes, a *ticket* (an ``flock`` on a file of its own) decides whose turn it is:
its holder's ``BEGIN IMMEDIATE`` never meets a busy database, and waiting costs no polling.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar

from bedrock_proxy.admission import AdmissionRequest
from bedrock_proxy.errors import BedrockProxyError, store_unavailable
from bedrock_proxy_adapters.stores import redo, schema
from bedrock_proxy_adapters.stores.redo import RedoLog
from bedrock_proxy_adapters.stores.tenure import Tenure
from bedrock_proxy_adapters.stores.ticket import Ticket

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]

NOT_IN_TIME: Final = "its file was not written in time; another process may keep it, or the disk"


class Job(Generic[T]):
    """
    A piece of work and where its result goes: a thread's future, a loop's, or nowhere.

    Attributes:
        durable: Whether a loop is told of it only when it has reached the disk; threads always are.
        request: What it admits, where that may be done in a tenure instead.
    """

    __slots__ = ("durable", "future", "loop", "request", "work")

    def __init__(
        self,
        work: Work[T],
        future: "Future[T] | asyncio.Future[T] | None" = None,
        loop: asyncio.AbstractEventLoop | None = None,
        durable: bool = True,
        request: AdmissionRequest | None = None,
    ) -> None:
        self.request = request
        self.work = work
        self.future = future
        self.loop = loop
        self.durable = durable


Outcome: TypeAlias = tuple[Job[Any], Any, BaseException | None]


class Transactions:
    """
    A connection and a ticket. Used by one thread at a time.

    A piece of work runs inside a transaction. If it raises one of our own errors it must
    not have written anything; after any other error its transaction is rolled back, and
    the pieces that shared it are tried again one by one.

    Args:
        synchronous: ``FULL`` if a commit is to have reached the disk when it returns, ``NORMAL``
            if somebody else sees to that; see :mod:`.loop_writer`.
    """

    def __init__(self, path: Path, ticket_path: Path, synchronous: str = "FULL") -> None:
        self._path = path
        self._name = os.fspath(path)
        self._ticket_path = ticket_path
        self._synchronous = synchronous
        self._ticket: Ticket | None = None
        self._log: RedoLog | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None

    def commit(self, group: list[Job[Any]]) -> list[Outcome]:
        """Do the work of *group*, waiting for the turn. What went wrong is in the outcomes."""
        try:
            with self._own_ticket().held():
                try:
                    return self._transact(group, self._opened())
                except BaseException as error:  # noqa: BLE001 -- it goes to whoever waits
                    if len(group) == 1:
                        return [(group[0], None, _seen(error))]
                return [outcome for job in group for outcome in self._alone(job)]
        except OSError as error:
            return [(job, None, _seen(error)) for job in group]

    def try_commit(self, group: list[Job[Any]]) -> tuple[list[Outcome], bool] | None:
        """
        The same without waiting, and whether anything was written. None where it was not done:
        somebody else has the turn, or it could not be done in one go.
        """
        try:
            ticket = self._own_ticket()
            if not ticket.take():
                return None
            try:
                connection = self._opened()
                before = connection.total_changes
                outcomes = self._transact(group, connection)
                return outcomes, connection.total_changes != before
            finally:
                ticket.give_back()
        except Exception:  # noqa: BLE001 -- whoever waits for the turn will meet it again, and tell
            return None

    def begin_tenure(self) -> Tenure | None:
        """
        Take the turn and keep it until :meth:`end_tenure`. None where somebody else has it, or
        the file cannot be used: whoever waits for the turn will meet that again, and tell.
        """
        taken = False
        try:
            taken = self._own_ticket().take()
            if not taken:
                return None
            connection, log = self._opened(), self._own_log()
            left = not log.is_empty
            if left:
                self._transact([], connection)
            return Tenure(connection, log, follows_redo=left)
        except BaseException as error:
            self._undo()
            if taken:
                self._own_ticket().give_back()
            if isinstance(error, Exception):
                return None
            raise

    def end_tenure(self, tenure: Tenure) -> bool:
        """
        Write what was decided in *tenure* into the file, and give the turn back; whether the file
        has changed.

        Raises:
            StoreUnavailable: It is not in the file. It stays in the redo log, from which whoever
                has the turn next writes it.
        """
        try:
            return self._fold(tenure)
        except BaseException as error:
            self._undo()
            raise _seen(error) from error
        finally:
            self._own_ticket().give_back()

    def _fold(self, tenure: Tenure) -> bool:
        try:
            changed = tenure.fold()
        except Exception:
            # The log has it: once more, line by line.
            self._undo()
            log = self._own_log()
            before = log.set_aside_so_far
            self._transact([], self._opened())
            if log.set_aside_so_far != before:
                raise
            return True
        if changed:
            self._clear(self._own_log())
        return changed

    def come_true(self, patience: float) -> None:
        """
        See to it that all that was told is in the file: by whoever keeps the turn, or by us, where he
        was killed. After some seconds it is left at that.
        """
        with contextlib.suppress(OSError, sqlite3.Error):
            ticket = self._own_ticket()
            if ticket.take_within(patience):
                try:
                    self._transact([], self._opened())
                finally:
                    ticket.give_back()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the turn that is kept."""
        return self._own_ticket().is_wanted

    def let_go(self) -> None:
        """Close the connection and give the ticket back."""
        self._close()
        self.leave_to_parent()

    def leave_to_parent(self) -> None:
        """
        In the child of a fork: let go of the ticket. A turn (``flock``) lasts while any
        process keeps it open, and the child's copy would outlive the parent's.
        """
        if self._ticket is not None:
            self._ticket.close()
            self._ticket = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _own_ticket(self) -> Ticket:
        if self._ticket is None:
            self._ticket = Ticket(self._ticket_path, redo.path_of(self._path))
        return self._ticket

    def _own_log(self) -> RedoLog:
        log = self._log
        if log is None or not log.is_there:
            self._log = RedoLog(redo.path_of(self._path))
            if log is not None:
                log.close()
        assert self._log is not None
        return self._log

    def _clear(self, log: RedoLog) -> None:
        with contextlib.suppress(OSError):  # the file knows that it holds it
            log.clear()

    def _undo(self) -> None:
        if self._connection is not None:
            self._roll_back(self._connection)

    def _alone(self, job: Job[Any]) -> list[Outcome]:
        try:
            return self._transact([job], self._opened())
        except BaseException as error:  # noqa: BLE001 -- it goes to whoever waits
            return [(job, None, _seen(error))]

    def _transact(self, group: list[Job[Any]], connection: sqlite3.Connection) -> list[Outcome]:
        outcomes: list[Outcome] = []
        log = self._own_log()
        try:
            connection.execute("BEGIN IMMEDIATE")
            left = not log.is_empty
            if left:
                redo.redo(connection, log)
            for job in group:
                try:
                    outcomes.append((job, job.work(connection), None))
                except BedrockProxyError as error:
                    outcomes.append((job, None, error))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        if left:
            self._clear(log)
        return outcomes

    def _opened(self) -> sqlite3.Connection:
        # Somebody who moves the file away must not leave us writing to a nameless one.
        inode = os.stat(self._name).st_ino  # noqa: PTH116 -- twice as fast, at every commit
        if self._connection is None or inode != self._inode:
            self._close()
            self._connection = schema.connect(self._path, synchronous=self._synchronous)
            self._inode = inode
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _seen(error: BaseException) -> BaseException:
    """What the caller is told: whatever SQLite or the disk said is for us alone."""
    if isinstance(error, sqlite3.Error | OSError):
        unavailable = store_unavailable()
        unavailable.__cause__ = error
        return unavailable
    return error


def deliver(outcomes: Iterable[Outcome]) -> None:
    """Tell whoever waits, from any thread."""
    loops: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        job, value, error = outcome
        if job.loop is not None:
            loops.setdefault(job.loop, []).append(outcome)
        elif job.future is not None:
            if error is None:
                job.future.set_result(value)
            else:
                job.future.set_exception(error)
    for loop, group in loops.items():
        # A loop that has ended has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(arrive, group)


def arrive(outcomes: Iterable[Outcome]) -> None:
    """Tell whoever waits on this thread's own loop."""
    for job, value, error in outcomes:
        future = job.future
        if future is not None and not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def give_up(future: "asyncio.Future[Any]") -> None:
    """It took too long."""
    if not future.done():
        future.set_exception(store_unavailable(NOT_IN_TIME))
