"""
Every error that a client or an operator can meet, in one tree.

::

    BedrockProxyError
    ├── ProxyError            has an answer: status, code, wording
    │   ├── ClientFault       the request is at fault: nothing was spent
    │   ├── LimitReached      a limit or a budget refused it
    │   ├── UpstreamFault     Bedrock, or the way to it, failed
    │   └── Unavailable       the proxy itself cannot serve it now
    └── ConfigurationError    the operator must change something

The message is for people. Programs read the attributes: ``code`` is stable, ``status`` is
the HTTP status, ``retryable`` says whether sending the same request again can help.
"""

from collections.abc import Mapping
from enum import StrEnum, unique
from typing import ClassVar, Final, NamedTuple

from attrs import frozen


@unique
class Code(StrEnum):
    """The stable name of an error, the ``code`` of the simple dialect's error object."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    CUSTOMER_DISABLED = "customer_disabled"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    PRICE_UNKNOWN = "price_unknown"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limited"
    OVER_BUDGET = "over_budget"
    UPSTREAM_THROTTLED = "upstream_throttled"
    INTERNAL = "internal"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_CONFIG = "upstream_config"
    UPSTREAM_TORN = "upstream_torn"
    OVERLOADED = "overloaded"
    STORE_UNAVAILABLE = "store_unavailable"
    SERVER_SHUTDOWN = "server_shutdown"
    UPSTREAM_TIMEOUT = "upstream_timeout"


class _Facts(NamedTuple):
    status: int
    retryable: bool = False
    retry_after: int | None = None


_FACTS: Final[Mapping[Code, _Facts]] = {
    Code.INVALID_REQUEST: _Facts(400),
    Code.UNAUTHORIZED: _Facts(401),
    Code.CUSTOMER_DISABLED: _Facts(403),
    Code.MODEL_NOT_ALLOWED: _Facts(403),
    Code.PRICE_UNKNOWN: _Facts(403),
    Code.ORIGIN_NOT_ALLOWED: _Facts(403),
    Code.MODEL_NOT_FOUND: _Facts(404),
    Code.NOT_FOUND: _Facts(404),
    Code.METHOD_NOT_ALLOWED: _Facts(405),
    Code.TIMEOUT: _Facts(408, retryable=True),
    Code.TOO_LARGE: _Facts(413),
    Code.UNSUPPORTED_MEDIA_TYPE: _Facts(415),
    Code.RATE_LIMITED: _Facts(429, retryable=True),
    Code.OVER_BUDGET: _Facts(429, retryable=True),
    Code.UPSTREAM_THROTTLED: _Facts(429, retryable=True, retry_after=1),
    Code.INTERNAL: _Facts(500),
    Code.UPSTREAM_ERROR: _Facts(502, retryable=True),
    Code.UPSTREAM_CONFIG: _Facts(502),
    Code.UPSTREAM_TORN: _Facts(502, retryable=True),
    Code.OVERLOADED: _Facts(503, retryable=True, retry_after=1),
    Code.STORE_UNAVAILABLE: _Facts(503, retryable=True, retry_after=5),
    Code.SERVER_SHUTDOWN: _Facts(503, retryable=True, retry_after=1),
    Code.UPSTREAM_TIMEOUT: _Facts(504, retryable=True),
}


@frozen
class Original:
    """
    Bedrock's own error answer, for the dialect that passes it on.

    Attributes:
        status: Bedrock's.
        headers: Names in lower case.
        body: Byte for byte, unless it names something that the client must not see.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class BedrockProxyError(Exception):
    """The root of everything this package raises on purpose."""


class ConfigurationError(BedrockProxyError):
    """Something the operator must change; the message says what and where."""


class ProxyError(BedrockProxyError):
    """
    A failure with an answer for the client.

    Attributes:
        code: The stable name.
        message: A sentence a person can act on. Never holds a token, a prompt or an ARN
            that the client did not send.
        status: The HTTP status, where the head has not gone out yet.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds to wait, or None where waiting is not what helps.
        limit: The limit that refused, in the words of RELIABILITY.md section 3.
        headers: Response headers that belong to this error (``allow``, ``www-authenticate``).
        upstream_type: Bedrock's own name for the fault (``ThrottlingException``), if any.
        original: Bedrock's own answer, where it may be passed on.
        aws_request_id: Bedrock's id of the call, where it was called and said one.
        cause: What the operator can do something about, in words that a log may hold; empty
            where there is nothing. Never for the client.
    """

    default: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        code: Code | None = None,
        *,
        status: int | None = None,
        retryable: bool | None = None,
        retry_after: int | None = None,
        limit: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        upstream_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default
        facts = _FACTS[self.code]
        self.status = facts.status if status is None else status
        self.retryable = facts.retryable if retryable is None else retryable
        self.retry_after = facts.retry_after if retry_after is None else retry_after
        self.limit = limit
        self.headers = headers
        self.upstream_type = upstream_type
        self.original: Original | None = None
        self.aws_request_id: str | None = None
        self.cause = ""


class ClientFault(ProxyError):
    """The request cannot be served as it is; nothing was spent on it."""

    default = Code.INVALID_REQUEST


class LimitReached(ProxyError):
    """One of the customer's limits or budgets refused the request."""

    default = Code.RATE_LIMITED


class UpstreamFault(ProxyError):
    """Bedrock answered with an error, or did not answer as it should."""

    default = Code.UPSTREAM_ERROR


class Unavailable(ProxyError):
    """The proxy itself cannot serve the request now."""

    default = Code.INTERNAL


class StoreUnavailable(Unavailable):
    """The store did not answer; whether it did what was asked is unknown."""

    default = Code.STORE_UNAVAILABLE


def store_unavailable(cause: str = "") -> StoreUnavailable:
    """
    The answer while the store is down, in the words a client sees.

    Args:
        cause: Why, for the operator, where no other exception says it.
    """
    error = StoreUnavailable("The customer database is not reachable just now; try again shortly.")
    error.cause = cause
    return error
