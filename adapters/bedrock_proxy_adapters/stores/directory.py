"""
Customers and keys in SQLite. Each function is one piece of work within a transaction, and
raises our errors before it writes.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from attrs import evolve

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
from bedrock_proxy.store import Page
from bedrock_proxy_adapters.stores.rows import dump_limits, dump_models, load_limits, load_models

_CUSTOMER: Final = "id, name, email, status, limits, models, created_at"
_KEY: Final = "key_id, digest, created_at, expires_at, deprecated_at"


def key_of(columns: tuple[Any, ...]) -> Key:
    """A key from its columns."""
    key_id, digest, created_at, expires_at, deprecated_at = columns
    return Key(
        key_id=key_id,
        digest=digest,
        created_at=created_at,
        expires_at=expires_at,
        deprecated_at=deprecated_at,
    )


def _customer_of(columns: tuple[Any, ...]) -> Customer:
    customer_id, name, email, status, limits, models, created_at = columns
    return Customer(
        id=customer_id,
        name=name,
        email=email,
        status=CustomerStatus(status),
        limits=load_limits(limits),
        models=load_models(models),
        created_at=created_at,
    )


def _columns_of(customer: Customer) -> tuple[Any, ...]:
    return (
        customer.id,
        customer.name,
        customer.email,
        customer.status.value,
        dump_limits(customer.limits),
        dump_models(customer.models),
        customer.created_at,
    )


def find_token(connection: sqlite3.Connection, digest: bytes) -> TokenOwner | None:
    """Whose token it is, expired or not."""
    found = connection.execute(
        "SELECT c.id, c.status, c.models, k.key_id, k.digest, k.created_at, k.expires_at,"
        " k.deprecated_at FROM keys k JOIN customers c ON c.id = k.customer_id"
        " WHERE k.digest = ?",
        (digest,),
    ).fetchone()
    if found is None:
        return None
    customer_id, status, models, *key = found
    return TokenOwner(
        customer_id=customer_id,
        key=key_of(tuple(key)),
        status=CustomerStatus(status),
        models=load_models(models),
    )


def create(connection: sqlite3.Connection, customer: Customer, key: Key) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.create_customer`."""
    if connection.execute("SELECT 1 FROM customers WHERE id = ?", (customer.id,)).fetchone():
        raise AlreadyTaken(f"There is a customer {customer.id!r} already.")
    _check_free(connection, key)
    connection.execute(
        f"INSERT INTO customers ({_CUSTOMER}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 -- constants
        _columns_of(customer),
    )
    _put_key(connection, customer.id, key)


def get_customer(connection: sqlite3.Connection, customer_id: str) -> Customer:
    """See :meth:`~bedrock_proxy.store.Customers.get_customer`."""
    found = connection.execute(
        f"SELECT {_CUSTOMER} FROM customers WHERE id = ?",  # noqa: S608 -- constants
        (customer_id,),
    ).fetchone()
    if found is None:
        raise CustomerNotFound(customer_id)
    return _customer_of(found)


def list_customers(connection: sqlite3.Connection, limit: int, after: str | None) -> Page[Customer]:
    """See :meth:`~bedrock_proxy.store.Customers.list_customers`."""
    found = connection.execute(
        f"SELECT {_CUSTOMER} FROM customers WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608 -- constants
        (after or "", limit + 1),
    ).fetchall()
    customers = tuple(_customer_of(columns) for columns in found[:limit])
    return Page(customers, customers[-1].id if len(found) > limit else None)


def customer_ids(connection: sqlite3.Connection) -> list[str]:
    """Every customer's id, in order."""
    return [row[0] for row in connection.execute("SELECT id FROM customers ORDER BY id")]


def update(
    connection: sqlite3.Connection, customer_id: str, change: Callable[[Customer], Customer]
) -> Customer:
    """See :meth:`~bedrock_proxy.store.Customers.update_customer`."""
    changed = evolve(change(get_customer(connection, customer_id)), id=customer_id)
    connection.execute(
        "UPDATE customers SET name = ?, email = ?, status = ?, limits = ?, models = ?,"
        " created_at = ? WHERE id = ?",
        (*_columns_of(changed)[1:], customer_id),
    )
    return changed


def list_keys(connection: sqlite3.Connection, customer_id: str) -> tuple[Key, ...]:
    """See :meth:`~bedrock_proxy.store.Customers.list_keys`."""
    return tuple(
        key_of(columns)
        for columns in connection.execute(
            f"SELECT {_KEY} FROM keys WHERE customer_id = ? ORDER BY created_at, key_id",  # noqa: S608 -- constants
            (customer_id,),
        )
    )


def add_key(connection: sqlite3.Connection, customer_id: str, key: Key, at: int) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.add_key`."""
    get_customer(connection, customer_id)
    _add(connection, customer_id, key, at, list_keys(connection, customer_id))


def rotate_key(
    connection: sqlite3.Connection,
    customer_id: str,
    new: Key,
    at: int,
    grace_ms: int,
    key_id: str | None,
) -> Key:
    """See :meth:`~bedrock_proxy.store.Customers.rotate_key`."""
    get_customer(connection, customer_id)
    keys = list_keys(connection, customer_id)
    old = newest(key for key in keys if key_id in {None, key.key_id})
    if old is None:
        raise KeyNotFound(customer_id, key_id or "")
    behind = old.rotated(at, grace_ms)
    _add(
        connection,
        customer_id,
        new,
        at,
        tuple(behind if key.key_id == old.key_id else key for key in keys),
    )
    connection.execute(
        "UPDATE keys SET expires_at = ?, deprecated_at = ? WHERE key_id = ?",
        (behind.expires_at, behind.deprecated_at, behind.key_id),
    )
    return behind


def revoke_key(connection: sqlite3.Connection, customer_id: str, key_id: str) -> None:
    """See :meth:`~bedrock_proxy.store.Customers.revoke_key`."""
    get_customer(connection, customer_id)
    gone = connection.execute(
        "DELETE FROM keys WHERE customer_id = ? AND key_id = ?", (customer_id, key_id)
    )
    if not gone.rowcount:
        raise KeyNotFound(customer_id, key_id)


def revoke_all_keys(connection: sqlite3.Connection, customer_id: str) -> int:
    """See :meth:`~bedrock_proxy.store.Customers.revoke_all_keys`."""
    get_customer(connection, customer_id)
    return connection.execute("DELETE FROM keys WHERE customer_id = ?", (customer_id,)).rowcount


def _add(
    connection: sqlite3.Connection, customer_id: str, key: Key, at: int, keys: tuple[Key, ...]
) -> None:
    """Add *key* to *keys*, whose expired ones make room."""
    _check_free(connection, key)
    expired = [each for each in keys if not each.is_valid(at)]
    if len(keys) - len(expired) >= MAX_KEYS:
        raise TooManyKeys(customer_id)
    connection.executemany(
        "DELETE FROM keys WHERE key_id = ?", [(each.key_id,) for each in expired]
    )
    _put_key(connection, customer_id, key)


def _check_free(connection: sqlite3.Connection, key: Key) -> None:
    if connection.execute(
        "SELECT 1 FROM keys WHERE key_id = ? OR digest = ?", (key.key_id, key.digest)
    ).fetchone():
        raise AlreadyTaken("This token or key id is in use already.")


def _put_key(connection: sqlite3.Connection, customer_id: str, key: Key) -> None:
    connection.execute(
        f"INSERT INTO keys (customer_id, {_KEY}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 -- constants
        (
            customer_id,
            key.key_id,
            key.digest,
            key.created_at,
            key.expires_at,
            key.deprecated_at,
        ),
    )
