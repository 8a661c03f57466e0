"""Exact limits and one row for each request, with several processes on one DynamoDB table."""

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
from tests.adapters.stores.dynamodb_worker import FAILPOINTS, now_ms
from tests.contracts.stories import add, ask, rows, used
from tests.faults.served import audit
from tests.faults.test_accounting import assert_exact, check_rate
from tests.servers import dynamodb

from bedrock_proxy.admission import Grant
from bedrock_proxy.customers import Limits
from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore
from bedrock_proxy_adapters.stores.spool import Spool

ROOT = Path(__file__).resolve().parents[3]

CUSTOMERS = 4
"""Races on moto in one run."""
ATTEMPTS = 4
"""Runs before it counts as atomic after all."""

AT_EVERY_RUN = [
    "admit: sent, not told",
    "called",
    "row: sent, not told",
    "settlement: not sent",
    "settlement: sent, not told",
    "reaper: one of several settled",
    "replay: one settled, still in the file",
]
"""The failpoints that `make test` takes; `make test-slow` takes them all, fifty times."""


class Shared:
    """A table that several processes use."""

    def __init__(self, emulator: dynamodb.Emulator) -> None:
        self.emulator = emulator
        self.name = emulator.table()
        self.url = f"dynamodb://{self.name}?region=us-east-1&endpoint_url={emulator.url}"
        self.store = DynamoDBStore(self.name, emulator.shared_client, reap_at_admission=False)

    def workers(self, count: int, mode: str, *rest: object, prefix: str = "p") -> list[Any]:
        environment = os.environ | dynamodb.CREDENTIALS
        environment["PYTHONPATH"] = os.pathsep.join(
            map(str, (ROOT / "src", ROOT / "adapters", ROOT))
        )
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.adapters.stores.dynamodb_worker"),
                    *(mode, self.url, f"{prefix}{number}", *map(str, rest)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                cwd=ROOT,
                text=True,
            )
            for number in range(count)
        ]
        for each in started:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        return started


def results(workers: list[Any]) -> list[Any]:
    found = []
    for each in workers:
        out, _ = each.communicate(timeout=180)
        assert each.returncode == 0
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.fixture(params=dynamodb.NAMES)
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    made = Shared(dynamodb.shared(request.param))
    yield made
    made.store.close()


def test_T01_eight_processes_at_a_standing_clock_are_admitted_exactly_the_burst(
    shared: Shared,
) -> None:
    add(shared.store, limits=Limits(requests_per_minute=37))
    granted = results(shared.workers(8, "burst", "none", 10))
    print(f"T01 {shared.emulator.name}: {sum(granted)} of 80 admitted, burst 37: {granted}")
    assert_exact(granted, 37)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "runs"), [(1, 3), (2, 5), (8, 10), (32, 2)])
def test_T01_many_runs(shared: Shared, processes: int, runs: int) -> None:
    for run in range(runs):
        table = Shared(shared.emulator)
        add(table.store, limits=Limits(requests_per_minute=37, tokens_per_minute=100_000))
        granted = results(table.workers(processes, "burst", "none", max(5, 160 // processes)))
        assert_exact(granted, 37)
        table.store.close()
        print(f"T01 {shared.emulator.name}: run {run} of {processes} processes: exact")


def test_T12_the_same_check_fails_on_a_store_that_is_not_atomic() -> None:
    shared = Shared(dynamodb.shared("dynalite"))
    add(shared.store, limits=Limits(requests_per_minute=37))
    granted = results(shared.workers(4, "burst", "get-then-set", 60))
    print(f"T12: without conditions {sum(granted)} were admitted: {granted}")
    with pytest.raises(AssertionError):
        assert_exact(granted, 37)


def test_T12_the_same_check_fails_on_a_server_that_is_not_atomic() -> None:
    """
    The store as it is, on moto: a race, so it may have to be run more than once. (moto also
    answers 500 now and then; what it did not tell to be granted is not counted.)
    """
    server = dynamodb.shared("moto")
    for _ in range(ATTEMPTS):
        shared = Shared(server)
        for customer in range(CUSTOMERS):
            add(shared.store, f"c{customer}", limits=Limits(requests_per_minute=37))
        told = results(shared.workers(8, "heard", CUSTOMERS, 8))
        shared.store.close()
        granted = [sum(of_one) for of_one in zip(*told, strict=True)]
        print(f"T12 moto: of 64 each, with a burst of 37, were admitted: {granted}")
        if max(granted) > 37:
            # One by one: a customer who lost some to an error may make up for the other's excess.
            with pytest.raises(AssertionError):
                assert_exact([max(granted)], 37)
            return
    pytest.fail(f"{ATTEMPTS} races on a server that is not atomic, and none was found out")


def saturate(shared: Shared, processes: int, seconds: float, rate: int, burst: int) -> None:
    add(shared.store, limits=Limits(requests_per_minute=rate, burst=burst))
    found = results(shared.workers(processes, "saturate", seconds))
    times = [at for each in found for at in each["times"]]
    excess, lost = check_rate(times, burst, rate)
    refused = sum(each["refused"] for each in found)
    print(
        f"T02 {shared.emulator.name}: {len(times)} admitted and {refused} refused in {seconds} s,"
        f" excess {excess:.3f}, lost {lost:.3f}"
    )
    assert not any(each["unavailable"] for each in found)
    assert refused > len(times), "the load did not saturate the limit"
    assert excess <= 0
    assert lost <= 1
    assert shared.store.open_leases() == ()
    state = shared.store.gate_state("ann")
    assert len(rows(shared.store)) == len(times) == state.month_requests


def test_T02_saturating_no_window_holds_too_much_or_too_little() -> None:
    saturate(Shared(dynamodb.shared("ministack")), 4, 3, 180, 5)


@pytest.mark.slow
def test_T02_eight_processes_saturating_for_a_minute(shared: Shared) -> None:
    saturate(shared, 8, 60, 240, 30)


def hold_and_kill(shared: Shared, rounds: int, processes: int, limit: int, lease_ms: int) -> None:
    store = shared.store
    add(store, limits=Limits(concurrency=limit))
    admitted: set[str] = set()
    worst = 0
    for turn in range(rounds):
        workers = shared.workers(processes, "hold", lease_ms, prefix=f"t{turn}p")
        end = time.monotonic() + random.uniform(0.2, 0.6)
        latest, seen = end + 10, 0
        while time.monotonic() < end or (not seen and time.monotonic() < latest):
            live = sum(lease.deadline > now_ms() for lease in store.open_leases())
            seen = max(seen, live)
            assert live <= limit
        worst = max(worst, seen)
        for each in workers:
            each.kill()
            out, _ = each.communicate()
            admitted.update(json.loads(line) for line in out.splitlines() if line.endswith('"'))
    killed = time.monotonic()
    got = 0
    while got < limit:
        request = ask(f"after-{time.monotonic_ns()}", now_ms(), lease_ms=60_000)
        got += isinstance(store.admit(request), Grant)
        assert time.monotonic() - killed <= lease_ms / 1000 + 5
        time.sleep(0.01)
    store.reap(now_ms() + 3_600_000)
    found = rows(store)
    ids = [row.request_id for row in found]
    assert len(ids) == len(set(ids)), "A02: a request has two rows"
    assert admitted <= set(ids), "A02: a row was lost"
    assert store.open_leases() == ()
    state = store.gate_state("ann")
    today = [row for row in found if row.admitted_at // 86_400_000 == state.day]
    assert (state.day_requests, state.day_tokens) == (
        len(today),
        sum(row.token_count for row in today),
    )
    print(f"T03/A02 {shared.emulator.name}: {rounds * processes} kills, {len(found)} rows, {worst}")
    assert worst > 0


def test_T03_A02_killed_processes_leave_neither_leases_nor_gaps_nor_doubles() -> None:
    hold_and_kill(Shared(dynamodb.shared("ministack")), 1, 4, 3, 700)


@pytest.mark.slow
def test_T03_A02_many_kills() -> None:
    # dynalite itself ends when a client breaks off within a request.
    hold_and_kill(Shared(dynamodb.shared("ministack")), 15, 8, 3, 1_000)


# --- A: accounting --------------------------------------------------------------------------------


def die_at(failpoint: str, shared: Shared, folder: Path, name: str) -> None:
    (worker,) = shared.workers(1, "serve", folder, failpoint, 3, 60_000, prefix=name)
    worker.communicate(timeout=120)
    assert worker.returncode == -9, f"it did not die at {failpoint!r}"


def kill_at(failpoint: str, folder: Path, times: int) -> None:
    shared = Shared(dynamodb.shared("ministack"))
    add(shared.store)
    for turn in range(times):
        die_at(failpoint, shared, folder, f"t{turn}-")
    called = audit(shared.store, folder)
    assert called >= times
    print(f"A01 {failpoint}: {times} kills, {called} calls, 0 lost, 0 double, 0 leaked")
    shared.store.close()


@pytest.mark.parametrize("failpoint", AT_EVERY_RUN)
def test_A01_killed_at_any_step_nothing_is_lost_or_doubled(failpoint: str, tmp_path: Path) -> None:
    kill_at(failpoint, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_A01_killed_fifty_times_at_each_step(failpoint: str, tmp_path: Path) -> None:
    kill_at(failpoint, tmp_path, 50)


def kill_at_random(folder: Path, rounds: int, processes: int) -> None:
    shared = Shared(dynamodb.shared("ministack"))
    add(shared.store)
    for turn in range(rounds):
        workers = shared.workers(
            processes, "serve", folder, "never", 100_000, 60_000, prefix=f"t{turn}p"
        )
        for worker in workers:
            time.sleep(random.uniform(0, 0.1))
            worker.kill()
            worker.communicate()
    called = audit(shared.store, folder)
    print(f"A02: {rounds * processes} kills, {called} calls, 0 lost, 0 double, 0 leaked")
    shared.store.close()


def test_A02_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 1, 4)


@pytest.mark.slow
def test_A02_a_thousand_kills(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 125, 8)


def test_A04_one_lease_settled_by_four_processes_is_settled_once(tmp_path: Path) -> None:
    """Each replays the same spool."""
    shared = Shared(dynamodb.shared("ministack"))
    add(shared.store)
    spool = Spool(tmp_path / "spool")
    for number in range(5):
        decision = shared.store.admit(ask(f"r{number}", now_ms()))
        assert isinstance(decision, Grant)
        spool.append(used(decision.lease, 10 + number), decision.lease)
    for number in range(4):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}" / "spool").write_bytes((tmp_path / "spool").read_bytes())
    results(shared.workers(4, "replay", tmp_path))
    assert [row.token_count for row in rows(shared.store)] == [10, 11, 12, 13, 14]
    state = shared.store.gate_state("ann")
    assert (state.day_requests, state.day_tokens) == (5, 60)
    assert shared.store.open_leases() == ()
    assert [(tmp_path / f"p{number}" / "spool").exists() for number in range(4)] == [False] * 4
    shared.store.close()
