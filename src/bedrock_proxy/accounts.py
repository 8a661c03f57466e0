"""
How a request's row and its lease come together: the rules every store applies.

A row is written once; an estimate is corrected once; only a settlement takes a lease away.
"""

from collections.abc import Iterable

from attrs import evolve, frozen

from bedrock_proxy.admission import AHEAD_MS, GateState, Lease, correct, settle
from bedrock_proxy.customers import Limits
from bedrock_proxy.errors import Code
from bedrock_proxy.slotted import lean
from bedrock_proxy.usage import Basis, Outcome, State, UsageRecord


@lean
class Entry:
    """
    What a settlement changes. The lease, if there still was one, is gone with it.

    Attributes:
        row: The row to write or to put in the old one's place; None: the ledger stays as
            it is.
        state: The customer's state afterwards.
    """

    row: UsageRecord | None
    state: GateState


def enter(
    record: UsageRecord,
    *,
    old: UsageRecord | None,
    lease: Lease | None,
    state: GateState,
    limits: Limits,
) -> Entry:
    """
    Settle *record*, given the row of the same request that the ledger already has (*old*)
    and the open lease of that request, where there is one. Doing it again changes nothing.
    """
    settled_at = record.admitted_at + record.duration_ms
    row: UsageRecord | None
    if old is None:
        row = record
        if lease is not None and lease.request.at != record.admitted_at:
            row = evolve(record, admitted_at=lease.request.at)
    else:
        row = _correction(old, record, settled_at)
    if lease is not None:
        standing = row if row is not None else old
        assert standing is not None
        cost = standing.cost_nanousd or 0
        state = settle(state, limits, lease, standing.token_count, cost, settled_at)
    elif row is not None:
        state = correct(state, old, row)
    return Entry(row, state)


def _correction(old: UsageRecord, new: UsageRecord, at: int) -> UsageRecord | None:
    """
    The true row in the estimated one's place, once; its period stays that of admission.

    Figures of an interrupted stream (``partial``) count as true too: they were seen, where
    the estimate only guessed.
    """
    if old.state is not State.ESTIMATED or new.state is not State.FINAL:
        return None
    return evolve(new, admitted_at=old.admitted_at, corrected_at=at)


def estimated_row(lease: Lease) -> UsageRecord:
    """
    The row of a request that nobody settled: everything it had reserved, as an estimate.

    Whoever ran it was killed or cut off; the row says ``internal``.
    """
    request = lease.request
    return UsageRecord(
        request_id=request.request_id,
        customer_id=request.customer_id,
        key_id=request.key_id,
        model_id=request.model_id,
        model=request.model,
        dialect=request.dialect,
        operation=request.operation,
        stream=request.stream,
        admitted_at=request.at,
        duration_ms=max(0, lease.deadline - request.at),
        first_byte_ms=None,
        attempts=1,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        cache_read_tokens=0,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        token_count=lease.tokens,
        basis=Basis.ESTIMATED,
        state=State.ESTIMATED,
        outcome=Outcome.ERROR,
        error_code=Code.INTERNAL.value,
        cost_nanousd=request.cost_nanousd,
        price_version=request.price_version,
        client_request_id=request.client_request_id,
    )


@frozen
class Total:
    """Rows and leases added up: what a period's counters ought to say."""

    requests: int = 0
    tokens: int = 0
    cost_nanousd: int = 0

    def plus(self, other: "Total") -> "Total":
        """Both together."""
        return Total(
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.cost_nanousd + other.cost_nanousd,
        )


def total(rows: Iterable[UsageRecord], leases: Iterable[Lease]) -> Total:
    """Rows and open leases added up."""
    requests = tokens = cost = 0
    for row in rows:
        requests += 1
        tokens += row.token_count
        cost += row.cost_nanousd or 0
    for lease in leases:
        requests += 1
        tokens += lease.tokens
        cost += lease.cost_nanousd
    return Total(requests, tokens, cost)


def latest(now: int, times: Iterable[int]) -> int:
    """
    The last of *times* and *now* (epoch milliseconds). What is ahead by more than
    :data:`~bedrock_proxy.admission.AHEAD_MS` was dated by a wrong clock, and does not count.
    """
    return max((now, *(at for at in times if at <= now + AHEAD_MS)))


def after_wrong_clock(lease: Lease, now: int) -> Lease | UsageRecord | None:
    """
    What becomes of *lease* where its customer's clock is put back to *now* (epoch milliseconds): a
    row to settle it with, if it is of a time that has not come; itself with the deadline that it
    would have by the true clock, if it was renewed by a wrong one; None: it stays as it is.
    """
    if lease.request.at > now + AHEAD_MS:
        return estimated_row(lease)
    longest = now + AHEAD_MS + lease.request.lease_ms
    if lease.deadline > longest:
        return evolve(lease, deadline=now + lease.request.lease_ms)
    return None


def recounted(state: GateState, day: Total, month: Total) -> GateState:
    """*state* with the counters of its day and month replaced by what they ought to say."""
    return evolve(
        state,
        day_requests=day.requests,
        day_tokens=day.tokens,
        day_cost=day.cost_nanousd,
        month_requests=month.requests,
        month_tokens=month.tokens,
        month_cost=month.cost_nanousd,
    )
