"""What the stores and the spool write down is read back as it was."""

import json
from typing import Any

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from bedrock_proxy.admission import AdmissionRequest, Lease
from bedrock_proxy.buckets import Taken
from bedrock_proxy_adapters.stores import rows

TEXT = st.text(max_size=20)
WHOLE = st.integers(0, 2**53)
REQUESTS: st.SearchStrategy[AdmissionRequest] = st.builds(
    AdmissionRequest,
    **dict.fromkeys(("request_id", "customer_id", "key_id", "model_id", "model"), TEXT),
    **dict.fromkeys(("dialect", "operation"), TEXT),
    **{name: st.none() | TEXT for name in ("price_version", "client_request_id")},
    **dict.fromkeys(("at", "input_tokens", "output_tokens", "lease_ms"), WHOLE),
    stream=st.booleans(),
    cost_nanousd=st.none() | WHOLE,
)
TAKEN = st.builds(Taken, WHOLE, WHOLE, WHOLE)
LEASES = st.builds(Lease, request=REQUESTS, deadline=WHOLE, of_requests=TAKEN, of_tokens=TAKEN)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered by its text would say nothing about the text."""
    monkeypatch.setattr(rows, "_leases", rows._Remembered(rows._parse_lease))


@given(LEASES)
def test_I14_a_lease_is_read_back_as_it_was(lease: Lease) -> None:
    assert rows._parse_lease(rows.dump_lease(lease)) == lease


@given(LEASES)
def test_I14_a_lease_is_written_as_an_encoder_would(lease: Lease) -> None:
    """Whatever a request has is written: a field that is forgotten is a settlement gone wrong."""
    said: dict[str, Any] = json.loads(rows.dump_lease(lease))
    assert list(said["request"]) == [field.name for field in fields(AdmissionRequest)]
    assert rows.dump(said) == rows.dump_lease(lease)


def test_a_lease_remembered_is_not_mistaken_for_another() -> None:
    lease = Lease(
        request=AdmissionRequest(
            request_id="r",
            customer_id="c",
            key_id="k",
            model_id="m",
            model="m",
            dialect="simple",
            operation="invoke",
            stream=False,
            at=1,
            input_tokens=1,
            output_tokens=1,
            cost_nanousd=None,
            price_version=None,
            client_request_id=None,
            lease_ms=1,
        ),
        deadline=2,
    )
    text = rows.dump_lease(lease)
    assert rows.load_lease(text) is lease
    assert rows.load_lease(text, 3) == evolve(lease, deadline=3)
    rows.forget_lease(text)
    assert rows.load_lease(text) == lease
    assert rows.load_lease(text) is not lease
