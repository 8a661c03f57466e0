"""Every store: exactly one row for each request, and counters that follow from the rows."""

from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from tests.contracts.factories import FACTORIES, StoreFactory
from tests.contracts.stories import LEASE_MS, MINUTE, NOON, add, admitted, ask, refused, rows, used
from tests.contracts.test_gate import at_once

from bedrock_proxy.admission import Lease
from bedrock_proxy.customers import CustomerNotFound, Limits
from bedrock_proxy.periods import DAY_MS
from bedrock_proxy.store import By, every_row
from bedrock_proxy.usage import Basis, Outcome, State


def test_a_finished_request_has_its_row_and_no_lease(store: Any) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    record = used(lease, 77, 770, cost_nanousd=770, first_byte_ms=None, error_code="timeout")
    store.finish(record, lease)
    assert rows(store) == [record]
    assert store.open_leases() == ()
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens, state.day_cost) == (1, 77, 770)


@pytest.mark.parametrize("count", [2, 8])
def test_A04_settling_at_once_applies_once(threaded: Any, count: int) -> None:
    add(threaded, limits=Limits(tokens_per_minute=10_000))
    for turn in range(10):
        lease = admitted(threaded, ask(f"r{turn}"))
        at_once(count, lambda n, lease=lease: threaded.finish(used(lease, 10 + n), lease))
    found = rows(threaded)
    assert len(found) == 10
    assert threaded.gate_state("ann").day_tokens == sum(row.token_count for row in found)
    assert threaded.open_leases() == ()


def test_I14_finishing_again_changes_nothing(store: Any) -> None:
    add(store, limits=Limits(tokens_per_minute=1_000, tokens_per_day=1_000))
    lease = admitted(store, ask("r1"))
    store.finish(used(lease), lease)
    before = store.gate_state("ann"), rows(store)
    store.finish(used(lease), lease)
    store.finish(used(lease, 99, 9, outcome=Outcome.ERROR), lease)
    store.release(lease.request)
    assert (store.gate_state("ann"), rows(store)) == before


def test_an_overdue_lease_is_settled_as_estimated(store: Any) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    assert store.reap(NOON + LEASE_MS - 1) == 0
    assert store.reap(NOON + LEASE_MS) == 1
    assert store.reap(NOON + LEASE_MS) == 0
    (row,) = rows(store)
    assert (row.state, row.basis, row.outcome) == (
        State.ESTIMATED,
        Basis.ESTIMATED,
        Outcome.ERROR,
    )
    assert (row.input_tokens, row.output_tokens, row.token_count) == (10, 90, 100)
    assert (row.cost_nanousd, row.price_version, row.client_request_id) == (
        1_000,
        "2026-01",
        "theirs",
    )
    assert (row.admitted_at, row.duration_ms, row.attempts) == (NOON, LEASE_MS, 1)
    assert (row.model_id, row.model, row.operation, row.stream) == (
        "us.model-1",
        "model-1",
        "InvokeModel",
        True,
    )
    assert store.open_leases() == ()
    assert store.gate_state("ann").day_tokens == lease.tokens


def test_reaping_does_as_much_as_it_is_told_to(store: Any) -> None:
    add(store)
    for number in range(7):
        admitted(store, ask(f"r{number}", NOON + number))
    assert store.reap(NOON + LEASE_MS + 100, limit=5) == 5
    assert [each.request.request_id for each in store.open_leases()] == ["r5", "r6"]
    assert store.reap(NOON + LEASE_MS + 100) == 2
    assert len(rows(store)) == 7


@pytest.mark.parametrize("basis", [Basis.REPORTED, Basis.PARTIAL])
def test_A07_a_late_true_figure_corrects_the_estimate_once(store: Any, basis: Basis) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    store.reap(NOON + LEASE_MS)
    truth = used(lease, 42, 420, duration_ms=LEASE_MS + 5_000, basis=basis)
    store.finish(truth, lease)
    store.finish(evolve(truth, token_count=1), lease)
    assert rows(store) == [evolve(truth, corrected_at=NOON + LEASE_MS + 5_000)]
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens, state.day_cost) == (1, 42, 420)


def test_A07_an_estimate_does_not_correct_an_estimate(store: Any) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    store.reap(NOON + LEASE_MS)
    before = rows(store)
    store.finish(used(lease, 5, state=State.ESTIMATED, basis=Basis.ESTIMATED), lease)
    assert rows(store) == before


def test_A07_a_row_estimated_by_its_own_request_can_be_corrected_too(store: Any) -> None:
    """S15: the stream ended without usage; reconciliation finds the true figure later."""
    add(store)
    lease = admitted(store, ask("r1"))
    store.finish(used(lease, 80, state=State.ESTIMATED, basis=Basis.ESTIMATED), lease)
    store.finish(used(lease, 42, 5, duration_ms=9_000), lease)
    (row,) = rows(store)
    assert (row.token_count, row.state, row.corrected_at) == (42, State.FINAL, NOON + 9_000)
    assert store.gate_state("ann").day_tokens == 42


def test_a_row_without_a_lease_is_kept_and_counted(store: Any) -> None:
    """The spool may hold what a store has forgotten."""
    add(store)
    lease = admitted(store, ask("r1"))
    store.release(lease.request)
    store.finish(used(lease, 30, 3), lease)
    assert len(rows(store)) == 1
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens, state.day_cost) == (1, 30, 3)


@pytest.mark.parametrize(
    "midnight",
    [(2026, 1, 16), (2026, 2, 1), (2028, 2, 29), (2028, 3, 1), (2027, 1, 1)],
    ids=lambda date: "-".join(map(str, date)),
)
def test_A09_each_request_is_in_exactly_one_day_and_the_days_add_up(
    store: Any, midnight: tuple[int, int, int]
) -> None:
    turn = int(datetime(*midnight, tzinfo=UTC).timestamp() * 1000)
    add(store)
    leases = []
    for number, at in enumerate([turn - DAY_MS, turn - 1, turn, turn + 1, turn + DAY_MS - 1]):
        leases.append(admitted(store, ask(f"r{number}", at)))
        store.finish(used(leases[-1], 10 + number), leases[-1]) if number != 1 else None
    stream = leases[1]
    store.finish(used(stream, 11, duration_ms=5_000), stream)
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens) == (3, 12 + 13 + 14)
    days = store.sum_usage(By.DAY)
    assert [(day.key, day.requests) for day in days] == [
        (datetime.fromtimestamp(turn / 1000 - 86_400, UTC).strftime("%Y-%m-%d"), 2),
        (datetime.fromtimestamp(turn / 1000, UTC).strftime("%Y-%m-%d"), 3),
    ]
    assert sum(day.token_count for day in days) == sum(row.token_count for row in rows(store))
    whole_month = sum(
        row.token_count for row in rows(store) if midnight[2] != 1 or row.admitted_at >= turn
    )
    assert state.month_tokens == whole_month


def fill(store: Any, seed: int = 1) -> None:
    """Some customers, models and hours; some open, some estimated, some without a price."""
    random = Random(seed)
    for name in ("ann", "bob"):
        add(store, name)
    for number in range(60):
        name = random.choice(["ann", "bob"])
        at = NOON + number * 37 * MINUTE
        lease = admitted(
            store,
            ask(f"r{number:02}", at, name, model=random.choice(["m1", "m2"])),
        )
        fate = random.random()
        if fate < 0.7:
            cost = random.choice([None, random.randint(0, 10**9)])
            outcome = random.choice(list(Outcome))
            store.finish(used(lease, random.randint(0, 500), cost, outcome=outcome), lease)
        elif fate < 0.85:
            store.reap(at + LEASE_MS)


def test_A13_counters_rebuilt_from_the_ledger_are_the_counters(store: Any) -> None:
    fill(store)
    before = {name: store.gate_state(name) for name in ("ann", "bob")}
    last = NOON + 59 * 37 * MINUTE
    assert store.rebuild(last) == 2
    for name, state in before.items():
        rebuilt = store.gate_state(name)
        assert (rebuilt.day_requests, rebuilt.day_tokens, rebuilt.day_cost) == (
            (state.day_requests, state.day_tokens, state.day_cost)
            if state.day == rebuilt.day
            else (0, 0, 0)
        )
        assert (rebuilt.month_requests, rebuilt.month_tokens, rebuilt.month_cost) == (
            state.month_requests,
            state.month_tokens,
            state.month_cost,
        )
        assert (rebuilt.requests, rebuilt.tokens) == (state.requests, state.tokens)
    assert store.rebuild(last, "ann") == 1
    with pytest.raises(CustomerNotFound):
        store.rebuild(last, "nobody")


AHEAD = NOON + 3 * DAY_MS


def ahead_and_back(store: Any) -> Lease:
    """One call in time, three by a clock that is days ahead; the lease of one that is left open."""
    add(store, limits=Limits(requests_per_minute=3, tokens_per_minute=10_000, requests_per_day=10))
    lease = admitted(store, ask("in-time"))
    store.finish(used(lease, 10), lease)
    for request_id in ("wrong-1", "wrong-2"):
        lease = admitted(store, ask(request_id, AHEAD))
        store.finish(used(lease, 10, admitted_at=AHEAD), lease)
    return admitted(store, ask("left-open", AHEAD))


def test_A08_a_clock_that_was_days_ahead_is_put_back_where_that_is_asked(store: Any) -> None:
    ahead_and_back(store)
    now = NOON + MINUTE
    assert (refused(store, ask("r1", now)).retry_after or 0) > 2 * 86_400
    store.rebuild(now)
    assert store.gate_state("ann").clock == AHEAD, "it was not asked for"
    assert store.standing("ann", now).ahead_ms == AHEAD - now

    assert store.rebuild(now, "ann", set_clock=True) == 1
    state = store.gate_state("ann")
    assert (state.clock, state.day_requests, state.day) == (now, 1, now // DAY_MS)
    assert store.standing("ann", now).ahead_ms == 0
    admitted_now = admitted(store, ask("r2", now))
    assert admitted_now.request.at == now
    assert store.gate_state("ann").day_requests == 2
    store.finish(used(admitted_now, 10, admitted_at=now), admitted_now)
    # Rows keep their dates, and the next rebuilding does not take the clock from them.
    assert [row.admitted_at for row in rows(store)] == [NOON, now, AHEAD, AHEAD, AHEAD]
    store.rebuild(now + MINUTE)
    assert store.gate_state("ann").clock == now + MINUTE


def test_A08_what_a_wrong_clock_left_open_is_settled_as_estimated_and_corrected(store: Any) -> None:
    lease = ahead_and_back(store)
    now = NOON + MINUTE
    assert store.reap(now + LEASE_MS) == 0
    store.rebuild(now, set_clock=True)
    assert store.open_leases() == ()
    assert {row.state for row in rows(store) if row.request_id == "left-open"} == {State.ESTIMATED}
    # Whoever runs it lives after all, and used more than it had reserved.
    store.finish(used(lease, 50_000, admitted_at=AHEAD), lease)
    [row] = [row for row in rows(store) if row.request_id == "left-open"]
    assert (row.state, row.token_count, row.admitted_at) == (State.FINAL, 50_000, AHEAD)
    assert store.gate_state("ann").clock == now
    admitted(store, ask("r1", now))


def test_A08_what_a_wrong_clock_dated_counts_in_its_month_and_not_today(store: Any) -> None:
    """A call dated to a later day of the month is on the month's bill, whenever it is settled."""
    lease = ahead_and_back(store)
    now = NOON + MINUTE
    store.rebuild(now, set_clock=True)
    store.finish(used(lease, 55, 500, admitted_at=AHEAD), lease)
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens, state.day_cost) == (1, 10, 300)
    assert (state.month_requests, state.month_tokens) == (4, 10 + 10 + 10 + 55)
    assert state.month_cost == sum(row.cost_nanousd or 0 for row in rows(store))
    store.rebuild(now)
    assert store.gate_state("ann") == state


def test_A08_a_lease_that_a_wrong_clock_renewed_ends_in_time(store: Any) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    kept = admitted(store, ask("r2"))
    store.renew(lease, AHEAD)
    now = NOON + MINUTE
    store.rebuild(now, set_clock=True)
    deadlines = {each.request.request_id: each.deadline for each in store.open_leases()}
    assert deadlines == {"r1": now + LEASE_MS, "r2": kept.deadline}
    assert store.reap(now + LEASE_MS) == 2


def test_A08_a_stream_whose_deadline_was_put_back_is_renewed_by_the_right_clock(
    store: Any,
) -> None:
    add(store)
    lease = store.renew(admitted(store, ask("r1")), AHEAD)
    now = NOON + MINUTE
    store.rebuild(now, set_clock=True)
    for _ in range(3):
        now += LEASE_MS // 2
        lease = store.renew(lease, now)
        assert [each.deadline for each in store.open_leases()] == [now + LEASE_MS]
        assert lease.deadline == now + LEASE_MS
    assert store.renew(lease, now - MINUTE).deadline == now + LEASE_MS, "never back"


def test_A08_clocks_that_differ_as_machines_do_are_left(store: Any) -> None:
    add(store, limits=Limits(requests_per_minute=1))
    admitted(store, ask("r1", NOON + MINUTE))
    store.rebuild(NOON, set_clock=True)
    assert store.gate_state("ann").clock == NOON + MINUTE
    refused(store, ask("r2", NOON + MINUTE))


def test_rows_are_listed_by_customer_and_time_a_page_at_a_time(store: Any) -> None:
    fill(store)
    everything = rows(store)
    assert everything == sorted(everything, key=lambda row: (row.admitted_at, row.request_id))
    start, end = everything[3].admitted_at, everything[-5].admitted_at
    wanted = [r for r in everything if r.customer_id == "ann" and start <= r.admitted_at < end]
    assert rows(store, customer_id="ann", start=start, end=end) == wanted
    pages, after = [], None
    while True:
        page = store.list_rows(customer_id="ann", start=start, end=end, limit=4, after=after)
        pages.extend(page.items)
        after = page.next
        if after is None:
            break
        assert len(page.items) == 4
    assert pages == wanted
    assert list(every_row(store)) == everything


def test_rows_of_one_millisecond_are_neither_lost_nor_repeated_between_pages(store: Any) -> None:
    add(store)
    for number in range(7):
        lease = admitted(store, ask(f"r{number}"))
        store.finish(used(lease), lease)
    first = store.list_rows(limit=3)
    second = store.list_rows(limit=4, after=first.next)
    assert [r.request_id for r in (*first.items, *second.items)] == [f"r{n}" for n in range(7)]
    assert second.next is None


@pytest.mark.parametrize("by", list(By))
def test_usage_sums_are_the_rows_added_up(store: Any, by: By) -> None:
    fill(store)
    start, end = NOON + 100 * MINUTE, NOON + 1_900 * MINUTE
    selected = rows(store, customer_id="ann", start=start, end=end)
    assert selected
    expected: dict[str, list[Any]] = {}
    for row in selected:
        time = datetime.fromtimestamp(row.admitted_at / 1000, UTC).isoformat()
        name = {By.DAY: time[:10], By.HOUR: time[:13], By.MODEL: row.model, By.CUSTOMER: "ann"}[by]
        expected.setdefault(name, []).append(row)
    sums = store.sum_usage(by, customer_id="ann", start=start, end=end)
    assert [each.key for each in sums] == sorted(expected)
    for each in sums:
        group = expected[each.key]
        assert each.requests == len(group)
        assert each.token_count == sum(row.token_count for row in group)
        assert each.input_tokens == sum(row.input_tokens for row in group)
        assert each.output_tokens == sum(row.output_tokens for row in group)
        assert each.cost_nanousd == sum(row.cost_nanousd or 0 for row in group)
        assert each.unpriced == sum(row.cost_nanousd is None for row in group)
        assert each.errors == sum(
            row.outcome in {Outcome.ERROR, Outcome.TIMEOUT, Outcome.SHUTDOWN} for row in group
        )
        assert each.estimated == sum(row.state is State.ESTIMATED for row in group)


def test_a_standing_comes_from_the_counters(store: Any) -> None:
    add(store, limits=Limits(tokens_per_day=1_000, concurrency=5))
    lease = admitted(store, ask("r1"))
    admitted(store, ask("r2"))
    store.finish(used(lease, 30, 3), lease)
    standing = store.standing("ann", NOON)
    assert standing.in_flight == 1
    assert (standing.today.requests, standing.today.tokens, standing.today.cost_nanousd) == (
        2,
        130,
        1_003,
    )
    assert [(each.name.value, each.remaining) for each in standing.limits] == [
        ("concurrency", 4),
        ("tokens_per_day", 870),
    ]
    tomorrow = store.standing("ann", NOON + DAY_MS)
    assert (tomorrow.today.tokens, tomorrow.month.tokens, tomorrow.in_flight) == (0, 130, 0)
    with pytest.raises(CustomerNotFound):
        store.standing("nobody", NOON)


@pytest.mark.parametrize(
    "factory", [each for each in FACTORIES if each.is_durable], ids=lambda factory: factory.name
)
def test_what_was_written_is_there_after_a_restart(factory: StoreFactory, tmp_path: Path) -> None:
    store = factory.make(tmp_path)
    fill(store)
    everything = rows(store), store.open_leases(), store.gate_state("ann"), store.list_customers()
    store.close()
    again = factory.make(tmp_path)
    assert everything == (
        rows(again),
        again.open_leases(),
        again.gate_state("ann"),
        again.list_customers(),
    )
    again.close()
