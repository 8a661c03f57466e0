"""
The ledger in SQLite. Each function is one piece of work within a transaction.
"""

import sqlite3
from typing import Any, Final

from bedrock_proxy import accounts, admission
from bedrock_proxy.accounts import Total
from bedrock_proxy.admission import AHEAD_MS, FRESH, Lease
from bedrock_proxy.customers import UNLIMITED
from bedrock_proxy.periods import DAY_MS, start_of_month
from bedrock_proxy.store import By, Page, UsageSum
from bedrock_proxy.usage import FAILED, LEDGER_FIELDS, UsageRecord
from bedrock_proxy_adapters.stores import gate
from bedrock_proxy_adapters.stores.rows import (
    columns_of,
    forget_lease,
    load_lease,
    load_limits,
    load_state,
    record_from_columns,
)
from bedrock_proxy_adapters.stores.schema import LEDGER_COLUMNS
from bedrock_proxy_adapters.stores.sums import page_key, time_key

PUT_ROW: Final = (
    f"INSERT OR REPLACE INTO ledger ({LEDGER_COLUMNS})"  # noqa: S608 -- constants
    f" VALUES ({', '.join('?' for _ in LEDGER_FIELDS)})"
)
_GET: Final = f"SELECT {LEDGER_COLUMNS} FROM ledger WHERE request_id = ?"  # noqa: S608 -- constants

# All that a settlement needs, in one statement.
_FOR_SETTLEMENT: Final = """
SELECT l.body, l.deadline, g.state, c.limits,
    EXISTS (SELECT 1 FROM ledger WHERE request_id = asked.request)
FROM (SELECT ? AS customer, ? AS request) asked
LEFT JOIN leases l ON l.request_id = asked.request
LEFT JOIN gates g ON g.customer_id = asked.customer
LEFT JOIN customers c ON c.id = asked.customer
"""

_FAILED: Final = ", ".join(f"'{outcome}'" for outcome in FAILED)
_SUM: Final = (
    f"count(*), sum(outcome IN ({_FAILED})), sum(state = 'estimated'), sum(input_tokens),"
    " sum(output_tokens), sum(cache_read_tokens), sum(cache_write_5m_tokens),"
    " sum(cache_write_1h_tokens), sum(token_count), coalesce(sum(cost_nanousd), 0),"
    " sum(cost_nanousd IS NULL)"
)
_GROUPS: Final = {
    By.DAY: f"admitted_at / {DAY_MS}",
    By.HOUR: "admitted_at / 3600000",
    By.MODEL: "model",
    By.CUSTOMER: "customer_id",
}
_MS: Final = {By.DAY: DAY_MS, By.HOUR: 3_600_000}


def finish(connection: sqlite3.Connection, record: UsageRecord) -> None:
    """See :meth:`~bedrock_proxy.ports.Ledger.finish`."""
    request_id, customer_id = record.request_id, record.customer_id
    body, deadline, state_text, limits_text, settled = connection.execute(
        _FOR_SETTLEMENT, (customer_id, request_id)
    ).fetchone()
    old = None
    if settled:
        old = record_from_columns(connection.execute(_GET, (request_id,)).fetchone())
    state = FRESH if state_text is None else load_state(state_text)
    entry = accounts.enter(
        record,
        old=old,
        lease=None if body is None else load_lease(body, deadline),
        state=state,
        limits=UNLIMITED if limits_text is None else load_limits(limits_text),
    )
    if entry.row is not None:
        connection.execute(PUT_ROW, columns_of(entry.row))
    if entry.state is not state:
        gate.save(connection, customer_id, entry.state)
    if body is not None:
        gate.drop_lease(connection, request_id)
        forget_lease(body)


def is_overdue(connection: sqlite3.Connection, now: int) -> bool:
    """Whether any lease's deadline has come."""
    return (
        connection.execute("SELECT 1 FROM leases WHERE deadline <= ? LIMIT 1", (now,)).fetchone()
        is not None
    )


def reap(connection: sqlite3.Connection, now: int, limit: int) -> int:
    """See :meth:`~bedrock_proxy.store.Books.reap`."""
    overdue = connection.execute(
        "SELECT body, deadline FROM leases WHERE deadline <= ? ORDER BY deadline LIMIT ?",
        (now, limit),
    ).fetchall()
    for columns in overdue:
        finish(connection, accounts.estimated_row(load_lease(*columns)))
    return len(overdue)


def rebuild(connection: sqlite3.Connection, customer_id: str, now: int, *, set_clock: bool) -> None:
    """See :meth:`~bedrock_proxy.store.Books.rebuild`."""
    if set_clock:
        for lease in gate.open_leases(connection, customer_id):
            match accounts.after_wrong_clock(lease, now):
                case Lease() as shorter:
                    gate.set_deadline(connection, shorter)
                case UsageRecord() as row:
                    finish(connection, row)
                case None:
                    pass
    state = gate.load(connection, customer_id)
    if set_clock:
        state = admission.put_back(state, now)
    leases = gate.open_leases(connection, customer_id)
    last_row: int | None = connection.execute(
        "SELECT max(admitted_at) FROM ledger WHERE customer_id = ? AND admitted_at <= ?",
        (customer_id, now + AHEAD_MS),
    ).fetchone()[0]
    times = (last_row or 0, *(lease.request.at for lease in leases))
    state = admission.rolled(state, accounts.latest(now, times))
    totals: list[Total] = []
    for start, end in (
        (state.day * DAY_MS, (state.day + 1) * DAY_MS),
        (start_of_month(state.month), start_of_month(state.month + 1)),
    ):
        counted = connection.execute(
            "SELECT count(*), coalesce(sum(token_count), 0), coalesce(sum(cost_nanousd), 0)"
            " FROM ledger WHERE customer_id = ? AND admitted_at >= ? AND admitted_at < ?",
            (customer_id, start, end),
        ).fetchone()
        held = accounts.total((), (each for each in leases if start <= each.request.at < end))
        totals.append(Total(*counted).plus(held))
    gate.save(connection, customer_id, accounts.recounted(state, *totals))


def list_rows(
    connection: sqlite3.Connection,
    customer_id: str | None,
    start: int | None,
    end: int | None,
    limit: int,
    after: str | None,
) -> Page[UsageRecord]:
    """See :meth:`~bedrock_proxy.store.Books.list_rows`."""
    where, values = _where(customer_id, start, end)
    if after is not None:
        time, _, request_id = after.partition("/")
        where += " AND (admitted_at, request_id) > (?, ?)"
        values += (int(time), request_id)
    found = connection.execute(
        f"SELECT {LEDGER_COLUMNS} FROM ledger WHERE {where}"  # noqa: S608 -- constants
        " ORDER BY admitted_at, request_id LIMIT ?",
        (*values, limit + 1),
    ).fetchall()
    rows = tuple(record_from_columns(columns) for columns in found[:limit])
    return Page(rows, page_key(rows[-1]) if len(found) > limit else None)


def sum_usage(
    connection: sqlite3.Connection,
    by: By,
    customer_id: str | None,
    start: int | None,
    end: int | None,
) -> tuple[UsageSum, ...]:
    """See :meth:`~bedrock_proxy.store.Books.sum_usage`."""
    where, values = _where(customer_id, start, end)
    found = connection.execute(
        f"SELECT {_GROUPS[by]} AS part, {_SUM} FROM ledger WHERE {where}"  # noqa: S608 -- constants
        " GROUP BY part ORDER BY part",
        values,
    )
    return tuple(_sum_of(by, *columns) for columns in found)


def _sum_of(by: By, part: Any, *figures: int) -> UsageSum:
    key = time_key(by, part * _MS[by]) if by in _MS else part
    requests, errors, estimated, fresh, output, read, short, long, tokens, cost, unpriced = figures
    return UsageSum(
        key=key,
        requests=requests,
        errors=errors,
        estimated=estimated,
        input_tokens=fresh,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        token_count=tokens,
        cost_nanousd=cost,
        unpriced=unpriced,
    )


def _where(
    customer_id: str | None, start: int | None, end: int | None
) -> tuple[str, tuple[Any, ...]]:
    parts: list[str] = ["1"]
    values: list[Any] = []
    for condition, value in (
        ("customer_id = ?", customer_id),
        ("admitted_at >= ?", start),
        ("admitted_at < ?", end),
    ):
        if value is not None:
            parts.append(condition)
            values.append(value)
    return " AND ".join(parts), tuple(values)
