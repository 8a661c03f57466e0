"""Every store: admission is one atomic step, and every limit holds exactly."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from tests.contracts.stories import LEASE_MS, MINUTE, NOON, add, admitted, ask, refused, rows, used

from bedrock_proxy.admission import Barred, Grant, Limit, Refusal
from bedrock_proxy.customers import Limits
from bedrock_proxy.errors import StoreUnavailable


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """*work* on so many threads that begin together; what each returned."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_T01_threads_at_a_standing_clock_are_admitted_exactly_the_burst(
    threaded: Any, workers: int
) -> None:
    add(threaded, limits=Limits(requests_per_minute=37))

    def work(number: int) -> int:
        decisions = [threaded.admit(ask(f"{number}-{n}")) for n in range(64 // workers)]
        return sum(isinstance(decision, Grant) for decision in decisions)

    assert sum(at_once(workers, work)) == 37


LIMITED = [
    (Limit.REQUESTS_PER_MINUTE, Limits(requests_per_minute=2)),
    (Limit.TOKENS_PER_MINUTE, Limits(tokens_per_minute=200)),
    (Limit.CONCURRENCY, Limits(concurrency=2)),
    (Limit.REQUESTS_PER_DAY, Limits(requests_per_day=2)),
    (Limit.TOKENS_PER_DAY, Limits(tokens_per_day=200)),
    (Limit.TOKENS_PER_MONTH, Limits(tokens_per_month=200)),
    (Limit.COST_PER_DAY, Limits(cost_per_day=2_000)),
    (Limit.COST_PER_MONTH, Limits(cost_per_month=2_000)),
]
GENEROUS = Limits(
    requests_per_minute=100,
    tokens_per_minute=10_000,
    concurrency=100,
    requests_per_day=100,
    tokens_per_day=10_000,
    tokens_per_month=10_000,
    cost_per_day=100_000,
    cost_per_month=100_000,
)


@pytest.mark.parametrize(("name", "limit"), LIMITED, ids=[name.value for name, _ in LIMITED])
def test_T04_a_rejection_by_one_limit_consumes_no_other(
    store: Any, name: Limit, limit: Limits
) -> None:
    add(store, limits=evolve(GENEROUS, **{name.value: getattr(limit, name.value)}))
    for number in range(2):
        admitted(store, ask(f"r{number}"))
    before = store.gate_state("ann"), store.open_leases("ann")
    for number in range(5):
        refusal = refused(store, ask(f"no{number}"))
        assert (refusal.reason, refusal.cap) == (name, getattr(limit, name.value))
    assert (store.gate_state("ann"), store.open_leases("ann")) == before


@pytest.mark.parametrize(
    ("name", "limit"),
    [each for each in LIMITED if each[0] is not Limit.CONCURRENCY],
    ids=[name.value for name, _ in LIMITED if name is not Limit.CONCURRENCY],
)
def test_T05_retry_after_is_enough_and_a_second_less_is_not(
    store: Any, name: Limit, limit: Limits
) -> None:
    add(store, limits=limit)
    for number in range(2):
        admitted(store, ask(f"r{number}", NOON + number * 17))
    wait = refused(store, ask("no", NOON + 17)).retry_after
    assert wait is not None
    assert refused(store, ask("early", NOON + 17 + (wait - 1) * 1000)).reason is name
    admitted(store, ask("late", NOON + 17 + wait * 1000))


def test_the_grant_tells_what_is_left(store: Any) -> None:
    add(store, limits=Limits(requests_per_minute=5, tokens_per_day=1_000))
    decision = store.admit(ask("r1"))
    told = {each.name: (each.limit, each.remaining, each.resets_in) for each in decision.limits}
    assert told == {
        Limit.REQUESTS_PER_MINUTE: (5, 4, 12),
        Limit.TOKENS_PER_DAY: (1_000, 900, 12 * 3600),
    }


def test_T06_long_streams_cannot_hoard_refunds(store: Any) -> None:
    add(store, limits=Limits(tokens_per_minute=800))
    leases = []
    for number in range(8):
        at = NOON + number * MINUTE
        leases.append(admitted(store, ask(f"long{number}", at, input_tokens=800, output_tokens=0)))
    now = NOON + 8 * MINUTE
    passed = 0
    for number, lease in enumerate(leases):
        store.finish(used(lease, 0, duration_ms=now - lease.request.at), lease)
        while isinstance(store.admit(ask(f"n{number}-{passed}", now)), Grant):
            passed += 100
    assert passed == 800


def test_a_prompt_refund_is_given_in_full(store: Any) -> None:
    add(store, limits=Limits(tokens_per_minute=1_000))
    lease = admitted(store, ask("r1", input_tokens=1_000, output_tokens=0))
    assert refused(store, ask("r2")).reason is Limit.TOKENS_PER_MINUTE
    store.finish(used(lease, 100, duration_ms=0), lease)
    admitted(store, ask("r2", input_tokens=900, output_tokens=0))


def test_T08_a_customer_beyond_its_limit_takes_nothing_from_another(threaded: Any) -> None:
    add(threaded, "ann", Limits(requests_per_minute=20))
    add(threaded, "bob", Limits(requests_per_minute=20))

    def work(number: int) -> int:
        name, count = ("ann", 250) if number < 4 else ("bob", 10)
        decisions = [threaded.admit(ask(f"{number}-{n}", customer_id=name)) for n in range(count)]
        return sum(isinstance(decision, Refusal) for decision in decisions)

    *greedy, modest = at_once(5, work)
    assert sum(greedy) == 1_000 - 20
    assert modest == 0


def test_T09_a_changed_limit_holds_from_the_next_admission_on(store: Any) -> None:
    add(store, limits=Limits(requests_per_minute=2))

    def change(limits: Limits) -> None:
        store.update_customer("ann", lambda customer: evolve(customer, limits=limits))

    admitted(store, ask("r1"))
    admitted(store, ask("r2"))
    refused(store, ask("r3"))
    change(Limits(requests_per_minute=3))
    admitted(store, ask("r3"))
    refused(store, ask("r4"))
    change(Limits(requests_per_minute=0))
    assert refused(store, ask("r4", NOON + 60 * MINUTE)).retry_after is None
    change(Limits())
    admitted(store, ask("r4"))


def test_T03_an_expired_lease_counts_as_free_but_stays_until_it_is_settled(store: Any) -> None:
    add(store, limits=Limits(concurrency=1))
    lease = admitted(store, ask("r1"))
    assert refused(store, ask("r2", NOON + LEASE_MS - 1)).reason is Limit.CONCURRENCY
    admitted(store, ask("r2", NOON + LEASE_MS))
    assert {each.request.request_id for each in store.open_leases()} == {"r1", "r2"}
    store.finish(used(lease), lease)
    assert [each.request.request_id for each in store.open_leases()] == ["r2"]


def test_a_renewed_lease_goes_on_counting(store: Any) -> None:
    add(store, limits=Limits(concurrency=1))
    lease = admitted(store, ask("r1"))
    longer = store.renew(lease, NOON + 200_000)
    assert longer.deadline == NOON + 200_000 + LEASE_MS
    assert store.renew(longer, NOON).deadline == longer.deadline
    assert refused(store, ask("r2", NOON + LEASE_MS)).reason is Limit.CONCURRENCY
    assert store.reap(NOON + LEASE_MS) == 0
    assert store.open_leases() == (longer,)


def test_renewing_a_lease_that_is_gone_does_not_bring_it_back(store: Any) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    store.finish(used(lease), lease)
    assert store.renew(lease, NOON + 1_000).deadline == NOON + 1_000 + LEASE_MS
    assert store.open_leases() == ()


def test_a_released_request_leaves_no_trace(store: Any) -> None:
    add(store, limits=evolve(GENEROUS, requests_per_minute=1, requests_per_day=1))
    request = ask("r1")
    admitted(store, request)
    store.release(request)
    store.release(request)
    assert store.open_leases() == ()
    assert rows(store) == []
    state = store.gate_state("ann")
    assert (state.day_requests, state.day_tokens, state.month_cost) == (0, 0, 0)
    admitted(store, ask("r2"))


def test_releasing_what_was_never_admitted_is_harmless(store: Any) -> None:
    add(store, limits=GENEROUS)
    admitted(store, ask("r1"))
    before = store.gate_state("ann")
    store.release(ask("r2"))
    store.release(ask("r3", customer_id="nobody"))
    assert store.gate_state("ann") == before


def test_I14_asking_again_for_the_same_request_reserves_nothing_more(store: Any) -> None:
    """A reply that was lost may be asked for again."""
    add(store, limits=Limits(requests_per_day=1))
    first = admitted(store, ask("r1"))
    before = store.gate_state("ann")
    assert admitted(store, ask("r1")) == first
    assert store.gate_state("ann") == before
    assert len(store.open_leases()) == 1


def test_A08_stored_times_do_not_follow_a_clock_backwards(store: Any) -> None:
    add(store, limits=Limits(requests_per_minute=3, requests_per_day=10))
    admitted(store, ask("r1"))
    lease = admitted(store, ask("r2", NOON - 60 * MINUTE))
    assert lease.request.at == NOON
    admitted(store, ask("r3", NOON - 5 * MINUTE))
    assert refused(store, ask("r4", NOON - 5 * MINUTE)).retry_after == 5 * 60 + 20
    assert store.gate_state("ann").clock == NOON
    store.finish(used(lease, duration_ms=0, admitted_at=NOON - 60 * MINUTE), lease)
    assert [row.admitted_at for row in rows(store)] == [NOON]


def test_a_money_budget_refuses_what_has_no_price(store: Any) -> None:
    add(store, limits=Limits(cost_per_day=10**9))
    assert refused(store, ask("r1", cost_nanousd=None)).reason is Barred.PRICE_UNKNOWN


def test_a_closed_store_serves_nothing(store: Any) -> None:
    first = add(store)
    lease = admitted(store, ask("r1"))
    store.close()
    for call in (
        lambda: store.find_token(b"other", NOON),
        lambda: store.admit(ask("r2")),
        lambda: store.renew(lease, NOON),
        lambda: store.release(ask("r1")),
        lambda: store.finish(used(lease), lease),
        lambda: store.get_customer("ann"),
        lambda: store.revoke_key("ann", first.key_id),
        lambda: store.list_rows(),
        lambda: store.reap(NOON),
    ):
        with pytest.raises((StoreUnavailable, RuntimeError)):
            call()


COUNTED = 2**53
"""What every store can count: whole numbers are exact so far everywhere."""


def test_I3_a_reservation_that_could_not_be_counted_is_refused_and_changes_nothing(
    store: Any,
) -> None:
    add(store, limits=Limits(requests_per_day=100))
    lease = admitted(store, ask("r1"))
    store.finish(used(lease, 3_000), lease)
    before = store.gate_state("ann")
    for tokens in (COUNTED - 2_999, COUNTED, COUNTED + 1, 2**60):
        refusal = refused(store, ask("big", input_tokens=1, output_tokens=tokens - 1))
        assert refusal.reason is Limit.TOKENS_PER_MONTH
        assert (refusal.retry_after is None) == (tokens > COUNTED)
    assert store.gate_state("ann") == before
    assert store.open_leases() == ()


def test_I3_the_largest_reservation_that_can_be_counted_leaves_the_counters_exact(
    store: Any,
) -> None:
    add(store, limits=Limits(requests_per_day=100))
    lease = admitted(store, ask("r1"))
    store.finish(used(lease, 3_000), lease)
    largest = admitted(store, ask("big", input_tokens=1, output_tokens=COUNTED - 3_001))
    assert store.gate_state("ann").day_tokens == COUNTED
    assert refused(store, ask("r2")).reason is Limit.TOKENS_PER_MONTH
    admitted(store, ask("none", input_tokens=0, output_tokens=0))
    store.finish(used(largest, 5), largest)
    assert store.gate_state("ann").day_tokens == 3_005
    assert store.gate_state("ann").month_tokens == 3_005
    admitted(store, ask("r2"))
