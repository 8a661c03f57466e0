"""
The tables of the original proxy: customers and plaintext tokens in two DynamoDB tables, read
(with ``Scan`` only) and never written.

=================== ======================================================================
``bedrock_customers`` ``customer_id``, ``name``, ``email``, ``status``, ``rate_limit_daily``,
                    ``created_at``
``bedrock_tokens``  ``token``, ``customer_id``, ``status``, ``created_at``, ``expires_at``
=================== ======================================================================

Times are ISO 8601 or epoch seconds; numbers may be strings.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from attrs import frozen

from bedrock_proxy import tokens
from bedrock_proxy.customers import (
    DEFAULT_REQUESTS_PER_DAY,
    MAX_KEYS,
    AlreadyTaken,
    Customer,
    CustomerNotFound,
    CustomerStatus,
    Key,
    Limits,
)
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.store import Store
from bedrock_proxy_adapters.stores.transfer import place_customer

CUSTOMERS_TABLE: Final = "bedrock_customers"
TOKENS_TABLE: Final = "bedrock_tokens"

_MAX_LIMIT: Final = 10**15


@frozen
class Skipped:
    """
    A row that was not imported.

    Attributes:
        what: ``customer`` or ``token``.
        customer_id: Whose it is, where the row says so. A token itself is never named.
    """

    what: str
    customer_id: str
    reason: str


@frozen(kw_only=True)
class Imported:
    """
    What an import did (would do, in a dry run).

    Attributes:
        customers, tokens: How many were new.
        known_customers, known_tokens: How many were there already, and stayed as they are.
        endless: New tokens that the original had rotated, whose rows name no end.
    """

    customers: int
    tokens: int
    known_customers: int
    known_tokens: int
    endless: int
    skipped: tuple[Skipped, ...]


def scan(client: Any, table: str) -> Iterator[dict[str, Any]]:
    """
    Every item of a table, as plain values.

    Raises:
        ConfigurationError: The table cannot be read; the message says why.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
            for item in page["Items"]:
                yield {name: _plain(value) for name, value in item.items()}
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        reason = {
            "ResourceNotFoundException": "there is no such table in this region and account",
            "AccessDeniedException": "these credentials may not scan it (dynamodb:Scan)",
        }.get(code, code or "DynamoDB refused")
        raise ConfigurationError(f"The table {table!r} cannot be read: {reason}.") from error
    except BotoCoreError as error:
        raise ConfigurationError(
            f"The table {table!r} cannot be read: {str(error).rstrip('.')}."
        ) from error


def import_legacy(
    store: Store,
    customer_rows: Iterator[Mapping[str, Any]],
    token_rows: Iterator[Mapping[str, Any]],
    *,
    pepper: bytes | None,
    now: int,
    dry_run: bool = False,
    add_tokens: bool = False,
) -> Imported:
    """
    Bring the original's customers and their tokens into *store*. Doing it again changes
    nothing: who is there already stays as is, whatever has become of its limits since.

    Args:
        now: Epoch milliseconds; stands in for a time that a row does not tell.
        add_tokens: Also give customers who are there already the tokens they lack. Those
            that were revoked here since an earlier import come back with it.
    """
    skipped: list[Skipped] = []
    customers: dict[str, Customer] = {}
    for row in customer_rows:
        try:
            customer = _customer(row, now)
        except ValueError as error:
            skipped.append(Skipped("customer", _text(row.get("customer_id")), str(error)))
        else:
            customers[customer.id] = customer
    keys: dict[str, list[Key]] = {each: [] for each in customers}
    for row in token_rows:
        owner = _text(row.get("customer_id"))
        try:
            if owner not in customers:
                raise ValueError("its customer is not in the customers' table, or was skipped")
            keys[owner].append(_key(row, pepper, now))
        except ValueError as error:
            skipped.append(Skipped("token", owner, str(error)))
    made = added = known = known_tokens = endless = 0
    for customer_id, customer in sorted(customers.items()):
        # Those not rotated first, of these the newest: the ones that are surely in use.
        ordered = sorted(
            keys[customer_id], key=lambda k: (k.deprecated_at is None, k.created_at), reverse=True
        )
        held = _held(store, customer_id)
        kept, beyond = _fitting(ordered, held)
        skipped.extend(
            Skipped("token", customer_id, f"a customer has at most {MAX_KEYS} tokens")
            for _ in beyond
        )
        if held is None:
            taken = [key for key in kept if store.find_token(key.digest, now) is not None]
            skipped.extend(Skipped("token", customer_id, "another customer has it") for _ in taken)
            new = [key for key in kept if key not in taken]
            if not dry_run:
                place_customer(store, customer, new)
            made += 1
        else:
            known += 1
            there = {key.digest for key in held}
            known_tokens += sum(key.digest in there for key in kept)
            new = [key for key in kept if key.digest not in there]
            if new and not add_tokens:
                reason = "its customer was imported before, without it: see --add-tokens"
                skipped.extend(Skipped("token", customer_id, reason) for _ in new)
                new = []
            new = [key for key in new if dry_run or _was_added(store, customer_id, key, skipped)]
        added += len(new)
        endless += sum(k.deprecated_at is not None and k.expires_at is None for k in new)
    return Imported(
        customers=made,
        tokens=added,
        known_customers=known,
        known_tokens=known_tokens,
        endless=endless,
        skipped=tuple(skipped),
    )


def _held(store: Store, customer_id: str) -> tuple[Key, ...] | None:
    try:
        return store.list_keys(customer_id)
    except CustomerNotFound:
        return None


def _fitting(
    keys: Sequence[Key], held: tuple[Key, ...] | None
) -> tuple[Sequence[Key], Sequence[Key]]:
    """Which keys there is room for, beside those that *held* has already."""
    there = {key.digest for key in held or ()}
    room = MAX_KEYS - len(there)
    kept: list[Key] = []
    beyond: list[Key] = []
    for key in keys:
        if key.digest in there:
            kept.append(key)
        elif room:
            room -= 1
            kept.append(key)
        else:
            beyond.append(key)
    return kept, beyond


def _was_added(store: Store, customer_id: str, key: Key, skipped: list[Skipped]) -> bool:
    try:
        store.add_key(customer_id, key, 0)
    except AlreadyTaken:
        skipped.append(Skipped("token", customer_id, "another customer has it"))
        return False
    return True


def _customer(row: Mapping[str, Any], now: int) -> Customer:
    customer_id = _text(row.get("customer_id"))
    if not customer_id or not customer_id.isprintable():
        raise ValueError("it has no customer_id")
    is_active = _text(row.get("status") or "active").lower() == CustomerStatus.ACTIVE
    return Customer(
        id=customer_id,
        name=_text(row.get("name")) or customer_id,
        email=_text(row.get("email")),
        # Whatever else the original called it: only who was active may call.
        status=CustomerStatus.ACTIVE if is_active else CustomerStatus.DISABLED,
        limits=Limits(requests_per_day=_limit(row.get("rate_limit_daily"))),
        created_at=_time(row.get("created_at"), "created_at") or now,
    )


def _key(row: Mapping[str, Any], pepper: bytes | None, now: int) -> Key:
    token = _text(row.get("token"))
    status = _text(row.get("status") or "active").lower()
    if status not in {"active", "deprecated"}:
        raise ValueError(f"its status is {status!r}")
    if not tokens.check_shape(token):
        raise ValueError("it has not the shape of a token (16 to 512 of A-Z a-z 0-9 . _ ~ + / = -)")
    expires_at = _time(row.get("expires_at"), "expires_at")
    if expires_at is not None and expires_at <= now:
        raise ValueError("it has expired")
    digest = tokens.digest(token, pepper)
    created_at = _time(row.get("created_at"), "created_at") or now
    return Key(
        # The same token has the same public id each time it is imported.
        key_id=tokens.mint_key_id(sha256(b"legacy:" + digest).digest()[: tokens.KEY_ID_BYTES]),
        digest=digest,
        created_at=created_at,
        expires_at=expires_at,
        deprecated_at=created_at if status == "deprecated" else None,
    )


def _limit(value: Any) -> int | None:
    if value is None or value == "":
        return DEFAULT_REQUESTS_PER_DAY
    text = _text(value)
    whole = text.removesuffix(".0")
    if not whole.isascii() or not whole.isdecimal() or int(whole) > _MAX_LIMIT:
        raise ValueError(f"its rate_limit_daily is {text!r}, not a whole number")
    return int(whole)


def _time(value: Any, name: str) -> int | None:
    """Epoch milliseconds of an ISO 8601 time (UTC where it names no zone) or epoch seconds."""
    if value is None or value == "":
        return None
    text = _text(value)
    try:
        if text.replace(".", "", 1).isdecimal():
            number = float(text)
            # Later than the year 5000 in seconds: it was milliseconds.
            return int(number if number > 95_617_584_000 else number * 1000)
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"its {name} is {text!r}, not a time") from None
    return int((time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _plain(value: Mapping[str, Any]) -> Any:
    """A DynamoDB attribute value as a plain one (Amazon DynamoDB API, ``AttributeValue``)."""
    ((kind, inner),) = value.items()
    return None if kind == "NULL" else inner
