"""
The decision whether a request may go to Bedrock, and the lease it goes with.
"""

from enum import StrEnum, unique

from attrs import frozen


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


@frozen(kw_only=True)
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


@frozen(kw_only=True)
class Lease:
    """
    The right to one call: settled once, by whoever comes first.

    Attributes:
        request: What was admitted.
        deadline: Epoch milliseconds after which a reaper may settle it.
    """

    request: AdmissionRequest
    deadline: int


@frozen(kw_only=True)
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


@frozen(kw_only=True)
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


@frozen(kw_only=True)
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
