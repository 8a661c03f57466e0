"""
The invariants I1 to I14 as a state machine: random stories of requests, faults, clocks and
operators, with everything a store says compared to what must be true.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, evolve, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.contracts.stories import LEASE_MS, MINUTE, NOON, add, ask, key, rows, used

from bedrock_proxy.admission import Barred, Grant, Lease, Limit
from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy.periods import DAY_MS, day_of, month_of
from bedrock_proxy.usage import UsageRecord

NAMES = ("ann", "bob")

LIMITS = st.sampled_from(
    [
        Limits(requests_per_minute=3, tokens_per_minute=400, concurrency=3),
        Limits(requests_per_minute=6, burst=2, requests_per_day=9, tokens_per_day=900),
        Limits(tokens_per_minute=300, tokens_per_month=1_500, cost_per_day=4_000),
        Limits(
            requests_per_minute=60, tokens_per_minute=1_000, concurrency=2, cost_per_month=9_000
        ),
        Limits(concurrency=1, tokens_per_day=700),
    ]
)


FAULTS = st.sampled_from([None, None, None, None, "refused", "lost"])


class LosesReplies:
    """Between the machine and the store: may fail before the call or after it."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.fault: str | None = None

    def call(self, name: str, *args: Any) -> Any:
        fault, self.fault = self.fault, None
        if fault == "refused":
            raise StoreUnavailable("refused")
        reply = getattr(self.store, name)(*args)
        if fault == "lost":
            raise StoreUnavailable("the reply was lost")
        return reply


@define
class Story:
    """One admitted request as it ought to be."""

    lease: Lease
    charged: int
    """Tokens it stands for: the reservation until it is settled, then the usage."""
    row: UsageRecord | None = None
    """Its row as it must be; None until it has one."""
    is_open: bool = True
    is_released: bool = False


@define
class Era:
    """What was admitted while one set of limits was in force."""

    limits: Limits
    since: int
    stories: list[Story] = field(factory=list)
    is_first: bool = True


class Accounting(RuleBasedStateMachine):
    """A store under test, and the truth beside it."""

    make: ClassVar[Callable[[Path], Any]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = type(self).make(self.folder)
        self.line = LosesReplies(self.store)
        self.now = NOON
        self.clock = dict.fromkeys(NAMES, 0)
        self.number = 0
        self.stories: dict[str, Story] = {}
        self.done: list[Callable[[], Any]] = []
        self.eras: dict[str, list[Era]] = {}
        self.keys: dict[str, str] = {}
        self.caps: dict[tuple[str, str], list[tuple[int, int | None]]] = {}
        self.times: dict[str, tuple[int, int, int]] = {}

    @initialize(one=LIMITS, other=LIMITS)
    def two_customers(self, one: Limits, other: Limits) -> None:
        for name, limits in zip(NAMES, (one, other), strict=True):
            add(self.store, name, limits)
            self.keys[name] = f"key-{name}"
            self.eras[name] = [Era(limits, self.now)]

    # --- what happens

    @rule(
        name=st.sampled_from(NAMES),
        tokens=st.sampled_from([0, 50, 100, 100, 200]),
        fault=FAULTS,
    )
    def admit(self, name: str, tokens: int, fault: str | None) -> None:
        self.number += 1
        request = ask(
            f"r{self.number}",
            self.now,
            name,
            key_id=self.keys[name],
            input_tokens=tokens,
            output_tokens=0,
            cost_nanousd=tokens * 10,
        )
        before = {each: self.seen(each) for each in NAMES}
        self.line.fault = fault
        try:
            decision = self.line.call("admit", request)
        except StoreUnavailable:
            # Whether it was admitted is unknown: give it back, as the flow does.
            self.store.release(request)
            assert request.request_id not in self.open_ids(), "I1: a lost admission is kept"
            self.clock[name] = max(self.clock[name], self.store.gate_state(name).clock)
            self.untouched(before, name)
            self.done.append(lambda: self.store.release(request))
            return
        self.untouched(before, name)
        now = max(self.clock[name], self.now)
        limits = self.eras[name][-1].limits
        if isinstance(decision, Grant):
            lease = decision.lease
            assert lease.request.at == now, "I10: admitted at a time that was over"
            story = Story(lease, tokens)
            self.stories[request.request_id] = story
            self.eras[name][-1].stories.append(story)
            self.clock[name] = now
            live = [s for s in self.of(name) if s.is_open and s.lease.deadline > now]
            if limits.concurrency is not None:
                assert len(live) <= limits.concurrency, "I4: more live leases than the limit"
            self.done.append(lambda: self.readmit(request, story))
        else:
            assert self.seen(name) == before[name], "I6: a rejection changed something"
            if decision.reason is Limit.REQUESTS_PER_MINUTE:
                self.no_permit_was_lost(name, now)

    def readmit(self, request: Any, story: Story) -> None:
        if story.is_open:
            decision = self.store.admit(request)
            assert isinstance(decision, Grant), "I14: a granted request was refused"

    def no_permit_was_lost(self, name: str, now: int) -> None:
        """A refusal must be justified by a window that is full."""
        era = self.eras[name][-1]
        if not era.is_first:
            return
        rate = era.limits.requests_per_minute
        assert rate is not None
        burst = rate if era.limits.burst is None else era.limits.burst
        times = [s.lease.request.at for s in era.stories]
        assert any(
            len(times) - first + 1 > burst + Fraction(rate * (now - since), MINUTE)
            for first, since in enumerate(times)
        ), "I8: refused although the rate allowed it"

    @rule(data=st.data(), part=st.sampled_from([0, 1, 3, 10]))
    def finish(self, data: st.DataObject, part: int) -> None:
        waiting = [i for i, s in self.stories.items() if s.is_open]
        if waiting:
            self.settle(data.draw(st.sampled_from(waiting)), part, data.draw(FAULTS))

    @rule(data=st.data(), part=st.sampled_from([0, 1, 3, 10]))
    def finish_late(self, data: st.DataObject, part: int) -> None:
        """The reaper was faster; now the true figure comes."""
        late = [
            i for i, s in self.stories.items() if s.row is not None and s.row.state == "estimated"
        ]
        if late:
            self.settle(data.draw(st.sampled_from(late)), part, data.draw(FAULTS))

    @rule(
        name=st.sampled_from(NAMES),
        wait=st.sampled_from([20_000, 40_000, 54_000, MINUTE]),
    )
    def a_long_stream_ends(self, name: str, wait: int) -> None:
        """It reserved everything and used nothing, while the bucket was refilling."""
        limit = self.eras[name][-1].limits.tokens_per_minute
        if limit is None:
            return
        began = self.number + 1
        self.admit(name, limit, None)
        self.now += wait
        self.admit(name, limit * wait // MINUTE, None)
        stream = self.stories.get(f"r{began}")
        if stream is not None:
            self.settle(f"r{began}", 0, None)
        for part in (1, 2, 4):
            self.admit(name, limit // part, None)

    @rule(name=st.sampled_from(NAMES), count=st.integers(3, 12))
    def a_busy_hour(self, name: str, count: int) -> None:
        for _ in range(count):
            self.admit(name, 100, None)
            if f"r{self.number}" in self.stories:
                self.settle(f"r{self.number}", 10, None)
            self.now += 20_000

    def settle(self, request_id: str, part: int, fault: str | None) -> None:
        story = self.stories[request_id]
        lease = story.lease
        name = lease.request.customer_id
        tokens = lease.tokens * part // 10
        took = max(0, self.now - lease.request.at)
        record = used(lease, tokens, tokens * 10, duration_ms=took)
        before = {each: self.seen(each) for each in NAMES}
        self.line.fault = fault
        try:
            self.line.call("finish", record, lease)
        except StoreUnavailable:
            self.store.finish(record, lease)  # from the spool
        late = story.row is not None
        story.row = evolve(record, corrected_at=lease.request.at + took if late else None)
        story.charged = tokens
        story.is_open = False
        self.untouched(before, name)
        self.done.append(lambda: self.store.finish(record, lease))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        waiting = [i for i, s in self.stories.items() if s.is_open]
        if waiting:
            story = self.stories[data.draw(st.sampled_from(waiting))]
            self.store.release(story.lease.request)
            story.is_open, story.is_released, story.charged = False, True, 0
            self.done.append(lambda: self.store.release(story.lease.request))

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        waiting = [i for i, s in self.stories.items() if s.is_open]
        if waiting:
            story = self.stories[data.draw(st.sampled_from(waiting))]
            story.lease = self.store.renew(story.lease, self.now)

    @rule()
    def reap(self) -> None:
        """What nobody settles (its process was killed) is settled by the reaper."""
        overdue = [s for s in self.stories.values() if s.is_open and s.lease.deadline <= self.now]
        assert self.store.reap(self.now) == len(overdue), "I13: the reaper left something"
        found = {row.request_id: row for row in rows(self.store)}
        for story in overdue:
            story.is_open = False
            story.row = found.get(story.lease.request.request_id)
            assert story.row is not None, "I1: a reaped request has no row"
            assert story.row.token_count == story.lease.tokens, "I2: not what was reserved"
            assert story.row.state == "estimated", "I2: a guess that says it is the truth"

    @rule(step=st.sampled_from([1, 1_000, 5_000, 20_000, MINUTE, 10 * MINUTE, LEASE_MS]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule(step=st.sampled_from([-1, -5 * MINUTE, -60 * MINUTE, DAY_MS, 17 * DAY_MS]))
    def clock_jumps(self, step: int) -> None:
        self.now += step

    @rule(name=st.sampled_from(NAMES), limits=LIMITS)
    def limits_change(self, name: str, limits: Limits) -> None:
        self.store.update_customer(name, lambda customer: evolve(customer, limits=limits))
        self.eras[name].append(Era(limits, self.now, is_first=False))

    @rule(name=st.sampled_from(NAMES))
    def key_is_replaced(self, name: str) -> None:
        self.number += 1
        old, new = self.keys[name], f"key-{name}-{self.number}"
        self.store.add_key(name, key(new), self.now)
        self.store.revoke_key(name, old)
        self.keys[name] = new
        decision = self.store.admit(ask(f"r{self.number}", self.now, name, key_id=old))
        assert not isinstance(decision, Grant), "I12: a revoked key was admitted"
        assert decision.reason is Barred.KEY_GONE, "I12: refused for another reason"

    @rule(name=st.sampled_from(NAMES))
    def customer_is_away_for_a_while(self, name: str) -> None:
        self.number += 1
        for status in (CustomerStatus.DISABLED, CustomerStatus.ACTIVE):
            self.store.update_customer(name, lambda c, s=status: evolve(c, status=s))
            if status is CustomerStatus.DISABLED:
                asked = ask(f"r{self.number}", self.now, name, key_id=self.keys[name])
                decision = self.store.admit(asked)
                assert not isinstance(decision, Grant), "I12: a disabled customer was admitted"

    @rule(data=st.data())
    def something_is_done_again(self, data: st.DataObject) -> None:
        """A retry, a replayed spool: any part of the past, once more."""
        if self.done:
            before = {each: self.seen(each) for each in NAMES}
            start = data.draw(st.integers(0, len(self.done) - 1))
            for again in self.done[start : start + 5]:
                again()
            assert {each: self.seen(each) for each in NAMES} == before, "I14: a replay changed it"

    @rule()
    def counters_are_rebuilt(self) -> None:
        self.store.rebuild(0)

    # --- what must be true

    @invariant()
    def rows_are_exactly_the_truth(self) -> None:
        found = rows(self.store)
        ids = [row.request_id for row in found]
        expected = {i: s.row for i, s in self.stories.items() if s.row is not None}
        assert len(ids) == len(set(ids)), "I1: two rows of one request"
        assert set(ids) == set(expected), "I1: a row too many or too few"
        for row in found:
            assert row == expected[row.request_id], "I2: not the usage that the model reported"

    @invariant()
    def leases_end_by_settlement_only(self) -> None:
        expected = {i for i, s in self.stories.items() if s.is_open}
        assert expected <= self.open_ids(), "I5: a lease is gone that nobody settled"
        assert self.open_ids() <= expected, "I13: a settled lease is still there"

    @invariant()
    def counters_are_rows_and_reservations(self) -> None:
        for name in NAMES:
            state = self.store.gate_state(name)
            if not state.clock:
                continue
            for period, current, counters in (
                (day_of, state.day, (state.day_requests, state.day_tokens, state.day_cost)),
                (
                    month_of,
                    state.month,
                    (state.month_requests, state.month_tokens, state.month_cost),
                ),
            ):
                mine = [
                    s
                    for s in self.of(name)
                    if not s.is_released and period(s.lease.request.at) == current
                ]
                tokens = sum(s.charged for s in mine)
                assert counters == (len(mine), tokens, tokens * 10), "I3: counters are off"

    @invariant()
    def rates_hold_in_every_window(self) -> None:
        for eras in self.eras.values():
            for era in eras:
                limits = era.limits
                burst = limits.requests_per_minute if limits.burst is None else limits.burst
                for rate, top, amount in (
                    (limits.requests_per_minute, burst, lambda s: int(not s.is_released)),
                    (
                        limits.tokens_per_minute,
                        limits.tokens_per_minute,
                        lambda s: s.charged,
                    ),
                ):
                    if rate is None or top is None:
                        continue
                    for first, begin in enumerate(era.stories):
                        total = 0
                        for story in era.stories[first:]:
                            total += amount(story)
                            window = story.lease.request.at - begin.lease.request.at
                            bound = top + Fraction(rate * window, MINUTE)
                            assert total <= bound, "I7: more than burst + rate x window"

    @invariant()
    def budgets_hold(self) -> None:
        """No more was spent in a period than the largest budget in force in it allowed."""
        for name in NAMES:
            for limit, period, unit in (
                ("requests_per_day", day_of, 0),
                ("tokens_per_day", day_of, 1),
                ("cost_per_day", day_of, 10),
                ("tokens_per_month", month_of, 1),
                ("cost_per_month", month_of, 10),
            ):
                spent: dict[int, int] = {}
                caps: dict[int, list[int | None]] = {}
                for era in self.eras[name]:
                    for story in era.stories:
                        if story.is_released:
                            continue
                        at = period(story.lease.request.at)
                        spent[at] = spent.get(at, 0) + (unit * story.charged if unit else 1)
                        caps.setdefault(at, []).append(getattr(era.limits, limit))
                for at, total in spent.items():
                    known = [cap for cap in caps[at] if cap is not None]
                    if len(known) == len(caps[at]):
                        assert total <= max(known), f"I9: {limit} was overspent"

    @invariant()
    def stored_times_do_not_decrease(self) -> None:
        for name in NAMES:
            state = self.store.gate_state(name)
            times = (state.clock, state.requests.since, state.tokens.since)
            earlier = self.times.get(name, (0, 0, 0))
            assert all(a >= b for a, b in zip(times, earlier, strict=True)), "I10: time ran back"
            self.times[name] = times

    def teardown(self) -> None:
        """After quiet, the lease time and the reaper: no leases, no reservations."""
        try:
            if self.eras and sys.exc_info()[0] is None:
                self.now = max(self.now, *self.clock.values()) + 20 * DAY_MS
                self.reap()
                assert self.store.open_leases() == (), "I13: leases after the reaper"
                self.rows_are_exactly_the_truth()
                self.counters_are_rows_and_reservations()
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    # --- reading

    def of(self, name: str) -> list[Story]:
        return [s for s in self.stories.values() if s.lease.request.customer_id == name]

    def open_ids(self) -> set[str]:
        return {lease.request.request_id for lease in self.store.open_leases()}

    def seen(self, name: str) -> Any:
        """Everything the store says of one customer."""
        leases = sorted(self.store.open_leases(name), key=lambda lease: lease.request.request_id)
        return self.store.gate_state(name), leases, rows(self.store, customer_id=name)

    def untouched(self, before: dict[str, Any], name: str) -> None:
        for other in NAMES:
            if other != name:
                assert self.seen(other) == before[other], "I11: another customer was touched"
