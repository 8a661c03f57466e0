"""``bedrock-proxy ledger``, ``usage``, ``reap`` and ``rebuild``: what was used, and its upkeep."""

import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Final

import click
from attrs import asdict, fields

from bedrock_proxy.customers import CustomerNotFound
from bedrock_proxy.store import By, Store, UsageSum, every_customer, every_row
from bedrock_proxy_adapters.cli.opened import existing_store
from bedrock_proxy_adapters.cli.output import as_json, note, table, when


def _day_given(_: click.Context, param: click.Parameter, value: str | None) -> date | None:
    """A UTC day, as ``2026-01-31``."""
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a day like 2026-01-31.", param=param) from None


@click.command()
@click.option("--customer-id", default=None, help="Only this customer's rows.")
@click.option("--start-date", metavar="YYYY-MM-DD", callback=_day_given, help="First UTC day.")
@click.option(
    "--end-date", metavar="YYYY-MM-DD", callback=_day_given, help="Last UTC day, included."
)
@click.option(
    "--limit",
    default=None,
    metavar="NUMBER",
    type=click.IntRange(1, 1_000_000_000),
    help="At most so many rows.",
)
@click.option("--json", "as_json_", is_flag=True, help="One JSON object a line, every field.")
def ledger(
    customer_id: str | None,
    start_date: date | None,
    end_date: date | None,
    limit: int | None,
    as_json_: bool,
) -> None:
    """Print the usage rows, oldest first."""
    start, end = _period(start_date, end_date)
    store = _store_that_knows(customer_id)
    rows = islice(every_row(store, customer_id=customer_id, start=start, end=end), limit)
    if as_json_:
        for row in rows:
            as_json(row.as_dict())
        return
    count = table(
        ("ADMITTED", "CUSTOMER", "MODEL", "INPUT", "OUTPUT", "TOKENS", "BASIS", "OUTCOME", "MS"),
        (
            (
                when(row.admitted_at),
                row.customer_id,
                row.model,
                row.input_tokens,
                row.output_tokens,
                row.token_count,
                row.basis,
                row.outcome if row.error_code is None else f"{row.outcome} ({row.error_code})",
                row.duration_ms,
            )
            for row in rows
        ),
    )
    if not count:
        note(_NOTHING)


_SUMS = tuple(field.name for field in fields(UsageSum))


@click.command()
@click.option("--customer-id", default=None, help="Only this customer's usage.")
@click.option("--start-date", metavar="YYYY-MM-DD", callback=_day_given, help="First UTC day.")
@click.option(
    "--end-date", metavar="YYYY-MM-DD", callback=_day_given, help="Last UTC day, included."
)
@click.option(
    "--by",
    type=click.Choice([by.value for by in By]),
    default="day",
    show_default=True,
    help="What to add up by; days and hours are UTC.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "json", "csv"]),
    help="A table for people (the default), JSON lines, or CSV for a spreadsheet.",
)
@click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")
def usage(
    customer_id: str | None,
    start_date: date | None,
    end_date: date | None,
    by: str,
    shape: str | None,
    as_json_: bool,
) -> None:
    """Print usage, added up."""
    if as_json_ and shape not in {None, "json"}:
        raise click.UsageError(f"Say --json or --format {shape}, not both.")
    start, end = _period(start_date, end_date)
    store = _store_that_knows(customer_id)
    sums = store.sum_usage(By(by), customer_id=customer_id, start=start, end=end)
    if as_json_ or shape == "json":
        for each in sums:
            as_json({by if name == "key" else name: value for name, value in asdict(each).items()})
    elif shape == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([by if name == "key" else name for name in _SUMS])
        for each in sums:
            writer.writerow([_cell(getattr(each, name)) for name in _SUMS])
    else:
        columns = _columns(sums, _names(store, sums) if By(by) is By.CUSTOMER else None)
        table(
            (by.upper(), *(head for head, _ in columns)),
            (
                (each.key, *(value(each) for _, value in columns))
                for each in (*sums, *_altogether(sums))
            ),
        )
        if not sums:
            note(_NOTHING)


_Column = tuple[str, Callable[[UsageSum], object]]


def _columns(sums: Sequence[UsageSum], names: Mapping[str, str] | None) -> list[_Column]:
    """What a table of *sums* shows beside their keys; estimates only where there are some."""
    columns: list[_Column] = []
    if names is not None:
        names = {**names, _ALL: ""}
        columns.append(("NAME", lambda each: names.get(each.key)))
    columns.append(("REQUESTS", lambda each: each.requests))
    columns.append(("ERRORS", lambda each: each.errors))
    if any(each.estimated for each in sums):
        columns.append(("ESTIMATED", lambda each: each.estimated))
    return [
        *columns,
        ("INPUT", lambda each: each.input_tokens),
        ("OUTPUT", lambda each: each.output_tokens),
        ("CACHE READ", lambda each: each.cache_read_tokens),
        ("CACHE WRITE", lambda each: each.cache_write_5m_tokens + each.cache_write_1h_tokens),
        ("TOKENS", lambda each: each.token_count),
    ]


def _names(store: Store, sums: Sequence[UsageSum]) -> dict[str, str]:
    """The names of the customers whose *sums* these are, as far as they are known."""
    wanted = {each.key for each in sums}
    if len(wanted) > 1:
        return {each.id: each.name for each in every_customer(store) if each.id in wanted}
    with suppress(CustomerNotFound):
        return {key: store.get_customer(key).name for key in wanted}
    return {}


_ALL: Final = "all"


def _altogether(sums: Sequence[UsageSum]) -> tuple[UsageSum, ...]:
    """One more line under a table of several."""
    if len(sums) < 2:
        return ()
    counts = {name: sum(getattr(each, name) for each in sums) for name in _SUMS if name != "key"}
    return (UsageSum(key=_ALL, **counts),)


_NOTHING: Final = "No usage in this period."


def _store_that_knows(customer_id: str | None) -> Store:
    """
    The store, once it is sure that *customer_id* is no mistake: a program must not take one
    for an empty bill. Rows count as much as the customer, whom somebody may have taken out.

    Raises:
        CustomerNotFound: It has neither.
    """
    store = existing_store()
    if customer_id is not None:
        try:
            store.get_customer(customer_id)
        except CustomerNotFound:
            if not store.list_rows(customer_id=customer_id, limit=1).items:
                raise
    return store


@click.command()
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def reap(as_json_: bool) -> None:
    """Settle what was left behind by processes that died, as estimated rows."""
    store = existing_store()
    settled = 0
    while count := store.reap(_now()):
        settled += count
    if as_json_:
        as_json({"settled": settled})
    else:
        click.echo(f"leases settled: {settled}")


@click.command()
@click.option("--customer-id", default=None, help="Only this customer; every one otherwise.")
@click.option(
    "--set-clock",
    is_flag=True,
    help="Put clocks back that are more than a minute ahead of this machine's.",
)
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def rebuild(customer_id: str | None, set_clock: bool, as_json_: bool) -> None:
    """Count today and this month again from the ledger."""
    recounted = existing_store().rebuild(_now(), customer_id, set_clock=set_clock)
    if as_json_:
        as_json({"recounted": recounted})
    else:
        click.echo(f"customers recounted: {recounted}")


def _period(start: date | None, end: date | None) -> tuple[int | None, int | None]:
    """The days as epoch milliseconds: from, and up to but not including."""
    if start is not None and end is not None and end < start:
        raise click.UsageError("--end-date is before --start-date.")
    return (
        None if start is None else _midnight(start),
        None if end is None or end == date.max else _midnight(end + timedelta(days=1)),
    )


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _cell(value: object) -> object:
    """A spreadsheet must not take a customer's or a model's name for a formula."""
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}:
        return "'" + value
    return value


def _now() -> int:
    return time.time_ns() // 1_000_000
