"""
Values as text and back: what the stores and the spool write down.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from attrs import asdict, fields

from bedrock_proxy.admission import AdmissionRequest, GateState, Lease
from bedrock_proxy.buckets import Bucket, Taken
from bedrock_proxy.customers import Limits
from bedrock_proxy.usage import LEDGER_FIELDS, Basis, Outcome, State, UsageRecord

_REQUEST_FIELDS: Final = tuple(field.name for field in fields(AdmissionRequest))
_LIMIT_FIELDS: Final = frozenset(field.name for field in fields(Limits))
_LEDGER_SET: Final = frozenset(LEDGER_FIELDS)
_STREAM: Final = LEDGER_FIELDS.index("stream")


def dump(value: object) -> str:
    """*value* as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def record_of(values: Mapping[str, Any]) -> UsageRecord:
    """A ledger row from its fields; fields of a later version are ignored."""
    known = {name: value for name, value in values.items() if name in _LEDGER_SET}
    known["stream"] = bool(known["stream"])
    known["basis"] = Basis(known["basis"])
    known["state"] = State(known["state"])
    known["outcome"] = Outcome(known["outcome"])
    return UsageRecord(**known)


def record_from_columns(columns: Iterable[Any]) -> UsageRecord:
    """A ledger row from its columns in the order of the fields."""
    return record_of(dict(zip(LEDGER_FIELDS, columns, strict=True)))


def columns_of(record: UsageRecord) -> tuple[Any, ...]:
    """A ledger row's columns in the order of the fields."""
    return tuple(
        str(value) if isinstance(value, str) else value
        for value in (getattr(record, name) for name in LEDGER_FIELDS)
    )


def dump_lease(lease: Lease) -> str:
    """*lease* as text."""
    request = lease.request
    return dump(
        {
            "request": {name: getattr(request, name) for name in _REQUEST_FIELDS},
            "deadline": lease.deadline,
            "of_requests": lease.of_requests,
            "of_tokens": lease.of_tokens,
        }
    )


def load_lease(text: str, deadline: int | None = None) -> Lease:
    """The lease that :func:`dump_lease` wrote, with another deadline where one is given."""
    values = json.loads(text)
    return Lease(
        request=AdmissionRequest(**values["request"]),
        deadline=values["deadline"] if deadline is None else deadline,
        of_requests=Taken(*values["of_requests"]),
        of_tokens=Taken(*values["of_tokens"]),
    )


def dump_state(state: GateState) -> str:
    """*state* as text."""
    return dump(
        (
            state.clock,
            state.requests,
            state.tokens,
            state.day,
            state.day_requests,
            state.day_tokens,
            state.day_cost,
            state.month,
            state.month_requests,
            state.month_tokens,
            state.month_cost,
        )
    )


def load_state(text: str) -> GateState:
    """The state that :func:`dump_state` wrote."""
    clock, requests, tokens, *counters = json.loads(text)
    return GateState(clock, _bucket(requests), _bucket(tokens), *counters)


def _bucket(values: list[Any]) -> Bucket:
    rate, since, units, seq, lows = values
    return Bucket(rate, since, units, seq, tuple((low[0], low[1]) for low in lows))


def dump_limits(limits: Limits) -> str:
    """The limits that are set, as text."""
    return dump({name: value for name, value in asdict(limits).items() if value is not None})


@lru_cache(maxsize=1024)
def load_limits(text: str) -> Limits:
    """
    The limits that :func:`dump_limits` wrote.

    Raises:
        ValueError: There is a limit that this version does not know: it must not be
            mistaken for no limit.
    """
    values = json.loads(text)
    unknown = values.keys() - _LIMIT_FIELDS
    if unknown:
        raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}")
    return Limits(**values)


def dump_models(models: frozenset[str] | None) -> str | None:
    """A model allow-list as text."""
    return None if models is None else dump(sorted(models))


def load_models(text: str | None) -> frozenset[str] | None:
    """The allow-list that :func:`dump_models` wrote."""
    return None if text is None else frozenset(json.loads(text))
