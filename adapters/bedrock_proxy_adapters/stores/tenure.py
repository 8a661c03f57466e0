"""
A tenure: a turn to write that one process keeps for a moment, and what it decides meanwhile.

While nobody else may write, what this process has read of a customer stays true. So the requests
that come within a tenure are decided in memory; each decision is told once it is in the redo log
(:mod:`.redo`), and the file follows with all of them in one transaction. A request that begins and
ends within one leaves a row there, and no lease ever.

Only the usual is done here: whatever else there may be is for a transaction of its own, once the
tenure has ended.
"""

import sqlite3
from collections.abc import Callable
from typing import Any, Final, TypeVar

from bedrock_proxy import accounts, admission
from bedrock_proxy.admission import FRESH, AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores import gate, ledger, redo
from bedrock_proxy_adapters.stores.redo import ADMITTED, FINISHED, RedoLog
from bedrock_proxy_adapters.stores.rows import (
    columns_of,
    dump,
    dump_lease,
    dump_state,
    forget_lease,
    load_lease,
    load_limits,
    load_state,
)

T = TypeVar("T")

_ALWAYS: Final = 2**63 - 1

# What decisions about a customer depend on; of the leases that are live on the customer's own
# clock, how many there are and when the first of them will be so no longer.
_CUSTOMER: Final = """
c.status, c.limits, g.state,
    (SELECT count(*) FROM leases
        WHERE customer_id = asked.customer AND deadline > max(asked.at, coalesce(g.clock, 0))),
    (SELECT min(deadline) FROM leases
        WHERE customer_id = asked.customer AND deadline > max(asked.at, coalesce(g.clock, 0)))
"""
_KEY: Final = "k.key_id, k.expires_at"
_IS_KNOWN: Final = """
EXISTS (SELECT 1 FROM leases WHERE request_id = asked.request)
    OR EXISTS (SELECT 1 FROM ledger WHERE request_id = asked.request)
"""
_LEASE: Final = "l.body, l.deadline, EXISTS (SELECT 1 FROM ledger WHERE request_id = asked.request)"
_JOINED_CUSTOMER: Final = """
LEFT JOIN customers c ON c.id = asked.customer
LEFT JOIN gates g ON g.customer_id = asked.customer
"""
_JOINED_KEY: Final = "LEFT JOIN keys k ON k.key_id = asked.key AND k.customer_id = asked.customer"
_JOINED_LEASE: Final = "LEFT JOIN leases l ON l.request_id = asked.request"
_ASKED: Final = "(SELECT ? AS request, ? AS customer, ? AS at, ? AS key) asked"

# One statement for each decision, for what of it is not known yet.
_ADMISSION: Final = (
    f"SELECT {_IS_KNOWN}, {_KEY}, {_CUSTOMER}"  # noqa: S608 -- constants
    f" FROM {_ASKED} {_JOINED_KEY} {_JOINED_CUSTOMER}"
)
_ADMISSION_OF_KNOWN: Final = f"SELECT {_IS_KNOWN}, {_KEY} FROM {_ASKED} {_JOINED_KEY}"  # noqa: S608 -- constants
_SETTLEMENT: Final = (
    f"SELECT {_LEASE}, {_CUSTOMER}"  # noqa: S608 -- constants
    f" FROM {_ASKED} {_JOINED_LEASE} {_JOINED_CUSTOMER}"
)
_SETTLEMENT_OF_KNOWN: Final = f"SELECT {_LEASE} FROM {_ASKED} {_JOINED_LEASE}"  # noqa: S608 -- constants


class _Known:
    """
    A customer as the file has it, and what was decided since.

    Attributes:
        live: How many leases are live.
        counted_at: Epoch milliseconds at which those of the file were counted.
        until: Epoch milliseconds until which each of them is so.
        keys: When each key that was asked for expires; it never does where that is None.
    """

    __slots__ = ("counted_at", "keys", "limits", "live", "state", "until", "written")

    def __init__(self, limits: Limits, state: GateState, live: int, until: int, at: int) -> None:
        self.limits = limits
        self.state = state
        self.written = state
        self.live = live
        self.until = until
        self.counted_at = at
        self.keys: dict[str, int] = {}


class Tenure:
    """
    One tenure, from ``BEGIN`` to ``COMMIT``.

    Args:
        connection: Whose transaction it is. Begun here, unless that raises.
        log: Empty.
        follows_redo: The file has just been changed by what was left of another tenure.

    Raises:
        sqlite3.Error: The file cannot be read, or somebody writes to it without a turn.
    """

    def __init__(
        self, connection: sqlite3.Connection, log: RedoLog, *, follows_redo: bool = False
    ) -> None:
        self._connection = connection
        self._log = log
        self._changed = follows_redo
        self._known: dict[str, _Known] = {}
        self._leases: dict[str, tuple[Lease, str]] = {}
        self._settled: list[tuple[str]] = []
        self._rows: dict[str, tuple[Any, ...]] = {}
        log.begin()
        connection.execute("BEGIN IMMEDIATE")
        self._number = redo.last_folded(connection) + 1

    @property
    def size(self) -> int:
        """How many leases and rows it will write."""
        return len(self._leases) + len(self._rows)

    def admit(self, request: AdmissionRequest) -> Grant | Refusal | None:
        """
        See :meth:`~bedrock_proxy.ports.Gate.admit`. None where it is not decided here; nothing was
        changed then.

        Raises:
            sqlite3.Error, OSError: The file cannot be read, or the log not written: the same.
        """
        request_id = request.request_id
        if request_id in self._leases or request_id in self._rows:
            return None
        known = self._ask_for_admission(request)
        if known is None or known.keys[request.key_id] <= request.at:
            return None
        state, limits = known.state, known.limits
        if limits.concurrency is not None and max(state.clock, request.at) >= known.until:
            return None  # somebody's time has run out: they are to be counted again
        decision, after = admission.decide(state, limits, request, known.live)
        if isinstance(decision, Grant):
            lease = decision.lease
            text = dump_lease(lease)
            self._log.append(self._number, ADMITTED, text)
            self._leases[request_id] = lease, text
            known.state = after
            known.live += 1
            known.until = min(known.until, lease.deadline)
        return decision

    def finish(self, record: UsageRecord) -> bool:
        """
        See :meth:`~bedrock_proxy.ports.Ledger.finish`. False where it is not done here; nothing
        was changed then.

        Raises:
            sqlite3.Error, OSError: The file cannot be read, or the log not written: the same.
        """
        request_id = record.request_id
        ours = self._leases.get(request_id)
        if ours is not None:
            lease, text = ours
            known = self._known[record.customer_id]
        elif request_id in self._rows:
            return False
        else:
            found = self._ask_for_settlement(record)
            if found is None:
                return False
            known, lease, text = found
        entry = accounts.enter(
            record, old=None, lease=lease, state=known.state, limits=known.limits
        )
        assert entry.row is not None
        columns = columns_of(entry.row)
        self._log.append(self._number, FINISHED, dump(columns))
        if ours is None:
            self._settled.append((request_id,))
        else:
            del self._leases[request_id]
        forget_lease(text)
        self._rows[request_id] = columns
        known.state = entry.state
        if ours is not None or lease.deadline > known.counted_at:
            known.live -= 1
        return True

    def look_up(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What *work* reads of customers and their keys, which nobody changes meanwhile."""
        return work(self._connection)

    def fold(self) -> bool:
        """
        Write all of it into the file, and end; whether the file has changed.

        Raises:
            sqlite3.Error, OverflowError: It is not in the file. It is in the log still.
        """
        connection = self._connection
        if not connection.in_transaction:
            # SQLite itself undoes a transaction after some errors of the disk.
            raise sqlite3.OperationalError("the transaction has been rolled back")
        states = [
            (customer_id, known.state.clock, dump_state(known.state))
            for customer_id, known in self._known.items()
            if known.state is not known.written
        ]
        if states or self._rows or self._leases:
            self._changed = True
            connection.executemany(gate.PUT_STATE, states)
            connection.executemany(gate.DROP_LEASE, self._settled)
            connection.executemany(ledger.PUT_ROW, self._rows.values())
            connection.executemany(
                gate.PUT_LEASE, [gate.lease_columns(*held) for held in self._leases.values()]
            )
            redo.set_folded(connection, self._number)
        connection.execute("COMMIT")
        return self._changed

    def _ask_for_admission(self, request: AdmissionRequest) -> _Known | None:
        """The customer with the request's key; None where anything is unusual."""
        known = self._known.get(request.customer_id)
        if known is not None and request.key_id in known.keys:
            return None if gate.is_known(self._connection, request.request_id) else known
        statement = _ADMISSION if known is None else _ADMISSION_OF_KNOWN
        is_known, key_id, expires_at, *columns = self._connection.execute(
            statement, (request.request_id, request.customer_id, request.at, request.key_id)
        ).fetchone()
        if is_known or key_id is None:
            return None
        if known is None:
            known = self._learn(request.customer_id, request.at, *columns)
        if known is not None:
            known.keys[key_id] = _ALWAYS if expires_at is None else expires_at
        return known

    def _ask_for_settlement(self, record: UsageRecord) -> tuple[_Known, Lease, str] | None:
        """The customer, and the lease as it is in the file; None where anything is unusual."""
        known = self._known.get(record.customer_id)
        statement = _SETTLEMENT if known is None else _SETTLEMENT_OF_KNOWN
        text, deadline, has_row, *columns = self._connection.execute(
            statement, (record.request_id, record.customer_id, record.admitted_at, None)
        ).fetchone()
        if text is None or has_row:
            return None
        if known is None:
            known = self._learn(record.customer_id, record.admitted_at, *columns)
        return None if known is None else (known, load_lease(text, deadline), text)

    def _learn(
        self,
        customer_id: str,
        at: int,
        status: str | None,
        limits: str,
        state_text: str | None,
        live: int,
        until: int | None,
    ) -> _Known | None:
        if status != CustomerStatus.ACTIVE.value:
            return None
        state = FRESH if state_text is None else load_state(state_text)
        known = self._known[customer_id] = _Known(
            load_limits(limits),
            state,
            live,
            _ALWAYS if until is None else until,
            max(at, state.clock),
        )
        return known
