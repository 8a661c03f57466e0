"""
The ledger in DynamoDB: a row is put if it is absent, then its lease is settled. A change of
a row that is there already goes through an adjustment, so that it is counted exactly once
wherever it is interrupted.
"""

import heapq
import secrets
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from attrs import evolve

from bedrock_proxy import accounts
from bedrock_proxy.accounts import Entry
from bedrock_proxy.admission import FRESH, Lease
from bedrock_proxy.customers import UNLIMITED
from bedrock_proxy.store import By, Page, UsageSum
from bedrock_proxy.usage import LEDGER_FIELDS, State, UsageRecord
from bedrock_proxy_adapters.operator_log import Seldom
from bedrock_proxy_adapters.stores.dynamodb.connection import Backoff, Refused, Table
from bedrock_proxy_adapters.stores.dynamodb.expressions import (
    adjustment_begins,
    adjustment_ends,
    adjustment_is_void,
    renewal_update,
)
from bedrock_proxy_adapters.stores.dynamodb.gate import ShapeLost, full_lease, settle
from bedrock_proxy_adapters.stores.dynamodb.image import Image, Item, gate_key, image_of
from bedrock_proxy_adapters.stores.dynamodb.packing import (
    ADJUSTMENT,
    NONCE_BYTES,
    Adjustment,
    lease_name,
    unpack_adjustment,
)
from bedrock_proxy_adapters.stores.rows import record_of
from bedrock_proxy_adapters.stores.sums import page_key, sum_rows

_seldom: Final = Seldom()

_ADJUSTMENT_MS: Final = 300_000
"""After so long, whoever began an adjustment is taken for dead."""


# --- rows ---------------------------------------------------------------------------------------


def row_key(customer_id: str, admitted_at: int, request_id: str) -> dict[str, Any]:
    """Where a row is: under its customer, in the order of pages."""
    return {
        "pk": {"S": f"L#{customer_id}"},
        "sk": {"S": f"{admitted_at:015d}/{request_id}"},
    }


def row_item(row: UsageRecord, ttl: int | None, nonce: bytes | None) -> dict[str, Any]:
    """A row as an item, an attribute for each field that says something."""
    item = row_key(row.customer_id, row.admitted_at, row.request_id)
    for name, value in row.as_dict().items():
        if isinstance(value, bool):
            item[name] = {"BOOL": value}
        elif isinstance(value, int):
            item[name] = {"N": str(value)}
        elif value is not None:
            item[name] = {"S": str(value)}
    if ttl is not None:
        item["ttl"] = {"N": str(row.admitted_at // 1_000 + ttl)}
    if nonce is not None:
        item["nonce"] = {"B": nonce}
    return item


def row_of(item: Item) -> UsageRecord:
    """The row that :func:`row_item` wrote."""
    values: dict[str, Any] = dict.fromkeys(LEDGER_FIELDS)
    for name, value in item.items():
        ((kind, said),) = value.items()
        values[name] = int(said) if kind == "N" else said
    return record_of(values)


# --- settlement ---------------------------------------------------------------------------------


def finish(table: Table, record: UsageRecord, admitted_at: int, ttl: int | None) -> None:
    """See :meth:`~bedrock_proxy.ports.Ledger.finish`; *admitted_at* is the lease's own time."""
    if record.admitted_at != admitted_at:
        record = evolve(record, admitted_at=admitted_at)
    name = lease_name(record.request_id)
    at = record.admitted_at + record.duration_ms
    image = table.images.get(record.customer_id)
    if image is None or name not in image.entries:
        image = table.read(record.customer_id)
        if image is not None and name not in image.entries:
            _finish_forgotten(table, record, ttl)
            return
    there = table.put(row_item(record, ttl, None), "attribute_not_exists(pk)")
    standing = record if there is None else row_of(there)
    settle(table, image, record.request_id, standing.token_count, standing.cost_nanousd or 0, at)
    if there is not None:
        _correct(table, standing, record, ttl)


def _finish_forgotten(table: Table, record: UsageRecord, ttl: int | None) -> None:
    """There is no lease: either all is done, or the gate never knew of it."""
    key = row_key(record.customer_id, record.admitted_at, record.request_id)
    there = table.get(key)
    if there is not None:
        _correct(table, row_of(there), record, ttl)
        return
    adjustment = _begin(table, record, requests=0, tokens=0, cost_nanousd=0)
    table.put(row_item(record, ttl, adjustment.nonce), "attribute_not_exists(pk)")
    end_adjustment(table, record.customer_id, record.request_id, adjustment)


def _correct(table: Table, old: UsageRecord, new: UsageRecord, ttl: int | None) -> None:
    """The true row in the place of an estimated one, once."""
    entry: Entry = accounts.enter(new, old=old, lease=None, state=FRESH, limits=UNLIMITED)
    if entry.row is None:
        return
    adjustment = _begin(
        table, new, requests=1, tokens=old.token_count, cost_nanousd=old.cost_nanousd or 0
    )
    table.put(
        row_item(entry.row, ttl, adjustment.nonce),
        "#state = :estimated",
        ExpressionAttributeNames={"#state": "state"},
        ExpressionAttributeValues={":estimated": {"S": State.ESTIMATED.value}},
    )
    end_adjustment(table, new.customer_id, new.request_id, adjustment)


def _begin(
    table: Table, row: UsageRecord, *, requests: int, tokens: int, cost_nanousd: int
) -> Adjustment:
    """Announce a change of the counters; somebody else's announcement where there is one."""
    adjustment = Adjustment(
        nonce=secrets.token_bytes(NONCE_BYTES),
        at=row.admitted_at,
        deadline=row.admitted_at + row.duration_ms + _ADJUSTMENT_MS,
        requests=requests,
        tokens=tokens,
        cost_nanousd=cost_nanousd,
    )
    name = ADJUSTMENT + lease_name(row.request_id)
    reply = table.update(row.customer_id, adjustment_begins(row.request_id, adjustment))
    if isinstance(reply, Refused):
        image = table.after(row.customer_id, reply)
        if image is not None and name in image.entries:
            return unpack_adjustment(image.entries[name])
    return adjustment


def end_adjustment(table: Table, customer_id: str, request_id: str, adjustment: Adjustment) -> None:
    """Count the difference if the row has changed as announced; then forget the announcement."""
    item = table.get(row_key(customer_id, adjustment.at, request_id))
    is_made = item is not None and item.get("nonce") == {"B": adjustment.nonce}
    row = row_of(item) if item is not None else None
    name = ADJUSTMENT + lease_name(request_id)
    image = table.images.get(customer_id)
    if image is None or name not in image.entries:
        image = table.read(customer_id)
    wait = Backoff()
    while image is not None and name in image.entries:
        if unpack_adjustment(image.entries[name]).nonce != adjustment.nonce:
            return
        if is_made and row is not None:
            update = adjustment_ends(
                image, request_id, adjustment, row.token_count, row.cost_nanousd or 0
            )
        else:
            update = adjustment_is_void(request_id, adjustment)
        reply = table.update(customer_id, update)
        if not isinstance(reply, Refused):
            return
        image = table.after(customer_id, reply)
        wait.once_more()


# --- what is overdue ------------------------------------------------------------------------------


def images(table: Table, customer_ids: list[str], *, consistent: bool) -> Iterator[Image]:
    """The gate items of these customers."""
    for start in range(0, len(customer_ids), 100):
        ids = customer_ids[start : start + 100]
        for item in table.get_all([gate_key(each) for each in ids], consistent=consistent):
            yield image_of(item["pk"]["S"][2:], item)


def reap(table: Table, customer_ids: list[str], now: int, limit: int, ttl: int | None) -> int:
    """See :meth:`~bedrock_proxy.store.Books.reap`."""
    overdue: list[tuple[int, str, str]] = []
    for image in images(table, customer_ids, consistent=False):
        for request_id, held in image.leases():
            if held.deadline <= now:
                overdue.append((held.deadline, image.customer_id, request_id))
        for request_id, adjustment in image.adjustments():
            if adjustment.deadline <= now:
                end_adjustment(table, image.customer_id, request_id, adjustment)
    overdue.sort()
    settled = 0
    for _, customer_id, request_id in overdue:
        if settled == limit:
            break
        try:
            _settle_overdue(table, customer_id, request_id, now, ttl)
        except ShapeLost as error:
            _pass_over(customer_id, error)
        else:
            settled += 1
    return settled


def _pass_over(customer_id: str, error: ShapeLost) -> None:
    """One lease that cannot be settled keeps no other from it."""
    _seldom.warn(f"A lease of {customer_id} cannot be settled, and stays: {error.cause}.")


def _settle_overdue(
    table: Table, customer_id: str, request_id: str, now: int, ttl: int | None
) -> None:
    image = table.read(customer_id)  # it may have been renewed
    if image is None:
        return
    held = dict(image.leases()).get(request_id)
    if held is not None and held.deadline <= now:
        row = accounts.estimated_row(full_lease(table, request_id, held))
        finish(table, row, row.admitted_at, ttl)


def open_leases(table: Table, customer_ids: list[str]) -> tuple[Lease, ...]:
    """See :meth:`~bedrock_proxy.store.Books.open_leases`."""
    found = [
        full_lease(table, request_id, held)
        for image in images(table, customer_ids, consistent=True)
        for request_id, held in image.leases()
    ]
    return tuple(sorted(found, key=lambda lease: (lease.deadline, lease.request.request_id)))


# --- what a wrong clock has dated -----------------------------------------------------------------


def put_leases_back(table: Table, customer_id: str, now: int, ttl: int | None) -> None:
    """Settle what is of a time to come, and shorten what was renewed until one."""
    image = table.read(customer_id)
    if image is None:
        return
    for request_id, held in image.leases():
        try:
            lease = full_lease(table, request_id, held)
        except ShapeLost as error:
            _pass_over(customer_id, error)
            continue
        match accounts.after_wrong_clock(lease, now):
            case Lease() as shorter:
                known = image.entries[lease_name(request_id)]
                shortened = evolve(held, deadline=shorter.deadline)
                # Where this is refused, the lease has been settled meanwhile.
                table.update(customer_id, renewal_update(request_id, known, shortened))
            case UsageRecord() as row:
                finish(table, row, row.admitted_at, ttl)
            case None:
                pass


# --- reading --------------------------------------------------------------------------------------


def rows(
    table: Table, customer_id: str, start: int | None, end: int | None, after: str | None
) -> Iterator[UsageRecord]:
    """A customer's rows in the order of pages, read as they are asked for."""
    return map(row_of, _items(table, customer_id, start, end, after))


def rows_with_nonces(
    table: Table, customer_id: str, start: int
) -> Iterator[tuple[UsageRecord, bytes | None]]:
    """All rows from *start* on, each with the number of the adjustment that wrote it, if any."""
    for item in _items(table, customer_id, start, None, None):
        yield row_of(item), item["nonce"]["B"] if "nonce" in item else None


def _items(
    table: Table, customer_id: str, start: int | None, end: int | None, after: str | None
) -> Iterator[Item]:
    low = f"{start or 0:015d}"
    high = f"{10**15 - 1 if end is None else end:015d}"
    if after is not None and after >= low:
        low = after + "\x00"
    if low >= high:
        return
    parameters: dict[str, Any] = {
        "TableName": table.name,
        "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
        "ExpressionAttributeValues": {
            ":pk": {"S": f"L#{customer_id}"},
            ":low": {"S": low},
            ":high": {"S": high},
        },
        "ConsistentRead": True,
    }
    while True:
        reply = table.call("query", **parameters)
        yield from reply["Items"]
        if "LastEvaluatedKey" not in reply:
            return
        parameters["ExclusiveStartKey"] = reply["LastEvaluatedKey"]


def list_rows(
    table: Table,
    customer_ids: list[str],
    start: int | None,
    end: int | None,
    limit: int,
    after: str | None,
) -> Page[UsageRecord]:
    """See :meth:`~bedrock_proxy.store.Books.list_rows`."""
    merged = heapq.merge(
        *(rows(table, each, start, end, after) for each in customer_ids), key=page_key
    )
    found = tuple(islice(merged, limit + 1))
    return Page(found[:limit], page_key(found[limit - 1]) if len(found) > limit else None)


def sum_usage(
    table: Table, by: By, customer_ids: list[str], start: int | None, end: int | None
) -> tuple[UsageSum, ...]:
    """See :meth:`~bedrock_proxy.store.Books.sum_usage`."""
    return sum_rows(
        by, (row for each in customer_ids for row in rows(table, each, start, end, None))
    )
