"""``bedrock-proxy enter``: the rows that only a log has."""

import json
from collections.abc import Iterator
from typing import IO, Any, Final

import click
from attrs import fields

from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.customers import CustomerNotFound
from bedrock_proxy.errors import BedrockProxyError
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.cli.opened import existing_store
from bedrock_proxy_adapters.cli.output import as_json, note
from bedrock_proxy_adapters.stores.rows import record_of
from bedrock_proxy_adapters.unsettled import UNSETTLED

_JSON: Final = json.JSONDecoder()

_COUNTS: Final = tuple(
    field.name for field in fields(UsageRecord) if field.type is int and field.name != "attempts"
)


class NotEntered(BedrockProxyError):
    """Some lines could not be entered."""


@click.command()
@click.argument("file", type=click.File("r", encoding="utf-8", errors="replace"))
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def enter(file: IO[str], as_json_: bool) -> None:
    """
    Enter the rows of a log's "unsettled usage row" lines into the ledger.

    FILE is the log, as text or as JSON, other lines and all; - reads standard input. A row
    that is there already stays as it is; an estimate is corrected. Doing it again changes nothing.
    """
    store = existing_store()
    entered = unreadable = strange = 0
    for line in file:
        for row in rows_in(line):
            if row is None:
                unreadable += 1
                continue
            try:
                store.get_customer(row.customer_id)
            except CustomerNotFound:
                strange += 1
                note(f"{row.request_id} is of {row.customer_id}, whom this store does not know.")
                continue
            store.finish(row, _lease_of(row))
            entered += 1
    if as_json_:
        as_json({"entered": entered, "unreadable": unreadable, "unknown_customer": strange})
    else:
        click.echo(f"rows entered: {entered}")
    if unreadable or strange:
        raise NotEntered(
            f"{unreadable + strange} of the rows could not be entered: {unreadable} cannot be "
            f"read, {strange} are of customers that are not in this store."
        )


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
