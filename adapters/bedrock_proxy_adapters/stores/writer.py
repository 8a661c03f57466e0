"""
One thread per process that writes to SQLite, and commits what is waiting as a group.

A commit costs an fsync however much is in it, so requests that arrive together share one.
Between processes, a *ticket* (an ``flock`` on a file of its own) decides whose turn it is:
its holder's ``BEGIN IMMEDIATE`` never meets a busy database, and waiting costs no polling.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, Generic, TypeAlias, TypeVar

from bedrock_proxy.errors import BedrockProxyError, store_unavailable
from bedrock_proxy_adapters.stores import schema

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]

MAX_GROUP: Final = 256
"""How many pieces of work one commit holds at most."""

PATIENCE_S: Final = 10.0
"""How long a request waits for its piece of work to be committed."""


class Ticket:
    """Whose turn it is to write, among all processes on this machine."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Wait for the turn and keep it; the kernel gives it back if we are killed."""
        if sys.platform == "win32":
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class _Job(Generic[T]):
    """A piece of work and where its result goes: a thread's future, a loop's, or nowhere."""

    __slots__ = ("future", "loop", "work")

    def __init__(
        self,
        work: Work[T],
        future: "Future[T] | asyncio.Future[T] | None" = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.work = work
        self.future = future
        self.loop = loop


_Outcome: TypeAlias = tuple[_Job[Any], Any, BaseException | None]


class Writer:
    """
    The writing thread and its connection.

    A piece of work runs inside a transaction. If it raises one of our own errors it must
    not have written anything; after any other error its transaction is rolled back, and
    the pieces that shared it are tried again one by one.
    """

    def __init__(self, path: Path, ticket_path: Path) -> None:
        self._path = path
        self._ticket_path = ticket_path
        self._queue: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._ticket: Ticket | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._thread = Thread(target=self._run, name="bedrock-proxy-sqlite", daemon=True)
        self._thread.start()

    def do(self, work: Work[T], patience: float = PATIENCE_S) -> T:
        """
        Have *work* done and committed; wait for it.

        Raises:
            StoreUnavailable: It could not be done, or not soon enough.
        """
        future: Future[T] = Future()
        self._submit(_Job(work, future))
        try:
            return future.result(patience)
        except FutureTimeoutError:
            # What has not begun is not begun any more; what has begun may still be done.
            future.cancel()
            raise store_unavailable() from None

    async def ado(self, work: Work[T], patience: float = PATIENCE_S) -> T:
        """The same on an event loop: one hop, no thread of a pool."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Job(work, future, loop))
        timer = loop.call_later(patience, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    def do_later(self, work: Work[Any]) -> None:
        """Have *work* done; nobody waits for it."""
        with contextlib.suppress(BedrockProxyError):
            self._submit(_Job(work))

    def close(self) -> None:
        """
        Do what is waiting, then end the thread and close the file. Returns after
        :data:`PATIENCE_S` at the latest: another process may never give the turn back.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join(PATIENCE_S)

    def leave_to_parent(self) -> None:
        """
        In the child of a fork: let go of the ticket. A turn (``flock``) lasts while any
        process keeps it open, and the child's copy would outlive the parent's.
        """
        if self._ticket is not None:
            self._ticket.close()

    def _submit(self, job: _Job[Any]) -> None:
        with self._lock:
            if self._closed:
                raise store_unavailable()
            self._queue.put(job)

    # --- on the thread

    def _run(self) -> None:
        open_ = True
        while open_:
            group: list[_Job[Any]] = []
            job = self._queue.get()
            while True:
                if job is None:
                    open_ = False
                    break
                future = job.future
                if not isinstance(future, Future) or future.set_running_or_notify_cancel():
                    group.append(job)
                if len(group) == MAX_GROUP:
                    break
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
            if group:
                _deliver(self._commit(group))
        self._let_go()
        if self._ticket is not None:
            self._ticket.close()

    def _commit(self, group: list[_Job[Any]]) -> list[_Outcome]:
        try:
            if self._ticket is None:
                self._ticket = Ticket(self._ticket_path)
            with self._ticket.held():
                try:
                    return self._transact(group)
                except BaseException as error:  # noqa: BLE001 -- it goes to whoever waits
                    if len(group) == 1:
                        return [(group[0], None, _seen(error))]
                return [outcome for job in group for outcome in self._alone(job)]
        except OSError:
            return [(job, None, store_unavailable()) for job in group]

    def _alone(self, job: _Job[Any]) -> list[_Outcome]:
        try:
            return self._transact([job])
        except BaseException as error:  # noqa: BLE001 -- it goes to whoever waits
            return [(job, None, _seen(error))]

    def _transact(self, group: list[_Job[Any]]) -> list[_Outcome]:
        connection = self._opened()
        outcomes: list[_Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in group:
                try:
                    outcomes.append((job, job.work(connection), None))
                except BedrockProxyError as error:
                    outcomes.append((job, None, error))
            connection.execute("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        return outcomes

    def _opened(self) -> sqlite3.Connection:
        # Somebody who moves the file away must not leave us writing to a nameless one.
        inode = self._path.stat().st_ino
        if self._connection is None or inode != self._inode:
            self._let_go()
            self._connection = schema.connect(self._path)
            self._inode = inode
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._let_go()

    def _let_go(self) -> None:
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


def _deliver(outcomes: Iterable[_Outcome]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
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
            loop.call_soon_threadsafe(_arrive, group)


def _arrive(outcomes: Iterable[_Outcome]) -> None:
    for job, value, error in outcomes:
        future = job.future
        if future is not None and not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _give_up(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(store_unavailable())
