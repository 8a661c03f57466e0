"""
The serverless choice: everything in one DynamoDB table, exact across any number of processes
and machines.

Admission is one conditional update, settlement another, and the ledger row a put between
them; there are no transactions. ``docs/explanation/dynamodb.md`` says how that is exact.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from bedrock_proxy.admission import FRESH, AdmissionRequest, GateState, Grant, Lease, Refusal
from bedrock_proxy.customers import Customer, CustomerNotFound, Key, TokenOwner
from bedrock_proxy.errors import BedrockProxyError, ConfigurationError, StoreUnavailable
from bedrock_proxy.ports import PortKind
from bedrock_proxy.standing import Standing
from bedrock_proxy.store import PAGE_SIZE, By, Page, UsageSum
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.dynamodb import directory, gate, ledger, recounting
from bedrock_proxy_adapters.stores.dynamodb.connection import Busy, Table, dynamodb_client
from bedrock_proxy_adapters.stores.dynamodb.creation import Creation, create_table
from bedrock_proxy_adapters.stores.sums import standing_of

__all__ = ["Creation", "DynamoDBStore", "create_table", "dynamodb_client"]

_REAPED_AT_ONCE: Final = 100
"""How many overdue leases one admission has settled at most."""

_LOOK_EVERY_MS: Final = 1_000
"""How often admission looks for overdue leases."""

_DAY_S: Final = 86_400

T = TypeVar("T")


class DynamoDBStore:
    """
    A store in one DynamoDB table, which :func:`create_table` makes.

    Args:
        table: Its name.
        client: A boto3 ``dynamodb`` client of your own; :func:`dynamodb_client` makes one
            where none is given. Retries of either are safe.
        region, endpoint_url: For the client that is made.
        ledger_days: Rows expire after so many days; never where None. They must outlive the
            month they belong to, or counters can no longer be rebuilt.
        reap_at_admission: Settle a customer's overdue leases when it sends a request.

    Raises:
        ConfigurationError: Rows would expire too early, or AWS is not configured.
    """

    kind: PortKind = "blocking"

    def __init__(
        self,
        table: str,
        client: Any = None,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        ledger_days: int | None = None,
        reap_at_admission: bool = True,
    ) -> None:
        if ledger_days is not None and ledger_days < 32:
            raise ConfigurationError(
                "Ledger rows must be kept for 32 days at least: a month's counters are rebuilt "
                "from them."
            )
        self._table = Table(table, client, region, endpoint_url)
        self._ttl = None if ledger_days is None else ledger_days * _DAY_S
        self._reaps = reap_at_admission
        self._looked_at = 0

    @classmethod
    def from_url(cls, url: str, **more: Any) -> "DynamoDBStore":
        """
        The store that ``dynamodb://table?region=…[&endpoint_url=…][&ledger_days=…]`` names.

        Raises:
            ConfigurationError: It is not of this form.
        """
        parts = urlsplit(url)
        said = parse_qs(parts.query, keep_blank_values=True)
        table = unquote(parts.netloc)
        wrong = (
            parts.scheme != "dynamodb"
            or not table
            or parts.path not in {"", "/"}
            or parts.fragment
            or said.keys() - {"region", "endpoint_url", "ledger_days"}
            or any(len(values) != 1 or not values[0] for values in said.values())
        )
        days = said.get("ledger_days", [None])[0]
        if wrong or (days is not None and not days.isdecimal()):
            raise ConfigurationError(
                f"The store {url!r} is not of the form dynamodb://table?region=us-east-1"
                "[&endpoint_url=http://host:port][&ledger_days=400]."
            )
        return cls(
            table,
            region=said.get("region", [None])[0],
            endpoint_url=said.get("endpoint_url", [None])[0],
            ledger_days=None if days is None else int(days),
            **more,
        )

    @property
    def table(self) -> str:
        """The table's name."""
        return self._table.name

    def create_table(self) -> Creation:
        """
        Make the table if there is none; see :func:`create_table`.

        Raises:
            ConfigurationError: AWS refuses.
        """
        return create_table(self._table.client, self._table.name)

    # --- the ports that requests use

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        """See :class:`~bedrock_proxy.ports.TokenDirectory`."""
        return directory.find_token(self._table, digest, at)

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        decision = gate.admit(self._table, request)
        self._table.owners.heed(request, decision)
        if self._reaps and abs(request.at - self._looked_at) >= _LOOK_EVERY_MS:
            image = self._table.images.get(request.customer_id)
            if image is not None and image.is_overdue(request.at):
                self._looked_at = request.at
                # Not while the request waits.
                threading.Thread(
                    target=self._reap_one,
                    args=(request.customer_id, request.at),
                    name="bedrock-proxy-reap",
                    daemon=True,
                ).start()
        return decision

    def _reap_one(self, customer_id: str, now: int) -> None:
        with suppress(BedrockProxyError):  # the next look may fare better
            ledger.reap(self._table, [customer_id], now, _REAPED_AT_ONCE, self._ttl)

    def renew(self, lease: Lease, at: int) -> Lease:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return gate.renew(self._table, lease, at)

    def release(self, request: AdmissionRequest) -> None:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        gate.release(self._table, request)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        """See :class:`~bedrock_proxy.ports.Ledger`."""
        ledger.finish(self._table, record, lease.request.at, self._ttl)

    # --- customers

    def create_customer(self, customer: Customer, key: Key) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._change(lambda: directory.create(self._table, customer, key))

    def get_customer(self, customer_id: str) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return directory.get_customer(self._table, customer_id)

    def list_customers(self, *, limit: int = PAGE_SIZE, after: str | None = None) -> Page[Customer]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return directory.list_customers(self._table, limit, after)

    def update_customer(self, customer_id: str, change: Callable[[Customer], Customer]) -> Customer:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._change(lambda: directory.update(self._table, customer_id, change))

    def list_keys(self, customer_id: str) -> tuple[Key, ...]:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return directory.list_keys(self._table, customer_id)

    def add_key(self, customer_id: str, key: Key, at: int) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._change(lambda: directory.add_key(self._table, customer_id, key, at))

    def rotate_key(
        self, customer_id: str, new: Key, at: int, grace_ms: int, key_id: str | None = None
    ) -> Key:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._change(
            lambda: directory.rotate_key(self._table, customer_id, new, at, grace_ms, key_id)
        )

    def revoke_key(self, customer_id: str, key_id: str) -> None:
        """See :class:`~bedrock_proxy.store.Customers`."""
        self._change(lambda: directory.revoke_key(self._table, customer_id, key_id))

    def revoke_all_keys(self, customer_id: str) -> int:
        """See :class:`~bedrock_proxy.store.Customers`."""
        return self._change(lambda: directory.revoke_all_keys(self._table, customer_id))

    # --- the books

    def list_rows(
        self,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        limit: int = PAGE_SIZE,
        after: str | None = None,
    ) -> Page[UsageRecord]:
        """See :class:`~bedrock_proxy.store.Books`."""
        return ledger.list_rows(self._table, self._ids(customer_id), start, end, limit, after)

    def sum_usage(
        self,
        by: By,
        *,
        customer_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> tuple[UsageSum, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        return ledger.sum_usage(self._table, by, self._ids(customer_id), start, end)

    def standing(self, customer_id: str, at: int) -> Standing:
        """See :class:`~bedrock_proxy.store.Books`."""
        image = self._table.read(customer_id)
        if image is None:
            raise CustomerNotFound(customer_id)
        customer = Customer(
            id=customer_id,
            name="",
            email="",
            status=image.settings.status,
            limits=image.limits,
            created_at=0,
        )
        live = len(image.live(max(image.clock, at)))
        return standing_of(customer, image.keys(), image.state, live, at)

    def reap(self, now: int, limit: int = 1_000) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        return ledger.reap(self._table, self._ids(None), now, limit, self._ttl)

    def rebuild(self, now: int, customer_id: str | None = None, *, set_clock: bool = False) -> int:
        """See :class:`~bedrock_proxy.store.Books`."""
        if customer_id is not None and self._table.read(customer_id) is None:
            raise CustomerNotFound(customer_id)
        ids = self._ids(customer_id)
        left: list[str] = []
        for each in ids:
            try:
                recounting.rebuild(self._table, each, now, self._ttl, set_clock=set_clock)
            except Busy:
                left.append(each)
        if left:
            raise StoreUnavailable(
                f"{len(left)} of {len(ids)} customers could not be recounted, for others kept "
                f"changing their items or DynamoDB throttled them: {', '.join(left)}."
            )
        return len(ids)

    def open_leases(self, customer_id: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~bedrock_proxy.store.Books`."""
        return ledger.open_leases(self._table, self._ids(customer_id))

    def gate_state(self, customer_id: str) -> GateState:
        """See :class:`~bedrock_proxy.store.Books`."""
        image = self._table.read(customer_id)
        return FRESH if image is None else image.state

    def close(self) -> None:
        """See :class:`~bedrock_proxy.store.Books`."""
        self._table.close()

    def _ids(self, customer_id: str | None) -> list[str]:
        return directory.customer_ids(self._table) if customer_id is None else [customer_id]

    def _change(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._table.owners.clear()
