"""
One SQLite file as the faces of the store share it: its connections, its writing thread, and
what this process remembers of it.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar
from weakref import WeakSet

from bedrock_proxy.admission import AdmissionRequest, Grant, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.errors import StoreUnavailable, store_unavailable
from bedrock_proxy_adapters.stores import gate, ledger, redo, schema
from bedrock_proxy_adapters.stores.cache import OwnerCache
from bedrock_proxy_adapters.stores.loop_writer import LoopWriter
from bedrock_proxy_adapters.stores.syncer import Syncer
from bedrock_proxy_adapters.stores.ticket import beside
from bedrock_proxy_adapters.stores.transactions import Transactions, Work
from bedrock_proxy_adapters.stores.watch import Watch
from bedrock_proxy_adapters.stores.writer import Writer

T = TypeVar("T")

REAPED_AT_ONCE: Final = 100
"""How many overdue leases are settled in one commit."""

WAIT_FOR_OTHERS_S: Final = 1.0
"""
How long a reading waits for what another process has told and not written yet. That takes it a
hundredth of that; beyond, it has been stopped, and what it keeps is not seen.
"""

_LOOK_EVERY_MS: Final = 1_000
"""How often admission looks for overdue leases."""

_databases: "WeakSet[Database]" = WeakSet()
# A connection that crossed a fork must be neither used nor closed in the child (SQLite
# documentation, "How To Corrupt An SQLite Database File", section 2.6).
_crossed_a_fork: list[object] = []


class Database:
    """
    The file, made ready; connections and the writing thread begin with the first call, in
    whichever process that is.

    Attributes:
        owners: What this process remembers of tokens.

    Raises:
        ConfigurationError: The file cannot be used; the message says why.
    """

    def __init__(self, path: Path, *, reap_at_admission: bool) -> None:
        # What lies beside it is found by its name, which must be the same for all who open it.
        self.path = path.resolve()
        self.owners = OwnerCache()
        self._ticket_path = beside(self.path, "-ticket")
        self._reaps = reap_at_admission
        self._looked_at = 0
        self._lock = Lock()
        self._writer: Writer | None = None
        self._syncer: Syncer | None = None
        self._watch: Watch | None = None
        self._loops: dict[asyncio.AbstractEventLoop, LoopWriter] = {}
        self._reader: sqlite3.Connection | None = None
        self._closed = False
        schema.prepare(self.path)
        _databases.add(self)

    def admission(self, request: AdmissionRequest) -> Work[Grant | Refusal]:
        """The work of admitting *request*; what is overdue is settled after it."""

        def work(connection: sqlite3.Connection) -> Grant | Refusal:
            decision = gate.admit(connection, request)
            self.owners.heed(request, decision)
            if self.looks_at(request.at):
                self._looked_at = request.at
                if ledger.is_overdue(connection, request.at):
                    # Closing meanwhile must not undo the decision.
                    with contextlib.suppress(StoreUnavailable):
                        self.writer().do_later(
                            lambda later: ledger.reap(later, request.at, REAPED_AT_ONCE)
                        )
            return decision

        return work

    def looks_at(self, at: int) -> bool:
        """Whether the admission of this time (epoch milliseconds) is to look for overdue leases."""
        return self._reaps and abs(at - self._looked_at) >= _LOOK_EVERY_MS

    def remember(self, digest: bytes, at: int, owner: TokenOwner | None) -> TokenOwner | None:
        """Keep what the file said about a token; whose it is, if it is valid at *at*."""
        if owner is not None and not owner.key.is_valid(at):
            owner = None
        self.owners.put(digest, at, owner)
        return owner

    def change(self, work: Work[T]) -> T:
        """Change customers or keys."""
        try:
            return self.writer().do(work)
        finally:
            self.owners.clear()

    def end_tenures(self, *, crowded: bool = False) -> None:
        """See :meth:`.loop_writer.LoopWriter.end_tenure`, for all loops of this process."""
        for each in tuple(self._loops.values()):
            each.end_tenure(crowded=crowded)

    def writer(self) -> Writer:
        """The writing thread of this process."""
        writer = self._writer
        if writer is not None:
            return writer
        with self._lock:
            if self._closed:
                raise store_unavailable()
            if self._writer is None:
                make_way = partial(self.end_tenures, crowded=True)
                self._writer = Writer(self.path, self._ticket_path, make_way)
            return self._writer

    def loop_writer(self) -> LoopWriter:
        """The writing of the event loop that runs."""
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is not None:
            return found
        writer = self.writer()
        with self._lock:
            if self._closed:
                raise store_unavailable()
            for ended in [each for each in self._loops if each.is_closed()]:
                self._loops.pop(ended).close()
            if self._syncer is None:
                self._syncer = Syncer(self.path, self._ticket_path)
            if self._watch is None:
                self._watch = Watch()
            made = LoopWriter(
                loop,
                self.path,
                self._ticket_path,
                writer,
                self._syncer,
                self._watch,
                self.admission,
                self.owners.heed,
            )
            self._loops[loop] = made
            return made

    @contextlib.contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A connection for one reading, which may be long."""
        if self._closed:
            raise store_unavailable()
        self._come_true()
        try:
            with contextlib.closing(schema.connect(self.path)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise store_unavailable() from error

    def _come_true(self) -> None:
        """See to it that what any process has told is in the file."""
        self.end_tenures()
        # Another process may keep its turn, or have been killed while it did.
        if redo.is_left(self.path):
            transactions = Transactions(self.path, self._ticket_path)
            transactions.come_true(WAIT_FOR_OTHERS_S)
            transactions.let_go()

    @contextlib.contextmanager
    def looking_up(self) -> Generator[sqlite3.Connection]:
        """The connection for looking up tokens: short readings, one at a time."""
        with self._lock:
            if self._closed:
                raise store_unavailable()
            try:
                if self._reader is None:
                    self._reader = schema.connect(self.path)
                yield self._reader
            except sqlite3.Error as error:
                reader, self._reader = self._reader, None
                if reader is not None:
                    with contextlib.suppress(sqlite3.Error):
                        reader.close()
                raise store_unavailable() from error

    def close(self) -> None:
        """Do what is waiting and let go; afterwards every call fails."""
        with self._lock:
            self._closed = True
            writer, self._writer = self._writer, None
            syncer, self._syncer = self._syncer, None
            watch, self._watch = self._watch, None
            loops, self._loops = self._loops, {}
            reader, self._reader = self._reader, None
        if watch is not None:
            watch.close()
        for each in loops.values():
            each.close()
        if syncer is not None:
            syncer.close()
        if writer is not None:
            writer.close()
        if reader is not None:
            reader.close()

    def begin_anew(self) -> None:
        """In the child of a fork: leave everything to the parent."""
        _crossed_a_fork.append((self._writer, self._reader, self._loops, self._syncer))
        for each in (self._writer, *self._loops.values()):
            if each is not None:
                each.leave_to_parent()
        self._lock = Lock()
        self.owners = OwnerCache()
        self._writer = None
        self._syncer = None
        self._watch = None
        self._loops = {}
        self._reader = None


def _before_fork() -> None:
    # No open transaction should cross it.
    for database in list(_databases):
        database.end_tenures()


def _after_fork() -> None:
    for database in list(_databases):
        database.begin_anew()


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
