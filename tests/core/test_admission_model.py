"""
T11: the decision against a model that keeps every event and computes everything anew from
the first one, in fractions.
"""

from datetime import UTC, datetime
from fractions import Fraction
from math import floor
from random import Random
from typing import Any

import pytest
from attrs import define, evolve, field

from bedrock_proxy.admission import (
    FRESH,
    AdmissionRequest,
    Barred,
    GateState,
    Grant,
    Lease,
    Limit,
    decide,
    release,
    settle,
)
from bedrock_proxy.customers import Limits

START = int(datetime(2026, 1, 31, 23, 58, tzinfo=UTC).timestamp() * 1000)


@define
class Charge:
    """Something that went into a bucket."""

    at: int
    units: int


@define
class Model:
    """Everything that ever happened, and nothing derived from it."""

    limits: Limits
    clock: int = 0
    requests: list[Charge] = field(factory=list)
    tokens: list[Charge] = field(factory=list)
    spent: list[dict[str, int]] = field(factory=list)

    def level_at(self, charges: list[Charge], rate: int, now: int) -> Fraction:
        level, at = Fraction(0), 0
        for charge in charges:
            level = max(Fraction(0), level - Fraction((charge.at - at) * rate, 60_000))
            level, at = level + charge.units, charge.at
        return max(Fraction(0), level - Fraction((now - at) * rate, 60_000))

    def refundable(self, charges: list[Charge], index: int, rate: int, now: int) -> Fraction:
        """How much of a charge can be unmade without a later one finding the bucket empty."""
        levels = [
            self.level_at(charges[:later], rate, charges[later].at)
            for later in range(index + 1, len(charges))
        ]
        return min([*levels, self.level_at(charges, rate, now)])

    def used(self, name: str, period: str, now: int) -> int:
        same = {"day": "%Y-%m-%d", "month": "%Y-%m"}[period]

        def label(at: int) -> str:
            return datetime.fromtimestamp(at // 1000, UTC).strftime(same)

        return sum(each[name] for each in self.spent if label(each["at"]) == label(now))

    def refuses(self, name: Limit, request: AdmissionRequest, live: int, at: int) -> bool:
        now = max(self.clock, at)
        limits = self.limits
        cap = getattr(limits, name.value)
        if cap is None:
            return False
        if cap == 0:
            return True
        tokens = request.input_tokens + request.output_tokens
        cost = request.cost_nanousd or 0
        match name:
            case Limit.REQUESTS_PER_MINUTE:
                burst = cap if limits.burst is None else limits.burst
                return self.level_at(self.requests, cap, now) + 1 > burst
            case Limit.TOKENS_PER_MINUTE:
                return self.level_at(self.tokens, cap, now) + tokens > cap
            case Limit.CONCURRENCY:
                return live >= cap
            case Limit.REQUESTS_PER_DAY:
                return self.used("requests", "day", now) + 1 > cap
            case Limit.TOKENS_PER_DAY:
                return self.used("tokens", "day", now) + tokens > cap
            case Limit.TOKENS_PER_MONTH:
                return self.used("tokens", "month", now) + tokens > cap
            case Limit.COST_PER_DAY:
                return self.used("cost", "day", now) + cost > cap
            case Limit.COST_PER_MONTH:
                return self.used("cost", "month", now) + cost > cap

    def retry_after(self, name: Limit, request: AdmissionRequest, live: int) -> int | None:
        """The first whole second after which this limit no longer refuses, by search."""
        if name is Limit.CONCURRENCY:
            return 1 if self.limits.concurrency else None
        never = 40 * 86_400
        if self.refuses(name, request, live, request.at + never * 1000):
            return None
        low, high = 0, never
        while high - low > 1:
            middle = (low + high) // 2
            if self.refuses(name, request, live, request.at + middle * 1000):
                low = middle
            else:
                high = middle
        return high

    def admit(self, request: AdmissionRequest) -> dict[str, int]:
        self.clock = max(self.clock, request.at)
        tokens = request.input_tokens + request.output_tokens
        if self.limits.requests_per_minute is not None:
            self.requests.append(Charge(self.clock, 1))
        if self.limits.tokens_per_minute is not None:
            self.tokens.append(Charge(self.clock, tokens))
        spent = {
            "at": self.clock,
            "requests": 1,
            "tokens": tokens,
            "cost": request.cost_nanousd or 0,
        }
        self.spent.append(spent)
        return spent


def random_limits(random: Random) -> Limits:
    def maybe(low: int, high: int) -> int | None:
        return random.choice([None, None, random.randint(low, high), random.randint(low, high)])

    limits = Limits(
        requests_per_minute=maybe(1, 30),
        burst=maybe(1, 30),
        tokens_per_minute=maybe(1, 3_000),
        concurrency=maybe(1, 10),
        requests_per_day=maybe(1, 60),
        tokens_per_day=maybe(1, 20_000),
        tokens_per_month=maybe(1, 30_000),
        cost_per_day=maybe(1, 20_000),
        cost_per_month=maybe(1, 30_000),
    )
    if random.random() < 0.1:
        zero = random.choice(list(Limit)).value
        limits = evolve(limits, **{zero: 0})
    return limits


def scenario(seed: int, steps: int) -> int:
    """One customer's story; how many decisions were compared."""
    random = Random(seed)
    limits = random_limits(random)
    model = Model(limits)
    state: GateState = FRESH
    at = START + random.randint(0, 180_000)
    open_: list[tuple[Lease, dict[str, int], int]] = []
    decisions = 0
    for step in range(steps):
        at += random.choice([0, 0, 1, 7, 500, 3_000, 20_000, -1, -2_000, -70_000])
        if open_ and random.random() < 0.4:
            state = end_one(random, model, state, open_, at)
            continue
        request = ask(step, at, random)
        live = random.randint(0, 10)
        decision, after = decide(state, limits, request, live)
        decisions += 1
        money = limits.cost_per_day is not None or limits.cost_per_month is not None
        if request.cost_nanousd is None and money:
            assert not isinstance(decision, Grant)
            assert decision.reason is Barred.PRICE_UNKNOWN
            continue
        refusing = [name for name in Limit if model.refuses(name, request, live, at)]
        if refusing:
            assert not isinstance(decision, Grant), refusing
            assert after is state
            assert decision.reason is refusing[0]
            assert decision.cap == getattr(limits, refusing[0].value)
            assert decision.retry_after == model.retry_after(refusing[0], request, live)
        else:
            assert isinstance(decision, Grant), decision
            assert decision.lease.request.at == max(model.clock, at)
            spent = model.admit(request)
            open_.append((decision.lease, spent, len(model.tokens) - 1))
            state = after
        check(model, state)
    return decisions


def end_one(
    random: Random,
    model: Model,
    state: GateState,
    open_: list[tuple[Lease, dict[str, int], int]],
    at: int,
) -> GateState:
    """Settle or release one lease; the refund must be what the model finds safe."""
    lease, spent, index = open_.pop(random.randrange(len(open_)))
    released = random.random() < 0.2
    used = 0 if released else random.randint(0, lease.tokens)
    cost = 0 if released else random.randint(0, lease.cost_nanousd)
    now = max(model.clock, at)
    before = state
    if released:
        state = release(state, lease, at)
        spent["requests"] = 0
    else:
        state = settle(state, model.limits, lease, used, cost, at)
    spent["tokens"], spent["cost"] = used, cost
    rate = model.limits.tokens_per_minute
    if rate is not None:
        given = before.tokens.units - state.tokens.units
        safe = min(Fraction(lease.tokens - used), model.refundable(model.tokens, index, rate, now))
        # Beyond 16 marks the bucket forgets detail, and then errs on the safe side.
        if len(model.tokens) - index <= 16:
            assert given == floor(safe)
        assert 0 <= given <= safe
        model.tokens[index].units -= given
    if released and model.limits.requests_per_minute is not None:
        # Which request it was matters only for what is safe; check the bound by the level.
        given = before.requests.units - state.requests.units
        assert given in {0, 1}
        if given:
            place = next(
                i
                for i, charge in reversed(list(enumerate(model.requests)))
                if charge.at == lease.request.at and charge.units
            )
            assert (
                model.refundable(model.requests, place, model.limits.requests_per_minute, now) >= 1
            )
            model.requests[place].units = 0
    check(model, state)
    return state


def check(model: Model, state: GateState) -> None:
    if not model.spent:
        return
    now = model.clock
    assert state.clock == now
    assert state.day_requests == model.used("requests", "day", now)
    assert state.day_tokens == model.used("tokens", "day", now)
    assert state.day_cost == model.used("cost", "day", now)
    assert state.month_requests == model.used("requests", "month", now)
    assert state.month_tokens == model.used("tokens", "month", now)
    assert state.month_cost == model.used("cost", "month", now)


def ask(number: int, at: int, random: Random) -> AdmissionRequest:
    values: dict[str, Any] = {
        "request_id": f"r{number}",
        "customer_id": "c",
        "key_id": "k",
        "model_id": "m",
        "model": "m",
        "dialect": "simple",
        "operation": "InvokeModel",
        "stream": False,
        "price_version": None,
        "client_request_id": None,
        "lease_ms": 300_000,
    }
    return AdmissionRequest(
        at=at,
        input_tokens=random.choice([0, 1, 30, random.randint(0, 1_500)]),
        output_tokens=random.randint(0, 1_500),
        cost_nanousd=random.choice([None, 0, random.randint(0, 2_000), random.randint(0, 2_000)]),
        **values,
    )


def test_T11_the_decision_agrees_with_the_brute_force_model() -> None:
    decisions = sum(scenario(seed, 40) for seed in range(150))
    print(f"T11: {decisions} decisions agree")
    assert decisions > 3_000


@pytest.mark.slow
def test_T11_a_hundred_thousand_decisions_agree_with_the_brute_force_model() -> None:
    decisions, seed = 0, 1_000
    while decisions < 100_000:
        decisions += scenario(seed, 60)
        seed += 1
    print(f"T11: {decisions} decisions agree")
