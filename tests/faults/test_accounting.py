"""
Exactly one row for each request, and exact limits, with several processes on one SQLite
file, some of which are killed.
"""

import json
import os
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stories import NOON, add, ask, rows, used
from tests.faults.accounting_worker import INLINE, KEPT, PATCHED, REDONE, now_ms
from tests.faults.served import audit as audited

from bedrock_proxy.admission import Grant
from bedrock_proxy.customers import Limits
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]


class Worker:
    """One process of :mod:`tests.faults.accounting_worker`."""

    def __init__(self, mode: str, store: SqliteStore, name: str, *rest: object) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "adapters", ROOT)))
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.faults.accounting_worker",
                mode,
                str(store.path),
                name,
                *map(str, rest),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=ROOT,
            text=True,
        )

    def wait_until_ready(self) -> "Worker":
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def result(self) -> Any:
        out, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])


def together(workers: list[Worker]) -> None:
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.go()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = SqliteStore(tmp_path / "store.db", reap_at_admission=False)
    yield made
    made.close()


# --- T: limits ------------------------------------------------------------------------------


WAYS = pytest.mark.parametrize("way", ["", "loop-"], ids=["threads", "loops"])
"""How the processes call the store."""


def burst_of(
    store: SqliteStore, processes: int, each: int, defect: str = "none", way: str = ""
) -> list[Any]:
    workers = [Worker(f"{way}burst", store, f"p{n}", defect, each) for n in range(processes)]
    together(workers)
    return [worker.result() for worker in workers]


def assert_exact(granted: list[Any], burst: int) -> None:
    assert all(isinstance(count, int) for count in granted), granted
    assert sum(granted) == burst


@WAYS
def test_T01_four_processes_at_a_standing_clock_are_admitted_exactly_the_burst(
    store: SqliteStore, way: str
) -> None:
    add(store, limits=Limits(requests_per_minute=37))
    granted = burst_of(store, 4, 40, way=way)
    print(f"T01: 4 processes, {sum(granted)} of 160 admitted, burst 37: {granted}")
    assert_exact(granted, 37)


@pytest.mark.slow
@WAYS
@pytest.mark.parametrize(("processes", "runs"), [(1, 20), (2, 30), (8, 40), (32, 10)])
def test_T01_a_hundred_runs(tmp_path: Path, processes: int, runs: int, way: str) -> None:
    for run in range(runs):
        store = SqliteStore(tmp_path / f"{run}.db", reap_at_admission=False)
        add(store, limits=Limits(requests_per_minute=37))
        assert_exact(burst_of(store, processes, max(5, 160 // processes), way=way), 37)
        store.close()
    print(f"T01: {runs} runs of {processes} processes, exactly the burst each time")


@pytest.mark.parametrize("defect", ["get-then-set", "deferred"])
def test_T12_the_same_check_fails_on_a_store_that_is_not_atomic(
    store: SqliteStore, defect: str
) -> None:
    add(store, limits=Limits(requests_per_minute=37))
    granted = burst_of(store, 4, 300, defect)
    print(f"T12: {defect} admitted {granted}")
    with pytest.raises(AssertionError):
        assert_exact(granted, 37)


def check_rate(times: list[int], burst: int, rate: int) -> tuple[float, float]:
    """The worst excess over ``burst + rate x window``, and the permits that were lost."""
    times = sorted(times)
    excess = max(
        (last - first + 1) - (burst + Fraction(rate * (times[last] - times[first]), 60_000))
        for first in range(len(times))
        for last in range(first, len(times), 1 if len(times) < 700 else 7)
    )
    lost = burst + Fraction(rate * (times[-1] - times[0]), 60_000) - len(times)
    return float(excess), float(lost)


def saturate(store: SqliteStore, seconds: float, rate: int, burst: int, way: str) -> None:
    add(store, limits=Limits(requests_per_minute=rate, burst=burst))
    workers = [Worker(f"{way}saturate", store, f"p{n}", seconds) for n in range(4)]
    together(workers)
    times = [at for worker in workers for at in worker.result()]
    excess, lost = check_rate(times, burst, rate)
    print(f"T02: {len(times)} admitted in {seconds} s, excess {excess:.3f}, lost {lost:.3f}")
    assert excess <= 0
    assert lost <= 1


@WAYS
def test_T02_saturating_for_two_seconds_no_window_holds_too_much_or_too_little(
    store: SqliteStore, way: str
) -> None:
    saturate(store, 2, 1_200, 15, way)


@pytest.mark.slow
@WAYS
def test_T02_saturating_for_a_minute(store: SqliteStore, way: str) -> None:
    saturate(store, 60, 1_700, 30, way)


def hold_and_kill(store: SqliteStore, rounds: int, limit: int, lease_ms: int) -> None:
    add(store, limits=Limits(concurrency=limit))
    worst = 0

    def look() -> None:
        nonlocal worst
        leases = store.open_leases()
        # Whatever was taken before this reading was taken under a clock no later than now.
        live = sum(lease.deadline > now_ms() for lease in leases)
        worst = max(worst, live)
        assert live <= limit

    for turn in range(rounds):
        workers = [Worker("hold", store, f"t{turn}p{n}", lease_ms) for n in range(4)]
        together(workers)
        end = time.monotonic() + random.uniform(0.2, 0.5)
        while time.monotonic() < end:
            look()
        for worker in workers:
            worker.kill()
    killed = time.monotonic()
    got = 0
    while got < limit:
        decision = store.admit(ask(f"after-{got}-{time.monotonic_ns()}", now_ms(), lease_ms=60_000))
        got += isinstance(decision, Grant)
        took = time.monotonic() - killed
        assert took <= lease_ms / 1000 + 5
        time.sleep(0.01)
    print(f"T03: at most {worst} of {limit} at once; full capacity back after {took:.2f} s")
    assert worst > 0


def test_T03_killed_processes_never_exceed_nor_shrink_the_concurrency(store: SqliteStore) -> None:
    hold_and_kill(store, 1, 3, 700)


@pytest.mark.slow
def test_T03_thirty_rounds_of_kills(store: SqliteStore) -> None:
    hold_and_kill(store, 30, 3, 2_000)


# --- A: accounting --------------------------------------------------------------------------


def audit(store: SqliteStore) -> int:
    """See :func:`tests.faults.served.audit`."""
    return audited(store, store.path.parent)


def die_at(
    failpoint: str, store: SqliteStore, name: str, lease_ms: int = 60_000, way: str = ""
) -> None:
    worker = Worker(f"{way}serve", store, name, failpoint, 4, lease_ms).wait_until_ready()
    worker.go()
    worker.process.communicate(timeout=60)
    assert worker.process.returncode == -9, f"it did not die at {failpoint!r}"


@pytest.mark.parametrize("failpoint", [*INLINE, *PATCHED])
def test_A01_killed_at_any_step_nothing_is_lost_or_doubled(
    store: SqliteStore, failpoint: str
) -> None:
    add(store)
    die_at(failpoint, store, "p")
    assert audit(store) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [*INLINE, *PATCHED])
def test_A01_killed_fifty_times_at_each_step(store: SqliteStore, failpoint: str) -> None:
    add(store)
    for turn in range(50):
        die_at(failpoint, store, f"t{turn}")
    print(f"A01 {failpoint}: 50 kills, {audit(store)} calls, 0 lost, 0 double, 0 leaked")


@pytest.mark.parametrize("failpoint", [*INLINE, *KEPT])
def test_A01_killed_at_any_step_of_a_turn_that_is_kept_nothing_is_lost_or_doubled(
    store: SqliteStore, failpoint: str
) -> None:
    add(store)
    die_at(failpoint, store, "p", way="loop-")
    assert audit(store) >= 1


@pytest.mark.parametrize("failpoint", REDONE)
def test_A01_killed_while_it_does_again_what_a_killed_one_had_told(
    store: SqliteStore, failpoint: str
) -> None:
    add(store)
    die_at("tenure: in the log, not told", store, "p", way="loop-")
    die_at(failpoint, store, "q", way="loop-")
    assert {lease.request.request_id for lease in store.open_leases()} == {"p-1"}
    assert audit(store) == 1


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [*INLINE, *KEPT])
def test_A01_killed_fifty_times_at_each_step_of_a_turn_that_is_kept(
    store: SqliteStore, failpoint: str
) -> None:
    add(store)
    for turn in range(50):
        die_at(failpoint, store, f"t{turn}", way="loop-")
    print(f"A01 {failpoint}: 50 kills, {audit(store)} calls, 0 lost, 0 double, 0 leaked")


def kill_at_random(store: SqliteStore, rounds: int, way: str, processes: int = 4) -> None:
    add(store)
    for turn in range(rounds):
        workers = [
            Worker(f"{way}serve", store, f"t{turn}p{n}", "never", 10_000, 60_000)
            for n in range(processes)
        ]
        together(workers)
        for worker in workers:
            time.sleep(random.uniform(0, 0.05))
            worker.kill()
    print(f"A02: {rounds * processes} kills, {audit(store)} calls, 0 lost, 0 double, 0 leaked")


@WAYS
def test_A02_killed_at_random_moments_nothing_is_lost_or_doubled(
    store: SqliteStore, way: str
) -> None:
    kill_at_random(store, 2, way)


def test_A02_killed_at_random_moments_while_it_keeps_its_turn(store: SqliteStore) -> None:
    kill_at_random(store, 8, "loop-", processes=1)


@pytest.mark.slow
def test_A02_a_thousand_kills_of_one_that_keeps_its_turn(store: SqliteStore) -> None:
    kill_at_random(store, 1_000, "loop-", processes=1)


@pytest.mark.slow
@WAYS
def test_A02_a_thousand_kills(store: SqliteStore, way: str) -> None:
    kill_at_random(store, 250, way)


def test_A13_four_rebuilders_race_with_traffic_and_the_counters_stay_true(
    store: SqliteStore,
) -> None:
    add(store)
    workers = [Worker("rebuild", store, f"b{n}", 60) for n in range(4)]
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.go()
    number = 0
    while any(worker.process.poll() is None for worker in workers) or number < 50:
        number += 1
        lease = store.admit(ask(f"r{number}", now_ms())).lease  # type: ignore[union-attr]
        if number % 3:
            store.finish(used(lease, number % 50), lease)
    for worker in workers:
        worker.result()
    state = store.gate_state("ann")
    today = [row for row in rows(store) if row.admitted_at // 86_400_000 == state.day]
    held = [lease for lease in store.open_leases() if lease.request.at // 86_400_000 == state.day]
    print(f"A13: {number} requests during 240 rebuilds")
    assert state.day_requests == len(today) + len(held)
    assert state.day_tokens == sum(row.token_count for row in today) + 100 * len(held)


def test_a_killed_writer_leaves_its_turn_to_the_others(store: SqliteStore) -> None:
    """The ticket is the kernel's: it goes with the process."""
    add(store, limits=Limits(requests_per_minute=100_000))
    for turn in range(3):
        worker = Worker("saturate", store, f"t{turn}", 30).wait_until_ready()
        worker.go()
        time.sleep(0.1)
        worker.kill()
        assert isinstance(store.admit(ask(f"mine-{turn}", NOON)), Grant)
