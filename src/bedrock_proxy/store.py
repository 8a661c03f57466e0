"""
What a store offers beside the three ports that requests use: customers, the ledger's rows,
and the upkeep of both. For operators' tools; never reachable over the data plane.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum, unique
from typing import Final, Generic, Protocol, TypeVar

from attrs import frozen

from bedrock_proxy.admission import GateState, Lease
from bedrock_proxy.customers import Customer, Key
from bedrock_proxy.ports import Gate, Ledger, TokenDirectory
from bedrock_proxy.standing import Standing
from bedrock_proxy.usage import UsageRecord

T = TypeVar("T")

CACHE_MS: Final = 60_000
"""How long a store may answer ``find_token`` from memory, in milliseconds."""

PAGE_SIZE: Final = 100
"""How many items a page has where nothing is said."""


@frozen
class Page(Generic[T]):
    """
    Some items of a long list.

    Attributes:
        next: Where to go on (``after=``); None after the last page.
    """

    items: tuple[T, ...]
    next: str | None = None


@unique
class By(StrEnum):
    """What usage can be summed by."""

    DAY = "day"
    HOUR = "hour"
    MODEL = "model"
    CUSTOMER = "customer"


@frozen(kw_only=True)
class UsageSum:
    """
    Ledger rows added up.

    Attributes:
        key: The UTC day (``2026-01-31``) or hour (``2026-01-31T13``) of admission, the
            canonical model id, or the customer id.
        errors: Rows that :data:`~bedrock_proxy.usage.FAILED`: their outcome is ``error``,
            ``timeout`` or ``shutdown``. One that the client left is none.
        estimated: Rows in state ``estimated``, which may still be corrected.
        cost_nanousd: Of the rows whose price is known, in nano-US-dollars.
        unpriced: Rows whose price is not known.
    """

    key: str
    requests: int
    errors: int
    estimated: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    token_count: int
    cost_nanousd: int
    unpriced: int


class Customers(Protocol):
    """Who may call, and with which tokens. Each method is one atomic step."""

    def create_customer(self, customer: Customer, key: Key) -> None:
        """
        Add a customer with a first key.

        Raises:
            AlreadyTaken: The id, the key id or the token is in use.
        """
        ...

    def get_customer(self, customer_id: str) -> Customer:
        """
        One customer.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        ...

    def list_customers(self, *, limit: int = PAGE_SIZE, after: str | None = None) -> Page[Customer]:
        """Customers in the order of their ids."""
        ...

    def update_customer(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """
        Put ``change(customer)`` in the customer's place and return it; the next admission
        knows it. *change* must be pure: it may be called again if somebody else was faster.
        It cannot change the id.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        ...

    def list_keys(self, customer_id: str) -> tuple[Key, ...]:
        """
        The customer's keys, oldest first, expired ones among them until they are replaced.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        ...

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """
        Give the customer another key; keys that have expired at *at* (epoch ms) make room.

        Raises:
            CustomerNotFound: There is none of this id.
            TooManyKeys: There are :data:`~bedrock_proxy.customers.MAX_KEYS` valid ones.
            AlreadyTaken: The key id or the token is in use.
        """
        ...

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None = None
    ) -> Key:
        """
        Add *new* and let the old key (*key_id*, or the newest) run out after *grace_ms*;
        with 0 it is gone at once. Returns the old key as it stays behind.

        Raises:
            CustomerNotFound, KeyNotFound, TooManyKeys, AlreadyTaken: As above.
        """
        ...

    def revoke_key(self, customer_id: str, key_id: str) -> None:
        """
        Forget a key. Once this returns, its token admits nothing.

        Raises:
            CustomerNotFound, KeyNotFound: There is no such thing.
        """
        ...

    def revoke_all_keys(self, customer_id: str) -> int:
        """
        Forget every key of the customer; how many there were.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        ...


class Books(Protocol):
    """What was used, and the upkeep of what is derived from it."""

    def list_rows(
        self,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int = PAGE_SIZE,
        after: str | None = None,
    ) -> Page[UsageRecord]:
        """Ledger rows admitted from *start* up to, not including, *end* (epoch ms), oldest first."""
        ...

    def sum_usage(
        self,
        by: By,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> tuple[UsageSum, ...]:
        """The same rows added up, in the order of their keys."""
        ...

    def standing(self, customer_id: str, at: int) -> Standing:
        """
        How the customer stands at *at* (epoch ms); see
        :meth:`bedrock_proxy.ports.TokenDirectory.standing`.

        Raises:
            CustomerNotFound: There is none of this id.
        """
        ...

    def reap(self, now: int, limit: int = 1_000) -> int:
        """
        Settle up to *limit* leases whose deadline is before *now* (epoch ms), as estimated
        rows of what they had reserved; how many there were.
        """
        ...

    def rebuild(self, now: int, customer_id: str | None = None, *, set_clock: bool = False) -> int:
        """
        Count the current day and month again from the ledger and the open leases; how many
        customers were recounted.

        Args:
            now: Epoch milliseconds.
            set_clock: Whether a clock that is ahead of *now* by more than
                :data:`~bedrock_proxy.admission.AHEAD_MS` is put back to it, with what it has done to
                leases (:func:`~bedrock_proxy.accounts.after_wrong_clock`). Rows keep their dates.
        """
        ...

    def open_leases(self, customer_id: str | None = None) -> tuple[Lease, ...]:
        """Every lease that is not settled, past its deadline or not."""
        ...

    def gate_state(self, customer_id: str) -> GateState:
        """What admission knows of the customer: for audits and tests."""
        ...

    def close(self) -> None:
        """Finish what is under way and let go. Afterwards every call fails."""
        ...


class Store(Customers, Books, TokenDirectory, Gate, Ledger, Protocol):
    """Everything in one place: what the memory and SQLite stores are."""


def every_row(
    books: Books,
    *,
    customer_id: str | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Iterator[UsageRecord]:
    """All rows that :meth:`Books.list_rows` would give, a page at a time."""
    after: str | None = None
    while True:
        page = books.list_rows(
            customer_id=customer_id, start=start, end=end, limit=1_000, after=after
        )
        yield from page.items
        after = page.next
        if after is None:
            return


def every_customer(customers: Customers) -> Iterator[Customer]:
    """All customers, a page at a time."""
    after: str | None = None
    while True:
        page = customers.list_customers(limit=1_000, after=after)
        yield from page.items
        after = page.next
        if after is None:
            return
