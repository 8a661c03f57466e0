"""``bedrock-proxy enter``: the rows that only a log has."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from enum import Enum, auto
from typing import IO, Any, Final

import click
from attrs import fields

from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.customers import CustomerNotFound
from bedrock_proxy.errors import BedrockProxyError
from bedrock_proxy.periods import DAY_MS
from bedrock_proxy.store import Store, every_row
from bedrock_proxy.usage import State, Usage, UsageRecord
from bedrock_proxy_adapters.cli.opened import existing_store
from bedrock_proxy_adapters.cli.output import as_json, note, when
from bedrock_proxy_adapters.stores.rows import record_of
from bedrock_proxy_adapters.unsettled import UNSETTLED

_JSON: Final = json.JSONDecoder()

EARLIEST: Final = 1_672_531_200_000
"""When 2023 began, the year of Bedrock: no request was admitted earlier."""

_YEAR_10000: Final = 253_402_300_800_000

_SUMMANDS: Final = tuple(field.name for field in fields(Usage))
_FIGURES: Final = (*_SUMMANDS, "token_count", "cost_nanousd")

_COUNTS: Final = tuple(
    field.name for field in fields(UsageRecord) if field.type is int and field.name != "attempts"
)


class NotEntered(BedrockProxyError):
    """Some lines could not be entered."""


class _Entry(Enum):
    """What has become of a row that was given to the ledger."""

    ENTERED = auto()
    THERE_ALREADY = auto()
    DIFFERENT = auto()


@click.command()
@click.argument("file", type=click.File("r", encoding="utf-8", errors="replace"))
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def enter(file: IO[str], as_json_: bool) -> None:
    """
    Enter the rows of a log's "unsettled usage row" lines into the ledger.

    FILE is the log, as text or as JSON, other lines and all; - reads standard input. A row
    that is there already stays as it is; an estimate is corrected. Doing it again changes
    nothing. A row that differs from the ledger's, or cannot be right, is named by its line.
    """
    store = existing_store()
    latest = time.time_ns() // 1_000_000 + DAY_MS
    entries: Counter[_Entry] = Counter()
    unreadable = strange = 0
    for number, line in enumerate(file, 1):
        for row in rows_in(line):
            wrong = "the row cannot be read." if row is None else _wrong(store, row, latest)
            if row is None or wrong is not None:
                unreadable += 1
                note(f"Line {number}: {wrong}")
                continue
            try:
                store.get_customer(row.customer_id)
            except CustomerNotFound:
                strange += 1
                note(
                    f"Line {number}: {row.request_id} is of {row.customer_id}, whom this store "
                    "does not know."
                )
                continue
            entry = _enter(store, row)
            entries[entry] += 1
            if entry is _Entry.DIFFERENT:
                note(
                    f"Line {number}: the ledger has other figures for {row.request_id}, which stay."
                )
    there, different = entries[_Entry.THERE_ALREADY], entries[_Entry.DIFFERENT]
    if as_json_:
        as_json(
            {
                "entered": entries[_Entry.ENTERED],
                "there_already": there,
                "different": different,
                "unreadable": unreadable,
                "unknown_customer": strange,
            }
        )
    else:
        click.echo(f"rows entered: {entries[_Entry.ENTERED]}")
        if there:
            click.echo(f"there already: {there}")
    if unreadable or strange or different:
        raise NotEntered(
            f"{unreadable + strange + different} of the rows could not be entered: {unreadable} "
            f"cannot be read or cannot be right, {strange} are of customers that are not in this "
            f"store, {different} differ from the ledger."
        )


def _enter(store: Store, row: UsageRecord) -> _Entry:
    before = _standing(store, row)
    store.finish(row, _lease_of(row))
    after = _standing(store, row)
    if after is None:
        return _Entry.DIFFERENT  # it stands under another time or customer
    # A guess says nothing against what the ledger knows.
    if row.state is State.FINAL and any(getattr(row, n) != getattr(after, n) for n in _FIGURES):
        return _Entry.DIFFERENT
    return _Entry.THERE_ALREADY if before == after else _Entry.ENTERED


def _standing(store: Store, row: UsageRecord) -> UsageRecord | None:
    """What the ledger says of the request."""
    at = row.admitted_at
    found = every_row(store, customer_id=row.customer_id, start=at, end=at + 1)
    return next((each for each in found if each.request_id == row.request_id), None)


def _wrong(store: Store, row: UsageRecord, latest: int) -> str | None:
    """
    Why *row* cannot be right; *latest* is when it can have been admitted (epoch ms), unless the
    ledger has it already, by a clock that was ahead.
    """
    at = row.admitted_at
    if not EARLIEST <= at <= latest and (
        not latest < at < _YEAR_10000 or _standing(store, row) is None
    ):
        shown = when(row.admitted_at) if row.admitted_at < _YEAR_10000 else "no time"
        return f"admitted_at of {row.request_id} is {shown}; it is in milliseconds since 1970."
    total = sum(getattr(row, name) for name in _SUMMANDS)
    if total != row.token_count:
        return (
            f"token_count of {row.request_id} is {row.token_count:,}, but its counts add up to "
            f"{total:,}."
        )
    return None


def rows_in(text: str) -> Iterator[UsageRecord | None]:
    """
    The rows that *text* tells of, wherever they stand in it; None for one that cannot be
    read. A line may be the log's own or lie, escaped, in a string of JSON, as Lambda's JSON
    log format and ``aws logs`` have it.
    """
    at = 0
    while (start := text.find(UNSETTLED, at)) >= 0:
        at = start + len(UNSETTLED)
        try:
            if text.startswith("{\\", at):
                said, at = _JSON.raw_decode(text, _opening(text, start))
                yield from rows_in(str(said))
            else:
                values, at = _JSON.raw_decode(text, at)
                yield _row(values)
        except (ValueError, TypeError, KeyError, RecursionError):
            yield None


def _opening(text: str, before: int) -> int:
    """Where the string of JSON begins that holds the position *before*."""
    quote = text.rindex('"', 0, before)
    while quote and text[quote - 1] == "\\":
        quote = text.rindex('"', 0, quote)
    return quote


def _row(values: dict[str, Any]) -> UsageRecord:
    for name in ("request_id", "customer_id", "model", "operation"):
        if not isinstance(values[name], str) or not values[name]:
            raise ValueError(name)
    for name in _COUNTS:
        if type(values[name]) is not int or values[name] < 0:
            raise ValueError(name)
    return record_of(values)


def _lease_of(row: UsageRecord) -> Lease:
    """What can be known of the row's lease: whose it was. What it holds, the store knows."""
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
        input_tokens=0,
        output_tokens=0,
        cost_nanousd=None,
        price_version=row.price_version,
        client_request_id=row.client_request_id,
        lease_ms=0,
    )
    return Lease(request=request, deadline=row.admitted_at)
