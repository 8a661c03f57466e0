"""
The embedded default: everything in one SQLite file, shared by the processes of a machine.
"""

import os
from asyncio import Future
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from bedrock_proxy.admission import AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.customers import Customer, Key, TokenOwner
from bedrock_proxy.ports import Answer, PortKind
from bedrock_proxy.standing import Standing
from bedrock_proxy.store import PAGE_SIZE, By, Page, UsageSum
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores import directory, gate, ledger
from bedrock_proxy_adapters.stores.database import REAPED_AT_ONCE, Database
from bedrock_proxy_adapters.stores.transactions import Work

T = TypeVar("T")


class SqliteStore:
    """
    A store in one SQLite file, exact across threads and processes.

    The file and its schema are made ready here; connections and the writing thread begin
    with the first call, in whichever process that is.

    Args:
        path: The file. Beside it lie SQLite's own ``-wal`` and ``-shm``, ``-ticket``, and
            ``-redo``.
        reap_at_admission: Settle overdue leases when a request is admitted.

    Raises:
        ConfigurationError: The file cannot be used; the message says why.
    """

    kind: PortKind = "blocking"

    def __init__(self, path: str | os.PathLike[str], *, reap_at_admission: bool = True) -> None:
        self._database = Database(Path(path), reap_at_admission=reap_at_admission)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._database.path

    def native(self) -> "NativeSqliteStore":
        """The same store for hosts with an event loop: its methods are coroutines."""
        return NativeSqliteStore(self._database)

    # --- the ports that requests use

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        database = self._database
        cached = database.owners.get(digest, at)
        if cached is not None:
            return cached or None
        with database.looking_up() as connection:
            owner = directory.find_token(connection, digest)
        return database.remember(digest, at, owner)

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._database.writer().do(self._database.admission(request))

    def renew(self, lease: Lease, at: int) -> Lease:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._database.writer().do(lambda connection: gate.renew(connection, lease, at))

    def release(self, request: AdmissionRequest) -> None:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        self._database.writer().do(lambda connection: gate.release(connection, request))

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """See :class:`~bedrock_proxy.ports.Ledger`."""
        del lease  # what was reserved is what the file says, not what we are told
        self._database.writer().do(lambda connection: ledger.finish(connection, record))

    # --- customers

    def create_customer(self, customer: Customer, key: Key) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._database.change(lambda connection: directory.create(connection, customer, key))

    def get_customer(self, customer_id: str) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._database.reading() as connection:
            return directory.get_customer(connection, customer_id)

    def list_customers(self, *, limit: int = PAGE_SIZE, after: str | None = None) -> Page[Customer]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._database.reading() as connection:
            return directory.list_customers(connection, limit, after)

    def update_customer(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._database.change(
            lambda connection: directory.update(connection, customer_id, change)
        )

    def list_keys(self, customer_id: str) -> tuple[Key, ...]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._database.reading() as connection:
            directory.get_customer(connection, customer_id)
            return directory.list_keys(connection, customer_id)

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._database.change(
            lambda connection: directory.add_key(connection, customer_id, key, at)
        )

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None = None
    ) -> Key:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._database.change(
            lambda connection: directory.rotate_key(
                connection, customer_id, new, at, grace_ms, key_id
            )
        )

    def revoke_key(self, customer_id: str, key_id: str) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._database.change(
            lambda connection: directory.revoke_key(connection, customer_id, key_id)
        )

    def revoke_all_keys(self, customer_id: str) -> int:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._database.change(
            lambda connection: directory.revoke_all_keys(connection, customer_id)
        )

    # --- the books

    def list_rows(
        self,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int = PAGE_SIZE,
        after: str | None = None,
    ) -> Page[UsageRecord]:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            return ledger.list_rows(connection, customer_id, start, end, limit, after)

    def sum_usage(
        self,
        by: By,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> tuple[UsageSum, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            return ledger.sum_usage(connection, by, customer_id, start, end)

    def standing(self, customer_id: str, at: int) -> Standing:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            connection.execute("BEGIN")
            return gate.standing(connection, customer_id, at)

    def reap(self, now: int, limit: int = 1_000) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        reaped = 0
        while reaped < limit:
            # In several commits, so that requests are not kept waiting for a long one.
            size = min(limit - reaped, REAPED_AT_ONCE)
            group = self._database.writer().do(partial(ledger.reap, now=now, limit=size))
            reaped += group
            if group < size:
                break
        return reaped

    def rebuild(self, now: int, customer_id: str | None = None, *, set_clock: bool = False) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            if customer_id is not None:
                ids = [directory.get_customer(connection, customer_id).id]
            else:
                ids = directory.customer_ids(connection)
        for each in ids:
            self._database.writer().do(
                partial(ledger.rebuild, customer_id=each, now=now, set_clock=set_clock)
            )
        return len(ids)

    def open_leases(self, customer_id: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            return gate.open_leases(connection, customer_id)

    def gate_state(self, customer_id: str) -> GateState:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._database.reading() as connection:
            return gate.load(connection, customer_id)

    def close(self) -> None:
        """See :class:`~bedrock_proxy.store.Books`."""
        self._database.close()


class NativeSqliteStore:
    """
    A :class:`SqliteStore` for hosts with an event loop.

    What can be done at once is done on the loop's own thread, the rest by the writing thread: see
    :mod:`.loop_writer`.
    """

    kind: PortKind = "native"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        cached = self._database.owners.get(digest, at)
        if cached is not None:
            return cached or None
        found = self._database.loop_writer().look_up(
            lambda connection: directory.find_token(connection, digest)
        )
        owner = await found if isinstance(found, Future) else found
        return self._database.remember(digest, at, owner)

    def admit(self, request: AdmissionRequest) -> Answer[Grant | Refusal]:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        database = self._database
        writer = database.loop_writer()
        if database.looks_at(request.at):
            return writer.do(database.admission(request), durable=False)
        return writer.admit(request)

    def standing(self, customer_id: str, at: int) -> Awaitable[Standing]:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        return self._do(lambda connection: gate.standing(connection, customer_id, at))

    def renew(self, lease: Lease, at: int) -> Awaitable[Lease]:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._do(lambda connection: gate.renew(connection, lease, at))

    def release(self, request: AdmissionRequest) -> Awaitable[None]:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._database.loop_writer().release(
            lambda connection: gate.release(connection, request)
        )

    def finish(self, record: UsageRecord, lease: Lease) -> Awaitable[None]:
        """See :class:`~bedrock_proxy.ports.Ledger`."""
        del lease
        return self._database.loop_writer().finish(record)

    def _do(self, work: Work[T]) -> Awaitable[T]:
        return self._database.loop_writer().do(work, durable=False)
