"""
Admission and leases in SQLite. Each function is one piece of work within a transaction.
"""

import sqlite3
from typing import Any, Final

from bedrock_proxy import admission
from bedrock_proxy.admission import FRESH, AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.customers import UNLIMITED, CustomerStatus, Key, Limits
from bedrock_proxy.errors import Unavailable
from bedrock_proxy.standing import Standing
from bedrock_proxy_adapters.stores.directory import get_customer, list_keys
from bedrock_proxy_adapters.stores.rows import (
    dump_lease,
    dump_state,
    load_lease,
    load_limits,
    load_state,
)
from bedrock_proxy_adapters.stores.sums import standing_of

# All that a decision needs, in one statement: a lease or row of the same request, the
# customer, the state, the key, and how many leases are live on the customer's own clock.
_FOR_ADMISSION: Final = """
SELECT c.status, c.limits, g.state,
    (SELECT count(*) FROM leases
        WHERE customer_id = asked.customer AND deadline > max(asked.at, coalesce(g.clock, 0))),
    k.key_id, k.expires_at,
    l.body, l.deadline,
    EXISTS (SELECT 1 FROM ledger WHERE request_id = asked.request)
FROM (SELECT ? AS customer, ? AS key, ? AS request, ? AS at) asked
LEFT JOIN customers c ON c.id = asked.customer
LEFT JOIN gates g ON g.customer_id = asked.customer
LEFT JOIN keys k ON k.key_id = asked.key AND k.customer_id = asked.customer
LEFT JOIN leases l ON l.request_id = asked.request
"""

PUT_STATE: Final = (
    "INSERT INTO gates (customer_id, clock, state) VALUES (?, ?, ?)"
    " ON CONFLICT (customer_id) DO UPDATE SET clock = excluded.clock, state = excluded.state"
)
PUT_LEASE: Final = (
    "INSERT INTO leases (request_id, customer_id, deadline, body) VALUES (?, ?, ?, ?)"
)
DROP_LEASE: Final = "DELETE FROM leases WHERE request_id = ?"

_IS_KNOWN: Final = (
    "SELECT EXISTS (SELECT 1 FROM leases WHERE request_id = ?)"
    " OR EXISTS (SELECT 1 FROM ledger WHERE request_id = ?)"
)

_STATUSES: Final = {status.value: status for status in CustomerStatus}


def admit(connection: sqlite3.Connection, request: AdmissionRequest) -> Grant | Refusal:
    """See :meth:`~bedrock_proxy.ports.Gate.admit`."""
    status, limits_text, state_text, live, key_id, expires_at, body, deadline, settled = (
        connection.execute(
            _FOR_ADMISSION,
            (request.customer_id, request.key_id, request.request_id, request.at),
        ).fetchone()
    )
    limits = UNLIMITED if limits_text is None else load_limits(limits_text)
    state = FRESH if state_text is None else load_state(state_text)
    if body is not None:
        held = load_lease(body, deadline)
        return Grant(lease=held, limits=admission.limit_states(state, limits, live, request.at))
    if settled:
        raise Unavailable("This request has been settled already.")
    barred = admission.bar(
        None if status is None else _STATUSES[status],
        _key(key_id, expires_at),
        request.at,
    )
    if barred is not None:
        return admission.refused(barred, state, limits, live, request.at)
    decision, after = admission.decide(state, limits, request, live)
    if isinstance(decision, Grant):
        lease = decision.lease
        save(connection, request.customer_id, after)
        put_lease(connection, lease)
    return decision


def _key(key_id: str | None, expires_at: int | None) -> Key | None:
    if key_id is None:
        return None
    return Key(key_id=key_id, digest=b"", created_at=0, expires_at=expires_at)


def renew(connection: sqlite3.Connection, lease: Lease, at: int) -> Lease:
    """See :meth:`~bedrock_proxy.ports.Gate.renew`."""
    held = find_lease(connection, lease.request.request_id)
    renewed = admission.renewed(lease if held is None else held, at)
    if held is not None:
        set_deadline(connection, renewed)
    return renewed


def set_deadline(connection: sqlite3.Connection, lease: Lease) -> None:
    """Give an open lease the deadline that *lease* has."""
    connection.execute(
        "UPDATE leases SET deadline = ? WHERE request_id = ?",
        (lease.deadline, lease.request.request_id),
    )


def release(connection: sqlite3.Connection, request: AdmissionRequest) -> None:
    """See :meth:`~bedrock_proxy.ports.Gate.release`."""
    lease = find_lease(connection, request.request_id)
    if lease is not None:
        state = load(connection, lease.request.customer_id)
        save(
            connection,
            lease.request.customer_id,
            admission.release(state, lease, request.at),
        )
        drop_lease(connection, request.request_id)


def standing(connection: sqlite3.Connection, customer_id: str, at: int) -> Standing:
    """See :meth:`~bedrock_proxy.store.Books.standing`."""
    customer = get_customer(connection, customer_id)
    state = load(connection, customer_id)
    live: int = connection.execute(
        "SELECT count(*) FROM leases WHERE customer_id = ? AND deadline > ?",
        (customer_id, max(at, state.clock)),
    ).fetchone()[0]
    return standing_of(customer, list_keys(connection, customer_id), state, live, at)


def load(connection: sqlite3.Connection, customer_id: str) -> GateState:
    """The customer's state."""
    found = connection.execute(
        "SELECT state FROM gates WHERE customer_id = ?", (customer_id,)
    ).fetchone()
    return FRESH if found is None else load_state(found[0])


def limits_of(connection: sqlite3.Connection, customer_id: str) -> Limits:
    """The customer's limits; none where there is no such customer."""
    found = connection.execute(
        "SELECT limits FROM customers WHERE id = ?", (customer_id,)
    ).fetchone()
    return UNLIMITED if found is None else load_limits(found[0])


def save(connection: sqlite3.Connection, customer_id: str, state: GateState) -> None:
    """Put *state* in the place of the customer's."""
    connection.execute(PUT_STATE, (customer_id, state.clock, dump_state(state)))


def find_lease(connection: sqlite3.Connection, request_id: str) -> Lease | None:
    """The open lease of a request."""
    found = connection.execute(
        "SELECT body, deadline FROM leases WHERE request_id = ?", (request_id,)
    ).fetchone()
    return None if found is None else load_lease(*found)


def put_lease(connection: sqlite3.Connection, lease: Lease) -> None:
    """Write a new lease down."""
    connection.execute(PUT_LEASE, lease_columns(lease, dump_lease(lease)))


def lease_columns(lease: Lease, text: str) -> tuple[Any, ...]:
    """What :data:`PUT_LEASE` asks for; *text* is the lease as :func:`.rows.dump_lease` writes it."""
    return lease.request.request_id, lease.request.customer_id, lease.deadline, text


def is_known(connection: sqlite3.Connection, request_id: str) -> bool:
    """Whether a request has a lease or a row."""
    known: int = connection.execute(_IS_KNOWN, (request_id, request_id)).fetchone()[0]
    return known == 1


def drop_lease(connection: sqlite3.Connection, request_id: str) -> None:
    """Take a lease away: it is settled."""
    connection.execute(DROP_LEASE, (request_id,))


def open_leases(connection: sqlite3.Connection, customer_id: str | None) -> tuple[Lease, ...]:
    """See :meth:`~bedrock_proxy.store.Books.open_leases`."""
    found: list[tuple[str, int]] = connection.execute(
        "SELECT body, deadline FROM leases WHERE ? IS NULL OR customer_id = ?"
        " ORDER BY deadline, request_id",
        (customer_id, customer_id),
    ).fetchall()
    return tuple(load_lease(*columns) for columns in found)
