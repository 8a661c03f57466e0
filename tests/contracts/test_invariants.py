"""
I1 to I14 hold on every store; and each is broken by a store with a defect, so that the
suite is known to be able to fail.
"""

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.contracts.factories import (
    DYNALITE,
    MEMORY,
    MINISTACK,
    REDIS,
    SQLITE,
    StoreFactory,
)
from tests.contracts.machine import Accounting

from bedrock_proxy import accounts, admission
from bedrock_proxy.accounts import Entry
from bedrock_proxy.admission import (
    FRESH,
    AdmissionRequest,
    GateState,
    Grant,
    Lease,
    Refusal,
)
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.memory import MemoryStore


def machine(make: Callable[..., Any]) -> type[Accounting]:
    return type("Accounting", (Accounting,), {"make": staticmethod(make)})


def run(make: Callable[..., Any], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine(make),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(
    ("factory", "examples"),
    [(MEMORY, 60), (SQLITE, 8), (REDIS, 8), (DYNALITE, 2), (MINISTACK, 2)],
    ids=lambda each: getattr(each, "name", ""),
)
def test_I1_to_I14_hold_whatever_happens(factory: StoreFactory, examples: int) -> None:
    run(factory.make, examples, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "examples"),
    [(MEMORY, 2_000), (SQLITE, 300), (REDIS, 300), (DYNALITE, 60), (MINISTACK, 60)],
    ids=lambda each: getattr(each, "name", ""),
)
def test_I1_to_I14_hold_in_many_long_stories(factory: StoreFactory, examples: int) -> None:
    run(factory.make, examples, 60)


# --- stores with a defect ---------------------------------------------------------------


class KeepsNoRow(MemoryStore):
    """Settles without writing the row of a failed request."""

    def _finish(self, record: UsageRecord) -> None:
        super()._finish(record)
        if record.token_count == 0:
            self._rows.pop(record.request_id)


class TrustsTheFirstFigure(MemoryStore):
    """Corrects the counters, and never the row."""

    def _finish(self, record: UsageRecord) -> None:
        old = self._rows.get(record.request_id)
        super()._finish(record)
        if old is not None:
            self._rows[record.request_id] = old


class SettlesTwice(MemoryStore):
    """Settles whether or not there is a lease."""

    def _finish(self, record: UsageRecord) -> None:
        state = self._states.get(record.customer_id, FRESH)
        again = record.request_id in self._rows
        super()._finish(record)
        if again:
            self._states[record.customer_id] = admission.correct(state, None, record)


class CountsNoLeases(MemoryStore):
    """Checks the concurrency limit against nothing."""

    def _live(self, customer_id: str, now: int) -> int:
        return 0


class SweepsAtAdmission(MemoryStore):
    """Deletes expired leases when it admits."""

    def _admit(self, request: AdmissionRequest) -> Grant | Refusal:
        leases = self._leases.get(request.customer_id, {})
        for request_id, lease in tuple(leases.items()):
            if lease.deadline <= request.at:
                del leases[request_id]
        return super()._admit(request)


class ConsumesAtRejection(MemoryStore):
    """Takes from the first limits before it finds the last one empty."""

    def _admit(self, request: AdmissionRequest) -> Grant | Refusal:
        decision = super()._admit(request)
        if isinstance(decision, Refusal):
            state = admission.rolled(self._states.get(request.customer_id, FRESH), request.at)
            self._states[request.customer_id] = evolve(
                state, day_requests=state.day_requests + 1, month_requests=state.month_requests + 1
            )
        return decision


def refund_everything(bucket: Any, taken: Any, units: int, now: int) -> Any:
    """Puts back whatever was reserved, however long ago."""
    return bucket._replace(units=bucket.units - units)


def refund_unless_it_was_full(bucket: Any, taken: Any, units: int, now: int) -> Any:
    """The weaker guard: only that the bucket has not been empty since."""
    if bucket.since != taken.since:
        return bucket
    return bucket._replace(units=max(0, bucket.units - units))


def roll_with_any_clock(state: GateState, at: int) -> GateState:
    """Believes a clock that went backwards."""
    return evolve(_rolled(state, at), clock=at)


class MixesCustomersUp(MemoryStore):
    """Takes from one customer's bucket what another has used."""

    def _finish(self, record: UsageRecord) -> None:
        super()._finish(record)
        if record.customer_id == "bob":
            state = self._states.get("ann", FRESH)
            bucket = state.tokens._replace(units=state.tokens.units + 1)
            self._states["ann"] = evolve(state, tokens=bucket)


class ReapsNothing(MemoryStore):
    """Says that it has reaped, and has not."""

    def _reap(self, now: int, limit: int) -> int:
        return 0


class ReleasesTwice(MemoryStore):
    """Gives back whether or not there is a lease."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._granted: dict[str, Lease] = {}

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        decision = super().admit(request)
        if isinstance(decision, Grant):
            self._granted[request.request_id] = decision.lease
        return decision

    def release(self, request: AdmissionRequest) -> None:
        is_open = request.request_id in self._leases.get(request.customer_id, {})
        super().release(request)
        lease = self._granted.get(request.request_id)
        if lease is not None and not is_open:
            state = self._states[request.customer_id]
            self._states[request.customer_id] = admission.release(state, lease, request.at)


def without_row(record: UsageRecord, **more: Any) -> Entry:
    """Settles, and forgets to write."""
    entry = _enter(record, **more)
    return evolve(entry, row=None)


def without_budgets(state: Any, limits: Any, request: Any, live: int = 0) -> Any:
    """Checks no budget."""
    unlimited = evolve(
        limits, tokens_per_day=None, tokens_per_month=None, cost_per_day=None, cost_per_month=None
    )
    return _decide(state, unlimited, request, live)


def with_half_the_burst(limits: Any) -> int | None:
    """Loses permits."""
    burst = _burst(limits)
    return None if burst is None else max(1, burst // 2)


_enter, _decide = accounts.enter, admission.decide
_burst, _rolled = admission._burst, admission.rolled

MUTANTS: list[tuple[str, type[MemoryStore], tuple[Any, str, Any] | None]] = [
    ("I1", KeepsNoRow, None),
    ("I1", MemoryStore, (accounts, "enter", without_row)),
    ("I2", TrustsTheFirstFigure, None),
    ("I3", SettlesTwice, None),
    ("I4", CountsNoLeases, None),
    ("I5", SweepsAtAdmission, None),
    ("I6", ConsumesAtRejection, None),
    ("I7", MemoryStore, (admission, "refund", refund_everything)),
    ("I7", MemoryStore, (admission, "refund", refund_unless_it_was_full)),
    ("I8", MemoryStore, (admission, "_burst", with_half_the_burst)),
    ("I9", MemoryStore, (admission, "decide", without_budgets)),
    ("I10", MemoryStore, (admission, "rolled", roll_with_any_clock)),
    ("I11", MixesCustomersUp, None),
    ("I12", MemoryStore, (admission, "bar", lambda *_: None)),
    ("I13", ReapsNothing, None),
    ("I14", ReleasesTwice, None),
]


@pytest.mark.parametrize(
    ("invariant", "store", "patch"),
    MUTANTS,
    ids=[f"{i}-{store.__name__ if p is None else p[2].__name__}" for i, store, p in MUTANTS],
)
def test_a_store_with_a_defect_is_found_out(
    invariant: str,
    store: type[MemoryStore],
    patch: tuple[Any, str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if patch is not None:
        monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError, match=f"^{invariant}: ") as caught:
        run_state_machine_as_test(
            machine(lambda folder: store(reap_at_admission=False)),
            settings=settings(
                max_examples=500,
                stateful_step_count=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{invariant} mutant {store.__name__}: {str(caught.value).splitlines()[0]}")
