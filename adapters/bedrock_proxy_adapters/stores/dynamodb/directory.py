"""
Customers and keys in DynamoDB.

What admission checks (status, limits, how long keys are valid) is in the gate item alone;
what never changes (whose token it is, a key's digest) is in items of its own, written before
the gate item knows of it and removed after it has forgotten it; what only people and the
models' allow-list need is in the profile. So no two items ever have to change together.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from attrs import evolve

from bedrock_proxy.customers import (
    MAX_KEYS,
    AlreadyTaken,
    Customer,
    CustomerNotFound,
    Key,
    KeyNotFound,
    TokenOwner,
    TooManyKeys,
    newest,
)
from bedrock_proxy.store import Page
from bedrock_proxy_adapters.stores.dynamodb.connection import Refused, Table, until_done
from bedrock_proxy_adapters.stores.dynamodb.expressions import settings_update
from bedrock_proxy_adapters.stores.dynamodb.image import (
    Image,
    Item,
    fresh_gate,
    gate_key,
    image_of,
)
from bedrock_proxy_adapters.stores.dynamodb.packing import Settings, Terms
from bedrock_proxy_adapters.stores.rows import dump_models, load_models

_ABANDONED_S: Final = 60
"""After so many seconds, a token whose customer does not know of it is nobody's."""


def _profile_key(customer_id: str) -> dict[str, Any]:
    return {"pk": {"S": "C"}, "sk": {"S": customer_id}}


def _token_key(digest: bytes) -> dict[str, Any]:
    readable = digest.isalnum() or digest.replace(b":", b"").isalnum()
    name = digest.decode("ascii") if readable and digest.isascii() else f"0x{digest.hex()}"
    return {"pk": {"S": f"T#{name}"}, "sk": {"S": "T"}}


def _key_key(key_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"K#{key_id}"}, "sk": {"S": "K"}}


def _profile(customer: Customer, version: int) -> dict[str, Any]:
    models = dump_models(customer.models)
    item = _profile_key(customer.id) | {
        "name": {"S": customer.name},
        "email": {"S": customer.email},
        "created_at": {"N": str(customer.created_at)},
        "pv": {"N": str(version)},
    }
    return item if models is None else item | {"models": {"S": models}}


def _models_of(profile: Item) -> frozenset[str] | None:
    return load_models(profile["models"]["S"]) if "models" in profile else None


def _customer_of(profile: Item, image: Image) -> Customer:
    return Customer(
        id=image.customer_id,
        name=profile["name"]["S"],
        email=profile["email"]["S"],
        status=image.settings.status,
        limits=image.limits,
        models=_models_of(profile),
        created_at=int(profile["created_at"]["N"]),
    )


# --- whose token it is --------------------------------------------------------------------------


def find_token(table: Table, digest: bytes, at: int) -> TokenOwner | None:
    """See :meth:`~bedrock_proxy.ports.TokenDirectory.find_token`."""
    cached = table.owners.get(digest, at)
    if cached is not None:
        return cached or None
    owner = _look_up(table, digest)
    if owner is not None and not owner.key.is_valid(at):
        owner = None
    table.owners.put(digest, at, owner)
    return owner


def _look_up(table: Table, digest: bytes) -> TokenOwner | None:
    token = table.get(_token_key(digest))
    if token is None:
        return None
    customer_id, key_id = token["customer"]["S"], token["key"]["S"]
    found = _both(table, customer_id)
    if found is None:
        return None
    profile, image = found
    terms = image.settings.keys.get(key_id)
    if terms is None:
        return None
    key = Key(
        key_id=key_id,
        digest=digest,
        created_at=int(token["created_at"]["N"]),
        expires_at=terms.expires_at,
        deprecated_at=terms.deprecated_at,
    )
    return TokenOwner(
        customer_id=customer_id,
        key=key,
        status=image.settings.status,
        models=_models_of(profile),
    )


def _both(table: Table, customer_id: str) -> tuple[Item, Image] | None:
    """The profile and the gate item, in one call."""
    found = {
        item["pk"]["S"]: item
        for item in table.get_all([_profile_key(customer_id), gate_key(customer_id)])
    }
    profile, gate = found.get("C"), found.get(f"G#{customer_id}")
    if profile is None or gate is None:
        return None
    return profile, table.remember(customer_id, gate)


# --- customers ----------------------------------------------------------------------------------


def create(table: Table, customer: Customer, key: Key) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.create_customer`."""
    taken = AlreadyTaken(f"There is a customer {customer.id!r} already.")
    if table.read(customer.id) is not None:
        raise taken
    _claim(table, customer.id, key)
    # A profile without a gate item is what a creation left that was interrupted.
    table.call("put_item", TableName=table.name, Item=_profile(customer, 0))
    settings = Settings(
        status=customer.status, limits=customer.limits, keys={key.key_id: _terms(key)}
    )
    gate = fresh_gate(customer.id, settings)
    there = table.put(gate, "attribute_not_exists(pk)")
    if there is not None and there.get("cf") != gate["cf"]:
        raise taken


def get_customer(table: Table, customer_id: str) -> Customer:
    """See :meth:`~bedrock_proxy.store.Customers.get_customer`."""
    found = _both(table, customer_id)
    if found is None:
        raise CustomerNotFound(customer_id)
    return _customer_of(*found)


def list_customers(table: Table, limit: int, after: str | None) -> Page[Customer]:
    """See :meth:`~bedrock_proxy.store.Customers.list_customers`."""
    found: list[Customer] = []
    while len(found) <= limit:
        profiles, after, more = _profiles(table, limit + 1 - len(found), after)
        keys = [gate_key(profile["sk"]["S"]) for profile in profiles]
        gates = {item["pk"]["S"][2:]: item for item in table.get_all(keys)}
        for profile in profiles:
            customer_id = profile["sk"]["S"]
            if customer_id in gates:
                found.append(_customer_of(profile, image_of(customer_id, gates[customer_id])))
        if not more:
            break
    return Page(tuple(found[:limit]), found[limit - 1].id if len(found) > limit else None)


def customer_ids(table: Table) -> list[str]:
    """Every customer's id, in order."""
    found: list[str] = []
    after: str | None = None
    more = True
    while more:
        profiles, after, more = _profiles(table, None, after)
        found += (profile["sk"]["S"] for profile in profiles)
    return found


def _profiles(
    table: Table, limit: int | None, after: str | None
) -> tuple[list[Item], str | None, bool]:
    """Some profiles, where to go on, and whether there may be more."""
    parameters: dict[str, Any] = {
        "TableName": table.name,
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": {":pk": {"S": "C"}},
        "ConsistentRead": True,
    }
    if limit is not None:
        parameters["Limit"] = limit
    if after is not None:
        parameters["ExclusiveStartKey"] = _profile_key(after)
    reply = table.call("query", **parameters)
    items: list[Item] = reply["Items"]
    return items, items[-1]["sk"]["S"] if items else after, "LastEvaluatedKey" in reply


def update(table: Table, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
    """See :meth:`~bedrock_proxy.store.Customers.update_customer`."""

    def step() -> Customer | None:
        found = _both(table, customer_id)
        if found is None:
            raise CustomerNotFound(customer_id)
        profile, image = found
        before = _customer_of(profile, image)
        after = evolve(change(before), id=customer_id)
        version = int(profile["pv"]["N"])
        if _profile(after, version) != _profile(before, version):
            there = table.put(
                _profile(after, version + 1),
                "pv = :pv",
                ExpressionAttributeValues={":pv": {"N": str(version)}},
            )
            if there is not None and there != _profile(after, version + 1):
                return None
        if (after.status, after.limits) != (before.status, before.limits):
            settings = evolve(image.settings, status=after.status, limits=after.limits)
            if not _apply(table, image, settings):
                return None
        return after

    return until_done(step)


def _apply(table: Table, image: Image, settings: Settings) -> bool:
    """Put settings in the place of those in *image*; False where those are there no more."""
    reply = table.update(image.customer_id, settings_update(image, settings))
    if not isinstance(reply, Refused):
        return True
    # Our own, of which the reply was lost, is no other's.
    now = table.after(image.customer_id, reply)
    return now is not None and now.version == image.version + 1 and now.settings == settings


# --- keys ---------------------------------------------------------------------------------------


def _terms(key: Key) -> Terms:
    return Terms(expires_at=key.expires_at, deprecated_at=key.deprecated_at)


def _keys(table: Table, image: Image) -> tuple[Key, ...]:
    """The customer's keys, oldest first."""
    found: list[Key] = []
    for item in table.get_all([_key_key(key_id) for key_id in image.settings.keys]):
        key_id = item["pk"]["S"][2:]
        terms = image.settings.keys[key_id]
        found.append(
            Key(
                key_id=key_id,
                digest=item["digest"]["B"],
                created_at=int(item["created_at"]["N"]),
                expires_at=terms.expires_at,
                deprecated_at=terms.deprecated_at,
            )
        )
    return tuple(sorted(found, key=lambda key: (key.created_at, key.key_id)))


def list_keys(table: Table, customer_id: str) -> tuple[Key, ...]:
    """See :meth:`~bedrock_proxy.store.Customers.list_keys`."""
    return _keys(table, _image(table, customer_id))


def _image(table: Table, customer_id: str) -> Image:
    image = table.read(customer_id)
    if image is None:
        raise CustomerNotFound(customer_id)
    return image


def _replace_keys(
    table: Table,
    customer_id: str,
    change: Callable[[tuple[Key, ...]], tuple[Key, ...]],
    new: Key | None = None,
) -> None:
    """
    Put ``change(keys)``, and *new* beside them, in the place of a customer's keys; those that
    are gone are forgotten.
    """
    gone: list[Key] = []
    claimed = False

    def step() -> bool | None:
        nonlocal claimed
        image = _image(table, customer_id)
        keys = _keys(table, image)
        after = change(keys)
        if new is not None and not claimed:
            _claim(table, customer_id, new)
            claimed = True
        kept = after if new is None else (*after, new)
        settings = evolve(image.settings, keys={key.key_id: _terms(key) for key in kept})
        if not _apply(table, image, settings):
            return None
        gone[:] = [key for key in keys if key.key_id not in settings.keys]
        return True

    try:
        until_done(step)
    except Exception:
        if new is not None and claimed:
            _forget(table, new)
        raise
    for key in gone:
        _forget(table, key)


def _with_room(customer_id: str, keys: tuple[Key, ...], at: int) -> tuple[Key, ...]:
    """*keys* without those that have expired."""
    valid = tuple(key for key in keys if key.is_valid(at))
    if len(valid) >= MAX_KEYS:
        raise TooManyKeys(customer_id)
    return valid


def add_key(table: Table, customer_id: str, key: Key, at: int) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.add_key`."""
    _replace_keys(table, customer_id, lambda keys: _with_room(customer_id, keys, at), key)


def rotate_key(
    table: Table, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None
) -> Key:
    """See :meth:`~bedrock_proxy.store.Customers.rotate_key`."""
    behind: list[Key] = []

    def change(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        old = newest(key for key in keys if key_id in {None, key.key_id})
        if old is None:
            raise KeyNotFound(customer_id, key_id or "")
        behind[:] = [old.rotated(at, grace_ms)]
        after = tuple(behind[0] if key.key_id == old.key_id else key for key in keys)
        return _with_room(customer_id, after, at)

    _replace_keys(table, customer_id, change, new)
    return behind[0]


def revoke_key(table: Table, customer_id: str, key_id: str) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.revoke_key`."""

    def change(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        after = tuple(key for key in keys if key.key_id != key_id)
        if len(after) == len(keys):
            raise KeyNotFound(customer_id, key_id)
        return after

    _replace_keys(table, customer_id, change)


def revoke_all_keys(table: Table, customer_id: str) -> int:
    """See :meth:`~bedrock_proxy.store.Customers.revoke_all_keys`."""
    count = 0

    def change(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        nonlocal count
        count = len(keys)
        return ()

    _replace_keys(table, customer_id, change)
    return count


# --- tokens and key ids are somebody's --------------------------------------------------------------


def _claim(table: Table, customer_id: str, key: Key) -> None:
    """
    Make a token and a key id the customer's.

    Raises:
        AlreadyTaken: One of them is somebody's.
    """
    token = _token_key(key.digest) | _claim_of(customer_id, key)
    _claim_one(table, token)
    try:
        _claim_one(table, _key_key(key.key_id) | _claim_of(customer_id, key))
    except AlreadyTaken:
        table.call("delete_item", TableName=table.name, Key=_token_key(key.digest))
        raise


def _claim_of(customer_id: str, key: Key) -> dict[str, Any]:
    return {
        "customer": {"S": customer_id},
        "key": {"S": key.key_id},
        "digest": {"B": key.digest},
        "created_at": {"N": str(key.created_at)},
        "claimed_at": {"N": str(time.time_ns())},
    }


def _claim_one(table: Table, item: dict[str, Any]) -> None:
    there = table.put(item, "attribute_not_exists(pk)")
    if there is None or there == item:
        return
    # An interrupted creation may have left it.
    age = time.time_ns() - int(there["claimed_at"]["N"])
    owner = table.read(there["customer"]["S"])
    known = owner is not None and there["key"]["S"] in owner.settings.keys
    if known or age < _ABANDONED_S * 10**9:
        raise AlreadyTaken("This token or key id is in use already.")
    again = table.put(
        item,
        "claimed_at = :claimed_at",
        ExpressionAttributeValues={":claimed_at": there["claimed_at"]},
    )
    if again is not None and again != item:
        raise AlreadyTaken("This token or key id is in use already.")


def _forget(table: Table, key: Key) -> None:
    """A token and a key id are nobody's any more; left over, they admit nothing."""
    for item in (_token_key(key.digest), _key_key(key.key_id)):
        table.call("delete_item", TableName=table.name, Key=item)
