"""
Customers, tokens and the ledger from one store to another, whatever the two are.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from typing import Final

from attrs import define, evolve, field, frozen

from bedrock_proxy.accounts import Total, total
from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.customers import Customer, CustomerNotFound, Key
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.store import Store, every_customer, every_row
from bedrock_proxy.usage import State, UsageRecord

_PLACEHOLDER: Final = "placeholder:"
_SHOWN: Final = 5
_AT_ONCE: Final = 1_000
"""Rows that are written before they are read back."""


@frozen(kw_only=True)
class Copied:
    """
    What a copy found and did, in all.

    Attributes:
        source, target: The ledger rows of the copied customers on either side, added up: those
            that the source had when its turn came.
        customers, keys, rows: How many were new to the target (would be, in a dry run).
        corrected: Rows that the source has as estimates and the target as they were.
        only_in_target: Rows of these customers that the source has not: later traffic.
        others: Customers of the target that the source has not; left alone.
        open_leases: Requests in the source that have not been settled: not copied.
    """

    source: Total
    target: Total
    customers: int
    keys: int
    rows: int
    corrected: int
    only_in_target: int
    others: int
    open_leases: int


@frozen
class _Work:
    """What is to be done for one customer."""

    customer: Customer
    keys: tuple[Key, ...]
    is_new: bool
    missing_keys: tuple[Key, ...]


@define
class _Tally:
    """Rows on both sides, and how many of them the target lacked."""

    source: Total = field(factory=Total)
    target: Total = field(factory=Total)
    rows: int = 0
    corrected: int = 0

    def add(self, mine: UsageRecord, theirs: UsageRecord | None) -> None:
        self.source = self.source.plus(total([mine], ()))
        if theirs is not None:
            self.target = self.target.plus(total([theirs], ()))
            self.corrected += _corrects(theirs, mine)


def place_customer(store: Store, customer: Customer, keys: Sequence[Key]) -> None:
    """
    Add a customer with all its keys, which may be none.

    Raises:
        AlreadyTaken: The id, a key id or a token is in use.
    """
    # A store takes a customer with a key; one without gets a key that nobody can present.
    first = keys[0] if keys else _placeholder(customer)
    store.create_customer(customer, first)
    if not keys:
        store.revoke_key(customer.id, first.key_id)
    for key in keys[1:]:
        # At the beginning of time no key has expired: none makes room for another.
        store.add_key(customer.id, key, 0)


def copy_store(source: Store, target: Store, now: int, *, dry_run: bool = False) -> Copied:
    """
    Bring everything that *source* keeps into *target*; doing it again brings what came since.

    Nothing is written before everything has been looked at, and what was written is read
    back and compared. Limits go on from counters that are counted again at *now* (epoch
    ms); buckets of the current minute start full, open requests stay where they are. The source
    may be serving: what ends behind the copy's back is left for the next one.

    Raises:
        ConfigurationError: The target has a customer, a token or a row of the same name with
            other contents, or does not read back what was written.
    """
    conflicts: list[str] = []
    works = [_compare(source, target, each, conflicts) for each in every_customer(source)]
    _refuse("The target differs from the source", conflicts)
    ids = {work.customer.id for work in works}
    others = sum(each.id not in ids for each in every_customer(target))
    tally, only_in_target = _Tally(), 0
    for work in works:
        for mine, theirs in _pairs(source, target, work.customer.id):
            if mine is None:
                only_in_target += 1
                continue
            tally.add(mine, theirs)
            if _lacks(mine, theirs):
                tally.rows += 1
            elif theirs is not None and not _agree(mine, theirs):
                conflicts.append(f"row {mine.request_id}")
    _refuse("The target differs from the source", conflicts)
    open_leases = len(source.open_leases())
    if not dry_run:
        tally = _Tally()
        for work in works:
            _write(source, target, work, now, tally, conflicts)
            if _unlike(target, work):
                conflicts.append(f"customer {work.customer.id}")
        _refuse("The target does not read back what was written", conflicts)
    return Copied(
        source=tally.source,
        target=tally.target,
        customers=sum(work.is_new for work in works),
        keys=sum(len(work.missing_keys) for work in works),
        rows=tally.rows,
        corrected=tally.corrected,
        only_in_target=only_in_target,
        others=others,
        open_leases=open_leases,
    )


def _compare(source: Store, target: Store, customer: Customer, conflicts: list[str]) -> _Work:
    keys = source.list_keys(customer.id)
    try:
        theirs = target.get_customer(customer.id)
    except CustomerNotFound:
        conflicts.extend(
            f"key {key.key_id} of customer {customer.id}"
            for key in keys
            if target.find_token(key.digest, 0) is not None
        )
        return _Work(customer, keys, is_new=True, missing_keys=keys)
    known = {key.key_id: key for key in target.list_keys(customer.id)}
    known.pop(_placeholder(customer).key_id, None)
    if theirs != customer:
        conflicts.append(f"customer {customer.id}")
    mine = {key.key_id: key for key in keys}
    conflicts.extend(
        f"key {key_id} of customer {customer.id}"
        for key_id, key in known.items()
        if mine.get(key_id) != key
    )
    return _Work(
        customer,
        keys,
        is_new=False,
        missing_keys=tuple(key for key in keys if key.key_id not in known),
    )


def _write(
    source: Store, target: Store, work: _Work, now: int, tally: _Tally, conflicts: list[str]
) -> None:
    customer_id = work.customer.id
    if work.is_new:
        place_customer(target, work.customer, work.keys)
    else:
        # Left by a copy that was cut off.
        left = _placeholder(work.customer).key_id
        if any(key.key_id == left for key in target.list_keys(customer_id)):
            target.revoke_key(customer_id, left)
        for key in work.missing_keys:
            target.add_key(customer_id, key, 0)
    ours = every_row(source, customer_id=customer_id)
    while some := list(islice(ours, _AT_ONCE)):
        there = _there(target, customer_id, some)
        lacking = [mine for mine in some if _lacks(mine, there.get(mine.request_id))]
        for mine in lacking:
            target.finish(mine, _lease_of(mine))
        tally.rows += len(lacking)
        if lacking:
            there = _there(target, customer_id, some)
        for mine in some:
            theirs = there.get(mine.request_id)
            tally.add(mine, theirs)
            if theirs is None or not _agree(mine, theirs):
                conflicts.append(f"row {mine.request_id}")
    target.rebuild(now, customer_id)


def _there(target: Store, customer_id: str, some: Sequence[UsageRecord]) -> dict[str, UsageRecord]:
    """What the target has of the times of *some* rows, which are in their order."""
    found: Iterable[UsageRecord] = every_row(
        target,
        customer_id=customer_id,
        start=some[0].admitted_at,
        end=some[-1].admitted_at + 1,
    )
    return {row.request_id: row for row in found}


def _unlike(target: Store, work: _Work) -> bool:
    customer = target.get_customer(work.customer.id)
    return customer != work.customer or {*target.list_keys(customer.id)} != {*work.keys}


def _pairs(
    source: Store, target: Store, customer_id: str
) -> Iterator[tuple[UsageRecord | None, UsageRecord | None]]:
    """The rows of both, side by side: both are in the order of time and id."""
    ours = every_row(source, customer_id=customer_id)
    others = every_row(target, customer_id=customer_id)
    mine, theirs = next(ours, None), next(others, None)
    while mine is not None or theirs is not None:
        if theirs is None or (mine is not None and _place(mine) < _place(theirs)):
            yield mine, None
            mine = next(ours, None)
        elif mine is None or _place(theirs) < _place(mine):
            yield None, theirs
            theirs = next(others, None)
        else:
            yield mine, theirs
            mine, theirs = next(ours, None), next(others, None)


def _place(row: UsageRecord) -> tuple[int, str]:
    return row.admitted_at, row.request_id


def _corrects(one: UsageRecord, other: UsageRecord) -> bool:
    return other.state is State.ESTIMATED and one.state is State.FINAL


def _lacks(mine: UsageRecord, theirs: UsageRecord | None) -> bool:
    return theirs is None or _corrects(mine, theirs)


def _agree(mine: UsageRecord, theirs: UsageRecord) -> bool:
    # What was settled late may have reached the target alone.
    return _same(mine, theirs) or _corrects(theirs, mine)


def _same(mine: UsageRecord, theirs: UsageRecord) -> bool:
    # When a row was corrected is told by the store that corrects it.
    return evolve(mine, corrected_at=None) == evolve(theirs, corrected_at=None)


def _refuse(what: str, conflicts: Sequence[str]) -> None:
    if conflicts:
        more = len(conflicts) - _SHOWN
        raise ConfigurationError(
            f"{what}: {', '.join(conflicts[:_SHOWN])}{f' and {more} more' if more > 0 else ''}."
        )


def _placeholder(customer: Customer) -> Key:
    name = _PLACEHOLDER + customer.id
    return Key(
        key_id=name,
        digest=name.encode() + sha256(name.encode()).digest(),
        created_at=0,
        expires_at=1,
    )


def _lease_of(row: UsageRecord) -> Lease:
    """A lease for a row that never had one in its new store."""
    request = AdmissionRequest(
        request_id=row.request_id,
        customer_id=row.customer_id,
        key_id=row.key_id,
        model_id=row.model_id,
        model=row.model,
        dialect=row.dialect,
        operation=row.operation,
        stream=row.stream,
        at=row.admitted_at,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost_nanousd=row.cost_nanousd,
        price_version=row.price_version,
        client_request_id=row.client_request_id,
        lease_ms=0,
    )
    return Lease(request=request, deadline=row.admitted_at)
