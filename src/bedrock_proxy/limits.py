"""
What clients hear of their limits: the headers on every answer, the words of a refusal, and
the body of ``GET /v1/usage``.
"""

import json
from collections.abc import Sequence
from typing import Final

from attrs import asdict

from bedrock_proxy import front
from bedrock_proxy.admission import AdmissionRequest, Barred, Limit, LimitState, Refusal
from bedrock_proxy.customers import Key
from bedrock_proxy.errors import ClientFault, Code, LimitReached, ProxyError
from bedrock_proxy.http import Headers
from bedrock_proxy.standing import Standing

_HEADER_NAMES: Final = {
    limit: tuple(f"x-ratelimit-{what}-{name}" for what in ("limit", "remaining", "reset"))
    for limit, name in (
        (Limit.REQUESTS_PER_MINUTE, "requests"),
        (Limit.TOKENS_PER_MINUTE, "tokens"),
        (Limit.REQUESTS_PER_DAY, "requests-day"),
        (Limit.TOKENS_PER_DAY, "tokens-day"),
    )
}

_RATES: Final = frozenset({Limit.REQUESTS_PER_MINUTE, Limit.TOKENS_PER_MINUTE, Limit.CONCURRENCY})
"""The others are budgets: they last until a day or a month is over."""

_MONEY: Final = "US dollars"
_WORDS: Final = {
    Limit.REQUESTS_PER_MINUTE: ("requests", "per minute"),
    Limit.TOKENS_PER_MINUTE: ("tokens", "per minute"),
    Limit.CONCURRENCY: ("requests", "at once"),
    Limit.REQUESTS_PER_DAY: ("requests", "per day"),
    Limit.TOKENS_PER_DAY: ("tokens", "per day"),
    Limit.TOKENS_PER_MONTH: ("tokens", "per month"),
    Limit.COST_PER_DAY: (_MONEY, "per day"),
    Limit.COST_PER_MONTH: (_MONEY, "per month"),
}
"""What a limit counts, and of which time."""


def headers(states: Sequence[LimitState]) -> Headers:
    """``x-ratelimit-{limit,remaining,reset}-…``; reset in whole seconds."""
    said: list[tuple[str, str]] = []
    for state in states:
        names = _HEADER_NAMES.get(state.name)
        if names is not None:
            said += zip(
                names, (str(state.limit), str(state.remaining), str(state.resets_in)), strict=True
            )
    return tuple(said)


def deprecation(key: Key) -> Headers:
    """While a rotated token's grace period runs: when it was rotated (RFC 9745)."""
    rotated = key.deprecated_at
    return () if rotated is None else (("deprecation", f"@{rotated // 1000}"),)


def disabled() -> ProxyError:
    """The customer may not call at all."""
    return ClientFault("This customer has been disabled.", Code.CUSTOMER_DISABLED)


def refused(refusal: Refusal, wanted: AdmissionRequest) -> ProxyError:
    """The refusal of *wanted*, in words."""
    states = headers(refusal.limits)
    match refusal.reason:
        case Barred.KEY_GONE:
            return front.unauthorized()
        case Barred.CUSTOMER_DISABLED:
            return disabled()
        case Barred.PRICE_UNKNOWN:
            return ClientFault(
                "This model has no known price, and your budget is in money.",
                Code.PRICE_UNKNOWN,
                headers=states,
            )
        case limit:
            pass
    return LimitReached(
        _sentence(limit, refusal.cap, refusal.retry_after, wanted),
        Code.RATE_LIMITED if limit in _RATES else Code.OVER_BUDGET,
        retryable=refusal.retry_after is not None,
        retry_after=refusal.retry_after,
        limit=str(limit),
        headers=states,
    )


def _sentence(limit: Limit, cap: int | None, wait: int | None, wanted: AdmissionRequest) -> str:
    unit, period = _WORDS[limit]
    if cap is None:  # nobody set it: see bedrock_proxy.admission.MOST_COUNTED
        return f"More {unit} {period} have been used than can be counted; this one is refused."
    most = _dollars(cap) if unit == _MONEY else str(cap)
    if wait is not None:
        again = f"try again in {wait} second{'' if wait == 1 else 's'}."
        if limit is Limit.CONCURRENCY:
            under_way = f"{cap} request{' is' if cap == 1 else 's are'} under way"
            return f"{under_way}, as many as the limit of concurrency allows at once; {again}"
        return f"The limit of {most} {unit} {period} has been reached; {again}"
    if not cap:
        return f"The limit is 0 {unit} {period}: this token may not be used for requests."
    if unit == "requests":  # only a burst is smaller than one of them
        return "The burst is 0 requests: this token may not be used for requests."
    asked = (
        f"cost up to {_dollars(wanted.cost_nanousd or 0)} {unit}"
        if unit == _MONEY
        else f"use up to {wanted.input_tokens + wanted.output_tokens} {unit}"
    )
    return (
        f"This request may {asked}, more than the limit of {most} {unit} {period}; "
        "ask for a smaller max_tokens, or send less."
    )


def _dollars(nano: int) -> str:
    whole, part = divmod(nano, 10**9)
    return f"{whole}.{part:09}".rstrip("0").rstrip(".")


def standing_body(standing: Standing, at: int) -> bytes:
    """The body of ``GET /v1/usage`` at *at* (epoch milliseconds); ``resets_at`` in epoch seconds."""
    said = {
        "customer_id": standing.customer_id,
        "limits": {
            state.name.value: {
                "limit": state.limit,
                "remaining": state.remaining,
                "resets_at": at // 1000 + state.resets_in,
            }
            for state in standing.limits
        },
        "in_flight": standing.in_flight,
        "today": asdict(standing.today),
        "month": asdict(standing.month),
    }
    return json.dumps(said).encode() + b"\n"
