"""
The decision whether a request may go to Bedrock, and the lease it goes with.

Pure: a customer's :class:`GateState` and a request go in; a :class:`Grant` or a
:class:`Refusal` and the next state come out. Whoever keeps the state applies each function
here atomically; then every limit holds exactly (RELIABILITY.md section 3).

Requests and tokens a minute are :mod:`~bedrock_proxy.buckets`; everything else counts by
the UTC day and month of admission.
"""

from enum import StrEnum, unique
from operator import attrgetter
from typing import Final

from attrs import evolve

from bedrock_proxy.buckets import (
    EMPTY_BUCKET,
    MINUTE_MS,
    NOTHING_TAKEN,
    Bucket,
    Taken,
    drained,
    level,
    refund,
    take,
    try_take,
)
from bedrock_proxy.customers import CustomerStatus, Key, Limits
from bedrock_proxy.periods import DAY_MS, day_of, month_of, month_of_day, start_of_month
from bedrock_proxy.slotted import lean
from bedrock_proxy.usage import UsageRecord

MOST_COUNTED: Final = 2**53
"""
The most tokens that reservations may bring a month's counter to: up to here whole numbers are exact
in every store (Redis' scripts count in doubles). No month gets there but by mistake.
"""

AHEAD_MS: Final = 60_000
"""Milliseconds beyond which a clock that is ahead of another counts as wrong."""

CONCURRENCY_RETRY_AFTER: Final = 1
"""Seconds to wait where too many calls are under way: any of them may end at any time."""


@unique
class Limit(StrEnum):
    """The names of the limits, as clients and operators see them."""

    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENCY = "concurrency"
    REQUESTS_PER_DAY = "requests_per_day"
    TOKENS_PER_DAY = "tokens_per_day"
    TOKENS_PER_MONTH = "tokens_per_month"
    COST_PER_DAY = "cost_per_day"
    COST_PER_MONTH = "cost_per_month"


@lean(kw_only=True)
class AdmissionRequest:
    """
    What a request asks of its customer's limits, and what a reaper must know to write its
    ledger row if nobody else does.

    Attributes:
        at: Epoch milliseconds of arrival; its UTC day and month are the request's periods.
        input_tokens, output_tokens: The estimate that is reserved, in tokens.
        cost_nanousd: The estimate in nano-US-dollars; None where no price is known.
        lease_ms: How long the lease lives unless it is renewed.
    """

    request_id: str
    customer_id: str
    key_id: str
    model_id: str
    model: str
    dialect: str
    operation: str
    stream: bool
    at: int
    input_tokens: int
    output_tokens: int
    cost_nanousd: int | None
    price_version: str | None
    client_request_id: str | None
    lease_ms: int


@lean
class Lease:
    """
    The right to one call: settled once, by whoever comes first.

    Attributes:
        request: What was admitted. Its ``at`` is the time of admission, which is later than
            the time asked for where the clock went backwards.
        deadline: Epoch milliseconds after which a reaper may settle it.
        of_requests, of_tokens: What it took from the buckets; the gate's own bookkeeping.
    """

    request: AdmissionRequest
    deadline: int
    of_requests: Taken = NOTHING_TAKEN
    of_tokens: Taken = NOTHING_TAKEN

    @property
    def tokens(self) -> int:
        """The reservation, in tokens."""
        return self.request.input_tokens + self.request.output_tokens

    @property
    def cost_nanousd(self) -> int:
        """The reservation in nano-US-dollars; 0 where no price is known."""
        return self.request.cost_nanousd or 0


@lean
class LimitState:
    """
    One limit as it stands after the decision.

    Attributes:
        limit: The cap, in the limit's own unit.
        remaining: What is left of it, never below 0.
        resets_in: Seconds until it is whole again.
    """

    name: Limit
    limit: int
    remaining: int
    resets_in: int


@lean
class Grant:
    """The request may go; *limits* are the states after it."""

    lease: Lease
    limits: tuple[LimitState, ...] = ()


@unique
class Barred(StrEnum):
    """Why a customer may not call at all, whatever the limits say."""

    KEY_GONE = "key_gone"
    """The token was revoked or has expired since it was looked up."""
    CUSTOMER_DISABLED = "customer_disabled"
    PRICE_UNKNOWN = "price_unknown"
    """There is a money budget, and no price to hold the request against."""


@lean(kw_only=True)
class Refusal:
    """
    The request may not go; nothing was reserved and no limit consumed.

    Attributes:
        reason: The limit that refused (the first in the order of :class:`Limit`), or why
            the customer is barred.
        retry_after: Seconds after which the same request passes this limit, if nothing
            else is sent; None where waiting does not help.
        cap: The limit's value; None for :class:`Barred`.
        limits: The states, unchanged by this request.
    """

    reason: Limit | Barred
    retry_after: int | None = None
    cap: int | None = None
    limits: tuple[LimitState, ...] = ()


# --- a customer's state -------------------------------------------------------------------


@lean
class GateState:
    """
    Everything that a customer's limits depend on, open leases apart.

    The counters hold what was settled and what is reserved, for the day and the month of
    the latest admission.

    Attributes:
        clock: Epoch milliseconds of the latest admission or charge. Time never runs backwards here:
            an earlier clock counts as this one.
        day: Days since the epoch, UTC.
        month: Months since year 0, UTC.
    """

    clock: int = 0
    requests: Bucket = EMPTY_BUCKET
    tokens: Bucket = EMPTY_BUCKET
    day: int = 0
    day_requests: int = 0
    day_tokens: int = 0
    day_cost: int = 0
    month: int = 1970 * 12
    month_requests: int = 0
    month_tokens: int = 0
    month_cost: int = 0


FRESH: Final = GateState()
"""A customer who has never called."""


_BUDGETS: Final = (
    Limit.REQUESTS_PER_DAY,
    Limit.TOKENS_PER_DAY,
    Limit.TOKENS_PER_MONTH,
    Limit.COST_PER_DAY,
    Limit.COST_PER_MONTH,
)
"""What is counted by day and month, in the order in which it refuses."""
_caps: Final = attrgetter(*(limit.value for limit in _BUDGETS))
_NO_BUDGETS: Final = (None,) * len(_BUDGETS)
_used: Final = attrgetter("day_requests", "day_tokens", "month_tokens", "day_cost", "month_cost")


# --- the decision -------------------------------------------------------------------------


def bar(status: CustomerStatus | None, key: Key | None, at: int) -> Barred | None:
    """
    Why a customer may not call at all at *at* (epoch milliseconds), or None.

    *key* is the request's own key as it is now; None where it was revoked.
    """
    if key is None or (key.expires_at is not None and key.expires_at <= at):
        return Barred.KEY_GONE
    return Barred.CUSTOMER_DISABLED if status is not CustomerStatus.ACTIVE else None


def decide(
    state: GateState, limits: Limits, request: AdmissionRequest, live: int = 0
) -> tuple[Grant | Refusal, GateState]:
    """
    Whether *request* may go, and the state after it: the same one where it may not.

    Args:
        live: How many of the customer's leases have not passed their deadline. An expired
            lease counts as free, though only settlement removes it.
    """
    if request.cost_nanousd is None and (
        limits.cost_per_day is not None or limits.cost_per_month is not None
    ):
        return _refusal(Barred.PRICE_UNKNOWN, state, limits, live, request.at), state
    now = rolled(state, request.at)
    tokens = request.input_tokens + request.output_tokens
    cost = request.cost_nanousd or 0
    requests_bucket, of_requests, wait = try_take(
        now.requests, limits.requests_per_minute, _burst(limits), 1, now.clock
    )
    if wait is not None:
        return _full(Limit.REQUESTS_PER_MINUTE, wait, state, limits, live, request.at, now), state
    tokens_bucket, of_tokens, wait = try_take(
        now.tokens, limits.tokens_per_minute, limits.tokens_per_minute, tokens, now.clock
    )
    if wait is not None:
        return _full(Limit.TOKENS_PER_MINUTE, wait, state, limits, live, request.at, now), state
    if limits.concurrency is not None and live >= limits.concurrency:
        wait = CONCURRENCY_RETRY_AFTER if limits.concurrency else None
        return _refusal(Limit.CONCURRENCY, state, limits, live, request.at, wait), state
    for name, cap, used, asked in zip(
        _BUDGETS, _caps(limits), _used(now), (1, tokens, tokens, cost, cost), strict=True
    ):
        if cap is not None and (cap == 0 or used + asked > cap):
            wait = None if cap == 0 or asked > cap else _seconds_to_roll(name, now, request.at)
            return _refusal(name, state, limits, live, request.at, wait), state
    if tokens > MOST_COUNTED - now.month_tokens:
        # Whoever has no such limit is stopped where a store would lose count.
        name = Limit.TOKENS_PER_MONTH
        wait = None if tokens > MOST_COUNTED else _seconds_to_roll(name, now, request.at)
        return _refusal(name, state, limits, live, request.at, wait), state
    after = GateState(
        now.clock,
        requests_bucket,
        tokens_bucket,
        now.day,
        now.day_requests + 1,
        now.day_tokens + tokens,
        now.day_cost + cost,
        now.month,
        now.month_requests + 1,
        now.month_tokens + tokens,
        now.month_cost + cost,
    )
    if now.clock != request.at:
        request = evolve(request, at=now.clock)
    lease = Lease(request, now.clock + request.lease_ms, of_requests, of_tokens)
    return Grant(lease, limit_states(after, limits, live + 1, now.clock)), after


def refused(reason: Barred, state: GateState, limits: Limits, live: int, at: int) -> Refusal:
    """The refusal of a customer who is barred, with the limits as they stand."""
    return _refusal(reason, state, limits, live, at)


def renewed(lease: Lease, at: int) -> Lease:
    """*lease* with its deadline moved to *at* (epoch ms) + its ``lease_ms``; never back."""
    deadline = max(lease.deadline, at + lease.request.lease_ms)
    return lease if deadline == lease.deadline else evolve(lease, deadline=deadline)


def settle(
    state: GateState, limits: Limits, lease: Lease, tokens: int, cost_nanousd: int, at: int
) -> GateState:
    """
    *state* with the true usage in place of what *lease* reserved.

    Tokens a minute are refunded only as far as the bucket would have held them back: what
    has drained away meanwhile was never the customer's to get back. Without that bound,
    streams that end after the bucket has emptied would add their reservations to a full
    burst. Usage beyond the reservation is charged as of *at* (epoch milliseconds).
    """
    now = max(state.clock, at)
    bucket = state.tokens
    if tokens <= lease.tokens:
        bucket = refund(bucket, lease.of_tokens, lease.tokens - tokens, now)
    elif limits.tokens_per_minute:
        state = rolled(state, now)
        bucket, _ = take(drained(bucket, limits.tokens_per_minute, now), tokens - lease.tokens, now)
    return _recount(
        state,
        lease.request.at,
        0,
        tokens - lease.tokens,
        cost_nanousd - lease.cost_nanousd,
        tokens_bucket=bucket,
    )


def release(state: GateState, lease: Lease, at: int) -> GateState:
    """*state* as if *lease* had never been granted, within the bound of :func:`settle`."""
    now = max(state.clock, at)
    return _recount(
        state,
        lease.request.at,
        -1,
        -lease.tokens,
        -lease.cost_nanousd,
        requests_bucket=refund(state.requests, lease.of_requests, lease.of_requests.units, now),
        tokens_bucket=refund(state.tokens, lease.of_tokens, lease.of_tokens.units, now),
    )


def correct(state: GateState, old: UsageRecord | None, new: UsageRecord) -> GateState:
    """
    *state* with the row *new* counted in place of *old* (None: it had not been counted).

    Only the counters move: the minute that the row belongs to is over.
    """
    if old is None:
        return _recount(state, new.admitted_at, 1, new.token_count, new.cost_nanousd or 0)
    return _recount(
        state,
        new.admitted_at,
        0,
        new.token_count - old.token_count,
        (new.cost_nanousd or 0) - (old.cost_nanousd or 0),
    )


def rolled(state: GateState, at: int) -> GateState:
    """*state* at *at* (epoch milliseconds): fresh counters in a new UTC day or month."""
    clock = max(state.clock, at)
    if clock == state.clock:
        return state
    day = clock // DAY_MS
    month = state.month if day == state.day else month_of_day(day)
    today, this_month = day == state.day, month == state.month
    return GateState(
        clock,
        state.requests,
        state.tokens,
        day,
        state.day_requests * today,
        state.day_tokens * today,
        state.day_cost * today,
        month,
        state.month_requests * this_month,
        state.month_tokens * this_month,
        state.month_cost * this_month,
    )


def put_back(state: GateState, now: int) -> GateState:
    """
    *state* with its clock at *now* (epoch milliseconds), where it was ahead of that by more than
    :data:`AHEAD_MS`.

    Nothing is known of the minutes before a wrong clock, so the buckets are empty then; the counters
    too, until somebody counts again (:func:`~bedrock_proxy.accounts.recounted`).
    """
    return state if state.clock <= now + AHEAD_MS else rolled(FRESH, now)


def limit_states(state: GateState, limits: Limits, live: int, at: int) -> tuple[LimitState, ...]:
    """How each limit that is set stands at *at* (epoch milliseconds)."""
    now = rolled(state, at)
    found: list[LimitState] = []
    rate, burst = limits.requests_per_minute, _burst(limits)
    if rate is not None and burst is not None:
        found.append(_rate_state(Limit.REQUESTS_PER_MINUTE, rate, burst, now.requests, now.clock))
    rate = limits.tokens_per_minute
    if rate is not None:
        found.append(_rate_state(Limit.TOKENS_PER_MINUTE, rate, rate, now.tokens, now.clock))
    if limits.concurrency is not None:
        left = max(0, limits.concurrency - live)
        resets_in = CONCURRENCY_RETRY_AFTER if live else 0
        found.append(LimitState(Limit.CONCURRENCY, limits.concurrency, left, resets_in))
    caps = _caps(limits)
    if caps != _NO_BUDGETS:
        for name, cap, used in zip(_BUDGETS, caps, _used(now), strict=True):
            if cap is not None:
                resets_in = _seconds_to_roll(name, now, at)
                found.append(LimitState(name, cap, max(0, cap - used), resets_in))
    return tuple(found)


def _rate_state(name: Limit, rate: int, burst: int, bucket: Bucket, now: int) -> LimitState:
    """*rate* a minute, with its *bucket* of *burst*, at *now*."""
    if not rate:
        return LimitState(name, 0, 0, 0)
    filled = level(bucket, now)
    remaining = max(0, burst + (-filled // MINUTE_MS))
    return LimitState(name, rate, remaining, -(-filled // (rate * 1000)))


def _burst(limits: Limits) -> int | None:
    return limits.requests_per_minute if limits.burst is None else limits.burst


def _refusal(
    reason: Limit | Barred,
    state: GateState,
    limits: Limits,
    live: int,
    at: int,
    retry_after: int | None = None,
) -> Refusal:
    return Refusal(
        reason=reason,
        retry_after=retry_after,
        cap=None if isinstance(reason, Barred) else getattr(limits, reason.value),
        limits=limit_states(state, limits, live, at),
    )


def _full(
    reason: Limit,
    wait_ms: int,
    state: GateState,
    limits: Limits,
    live: int,
    at: int,
    now: GateState,
) -> Refusal:
    # Waiting is counted on the caller's clock, which may be behind ours.
    seconds = -(-(now.clock + wait_ms - at) // 1000) if wait_ms else None
    return _refusal(reason, state, limits, live, at, seconds)


def _seconds_to_roll(name: Limit, now: GateState, at: int) -> int:
    monthly = name is Limit.TOKENS_PER_MONTH or name is Limit.COST_PER_MONTH
    end = start_of_month(now.month + 1) if monthly else (now.day + 1) * DAY_MS
    return -(-(end - at) // 1000)


def _recount(
    state: GateState,
    at: int,
    requests: int,
    tokens: int,
    cost: int,
    *,
    requests_bucket: Bucket | None = None,
    tokens_bucket: Bucket | None = None,
) -> GateState:
    """*state* with so much more counted in the periods of *at*, if they are not over."""
    today = day_of(at) == state.day
    month = today or month_of(at) == state.month
    return GateState(
        state.clock,
        state.requests if requests_bucket is None else requests_bucket,
        state.tokens if tokens_bucket is None else tokens_bucket,
        state.day,
        state.day_requests + requests * today,
        state.day_tokens + tokens * today,
        state.day_cost + cost * today,
        state.month,
        state.month_requests + requests * month,
        state.month_tokens + tokens * month,
        state.month_cost + cost * month,
    )
