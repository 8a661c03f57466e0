"""What clients are told about their limits."""

import json

import pytest
from attrs import evolve
from tests.contracts import stories
from tests.flows import World, converse

from bedrock_proxy import limits
from bedrock_proxy.admission import (
    FRESH,
    MOST_COUNTED,
    AdmissionRequest,
    Limit,
    Refusal,
    decide,
    rolled,
)
from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy.errors import Code, ProxyError


def ask(cost: int = 0) -> AdmissionRequest:
    return stories.ask("r", input_tokens=11, output_tokens=200, cost_nanousd=cost)


def refused(limit: Limits, request: AdmissionRequest, live: int = 0) -> ProxyError:
    decision, _ = decide(FRESH, limit, request, live)
    assert isinstance(decision, Refusal)
    return limits.refused(decision, request)


@pytest.mark.parametrize(
    ("retry_after", "advice"),
    [(1, "; try again in 1 second."), (30, "; try again in 30 seconds.")],
)
def test_a_refusal_names_the_limit_and_says_what_to_do(retry_after: int, advice: str) -> None:
    refusal = Refusal(reason=Limit.REQUESTS_PER_MINUTE, retry_after=retry_after, cap=60)
    error = limits.refused(refusal, ask())
    assert f"The limit of 60 requests per minute has been reached{advice}" == str(error)
    assert (retry_after, True) == (error.retry_after, error.retryable)


@pytest.mark.parametrize(
    ("limit", "cap", "what"),
    [
        (Limit.TOKENS_PER_MINUTE, 60, "60 tokens per minute"),
        (Limit.REQUESTS_PER_DAY, 60, "60 requests per day"),
        (Limit.TOKENS_PER_MONTH, 60, "60 tokens per month"),
        (Limit.COST_PER_DAY, 12_500_000_000, "12.5 US dollars per day"),
        (Limit.COST_PER_MONTH, 20_000_000_000, "20 US dollars per month"),
    ],
)
def test_each_limit_is_said_in_its_own_unit(limit: Limit, cap: int, what: str) -> None:
    error = limits.refused(Refusal(reason=limit, retry_after=9, cap=cap), ask())
    assert f"The limit of {what} has been reached; try again in 9 seconds." == str(error)


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        (
            Limits(tokens_per_day=150),
            "use up to 211 tokens, more than the limit of 150 tokens per day",
        ),
        (
            Limits(tokens_per_month=150),
            "use up to 211 tokens, more than the limit of 150 tokens per month",
        ),
        (
            Limits(tokens_per_minute=150),
            "use up to 211 tokens, more than the limit of 150 tokens per minute",
        ),
        (
            Limits(cost_per_day=10_000_000),
            "cost up to 0.0205 US dollars, more than the limit of 0.01 US dollars per day",
        ),
    ],
)
def test_a_request_larger_than_a_whole_limit_is_told_by_how_much_and_not_of_use(
    limit: Limits, asked: str
) -> None:
    error = refused(limit, ask(cost=20_500_000))
    assert f"This request may {asked}; ask for a smaller max_tokens, or send less." == str(error)
    assert (error.retry_after, error.retryable) == (None, False)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit.REQUESTS_PER_MINUTE, "0 requests per minute"),
        (Limit.TOKENS_PER_MINUTE, "0 tokens per minute"),
        (Limit.CONCURRENCY, "0 requests at once"),
        (Limit.REQUESTS_PER_DAY, "0 requests per day"),
        (Limit.TOKENS_PER_DAY, "0 tokens per day"),
        (Limit.TOKENS_PER_MONTH, "0 tokens per month"),
        (Limit.COST_PER_DAY, "0 US dollars per day"),
        (Limit.COST_PER_MONTH, "0 US dollars per month"),
    ],
)
def test_a_limit_of_nothing_is_said_to_be_that(limit: Limit, said: str) -> None:
    error = refused(Limits(**{limit.value: 0}), ask())
    assert f"The limit is {said}: this token may not be used for requests." == str(error)
    assert (error.status, error.limit, error.retryable) == (429, limit.value, False)


def test_I3_what_cannot_be_counted_is_not_said_to_be_a_limit_of_nothing() -> None:
    full = evolve(rolled(FRESH, ask().at), month_tokens=MOST_COUNTED)
    decision, _ = decide(full, Limits(), ask(), 0)
    assert isinstance(decision, Refusal)
    error = limits.refused(decision, ask())
    assert "More tokens per month have been used than can be counted; this one is refused." == str(
        error
    )
    assert Code.OVER_BUDGET is error.code


def test_a_burst_of_nothing_is_said_to_be_that() -> None:
    error = refused(Limits(requests_per_minute=60, burst=0), ask())
    assert "The burst is 0 requests: this token may not be used for requests." == str(error)


@pytest.mark.parametrize(("cap", "said"), [(1, "1 request is"), (2, "2 requests are")])
def test_as_many_requests_as_may_be_under_way_are_said_to_be_that(cap: int, said: str) -> None:
    error = refused(Limits(concurrency=cap), ask(), live=cap)
    assert (
        f"{said} under way, as many as the limit of concurrency allows at once; try again in 1 second."
        == str(error)
    )
    assert (error.code, error.retry_after) == (Code.RATE_LIMITED, 1)


@pytest.mark.parametrize(
    ("keys", "status", "told"),
    [
        ({"k0"}, CustomerStatus.ACTIVE, Code.UNAUTHORIZED),
        ({"k0"}, CustomerStatus.DISABLED, Code.UNAUTHORIZED),
        ({"k1"}, CustomerStatus.DISABLED, Code.CUSTOMER_DISABLED),
    ],
)
def test_I12_usage_is_told_to_nobody_who_was_shut_out_since_the_token_was_looked_up(
    keys: set[str], status: CustomerStatus, told: Code
) -> None:
    world = World(keys=frozenset(keys), status=status)
    talk = converse(world, method="GET", path="/v1/usage")
    assert json.loads(talk.said)["code"] == told
    assert world.store_calls == 2, "the token, and the standing"
