"""
Values as text and back: what the stores and the spool write down.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from attrs import asdict, evolve, fields

from bedrock_proxy.admission import AdmissionRequest, GateState, Lease
from bedrock_proxy.buckets import Bucket, Taken
from bedrock_proxy.customers import Limits
from bedrock_proxy.usage import LEDGER_FIELDS, Basis, Outcome, State, UsageRecord

T = TypeVar("T")

_LIMIT_FIELDS: Final = frozenset(field.name for field in fields(Limits))
_LEDGER_SET: Final = frozenset(LEDGER_FIELDS)
_get_columns: Final = attrgetter(*LEDGER_FIELDS)
_ENUMS: Final = tuple(LEDGER_FIELDS.index(name) for name in ("basis", "state", "outcome"))

MAX_REMEMBERED: Final = 4_096


class _Remembered(Generic[T]):
    """
    Values by the text they were written as. What this process wrote it mostly reads back
    itself; the text is compared in full, so what others wrote is never mistaken for it.
    """

    def __init__(self, load: Callable[[str], T]) -> None:
        self._load = load
        self._values: dict[str, T] = {}

    def load(self, text: str) -> T:
        value = self._values.get(text)
        return self._load(text) if value is None else value

    def forget(self, text: str) -> None:
        self._values.pop(text, None)

    def put(self, text: str, value: T) -> str:
        if len(self._values) >= MAX_REMEMBERED:
            self._values.clear()
        self._values[text] = value
        return text


dump: Final = json.JSONEncoder(separators=(",", ":")).encode
"""Any plain value as JSON without spaces."""


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
    columns: list[Any] = list(_get_columns(record))
    for index in _ENUMS:
        columns[index] = str(columns[index])
    return tuple(columns)


def dump_lease(lease: Lease) -> str:
    """*lease* as text."""
    # Written out: it takes a fifth of the time that an encoder would for the whole.
    r = lease.request
    text = (
        f'{{"request":{{"request_id":{_string(r.request_id)},'
        f'"customer_id":{_string(r.customer_id)},"key_id":{_string(r.key_id)},'
        f'"model_id":{_string(r.model_id)},"model":{_string(r.model)},'
        f'"dialect":{_string(r.dialect)},"operation":{_string(r.operation)},'
        f'"stream":{"true" if r.stream else "false"},"at":{r.at},'
        f'"input_tokens":{r.input_tokens},"output_tokens":{r.output_tokens},'
        f'"cost_nanousd":{"null" if r.cost_nanousd is None else r.cost_nanousd},'
        f'"price_version":{"null" if r.price_version is None else _string(r.price_version)},'
        f'"client_request_id":'
        f"{'null' if r.client_request_id is None else _string(r.client_request_id)},"
        f'"lease_ms":{r.lease_ms}}},"deadline":{lease.deadline},'
        f'"of_requests":{_taken(lease.of_requests)},"of_tokens":{_taken(lease.of_tokens)}}}'
    )
    return _leases.put(text, lease)


_string: Final = encode_basestring_ascii


def _taken(taken: Taken) -> str:
    return f"[{taken.units},{taken.since},{taken.seq}]"


def load_lease(text: str, deadline: int | None = None) -> Lease:
    """The lease that :func:`dump_lease` wrote, with another deadline where one is given."""
    lease = _leases.load(text)
    if deadline is None or deadline == lease.deadline:
        return lease
    return evolve(lease, deadline=deadline)


def forget_lease(text: str) -> None:
    """The lease that *text* is has been settled: nobody will load it again."""
    _leases.forget(text)


def _parse_lease(text: str) -> Lease:
    values = json.loads(text)
    return Lease(
        request=AdmissionRequest(**values["request"]),
        deadline=values["deadline"],
        of_requests=Taken(*values["of_requests"]),
        of_tokens=Taken(*values["of_tokens"]),
    )


_leases: Final = _Remembered(_parse_lease)


def _bucket_text(bucket: Bucket) -> str:
    lows = ",".join([f"[{seq},{low}]" for seq, low in bucket.lows])
    return f"[{bucket.rate},{bucket.since},{bucket.units},{bucket.seq},[{lows}]]"


def dump_state(state: GateState) -> str:
    """*state* as text."""
    # Whole numbers only: written out, this takes a quarter of the time of an encoder.
    text = (
        f"[{state.clock},{_bucket_text(state.requests)},{_bucket_text(state.tokens)},"
        f"{state.day},{state.day_requests},{state.day_tokens},{state.day_cost},"
        f"{state.month},{state.month_requests},{state.month_tokens},{state.month_cost}]"
    )
    return _states.put(text, state)


def load_state(text: str) -> GateState:
    """The state that :func:`dump_state` wrote."""
    return _states.load(text)


def _parse_state(text: str) -> GateState:
    clock, requests, tokens, *counters = json.loads(text)
    return GateState(clock, _bucket(requests), _bucket(tokens), *counters)


def _bucket(values: list[Any]) -> Bucket:
    rate, since, units, seq, lows = values
    return Bucket(rate, since, units, seq, tuple((low[0], low[1]) for low in lows))


_states: Final = _Remembered(_parse_state)


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
