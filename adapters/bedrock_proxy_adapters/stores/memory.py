"""
Everything in this process's memory: for tests, demonstrations, and a single process that
may forget. Nothing survives a restart and nothing is shared.
"""

import heapq
from collections.abc import Callable
from threading import Lock
from typing import Final

from attrs import evolve

from bedrock_proxy import accounts, admission
from bedrock_proxy.admission import (
    FRESH,
    AdmissionRequest,
    GateState,
    Grant,
    Lease,
    Refusal,
)
from bedrock_proxy.customers import (
    MAX_KEYS,
    UNLIMITED,
    AlreadyTaken,
    Customer,
    CustomerNotFound,
    Key,
    KeyNotFound,
    TokenOwner,
    TooManyKeys,
    newest,
)
from bedrock_proxy.errors import Unavailable, store_unavailable
from bedrock_proxy.periods import day_of, month_of
from bedrock_proxy.ports import PortKind
from bedrock_proxy.standing import Standing
from bedrock_proxy.store import PAGE_SIZE, By, Page, UsageSum
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.sums import page_key, standing_of, sum_rows

REAP_AT_ADMISSION: Final = 100
"""How many overdue leases one admission settles at most."""


class MemoryStore:
    """
    A store in memory, behind one lock.

    Args:
        reap_at_admission: Settle overdue leases when a request is admitted. Turn it off
            where something else does (a test that looks at leases).
    """

    kind: PortKind = "instant"

    def __init__(self, *, reap_at_admission: bool = True) -> None:
        self._lock = Lock()
        self._closed = False
        self._reaps = reap_at_admission
        self._customers: dict[str, Customer] = {}
        self._keys: dict[str, dict[str, Key]] = {}
        self._owners: dict[bytes, tuple[str, str]] = {}
        self._states: dict[str, GateState] = {}
        self._leases: dict[str, dict[str, Lease]] = {}
        self._deadlines: list[tuple[int, str, str]] = []
        self._rows: dict[str, UsageRecord] = {}

    # --- the ports that requests use

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        with self._opened():
            found = self._owners.get(digest)
            if found is None:
                return None
            customer_id, key_id = found
            key = self._keys[customer_id][key_id]
            if not key.is_valid(at):
                return None
            customer = self._customers[customer_id]
            return TokenOwner(
                customer_id=customer_id, key=key, status=customer.status, models=customer.models
            )

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        with self._opened():
            decision = self._admit(request)
            if self._reaps:
                self._reap(request.at, REAP_AT_ADMISSION)
            return decision

    def renew(self, lease: Lease, at: int) -> Lease:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        with self._opened():
            held = self._leases.get(lease.request.customer_id, {}).get(lease.request.request_id)
            renewed = admission.renewed(held if held is not None else lease, at)
            if held is not None:
                self._hold(renewed)
            return renewed

    def release(self, request: AdmissionRequest) -> None:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        with self._opened():
            lease = self._leases.get(request.customer_id, {}).pop(request.request_id, None)
            if lease is not None:
                state = self._states[request.customer_id]
                self._states[request.customer_id] = admission.release(state, lease, request.at)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """See :class:`~bedrock_proxy.ports.Ledger`."""
        del lease  # what was reserved is what this store remembers, not what it is told
        with self._opened():
            self._finish(record)

    # --- customers

    def create_customer(self, customer: Customer, key: Key) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            if customer.id in self._customers:
                raise AlreadyTaken(f"There is a customer {customer.id!r} already.")
            self._check_free(key)
            self._customers[customer.id] = customer
            self._keys[customer.id] = {}
            self._put_key(customer.id, key)

    def get_customer(self, customer_id: str) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            return self._customer(customer_id)

    def list_customers(self, *, limit: int = PAGE_SIZE, after: str | None = None) -> Page[Customer]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            ids = sorted(i for i in self._customers if after is None or i > after)
            page = ids[:limit]
            return Page(
                tuple(self._customers[i] for i in page), page[-1] if len(ids) > limit else None
            )

    def update_customer(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            changed = evolve(change(self._customer(customer_id)), id=customer_id)
            self._customers[customer_id] = changed
            return changed

    def list_keys(self, customer_id: str) -> tuple[Key, ...]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            self._customer(customer_id)
            keys = self._keys[customer_id].values()
            return tuple(sorted(keys, key=lambda key: (key.created_at, key.key_id)))

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            self._customer(customer_id)
            self._add_key(customer_id, key, at, keep=None)

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None = None
    ) -> Key:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            self._customer(customer_id)
            keys = self._keys[customer_id]
            old = newest(keys.values()) if key_id is None else keys.get(key_id)
            if old is None:
                raise KeyNotFound(customer_id, key_id or "")
            behind = old.rotated(at, grace_ms)
            self._add_key(customer_id, new, at, keep=behind)
            if behind.is_valid(at):
                keys[old.key_id] = behind
            else:
                self._drop_key(customer_id, old.key_id)
            return behind

    def revoke_key(self, customer_id: str, key_id: str) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            self._customer(customer_id)
            if key_id not in self._keys[customer_id]:
                raise KeyNotFound(customer_id, key_id)
            self._drop_key(customer_id, key_id)

    def revoke_all_keys(self, customer_id: str) -> int:
        """See :class:`~bedrock_proxy.store.Customers`."""
        with self._opened():
            self._customer(customer_id)
            keys = tuple(self._keys[customer_id])
            for key_id in keys:
                self._drop_key(customer_id, key_id)
            return len(keys)

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
        with self._opened():
            rows = self._select(customer_id, start, end)
        rows.sort(key=page_key)
        if after is not None:
            rows = [row for row in rows if page_key(row) > after]
        return Page(tuple(rows[:limit]), page_key(rows[limit - 1]) if len(rows) > limit else None)

    def sum_usage(
        self,
        by: By,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> tuple[UsageSum, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            rows = self._select(customer_id, start, end)
        return sum_rows(by, rows)

    def standing(self, customer_id: str, at: int) -> Standing:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            customer = self._customer(customer_id)
            state = self._states.get(customer_id, FRESH)
            live = self._live(customer_id, max(state.clock, at))
            return standing_of(customer, self._keys[customer_id].values(), state, live, at)

    def reap(self, now: int, limit: int = 1_000) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            return self._reap(now, limit)

    def rebuild(self, now: int, customer_id: str | None = None, *, set_clock: bool = False) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            ids = list(self._customers) if customer_id is None else [self._customer(customer_id).id]
            for each in ids:
                self._rebuild(each, now, set_clock)
            return len(ids)

    def open_leases(self, customer_id: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            groups = (
                self._leases.values()
                if customer_id is None
                else [self._leases.get(customer_id, {})]
            )
            return tuple(lease for group in groups for lease in group.values())

    def gate_state(self, customer_id: str) -> GateState:
        """See :class:`~bedrock_proxy.store.Books`."""
        with self._opened():
            return self._states.get(customer_id, FRESH)

    def close(self) -> None:
        """See :class:`~bedrock_proxy.store.Books`."""
        self._closed = True

    # --- within the lock

    def _opened(self) -> Lock:
        if self._closed:
            raise store_unavailable()
        return self._lock

    def _customer(self, customer_id: str) -> Customer:
        customer = self._customers.get(customer_id)
        if customer is None:
            raise CustomerNotFound(customer_id)
        return customer

    def _admit(self, request: AdmissionRequest) -> Grant | Refusal:
        customer = self._customers.get(request.customer_id)
        state = self._states.get(request.customer_id, FRESH)
        now = max(state.clock, request.at)
        live = self._live(request.customer_id, now)
        limits = UNLIMITED if customer is None else customer.limits
        held = self._leases.get(request.customer_id, {}).get(request.request_id)
        if held is not None:
            return Grant(lease=held, limits=admission.limit_states(state, limits, live, now))
        if request.request_id in self._rows:
            raise Unavailable("This request has been settled already.")
        key = self._keys.get(request.customer_id, {}).get(request.key_id)
        status = None if customer is None else customer.status
        barred = admission.bar(status, key, request.at)
        if barred is not None:
            return admission.refused(barred, state, limits, live, request.at)
        decision, after = admission.decide(state, limits, request, live)
        if isinstance(decision, Grant):
            self._states[request.customer_id] = after
            self._hold(decision.lease)
        return decision

    def _hold(self, lease: Lease) -> None:
        request = lease.request
        self._leases.setdefault(request.customer_id, {})[request.request_id] = lease
        heapq.heappush(self._deadlines, (lease.deadline, request.customer_id, request.request_id))

    def _live(self, customer_id: str, now: int) -> int:
        leases = self._leases.get(customer_id)
        return sum(lease.deadline > now for lease in leases.values()) if leases else 0

    def _finish(self, record: UsageRecord) -> None:
        leases = self._leases.get(record.customer_id, {})
        customer = self._customers.get(record.customer_id)
        entry = accounts.enter(
            record,
            old=self._rows.get(record.request_id),
            lease=leases.get(record.request_id),
            state=self._states.get(record.customer_id, FRESH),
            limits=UNLIMITED if customer is None else customer.limits,
        )
        if entry.row is not None:
            self._rows[record.request_id] = entry.row
        self._states[record.customer_id] = entry.state
        leases.pop(record.request_id, None)

    def _reap(self, now: int, limit: int) -> int:
        reaped = 0
        while reaped < limit and self._deadlines and self._deadlines[0][0] <= now:
            _, customer_id, request_id = heapq.heappop(self._deadlines)
            lease = self._leases.get(customer_id, {}).get(request_id)
            # A renewed or settled lease leaves its old deadline behind.
            if lease is not None and lease.deadline <= now:
                self._finish(accounts.estimated_row(lease))
                reaped += 1
        return reaped

    def _rebuild(self, customer_id: str, now: int, set_clock: bool) -> None:
        if set_clock:
            for lease in tuple(self._leases.get(customer_id, {}).values()):
                match accounts.after_wrong_clock(lease, now):
                    case Lease() as shorter:
                        self._hold(shorter)
                    case UsageRecord() as row:
                        self._finish(row)
                    case None:
                        pass
        state = self._states.get(customer_id, FRESH)
        if set_clock:
            state = admission.put_back(state, now)
        rows = self._select(customer_id, None, None)
        leases = self._leases.get(customer_id, {}).values()
        times = (*(row.admitted_at for row in rows), *(lease.request.at for lease in leases))
        state = admission.rolled(state, accounts.latest(now, times))
        totals = [
            accounts.total(
                (row for row in rows if period(row.admitted_at) == current),
                (lease for lease in leases if period(lease.request.at) == current),
            )
            for period, current in (
                (day_of, state.day),
                (month_of, state.month),
            )
        ]
        self._states[customer_id] = accounts.recounted(state, *totals)

    def _select(
        self, customer_id: str | None, start: int | None, end: int | None
    ) -> list[UsageRecord]:
        return [
            row
            for row in self._rows.values()
            if (customer_id is None or row.customer_id == customer_id)
            and (start is None or row.admitted_at >= start)
            and (end is None or row.admitted_at < end)
        ]

    def _check_free(self, key: Key) -> None:
        taken = any(key.key_id in keys for keys in self._keys.values())
        if taken or key.digest in self._owners:
            raise AlreadyTaken("This token or key id is in use already.")

    def _put_key(self, customer_id: str, key: Key) -> None:
        self._keys[customer_id][key.key_id] = key
        self._owners[key.digest] = (customer_id, key.key_id)

    def _add_key(self, customer_id: str, key: Key, at: int, keep: Key | None) -> None:
        """Add *key*; *keep* is how the key it replaces stays behind."""
        self._check_free(key)
        keys = self._keys[customer_id]
        after = [
            each if keep is None or each.key_id != keep.key_id else keep for each in keys.values()
        ]
        if sum(each.is_valid(at) for each in after) >= MAX_KEYS:
            raise TooManyKeys(customer_id)
        for each in tuple(keys.values()):
            if not each.is_valid(at):
                self._drop_key(customer_id, each.key_id)
        self._put_key(customer_id, key)

    def _drop_key(self, customer_id: str, key_id: str) -> None:
        key = self._keys[customer_id].pop(key_id, None)
        if key is not None:
            del self._owners[key.digest]
