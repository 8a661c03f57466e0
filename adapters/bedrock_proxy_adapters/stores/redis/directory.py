"""
Customers and keys in Redis.

A customer and its keys are one hash, changed by comparing its version. Tokens and key ids are
claimed first, each in a key of its own, so that no two customers share one; a claim counts
only as long as the customer's own hash bears it out.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import evolve, field, frozen

from bedrock_proxy.customers import (
    MAX_KEYS,
    AlreadyTaken,
    Customer,
    CustomerNotFound,
    CustomerStatus,
    Key,
    KeyNotFound,
    TokenOwner,
    TooManyKeys,
    newest,
)
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy.store import Page
from bedrock_proxy_adapters.stores.redis.connection import Line, Names, text_of
from bedrock_proxy_adapters.stores.rows import (
    dump,
    dump_limits,
    dump_models,
    load_limits,
    load_models,
)

CLAIM_MS: Final = 60_000
"""How long a claim that nothing bears out is still believed: its customer may be on the way."""

_ATTEMPTS: Final = 50


@frozen
class Found:
    """A customer as it was read, keys included; *version* changes with every change."""

    customer: Customer
    keys: tuple[Key, ...]
    version: str = field(default="")


def load_key(key_id: str, text: str) -> Key:
    """A key from its field in the customer's hash."""
    digest, created_at, expires_at, deprecated_at = json.loads(text)
    return Key(
        key_id=key_id,
        digest=bytes.fromhex(digest),
        created_at=created_at,
        expires_at=expires_at,
        deprecated_at=deprecated_at,
    )


def _dump_key(key: Key) -> str:
    return dump([key.digest.hex(), key.created_at, key.expires_at, key.deprecated_at])


def _fields_of(customer: Customer) -> dict[str, str]:
    return {
        "id": customer.id,
        "status": customer.status.value,
        "limits": dump_limits(customer.limits),
        "models": dump_models(customer.models) or "null",
        "body": dump([customer.name, customer.email, customer.created_at]),
    }


def load_customer(fields: Mapping[str, str]) -> Found:
    """A customer from its hash."""
    name, email, created_at = json.loads(fields["body"])
    customer = Customer(
        id=fields["id"],
        name=name,
        email=email,
        status=CustomerStatus(fields["status"]),
        limits=load_limits(fields["limits"]),
        models=load_models(None if fields["models"] == "null" else fields["models"]),
        created_at=created_at,
    )
    keys = (
        load_key(name.removeprefix("key:"), text)
        for name, text in fields.items()
        if name.startswith("key:")
    )
    ordered = tuple(sorted(keys, key=lambda key: (key.created_at, key.key_id)))
    return Found(customer, ordered, fields["version"])


def texts_of(fields: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as text."""
    return {str(text_of(name)): str(text_of(value)) for name, value in fields.items()}


class Directory:
    """See :class:`~bedrock_proxy.store.Customers`."""

    def __init__(self, line: Line, names: Names) -> None:
        self._line = line
        self._names = names

    def find_token(self, digest: bytes) -> TokenOwner | None:
        """Whose token it is, expired or not: who claimed it, then what bears that out."""
        claim = self._text(self._names.token(digest))
        if claim is None:
            return None
        customer_id, key_id, _ = json.loads(claim)
        status, models, key_text = self._line.do(
            lambda client: client.hmget(
                self._names.of(customer_id).customer, "status", "models", f"key:{key_id}"
            )
        )
        if status is None or key_text is None:
            return None
        key = load_key(key_id, str(text_of(key_text)))
        if key.digest != digest:
            return None
        allowed = str(text_of(models))
        return TokenOwner(
            customer_id=customer_id,
            key=key,
            status=CustomerStatus(str(text_of(status))),
            models=load_models(None if allowed == "null" else allowed),
        )

    def find(self, customer_id: str) -> Found | None:
        """A customer and its keys, or None."""
        fields = self._line.do(lambda client: client.hgetall(self._names.of(customer_id).customer))
        return load_customer(texts_of(fields)) if fields else None

    def get(self, customer_id: str) -> Found:
        """
        A customer and its keys.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        found = self.find(customer_id)
        if found is None:
            raise CustomerNotFound(customer_id)
        return found

    def ids(self, after: str | None = None, limit: int | None = None) -> list[str]:
        """The ids of customers, in order; some may be on the way and not there yet."""
        start = "-" if after is None else f"({after}"
        found = self._line.do(
            lambda client: client.zrangebylex(
                self._names.customers, start, "+", start=None if limit is None else 0, num=limit
            )
        )
        return [str(text_of(each)) for each in found]

    def page(self, limit: int, after: str | None) -> Page[Customer]:
        """See :meth:`~bedrock_proxy.store.Customers.list_customers`."""
        customers: list[Customer] = []
        while len(customers) <= limit:
            size = limit + 1 - len(customers)
            ids = self.ids(after, size)
            customers.extend(found.customer for found in self._several(ids))
            if len(ids) < size:
                break
            after = ids[-1]
        page = tuple(customers[:limit])
        return Page(page, page[-1].id if len(customers) > limit else None)

    def create(self, customer: Customer, key: Key) -> None:
        """See :meth:`~bedrock_proxy.store.Customers.create_customer`."""
        if self.find(customer.id) is not None:
            raise AlreadyTaken(f"There is a customer {customer.id!r} already.")
        claims = self._claim(customer.id, key)
        try:
            # Listed first: a name on the list without a customer is passed over, a customer
            # who is not on the list would never be reaped.
            self._line.do(lambda client: client.zadd(self._names.customers, {customer.id: 0}))
            sets = {**_fields_of(customer), f"key:{key.key_id}": _dump_key(key)}
            if not self._change(customer.id, "", sets, ()):
                raise AlreadyTaken(f"There is a customer {customer.id!r} already.")
        except AlreadyTaken:
            self._unclaim(claims)
            raise

    def update(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """See :meth:`~bedrock_proxy.store.Customers.update_customer`."""
        for _ in range(_ATTEMPTS):
            found = self.get(customer_id)
            changed = evolve(change(found.customer), id=customer_id)
            if self._change(customer_id, found.version, _fields_of(changed), ()):
                return changed
        raise store_unavailable()

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """See :meth:`~bedrock_proxy.store.Customers.add_key`."""
        self.get(customer_id)
        self._with_claim(customer_id, key, lambda found: (found.keys, None), at)

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None
    ) -> Key:
        """See :meth:`~bedrock_proxy.store.Customers.rotate_key`."""

        def rotated(found: Found) -> tuple[tuple[Key, ...], Key]:
            old = newest(key for key in found.keys if key_id in {None, key.key_id})
            if old is None:
                raise KeyNotFound(customer_id, key_id or "")
            behind = old.rotated(at, grace_ms)
            keys = tuple(behind if key.key_id == old.key_id else key for key in found.keys)
            return keys, behind

        rotated(self.get(customer_id))
        behind = self._with_claim(customer_id, new, rotated, at)
        assert behind is not None
        return behind

    def revoke(self, customer_id: str, key_id: str | None) -> int:
        """Forget one key, or all; how many there were."""
        for _ in range(_ATTEMPTS):
            found = self.get(customer_id)
            gone = [key for key in found.keys if key_id in {None, key.key_id}]
            if key_id is not None and not gone:
                raise KeyNotFound(customer_id, key_id)
            if self._change(customer_id, found.version, {}, [key.key_id for key in gone]):
                self._unclaim_keys(customer_id, gone)
                return len(gone)
        raise store_unavailable()

    def _with_claim(
        self,
        customer_id: str,
        new: Key,
        change: Callable[[Found], tuple[tuple[Key, ...], Key | None]],
        at: int,
    ) -> Key | None:
        """Add *new* to what *change* makes of the keys; those that have expired make room."""
        claims = self._claim(customer_id, new)
        try:
            for _ in range(_ATTEMPTS):
                found = self.get(customer_id)
                keys, result = change(found)
                expired = [key for key in keys if not key.is_valid(at)]
                if len(keys) - len(expired) >= MAX_KEYS:
                    raise TooManyKeys(customer_id)
                kept = [key for key in (*keys, new) if key not in expired]
                sets = {f"key:{key.key_id}": _dump_key(key) for key in kept}
                gone = [key.key_id for key in expired]
                if self._change(customer_id, found.version, sets, gone):
                    self._unclaim_keys(customer_id, expired)
                    return result
        except (CustomerNotFound, KeyNotFound, TooManyKeys):
            self._unclaim(claims)
            raise
        raise store_unavailable()

    def _change(
        self, customer_id: str, version: str, sets: Mapping[str, str], gone: Iterable[str]
    ) -> bool:
        flat = [part for pair in sets.items() for part in pair]
        reply = self._line.run(
            "change",
            [self._names.of(customer_id).customer],
            *(version, os.urandom(8).hex(), len(sets)),
            *flat,
            *(f"key:{key_id}" for key_id in gone),
        )
        return bool(reply)

    def _several(self, ids: list[str]) -> list[Found]:
        def ask(pipeline: Any) -> None:
            for each in ids:
                pipeline.hgetall(self._names.of(each).customer)

        return [load_customer(texts_of(fields)) for fields in self._line.many(ask) if fields]

    # --- claims

    def _claim(self, customer_id: str, key: Key) -> dict[str, str]:
        """Claim a key's id and token; what was claimed, by name."""
        value = dump([customer_id, key.key_id, time.time_ns() // 1_000_000])
        claimed: dict[str, str] = {}
        for name in (self._names.key(key.key_id), self._names.token(key.digest)):
            if not self._take(name, value):
                self._unclaim(claimed)
                raise AlreadyTaken("This token or key id is in use already.")
            claimed[name] = value
        return claimed

    def _take(self, name: str, value: str) -> bool:
        if self._swap(name, "", value):
            return True
        held = self._text(name)
        if held is None:
            return self._swap(name, "", value)
        customer_id, key_id, claimed_at = json.loads(held)
        found = self.find(customer_id)
        if found is not None:
            for key in found.keys:
                if key.key_id == key_id and name in {
                    self._names.key(key_id),
                    self._names.token(key.digest),
                }:
                    return False
        # Whoever claimed it was cut off before, or after, there was such a key.
        is_old = abs(time.time_ns() // 1_000_000 - claimed_at) > CLAIM_MS
        return is_old and self._swap(name, held, value)

    def _text(self, name: str) -> str | None:
        return self._line.do(lambda client: text_of(client.get(name)))

    def _swap(self, name: str, old: str, new: str) -> bool:
        return bool(self._line.run("claim", [name], old, new))

    def _unclaim(self, claims: Mapping[str, str]) -> None:
        for name, value in claims.items():
            self._swap(name, value, "")

    def _unclaim_keys(self, customer_id: str, keys: Iterable[Key]) -> None:
        """Let go of what the customer's hash no longer bears out."""
        for key in keys:
            for name in (self._names.key(key.key_id), self._names.token(key.digest)):
                held = self._text(name)
                if held is not None and json.loads(held)[:2] == [customer_id, key.key_id]:
                    self._swap(name, held, "")
