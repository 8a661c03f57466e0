"""
One thread per process that writes to SQLite, and commits what is waiting as a group.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, TypeVar

from bedrock_proxy.errors import BedrockProxyError, store_unavailable
from bedrock_proxy_adapters.stores.transactions import NOT_IN_TIME, Job, Transactions, Work, deliver

T = TypeVar("T")

MAX_GROUP: Final = 256
"""How many pieces of work one commit holds at most."""

PATIENCE_S: Final = 10.0
"""How long a request waits for its piece of work to be committed."""


class Writer:
    """
    The writing thread; see :class:`.transactions.Transactions` for what it does.

    Args:
        make_way: Called before it takes its turn, for others in this process who may keep theirs.
    """

    def __init__(
        self, path: Path, ticket_path: Path, make_way: Callable[[], None] = lambda: None
    ) -> None:
        self._make_way = make_way
        self._transactions = Transactions(path, ticket_path)
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._busy = False
        self._thread = Thread(target=self._run, name="bedrock-proxy-sqlite", daemon=True)
        self._thread.start()

    def do(self, work: Work[T], patience: float = PATIENCE_S) -> T:
        """
        Have *work* done and committed; wait for it.

        Raises:
            StoreUnavailable: It could not be done, or not soon enough.
        """
        future: Future[T] = Future()
        self.submit(Job(work, future))
        try:
            return future.result(patience)
        except FutureTimeoutError:
            # What has not begun is not begun any more; what has begun may still be done.
            future.cancel()
            raise store_unavailable(NOT_IN_TIME) from None

    def do_later(self, work: Work[Any]) -> None:
        """Have *work* done; nobody waits for it."""
        with contextlib.suppress(BedrockProxyError):
            self.submit(Job(work))

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
        """In the child of a fork; see :meth:`.transactions.Transactions.leave_to_parent`."""
        self._transactions.leave_to_parent()

    @property
    def waited_for(self) -> bool:
        """Whether work waits here, or is being done: whoever comes later waits behind it."""
        return self._busy or not self._queue.empty()

    def submit(self, job: Job[Any]) -> None:
        """
        Have a job done; its future hears of it.

        Raises:
            StoreUnavailable: This is closed.
        """
        with self._lock:
            if self._closed:
                raise store_unavailable()
            self._queue.put(job)

    # --- on the thread

    def _run(self) -> None:
        open_ = True
        while open_:
            group: list[Job[Any]] = []
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
                self._busy = True
                with contextlib.suppress(Exception):  # who does not give way is waited for
                    self._make_way()
                outcomes = self._transactions.commit(group)
                self._busy = False
                deliver(outcomes)
        self._transactions.let_go()
