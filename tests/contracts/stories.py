"""Small builders that the contract suite tells its stories with."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from attrs import evolve

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import UNLIMITED, Customer, Key, Limits
from bedrock_proxy.usage import Basis, Outcome, State, UsageRecord

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp() * 1000)
MINUTE = 60_000
LEASE_MS = 300_000


def key(name: str, at: int = NOON, **more: Any) -> Key:
    return Key(key_id=name, digest=sha256(name.encode()).digest(), created_at=at, **more)


def add(store: Any, customer_id: str = "ann", limits: Limits = UNLIMITED, **more: Any) -> Key:
    """A customer with one key, ``key-<customer>``."""
    first = key(f"key-{customer_id}")
    store.create_customer(
        Customer(
            id=customer_id,
            name=customer_id.title(),
            email=f"{customer_id}@example.com",
            limits=limits,
            created_at=NOON,
            **more,
        ),
        first,
    )
    return first


def ask(request_id: str, at: int = NOON, customer_id: str = "ann", **more: Any) -> AdmissionRequest:
    values: dict[str, Any] = {
        "request_id": request_id,
        "customer_id": customer_id,
        "key_id": f"key-{customer_id}",
        "model_id": "us.model-1",
        "model": "model-1",
        "dialect": "simple",
        "operation": "InvokeModel",
        "stream": True,
        "at": at,
        "input_tokens": 10,
        "output_tokens": 90,
        "cost_nanousd": 1_000,
        "price_version": "2026-01",
        "client_request_id": "theirs",
        "lease_ms": LEASE_MS,
    }
    return AdmissionRequest(**(values | more))


def admitted(store: Any, request: AdmissionRequest) -> Lease:
    decision = store.admit(request)
    assert isinstance(decision, Grant), decision
    return decision.lease


def refused(store: Any, request: AdmissionRequest) -> Refusal:
    decision = store.admit(request)
    assert isinstance(decision, Refusal), decision
    return decision


def used(lease: Lease, tokens: int = 30, cost: int | None = 300, **more: Any) -> UsageRecord:
    """The row of a request that ended well, 100 ms after it was admitted."""
    request = lease.request
    row = UsageRecord(
        request_id=request.request_id,
        customer_id=request.customer_id,
        key_id=request.key_id,
        model_id=request.model_id,
        model=request.model,
        dialect=request.dialect,
        operation=request.operation,
        stream=request.stream,
        admitted_at=request.at,
        duration_ms=100,
        first_byte_ms=50,
        attempts=1,
        input_tokens=min(10, tokens),
        output_tokens=max(0, tokens - 10),
        cache_read_tokens=0,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        token_count=tokens,
        basis=Basis.REPORTED,
        state=State.FINAL,
        outcome=Outcome.OK,
        cost_nanousd=cost,
        price_version=request.price_version,
        aws_request_id="aws-1",
        client_request_id=request.client_request_id,
    )
    return evolve(row, **more)


def rows(store: Any, **more: Any) -> list[UsageRecord]:
    return list(store.list_rows(limit=100_000, **more).items)
