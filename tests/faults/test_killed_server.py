"""
A real ``bedrock-proxy serve``, killed without warning with streams under way (A01, A02); and
a store that is down when a request is to be settled.

The fake Bedrock lives in the test: what reached it is known whatever becomes of the server.
"""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.running import (
    RawClient,
    Running,
    add_customer,
    answers,
    body,
    free_port,
    on_gunicorn,
    on_uvicorn,
    post,
    server_environment,
    wait_for,
)

from bedrock_proxy.accounts import total
from bedrock_proxy.periods import day_of, month_of
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.proxy import LoggingTelemetry
from bedrock_proxy_adapters.simulator import Call, RunningSimulator, Script
from bedrock_proxy_adapters.stores.spool import Spool, SpoolGate
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.upkeep import Upkeep

LEASE_SECONDS = 2
STREAMS = 8


@contextlib.contextmanager
def serving(
    simulator: RunningSimulator,
    folder: Path,
    store: SqliteStore,
    name: str,
    lease_seconds: int = LEASE_SECONDS,
) -> Iterator[tuple[Running, "subprocess.Popen[bytes]"]]:
    """The command as an operator starts it."""
    port = free_port()
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from bedrock_proxy_adapters.cli import main; main()"),
                *("serve", "--port", str(port)),
            ],
            env=server_environment(
                simulator, folder, BEDROCK_PROXY_LEASE_SECONDS=str(lease_seconds)
            ),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: answers(port) or None, "serve", 60)
        yield Running("uvicorn", "127.0.0.1", port, simulator, store, process=process), process
    finally:
        process.kill()
        process.wait()


def tagged(tag: str) -> bytes:
    """A request that is known again at Bedrock by its prompt."""
    return body(messages=[{"role": "user", "content": tag}])


def tag_of(call: Call) -> str:
    tag: str = json.loads(call.body)["messages"][0]["content"]
    return tag


def called(simulator: RunningSimulator, times: int) -> bool | None:
    return len(simulator.calls) >= times or None


def until_cut_off(running: Running, stop: threading.Event, seen: list[str]) -> None:
    """Ask again and again, to the end of each stream, until the server is gone."""
    while not stop.is_set():
        tag = uuid.uuid4().hex
        try:
            with RawClient(
                running, tagged(tag), X_Client_Request_Id=tag, Connection="close"
            ) as client:
                seen.append(client.request_id)
                client.read_rest(10)
        except (OSError, AssertionError):
            return


def storm(folder: Path, kills: int, seed: int) -> tuple[int, int, Counter[str]]:
    """
    Kill the server so many times, then look whether the books are right.

    Returns:
        Calls that reached Bedrock, streams that the kills cut off, rows by state.
    """
    rng = random.Random(seed)
    with RunningSimulator(keep=1_000_000) as simulator:
        store = SqliteStore(folder / "proxy.db", reap_at_admission=False)
        customer_id = add_customer(store)
        simulator.default(Script(text="word " * 30, pace=0.01, input_tokens=9, output_tokens=30))
        seen: list[str] = []
        cut_off: set[str] = set()
        for n in range(kills):
            with serving(simulator, folder, store, f"serve-{n}") as (running, process):
                stop = threading.Event()
                clients = [
                    threading.Thread(target=until_cut_off, args=(running, stop, seen))
                    for _ in range(STREAMS)
                ]
                enough = len(simulator.calls) + STREAMS // 2
                for client in clients:
                    client.start()
                wait_for(partial(called, simulator, enough), "calls", 30)
                time.sleep(rng.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
                process.wait()
                stop.set()
                for client in clients:
                    client.join()
                cut_off |= {lease.request.request_id for lease in store.open_leases()}
        reached = Counter(tag_of(call) for call in simulator.calls)
        with serving(simulator, folder, store, "serve-last") as (running, _):
            wait_for(lambda: not store.open_leases() or None, "the reaper", LEASE_SECONDS + 5 + 20)
            simulator.default(Script(text="fine", input_tokens=1, output_tokens=1))
            assert 200 == post(running, body(stream=False))[0]
            wait_for(lambda: not store.open_leases() or None, "the last settlement")
            rows = running.rows()
        check_books(store, customer_id)
        ids = Counter(row.request_id for row in rows)
        assert 1 == max(ids.values()), "a row is doubled"
        assert set(seen) <= set(ids), "a stream that a client saw has no row"
        # A request may be killed between its admission and its call, so that a row has no
        # call; a call without a row is what must never be.
        by_tag = Counter(row.client_request_id for row in rows)
        assert {} == {tag: by_tag[tag] for tag in reached if by_tag[tag] != 1}
        assert {(9, 30), (1, 1)} == {
            (row.input_tokens, row.output_tokens) for row in rows if row.state is State.FINAL
        }
        states = Counter(str(row.state) for row in rows)
        estimated = {row.request_id for row in rows if row.state is State.ESTIMATED}
        assert cut_off == estimated, "what was cut off is an estimate, and nothing else is"
        for log in folder.glob("*.log"):
            assert b"Traceback" not in log.read_bytes()
        store.close()
    return len(reached), len(cut_off), states


def check_books(store: SqliteStore, customer_id: str) -> None:
    """Counters, ledger and leases of a customer agree (I3, I13)."""
    now = time.time_ns() // 1_000_000
    standing = store.standing(customer_id, now)
    rows = list(every_row(store, customer_id=customer_id))
    assert () == store.open_leases()
    assert 0 == standing.in_flight
    today = total((r for r in rows if day_of(r.admitted_at) == day_of(now)), ())
    month = total((r for r in rows if month_of(r.admitted_at) == month_of(now)), ())
    assert (today.requests, today.tokens) == (standing.today.requests, standing.today.tokens)
    assert (month.requests, month.tokens) == (standing.month.requests, standing.month.tokens)


def test_A01_a_server_killed_with_streams_under_way_leaves_the_bill_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached, cut_off, states = storm(tmp_path, kills=3, seed=1)
    assert cut_off > 0, "nothing was under way"
    with capsys.disabled():
        print(
            f"\nA01 kill -9 of serve: 3 kills, {reached} calls, {cut_off} cut off, {dict(states)}"
        )


@pytest.mark.slow
def test_A02_fifty_kills_at_random_moments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reached, cut_off, states = storm(tmp_path, kills=50, seed=2)
    assert cut_off > 0
    with capsys.disabled():
        print(
            f"\nA02 kill -9 of serve: 50 kills, {reached} calls, {cut_off} cut off, {dict(states)}"
        )


# --- the store is down when a request is to be settled ----------------------------------------


@contextlib.contextmanager
def away(store: SqliteStore) -> Iterator[None]:
    """The database cannot be found for a while; nothing in it is lost."""
    aside = store.path.with_name("aside")
    store.path.rename(aside)
    try:
        yield
    finally:
        aside.rename(store.path)


@contextlib.contextmanager
def hosted(kind: str, folder: Path) -> Iterator[Running]:
    if kind == "gunicorn":
        with on_gunicorn(folder) as running:
            yield running
        return
    with RunningSimulator() as simulator:
        store = SqliteStore(folder / "proxy.db")
        add_customer(store)
        with serving(simulator, folder, store, "serve", lease_seconds=300) as (running, _):
            yield running
        store.close()


@pytest.mark.parametrize("kind", ["serve", "gunicorn"])
def test_A03_a_store_that_is_down_at_settlement_costs_neither_reply_nor_row(
    kind: str, tmp_path: Path
) -> None:
    with hosted(kind, tmp_path) as running:
        spool = tmp_path / "proxy.db-spool"
        running.simulator.default(Script(text="a b c", gate=True, input_tokens=5, output_tokens=3))
        with RawClient(running, Connection="close") as client:
            call = running.simulator.wait_calls(1)[0]
            call.release(3)
            request_id = client.request_id
            [lease] = running.store.open_leases()
            with away(running.store):
                call.release(100)
                assert b"data: [DONE]\n\n" in client.read_rest(), "the reply is whole"
                wait_for(lambda: (spool.exists() and spool.stat().st_size) or None, "the spool")
                status, headers, said = post(running)
                assert (503, "5") == (status, headers["retry-after"])
                assert "store_unavailable" == json.loads(said)["code"]
            assert (lease,) == running.store.open_leases(), "not settled yet"
        row = running.row(request_id, timeout=30)
        assert (5, 3, Basis.REPORTED, State.FINAL) == (
            *(row.input_tokens, row.output_tokens),
            *(row.basis, row.state),
        )
        running.quiet()
        assert 1 == len(running.rows())
        check_books(running.store, row.customer_id)
        wait_for(lambda: not (spool.exists() and spool.stat().st_size) or None, "the spool's end")
        assert 1 == len(running.simulator.calls), "what was refused never reached Bedrock"


def test_a_spool_that_is_full_closes_admission_until_it_is_replayed(tmp_path: Path) -> None:
    with on_uvicorn(tmp_path) as running:
        assert running.proxy is not None
        spool = Spool(tmp_path / "spool")
        running.proxy.guard = lambda gate: SpoolGate(gate, spool)
        running.proxy.telemetry = LoggingTelemetry(spool=spool.append)
        upkeep = Upkeep(running.store, 60.0, spool)
        running.simulator.default(Script(text="a b c", gate=True))
        with RawClient(running, Connection="close") as client:
            call = running.simulator.wait_calls(1)[0]
            call.release(3)
            request_id = client.request_id
            with away(running.store):
                call.release(100)
                assert b"data: [DONE]\n\n" in client.read_rest()
                wait_for(lambda: spool.size or None, "the spool")
        running.simulator.default(Script(text="a"))
        spool._cap = spool.size + 100
        status, headers, said = post(running)
        assert (503, "5") == (status, headers["retry-after"])
        assert ("store_unavailable", True) == (
            json.loads(said)["code"],
            json.loads(said)["retryable"],
        )
        assert [] == running.rows()
        upkeep.once()
        assert 0 == spool.size
        assert [request_id] == [row.request_id for row in running.rows()]
        assert 200 == post(running)[0]
        running.quiet()
        assert 2 == len(running.rows())
        upkeep.once()
        assert 2 == len(running.rows()), "replaying twice changes nothing"
