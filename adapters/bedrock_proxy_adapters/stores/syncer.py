"""
The thread that waits for the disk, for all event loops of a process.
"""

import contextlib
import os
import sqlite3
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from bedrock_proxy.errors import store_unavailable
from bedrock_proxy_adapters.stores import redo, schema
from bedrock_proxy_adapters.stores.ticket import Ticket
from bedrock_proxy_adapters.stores.transactions import Outcome, deliver
from bedrock_proxy_adapters.stores.writer import PATIENCE_S

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
            ticket = Ticket(self._ticket_path, redo.path_of(self._path))
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
