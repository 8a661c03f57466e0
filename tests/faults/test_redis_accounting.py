"""
Exactly one row for each request, and exact limits, with several processes on one Redis
server, some of which are killed.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stories import add, ask, rows, used
from tests.faults.redis_worker import FAILPOINTS, now_ms
from tests.faults.served import audit as audited
from tests.faults.test_accounting import assert_exact, check_rate
from tests.servers.redis import shared

from bedrock_proxy.admission import Grant
from bedrock_proxy.customers import Limits
from bedrock_proxy_adapters.stores.redis import RedisStore
from bedrock_proxy_adapters.stores.spool import Spool

ROOT = Path(__file__).parents[2]

_prefixes = iter(range(1_000_000))


class Place:
    """A prefix on the shared server, and a folder for what a process keeps beside it."""

    def __init__(self, folder: Path, clock: Any = "server") -> None:
        self.folder = folder
        self.url = f"{shared().url}?prefix=processes-{next(_prefixes)}&timeout=60"
        self.store = RedisStore.from_url(self.url, clock=clock, reap_at_admission=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


class Worker:
    """One process of :mod:`tests.faults.redis_worker`."""

    def __init__(self, mode: str, place: Place, name: str, *rest: object) -> None:
        paths = map(str, (ROOT / "src", ROOT / "adapters", ROOT))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.redis_worker", mode, place.url, name),
                *map(str, rest),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
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
        out, _ = self.process.communicate(timeout=180)
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])


def together(workers: list[Worker]) -> None:
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.go()


# --- T: limits ------------------------------------------------------------------------------


def burst_of(place: Place, processes: int, each: int, defect: str = "none") -> list[Any]:
    workers = [Worker("burst", place, f"p{n}", defect, each) for n in range(processes)]
    together(workers)
    return [worker.result() for worker in workers]


def test_T01_eight_processes_at_a_standing_clock_are_admitted_exactly_the_burst(
    place: Place,
) -> None:
    add(place.store, limits=Limits(requests_per_minute=37))
    granted = burst_of(place, 8, 20)
    print(f"T01: 8 processes, {sum(granted)} of 160 admitted, burst 37: {granted}")
    assert_exact(granted, 37)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "runs"), [(1, 20), (2, 30), (8, 40), (32, 10)])
def test_T01_a_hundred_runs(tmp_path: Path, processes: int, runs: int) -> None:
    for _ in range(runs):
        place = Place(tmp_path)
        add(place.store, limits=Limits(requests_per_minute=37))
        assert_exact(burst_of(place, processes, max(5, 160 // processes)), 37)
        place.store.close()
    print(f"T01: {runs} runs of {processes} processes, exactly the burst each time")


def test_T12_the_same_check_fails_on_a_store_that_gets_and_then_sets(place: Place) -> None:
    add(place.store, limits=Limits(requests_per_minute=37))
    granted = burst_of(place, 4, 100, "get-then-set")
    print(f"T12: get-then-set admitted {granted}")
    with pytest.raises(AssertionError):
        assert_exact(granted, 37)


def saturate(place: Place, processes: int, seconds: float, rate: int, burst: int) -> None:
    add(place.store, limits=Limits(requests_per_minute=rate, burst=burst))
    workers = [Worker("saturate", place, f"p{n}", seconds) for n in range(processes)]
    together(workers)
    times = [at for worker in workers for at in worker.result()]
    excess, lost = check_rate(times, burst, rate)
    print(f"T02: {len(times)} admitted in {seconds} s, excess {excess:.3f}, lost {lost:.3f}")
    assert excess <= 0
    assert lost <= 1


def test_T02_saturating_for_two_seconds_no_window_holds_too_much_or_too_little(
    place: Place,
) -> None:
    saturate(place, 4, 2, 1_200, 15)


@pytest.mark.slow
def test_T02_saturating_for_a_minute(place: Place) -> None:
    saturate(place, 8, 60, 1_700, 30)


def hold_and_kill(place: Place, processes: int, rounds: int, limit: int, lease_ms: int) -> None:
    store = place.store
    add(store, limits=Limits(concurrency=limit))
    worst = 0
    for turn in range(rounds):
        workers = [Worker("hold", place, f"t{turn}p{n}", lease_ms) for n in range(processes)]
        together(workers)
        end = time.monotonic() + random.uniform(0.3, 0.6)
        while time.monotonic() < end:
            live = store.standing("ann", now_ms()).in_flight
            worst = max(worst, live)
            assert live <= limit
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


def test_T03_killed_processes_never_exceed_nor_shrink_the_concurrency(place: Place) -> None:
    hold_and_kill(place, 4, 1, 3, 700)


@pytest.mark.slow
def test_T03_thirty_rounds_of_kills(place: Place) -> None:
    hold_and_kill(place, 8, 30, 3, 2_000)


# --- A: accounting --------------------------------------------------------------------------


def audit(place: Place) -> int:
    """See :func:`tests.faults.served.audit`."""
    store = RedisStore.from_url(place.url, clock="caller", reap_at_admission=False)
    called = audited(store, place.folder)
    store.close()
    return called


def die_at(failpoint: str, place: Place, name: str) -> None:
    worker = Worker("serve", place, name, place.folder, failpoint, 3, 60_000).wait_until_ready()
    worker.go()
    worker.process.communicate(timeout=60)
    assert worker.process.returncode == -9, f"it did not die at {failpoint!r}"


@pytest.mark.parametrize(
    "failpoint",
    [
        "admit: sent, not told",
        "called",
        "finish: not sent",
        "finish: sent, not told",
        "reaper: one of several settled",
        "replay: one settled, still in the file",
    ],
)
def test_A01_killed_at_any_step_nothing_is_lost_or_doubled(place: Place, failpoint: str) -> None:
    add(place.store)
    die_at(failpoint, place, "p")
    assert audit(place) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_A01_killed_fifty_times_at_each_step(place: Place, failpoint: str) -> None:
    add(place.store)
    for turn in range(50):
        die_at(failpoint, place, f"t{turn}")
    print(f"A01 {failpoint}: 50 kills, {audit(place)} calls, 0 lost, 0 double, 0 leaked")


def kill_at_random(place: Place, rounds: int, processes: int) -> None:
    add(place.store)
    for turn in range(rounds):
        workers = [
            Worker("serve", place, f"t{turn}p{n}", place.folder, "never", 100_000, 60_000)
            for n in range(processes)
        ]
        together(workers)
        for worker in workers:
            time.sleep(random.uniform(0, 0.05))
            worker.kill()
    print(f"A02: {rounds * processes} kills, {audit(place)} calls, 0 lost, 0 double, 0 leaked")


def test_A02_killed_at_random_moments_nothing_is_lost_or_doubled(place: Place) -> None:
    kill_at_random(place, 1, 4)


@pytest.mark.slow
def test_A02_a_thousand_kills(place: Place) -> None:
    kill_at_random(place, 125, 8)


def test_A04_one_lease_settled_by_four_processes_is_settled_once(place: Place) -> None:
    """Each replays the same spool."""
    add(place.store)
    spool = Spool(place.folder / "spool")
    for number in range(5):
        decision = place.store.admit(ask(f"r{number}", now_ms()))
        assert isinstance(decision, Grant)
        spool.append(used(decision.lease, 10 + number), decision.lease)
    lines = (place.folder / "spool").read_bytes()
    folders = [place.folder / str(n) for n in range(4)]
    workers = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "spool").write_bytes(lines)
        workers.append(Worker("serve", place, f"p{number}", folder, "never", 0, 60_000))
    together(workers)
    for worker in workers:
        worker.result()
    assert [row.token_count for row in rows(place.store)] == [10, 11, 12, 13, 14]
    state = place.store.gate_state("ann")
    assert (state.day_requests, state.day_tokens) == (5, 60)
    assert place.store.open_leases() == ()


def test_A13_rebuilders_race_with_traffic_and_the_counters_stay_true(place: Place) -> None:
    store = place.store
    add(store)
    workers = [Worker("rebuild", place, f"b{n}", 60) for n in range(4)]
    together(workers)
    number = 0
    while any(worker.process.poll() is None for worker in workers) or number < 50:
        number += 1
        decision = store.admit(ask(f"r{number}", now_ms()))
        assert isinstance(decision, Grant)
        if number % 3:
            store.finish(used(decision.lease, number % 50), decision.lease)
    for worker in workers:
        worker.result()
    state = store.gate_state("ann")
    today = [row for row in rows(store) if row.admitted_at // 86_400_000 == state.day]
    held = [lease for lease in store.open_leases() if lease.request.at // 86_400_000 == state.day]
    print(f"A13: {number} requests during 240 rebuilds")
    assert state.day_requests == len(today) + len(held)
    assert state.day_tokens == sum(row.token_count for row in today) + 100 * len(held)
