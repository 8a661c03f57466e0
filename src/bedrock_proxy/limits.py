"""
What clients hear of their limits: the headers on every answer, the words of a refusal, and
the body of ``GET /v1/usage``.
"""

import json
from collections.abc import Sequence
from typing import Final

from attrs import asdict

from bedrock_proxy import front
from bedrock_proxy.admission import Barred, Limit, LimitState, Refusal
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


def refused(refusal: Refusal) -> ProxyError:
    """A refusal, in words."""
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
    waiting = refusal.retry_after is not None
    what = str(limit).replace("_", " ")
    cap = f" of {refusal.cap}" if refusal.cap is not None else ""
    advice = (
        f"try again in {refusal.retry_after} second{'' if refusal.retry_after == 1 else 's'}"
        if waiting
        else "this request alone is larger than it allows"
    )
    return LimitReached(
        f"The limit{cap} {what} has been reached; {advice}.",
        Code.RATE_LIMITED if limit in _RATES else Code.OVER_BUDGET,
        retryable=waiting,
        retry_after=refusal.retry_after,
        limit=str(limit),
        headers=states,
    )


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
