"""
Customers, their keys, limits and model allow-lists: plain values.
"""

from collections.abc import Iterable
from enum import StrEnum, unique
from typing import Final

from attrs import evolve, frozen

from bedrock_proxy.errors import BedrockProxyError
from bedrock_proxy.slotted import lean


@unique
class CustomerStatus(StrEnum):
    """Whether a customer may call at all."""

    ACTIVE = "active"
    DISABLED = "disabled"


@frozen(kw_only=True)
class Limits:
    """
    What a customer may use. ``None`` is unlimited, ``0`` is blocked.

    Attributes:
        requests_per_minute: Sustained rate, by GCRA.
        burst: Requests that may come at once; the limit itself where None.
        tokens_per_minute: Tokens reserved or used a minute, by GCRA.
        concurrency: Requests under way at once.
        requests_per_day, tokens_per_day, cost_per_day: Per UTC day of admission.
        tokens_per_month, cost_per_month: Per UTC month of admission. Costs are integer
            nano-US-dollars.
    """

    requests_per_minute: int | None = None
    burst: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_per_day: int | None = None
    cost_per_month: int | None = None


UNLIMITED = Limits()
"""No limit at all."""

DEFAULT_REQUESTS_PER_DAY: Final = 1_000
"""What ``customers create`` gives where nothing is said."""

MAX_KEYS: Final = 4
"""How many keys a customer may have at once."""

DEFAULT_GRACE_MS: Final = 24 * 60 * 60 * 1000
"""How long a rotated token stays valid where nothing is said: a day, in milliseconds."""


@frozen(kw_only=True)
class Customer:
    """
    Someone who may call Bedrock through the proxy and is billed for it.

    Attributes:
        models: Canonical model ids (``anthropic.claude-3-haiku-20240307-v1:0``) the
            customer may call; None means every model.
        created_at: Epoch milliseconds.
    """

    id: str
    name: str
    email: str
    status: CustomerStatus = CustomerStatus.ACTIVE
    limits: Limits = UNLIMITED
    models: frozenset[str] | None = None
    created_at: int


@lean(kw_only=True)
class Key:
    """
    One of a customer's tokens, known by its public id; the token itself is never kept.

    Attributes:
        key_id: Public; appears in ledger rows and in ``customers show``.
        digest: See :func:`bedrock_proxy.tokens.digest`.
        created_at: Epoch milliseconds.
        expires_at: Epoch milliseconds after which the token is refused; None is never.
        deprecated_at: Epoch milliseconds of the rotation that replaced it, while its grace
            period runs (RFC 9745's ``Deprecation`` is sent then).
    """

    key_id: str
    digest: bytes
    created_at: int
    expires_at: int | None = None
    deprecated_at: int | None = None

    def is_valid(self, at: int) -> bool:
        """Whether the token is still accepted at *at* (epoch milliseconds)."""
        return self.expires_at is None or self.expires_at > at

    def rotated(self, at: int, grace_ms: int) -> "Key":
        """This key as it stays behind when another replaces it at *at* (epoch milliseconds)."""
        end = at + grace_ms
        return evolve(
            self,
            deprecated_at=at if self.deprecated_at is None else self.deprecated_at,
            expires_at=end if self.expires_at is None else min(end, self.expires_at),
        )


def newest(keys: Iterable[Key]) -> Key | None:
    """The key that ``rotate-token`` means where none is named: the latest not yet rotated."""
    return max(
        keys,
        key=lambda key: (key.deprecated_at is None, key.created_at, key.key_id),
        default=None,
    )


@lean(kw_only=True)
class TokenOwner:
    """
    Whose token it is: all that the flow needs to know before admission.

    A store may answer from memory for up to 60 seconds: admission checks the customer's
    status, the key and the limits again, atomically.
    """

    customer_id: str
    key: Key
    status: CustomerStatus
    models: frozenset[str] | None


class CustomerError(BedrockProxyError):
    """What was asked cannot be done to this customer; the message says why."""


class CustomerNotFound(CustomerError):
    """There is no such customer."""

    def __init__(self, customer_id: str) -> None:
        super().__init__(f"There is no customer {customer_id!r}.")


class KeyNotFound(CustomerError):
    """The customer has no such key (revoked and expired ones are forgotten)."""

    def __init__(self, customer_id: str, key_id: str) -> None:
        super().__init__(f"Customer {customer_id!r} has no key {key_id!r}.")


class AlreadyTaken(CustomerError):
    """A customer of this id, or a key with this token, exists already."""


class TooManyKeys(CustomerError):
    """The customer has as many keys as one may have."""

    def __init__(self, customer_id: str) -> None:
        super().__init__(f"Customer {customer_id!r} has {MAX_KEYS} keys already; revoke one first.")
