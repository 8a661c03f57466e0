"""The pure decision: each limit alone, all together, and what a refund may give back."""

from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from bedrock_proxy.admission import (
    FRESH,
    AdmissionRequest,
    Barred,
    GateState,
    Grant,
    Lease,
    Limit,
    Refusal,
    bar,
    decide,
    limit_states,
    release,
    renewed,
    rolled,
    settle,
)
from bedrock_proxy.customers import CustomerStatus, Key, Limits
from bedrock_proxy.periods import DAY_MS

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp() * 1000)
MINUTE = 60_000


def ask(at: int = NOON, tokens: int = 100, cost: int | None = 10, **more: Any) -> AdmissionRequest:
    values: dict[str, Any] = {
        "request_id": "r",
        "customer_id": "c",
        "key_id": "k",
        "model_id": "m",
        "model": "m",
        "dialect": "simple",
        "operation": "InvokeModel",
        "stream": False,
        "at": at,
        "input_tokens": tokens,
        "output_tokens": 0,
        "cost_nanousd": cost,
        "price_version": None,
        "client_request_id": None,
        "lease_ms": 300_000,
    }
    return AdmissionRequest(**(values | more))


def admitted(
    state: GateState, limits: Limits, request: AdmissionRequest, live: int = 0
) -> tuple[Lease, GateState]:
    decision, after = decide(state, limits, request, live)
    assert isinstance(decision, Grant), decision
    return decision.lease, after


def refused_by(
    state: GateState, limits: Limits, request: AdmissionRequest, live: int = 0
) -> Refusal:
    decision, after = decide(state, limits, request, live)
    assert isinstance(decision, Refusal)
    assert after is state
    return decision


def burst_of(limits: Limits, tokens: int = 0) -> int:
    """How many requests pass at once."""
    state, count = FRESH, 0
    while count < 10_000:
        decision, state = decide(state, limits, ask(tokens=tokens))
        if isinstance(decision, Refusal):
            return count
        count += 1
    raise AssertionError("nothing limits it")


@given(st.integers(1, 300), st.one_of(st.none(), st.integers(1, 300)))
@example(7, None)
def test_T01_at_a_standing_clock_exactly_the_burst_is_admitted(
    rate: int, burst: int | None
) -> None:
    assert burst_of(Limits(requests_per_minute=rate, burst=burst)) == (burst or rate)


@given(st.integers(1, 50_000), st.integers(1, 500))
@example(700, 100)
def test_T01_tokens_add_up_to_the_limit_without_a_rounding_loss(limit: int, size: int) -> None:
    full, rest = divmod(limit, size)
    if full < 10_000:
        assert burst_of(Limits(tokens_per_minute=limit), tokens=size) == full
        del rest


REFUSALS = [
    (Limit.REQUESTS_PER_MINUTE, Limits(requests_per_minute=2)),
    (Limit.TOKENS_PER_MINUTE, Limits(tokens_per_minute=200)),
    (Limit.REQUESTS_PER_DAY, Limits(requests_per_day=2)),
    (Limit.TOKENS_PER_DAY, Limits(tokens_per_day=200)),
    (Limit.TOKENS_PER_MONTH, Limits(tokens_per_month=200)),
    (Limit.COST_PER_DAY, Limits(cost_per_day=20)),
    (Limit.COST_PER_MONTH, Limits(cost_per_month=20)),
]


@pytest.mark.parametrize(("name", "limits"), REFUSALS, ids=[name.value for name, _ in REFUSALS])
def test_T05_waiting_as_long_as_told_is_enough_and_a_second_less_is_not(
    name: Limit, limits: Limits
) -> None:
    at = NOON + 123
    _, state = admitted(FRESH, limits, ask(at))
    _, state = admitted(state, limits, ask(at + 7))
    refusal = refused_by(state, limits, ask(at + 7))
    assert refusal.reason is name
    assert refusal.retry_after is not None
    admitted(state, limits, ask(at + 7 + refusal.retry_after * 1000))
    again = refused_by(state, limits, ask(at + 7 + (refusal.retry_after - 1) * 1000))
    assert again.reason is name


@given(
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.integers(1, 100_000),
    st.integers(0, MINUTE),
)
def test_T05_retry_after_is_exact_for_any_rate(
    rate: int, first: int, then: int, apart: int
) -> None:
    limits = Limits(tokens_per_minute=rate)
    decision, state = decide(FRESH, limits, ask(NOON, first))
    if isinstance(decision, Refusal):
        assert first > rate
        assert decision.retry_after is None
        return
    decision, _ = decide(state, limits, ask(NOON + apart, then))
    if isinstance(decision, Refusal):
        if then > rate:
            assert decision.retry_after is None
            return
        assert decision.retry_after is not None
        admitted(state, limits, ask(NOON + apart + decision.retry_after * 1000, then))
        refused_by(state, limits, ask(NOON + apart + (decision.retry_after - 1) * 1000, then))


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        (Limit.TOKENS_PER_MINUTE, Limits(tokens_per_minute=99)),
        (Limit.TOKENS_PER_DAY, Limits(tokens_per_day=99)),
        (Limit.TOKENS_PER_MONTH, Limits(tokens_per_month=99)),
        (Limit.COST_PER_DAY, Limits(cost_per_day=9)),
        (Limit.COST_PER_MONTH, Limits(cost_per_month=9)),
    ],
)
def test_a_reservation_larger_than_a_whole_limit_is_not_worth_retrying(
    name: Limit, limits: Limits
) -> None:
    refusal = refused_by(FRESH, limits, ask())
    assert (refusal.reason, refusal.retry_after) == (name, None)
    assert refusal.cap == getattr(limits, name.value)


@pytest.mark.parametrize("name", list(Limit))
def test_a_limit_of_zero_blocks_even_what_costs_nothing(name: Limit) -> None:
    refusal = refused_by(FRESH, Limits(**{name.value: 0}), ask(tokens=0, cost=0))
    assert (refusal.reason, refusal.retry_after, refusal.cap) == (name, None, 0)


def test_without_limits_everything_passes_and_is_counted() -> None:
    state = FRESH
    for _ in range(100):
        _, state = admitted(state, Limits(), ask(tokens=10**9, cost=10**15))
    assert (state.day_requests, state.day_tokens) == (100, 100 * 10**9)
    assert (state.month_requests, state.month_cost) == (100, 100 * 10**15)


def test_I4_concurrency_refuses_for_one_second_at_the_limit() -> None:
    limits = Limits(concurrency=3)
    admitted(FRESH, limits, ask(), live=2)
    refusal = refused_by(FRESH, limits, ask(), live=3)
    assert (refusal.reason, refusal.retry_after, refusal.cap) == (Limit.CONCURRENCY, 1, 3)


def test_T04_the_first_limit_in_order_is_named_and_none_is_consumed() -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=100, concurrency=1, requests_per_day=1)
    _, state = admitted(FRESH, limits, ask())
    for limit in (Limit.REQUESTS_PER_MINUTE, Limit.TOKENS_PER_MINUTE, Limit.CONCURRENCY):
        refusal = refused_by(state, limits, ask(), live=1)
        assert refusal.reason is limit
        limits = evolve(limits, **{limit.value: None})
    assert refused_by(state, limits, ask()).reason is Limit.REQUESTS_PER_DAY


def test_a_money_budget_needs_a_price() -> None:
    refusal = refused_by(FRESH, Limits(cost_per_month=10**9), ask(cost=None))
    assert (refusal.reason, refusal.retry_after, refusal.cap) == (Barred.PRICE_UNKNOWN, None, None)
    admitted(FRESH, Limits(), ask(cost=None))


@pytest.mark.parametrize(
    ("before", "after", "same_month"),
    [
        ((2026, 1, 15), (2026, 1, 16), True),
        ((2026, 1, 31), (2026, 2, 1), False),
        ((2028, 2, 28), (2028, 2, 29), True),
        ((2028, 2, 29), (2028, 3, 1), False),
        ((2026, 2, 28), (2026, 3, 1), False),
        ((2026, 12, 31), (2027, 1, 1), False),
    ],
)
def test_A09_days_and_months_roll_over_at_midnight_utc(
    before: tuple[int, int, int], after: tuple[int, int, int], same_month: bool
) -> None:
    midnight = int(datetime(*after, tzinfo=UTC).timestamp() * 1000)
    assert datetime.fromtimestamp((midnight - 1) / 1000, UTC).date() == datetime(*before).date()  # noqa: DTZ001
    limits = Limits(requests_per_day=1, tokens_per_month=150)
    _, state = admitted(FRESH, limits, ask(midnight - 1))
    assert refused_by(state, limits, ask(midnight - 1, 10)).retry_after == 1
    refusal_or_grant, later = decide(state, limits, ask(midnight, 100))
    if same_month:
        assert isinstance(refusal_or_grant, Refusal)
        assert refusal_or_grant.reason is Limit.TOKENS_PER_MONTH
        end = datetime.fromtimestamp(midnight / 1000 + refusal_or_grant.retry_after, UTC)  # type: ignore[operator]
        assert (end.day, end.hour, end.minute, end.second) == (1, 0, 0, 0)
    else:
        assert isinstance(refusal_or_grant, Grant)
        assert (later.day_requests, later.month_requests) == (1, 1)


def test_A09_a_request_settled_after_midnight_belongs_to_its_day_of_admission() -> None:
    midnight = (NOON // DAY_MS + 1) * DAY_MS
    lease, state = admitted(FRESH, Limits(), ask(midnight - 1, tokens=500))
    _, state = admitted(state, Limits(), ask(midnight + 1, tokens=7))
    state = settle(state, Limits(), lease, 30, 5, midnight + 50)
    assert (state.day_tokens, state.month_tokens) == (7, 37)
    assert (state.day_cost, state.month_cost) == (10, 15)


@pytest.mark.parametrize("back", [1, 5 * MINUTE, 60 * MINUTE, 2 * DAY_MS])
def test_A08_a_clock_that_goes_backwards_admits_nothing_more(back: int) -> None:
    limits = Limits(requests_per_minute=5, requests_per_day=100)
    state = FRESH
    for _ in range(5):
        lease, state = admitted(state, limits, ask(NOON))
    refusal = refused_by(state, limits, ask(NOON - back))
    assert refusal.retry_after == -(-(back + 12_000) // 1000)
    lease, later = admitted(state, limits, ask(NOON - back + refusal.retry_after * 1000))
    assert later.clock >= state.clock
    assert lease.request.at >= NOON


def test_A08_what_was_admitted_under_an_earlier_clock_counts_in_the_later_day() -> None:
    _, state = admitted(FRESH, Limits(), ask(NOON))
    lease, state = admitted(state, Limits(), ask(NOON - 3 * DAY_MS))
    assert lease.request.at == NOON
    assert lease.deadline == NOON + 300_000
    assert (state.clock, state.day_requests) == (NOON, 2)


def test_settling_replaces_the_reservation_by_the_true_usage() -> None:
    limits = Limits(tokens_per_minute=1000, tokens_per_day=1000, cost_per_day=100)
    lease, state = admitted(FRESH, limits, ask(tokens=900, cost=90))
    refused_by(state, limits, ask(tokens=200, cost=20))
    state = settle(state, limits, lease, 100, 10, NOON)
    assert (state.day_tokens, state.day_cost) == (100, 10)
    admitted(state, limits, ask(tokens=900, cost=90))


def test_usage_beyond_the_reservation_is_charged() -> None:
    limits = Limits(tokens_per_minute=1000, tokens_per_day=5000)
    lease, state = admitted(FRESH, limits, ask(tokens=100))
    state = settle(state, limits, lease, 1500, 10, NOON)
    assert state.day_tokens == 1500
    refusal = refused_by(state, limits, ask(tokens=100))
    assert (refusal.reason, refusal.retry_after) == (Limit.TOKENS_PER_MINUTE, 36)


def test_releasing_leaves_no_trace() -> None:
    limits = Limits(requests_per_minute=2, tokens_per_minute=200, cost_per_day=100)
    kept, state = admitted(FRESH, limits, ask())
    lease, after = admitted(state, limits, ask())
    back = release(after, lease, NOON)
    assert limit_states(back, limits, 0, NOON) == limit_states(state, limits, 0, NOON)
    admitted(back, limits, ask())
    assert release(back, kept, NOON).day_requests == 0


def test_T06_eight_long_streams_cannot_hoard_refunds() -> None:
    """The bucket refills while they run; their refunds must not come on top."""
    limits = Limits(tokens_per_minute=8_000)
    state, leases, at = FRESH, [], NOON
    for _ in range(8):
        lease, state = admitted(state, limits, ask(at, tokens=8_000))
        leases.append(lease)
        at += MINUTE
    passed = 0
    for lease in leases:
        state = settle(state, limits, lease, 0, 0, at)
        while True:
            decision, state = decide(state, limits, ask(at, tokens=100))
            if isinstance(decision, Refusal):
                break
            passed += 100
    assert passed == 8_000


def test_T06_a_refund_after_the_bucket_was_nearly_empty_is_cut_to_what_it_held_back() -> None:
    """The bucket is never full here, yet refunding everything would admit 1.9 bursts."""
    limits = Limits(tokens_per_minute=1_000)
    lease, state = admitted(FRESH, limits, ask(NOON, tokens=1_000))
    at = NOON + 54_000
    _, state = admitted(state, limits, ask(at, tokens=900))
    state = settle(state, limits, lease, 0, 0, at)
    refused_by(state, limits, ask(at, tokens=101))
    admitted(state, limits, ask(at, tokens=100))


def test_refunds_are_not_lost_under_steady_load() -> None:
    """
    Over-reserved requests that overlap get nearly everything back: what passes is bounded by
    true usage, not by reservations.
    """
    limits = Limits(tokens_per_minute=100_000)
    state, waiting, used, at = FRESH, [], 0, NOON
    for _ in range(3_000):
        at += 100
        while waiting and waiting[0][0] <= at:
            _, lease = waiting.pop(0)
            state = settle(state, limits, lease, 500, 0, at)
        decision, state = decide(state, limits, ask(at, tokens=5_000))
        if isinstance(decision, Grant):
            waiting.append((at + 10_000, decision.lease))
            used += 500
    assert used / (3_000 * 100 / MINUTE) > 0.9 * 60_000


@given(st.data())
def test_T09_a_limit_changed_between_two_requests_holds_for_the_second(data: st.DataObject) -> None:
    old = data.draw(st.integers(1, 50))
    new = data.draw(st.integers(1, 50))
    used = data.draw(st.integers(0, old))
    state = FRESH
    for _ in range(used):
        _, state = admitted(state, Limits(requests_per_minute=old), ask())
    more = 0
    while isinstance((step := decide(state, Limits(requests_per_minute=new), ask()))[0], Grant):
        state = step[1]
        more += 1
    assert more == max(0, new - used)


def test_what_remains_is_what_can_still_be_admitted() -> None:
    limits = Limits(
        requests_per_minute=7, tokens_per_minute=1_000, requests_per_day=6, concurrency=4
    )
    _, state = admitted(FRESH, limits, ask(tokens=301))
    at = NOON + 9_000
    remaining = {each.name: each.remaining for each in limit_states(state, limits, 1, at)}
    assert remaining == {
        Limit.REQUESTS_PER_MINUTE: 7,
        Limit.TOKENS_PER_MINUTE: 849,
        Limit.CONCURRENCY: 3,
        Limit.REQUESTS_PER_DAY: 5,
    }
    admitted(state, limits, ask(at, tokens=849))
    refused_by(state, limits, ask(at, tokens=850))
    resets = {each.name: each.resets_in for each in limit_states(state, limits, 1, NOON)}
    assert resets[Limit.TOKENS_PER_MINUTE] == 19  # 301 of 1,000 a minute: 18.06 s
    assert resets[Limit.REQUESTS_PER_DAY] == 12 * 3600


def test_a_lease_is_renewed_forwards_only() -> None:
    lease, _ = admitted(FRESH, Limits(), ask())
    assert renewed(lease, NOON + 150_000).deadline == NOON + 450_000
    assert renewed(lease, NOON - 150_000) is lease


def test_I12_who_is_barred_and_why() -> None:
    key = Key(key_id="k", digest=b"", created_at=0, expires_at=NOON)
    active, disabled = CustomerStatus.ACTIVE, CustomerStatus.DISABLED
    assert bar(active, key, NOON - 1) is None
    assert bar(active, key, NOON) is Barred.KEY_GONE
    assert bar(active, None, NOON) is Barred.KEY_GONE
    assert bar(disabled, key, NOON - 1) is Barred.CUSTOMER_DISABLED
    assert bar(disabled, None, NOON) is Barred.KEY_GONE
    assert bar(None, None, NOON) is Barred.KEY_GONE


def test_rolling_backwards_is_no_rolling() -> None:
    _, state = admitted(FRESH, Limits(), ask())
    assert rolled(state, NOON - DAY_MS) is state
