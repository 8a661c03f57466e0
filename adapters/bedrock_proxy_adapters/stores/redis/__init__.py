"""
A store in Redis or Valkey: exact across any number of machines, one round trip an operation.

Needs the extra ``redis``. Every operation of a request is one Lua script, which Redis runs
alone; a customer's keys share a hash tag, so that a cluster will do.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any, Final

from bedrock_proxy.admission import AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.customers import Customer, CustomerNotFound, Key, TokenOwner
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy.ports import PortKind
from bedrock_proxy.standing import Standing
from bedrock_proxy.store import PAGE_SIZE, By, Page, UsageSum
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.cache import OwnerCache
from bedrock_proxy_adapters.stores.redis.connection import (
    DEFAULT_PREFIX,
    Clock,
    Line,
    Names,
    connect,
    place_of,
)
from bedrock_proxy_adapters.stores.redis.directory import Directory
from bedrock_proxy_adapters.stores.redis.gate import RedisGate
from bedrock_proxy_adapters.stores.redis.ledger import RedisLedger

__all__ = ["RedisStore"]

_REAPED_AT_ADMISSION: Final = 10
_ASKED_AT_ONCE: Final = 500


class RedisStore:
    """
    A store on a Redis (5 or later) or Valkey server, or a cluster of them.

    Args:
        client: A client of redis-py, or one like it. Its time-outs bound how long a request
            waits; :meth:`from_url` sets them.
        prefix: What every key begins with.
        accepts_loss: Use a server without an append-only file, or one that evicts keys.
        clock: Whose time counts for limits and leases: the server's own, or what each request
            says. The server's is one for all; the caller's is for tests.
        reap_at_admission: Settle a customer's overdue leases when a request is admitted.
        owns: Whether closing the store closes the client.

    Raises:
        ConfigurationError: The server forgets what it is told, and that is not accepted.
    """

    kind: PortKind = "blocking"

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = DEFAULT_PREFIX,
        accepts_loss: bool = False,
        clock: Clock = "server",
        reap_at_admission: bool = True,
        owns: bool = False,
    ) -> None:
        names = Names(prefix)
        self._line = Line(client, accepts_loss=accepts_loss, owns=owns)
        self._reaps = reap_at_admission
        self._owners = OwnerCache()
        self._directory = Directory(self._line, names)
        self._gate = RedisGate(self._line, names, clock)
        self._ledger = RedisLedger(self._line, names, self._gate)
        self._line.check()

    @classmethod
    def from_url(cls, url: str, **more: Any) -> "RedisStore":
        """
        The store that a URL names; see
        :func:`~bedrock_proxy_adapters.stores.redis.connection.place_of`.

        Raises:
            ConfigurationError: It cannot be read, or as above.
        """
        place = place_of(url)
        return cls(
            connect(place),
            prefix=place.prefix,
            accepts_loss=place.accepts_loss,
            owns=True,
            **more,
        )

    # --- the ports that requests use

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        cached = self._owners.get(digest, at)
        if cached is not None:
            return cached or None
        owner = self._directory.find_token(digest)
        if owner is not None and not owner.key.is_valid(at):
            owner = None
        self._owners.put(digest, at, owner)
        return owner

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        decision, overdue = self._gate.admit(request)
        self._owners.heed(request, decision)
        if overdue and self._reaps:
            # The request has its answer; what others left behind must not spoil it.
            with contextlib.suppress(StoreUnavailable):
                self._ledger.reap(
                    [request.customer_id], self._gate.now(request.at), _REAPED_AT_ADMISSION
                )
        return decision

    def renew(self, lease: Lease, at: int) -> Lease:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._gate.renew(lease, at)

    def release(self, request: AdmissionRequest) -> None:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        self._gate.release(request)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """See :class:`~bedrock_proxy.ports.Ledger`."""
        self._ledger.finish(record, lease)

    # --- customers

    def create_customer(self, customer: Customer, key: Key) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            self._directory.create(customer, key)

    def get_customer(self, customer_id: str) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._directory.get(customer_id).customer

    def list_customers(self, *, limit: int = PAGE_SIZE, after: str | None = None) -> Page[Customer]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._directory.page(limit, after)

    def update_customer(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            return self._directory.update(customer_id, change)

    def list_keys(self, customer_id: str) -> tuple[Key, ...]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._directory.get(customer_id).keys

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            self._directory.add_key(customer_id, key, at)

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None = None
    ) -> Key:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            return self._directory.rotate_key(customer_id, new, at, grace_ms, key_id)

    def revoke_key(self, customer_id: str, key_id: str) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            self._directory.revoke(customer_id, key_id)

    def revoke_all_keys(self, customer_id: str) -> int:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._changing():
            return self._directory.revoke(customer_id, None)

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
        return self._ledger.list_rows(self._ids(customer_id), start, end, limit, after)

    def sum_usage(
        self,
        by: By,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> tuple[UsageSum, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        return self._ledger.sum_usage(by, self._ids(customer_id), start, end)

    def standing(self, customer_id: str, at: int) -> Standing:
        """See :class:`~bedrock_proxy.store.Books`."""
        standing = self._gate.standing(customer_id, at)
        if standing is None:
            raise CustomerNotFound(customer_id)
        return standing

    def reap(self, now: int, limit: int = 1_000) -> int:
        """
        See :class:`~bedrock_proxy.store.Books`. *now* counts only where the callers' clock
        does: a machine whose clock is ahead must not settle what is still under way.
        """
        now = self._gate.now(now)
        ids = self._directory.ids()
        reaped = 0
        for first in range(0, len(ids), _ASKED_AT_ONCE):
            if reaped < limit:
                group = ids[first : first + _ASKED_AT_ONCE]
                reaped += self._ledger.reap(group, now, limit - reaped)
        return reaped

    def rebuild(self, now: int, customer_id: str | None = None, *, set_clock: bool = False) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        if customer_id is not None:
            ids = [self.get_customer(customer_id).id]
        else:
            ids = self._directory.ids()
        for each in ids:
            self._ledger.rebuild(each, now, set_clock)
        return len(ids)

    def open_leases(self, customer_id: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        leases = [
            lease for each in self._ids(customer_id) for lease in self._gate.open_leases(each)
        ]
        return tuple(sorted(leases, key=lambda lease: (lease.deadline, lease.request.request_id)))

    def gate_state(self, customer_id: str) -> GateState:
        """See :class:`~bedrock_proxy.store.Books`."""
        return self._gate.state(customer_id)

    def close(self) -> None:
        """See :class:`~bedrock_proxy.store.Books`."""
        self._line.close()

    def _ids(self, customer_id: str | None) -> list[str]:
        return self._directory.ids() if customer_id is None else [customer_id]

    @contextlib.contextmanager
    def _changing(self) -> Generator[None]:
        """Whatever comes of it, this process forgets what it knew of tokens."""
        try:
            yield
        finally:
            self._owners.clear()
