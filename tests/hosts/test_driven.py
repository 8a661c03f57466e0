"""A process that ends with something under way (S20): it waits, within a bound, and all is settled."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.test_hosts_on_a_bad_day import Upstream, make, reply_of, settled
from tests.flows import claude
from tests.running import ROOT, add_customer, server_environment

from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.hosts import driven
from bedrock_proxy_adapters.proxy import Proxy
from bedrock_proxy_adapters.simulator import RunningSimulator, Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What an answer waits for in its middle."""
    event = threading.Event()
    yield event
    event.set()


def test_S01_what_is_left_when_no_thread_can_be_had_is_cut_and_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    proxy = make(Upstream())
    reply = reply_of(proxy)
    next(reply)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        reply.close()
    (row,) = settled(proxy)
    assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driven, "PATIENCE", 0.3)
    monkeypatch.setattr(driven, "SETTLING", 1.0)


def halting(gate: threading.Event) -> Proxy:
    steps = claude()
    return make(Upstream(*steps[:3], lambda: gate.wait(20), *steps[3:]))


def test_S20_what_was_left_may_finish_before_the_process_ends(gate: threading.Event) -> None:
    proxy = halting(gate)
    reply = reply_of(proxy)
    next(reply)
    reply.close()
    threading.Timer(0.1, gate.set).start()
    driven._end()
    (row,) = settled(proxy)
    assert (Outcome.CLIENT_GONE, Basis.REPORTED) == (row.outcome, row.basis)


def test_S20_nobody_takes_what_the_thread_that_ends_has_begun() -> None:
    proxy = make(Upstream())
    reply = reply_of(proxy)
    next(reply)
    begun = time.monotonic()
    driven._end()
    assert time.monotonic() - begun < driven.PATIENCE
    (row,) = settled(proxy)
    assert (Outcome.CLIENT_GONE, Basis.REPORTED) == (row.outcome, row.basis)


def test_S20_what_does_not_finish_is_told_and_what_nobody_takes_is_settled() -> None:
    """A reader that took nothing for all that time is left to the same end."""
    several = [make(Upstream()) for _ in range(3)]
    kept = []

    def begin() -> None:
        for proxy in several:
            kept.append(reply_of(proxy))
            next(kept[-1])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(20)
    begun = time.monotonic()
    driven._end()
    assert 0.7 < time.monotonic() - begun < 5
    for proxy in several:
        (row,) = settled(proxy)
        assert (Outcome.SHUTDOWN, Basis.PARTIAL) == (row.outcome, row.basis)


def test_S20_the_process_waits_as_long_as_its_operator_said(gate: threading.Event) -> None:
    proxy = halting(gate)
    reply = reply_of(proxy)
    next(reply)
    reply.close()
    threading.Thread(target=proxy.shutdown, args=(2.0,), daemon=True).start()
    while proxy.ready:
        time.sleep(0.01)
    threading.Timer(0.8, gate.set).start()
    driven._end()
    (row,) = settled(proxy)
    assert (Outcome.CLIENT_GONE, Basis.REPORTED) == (row.outcome, row.basis)


def test_S20_what_cannot_be_settled_in_time_keeps_no_process(
    gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = halting(gate)
    reply = reply_of(proxy)
    next(reply)
    reply.close()
    driven._end()
    assert "1 request(s) under way could not be settled" in caplog.text
    gate.set()
    settled(proxy)


# --- real processes ---------------------------------------------------------------------------

PROGRAM = """
import atexit, sys, threading, time
from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.library import answers
from tests.running import CLAUDE, TOKEN

proxy = proxy_from_env()
ask = answers(proxy)
asked = {"modelId": CLAUDE, "anthropic_version": "bedrock-2023-05-31", "max_tokens": 1000,
         "messages": [{"role": "user", "content": "Say hello."}]}

def begin():
    parts = ask(TOKEN, asked)
    next(parts)
    return parts
"""

TIMED = """
begun = time.monotonic()
atexit.register(lambda: print(time.monotonic() - begun, flush=True))
"""

BEGINS_NONE = (3, 12) <= sys.version_info < (3, 12, 2)
"""Whether an interpreter that ends begins no thread: what needs one is cut then."""

ENDS = {
    "left": "begin().close()",
    "kept": "parts = begin()",
    "let-go": "begin()",
    "in-another-thread": "threading.Thread(target=lambda: list(ask(TOKEN, asked))).start()\n"
    "while not proxy.under_way: time.sleep(0.01)",
    "in-a-daemon": "threading.Thread(target=lambda: list(ask(TOKEN, asked)), daemon=True).start()\n"
    "while not proxy.under_way: time.sleep(0.01)",
    "closed-at-exit": "atexit.register(proxy.close); parts = begin()",
    "in-a-child": """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=lambda: begin().close())
child.start()
child.join()
""",
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    with start_in_thread(Script(events=20, pace=0.05, output_tokens=20)) as running:
        yield running


def run(program: str, simulator: RunningSimulator, folder: Path) -> tuple[str, SqliteStore]:
    """What *program* says, and what it leaves in the store."""
    store = SqliteStore(folder / "proxy.db")
    add_customer(store)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + program + TIMED],
        env=server_environment(simulator, folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (ended.returncode, ended.stderr)
    return ended.stdout, store


@pytest.mark.parametrize("how", ENDS)
def test_S20_a_program_that_ends_leaves_the_true_bill(
    how: str, simulator: RunningSimulator, tmp_path: Path
) -> None:
    seconds, store = run(ENDS[how], simulator, tmp_path)
    (row,) = every_row(store)
    if BEGINS_NONE and row.basis is Basis.PARTIAL:
        assert row.output_tokens > 0
    else:
        assert (Basis.REPORTED, 20) == (row.basis, row.output_tokens)
    assert not store.open_leases()
    assert float(seconds) < 10, "it did not wait for anybody who never comes"
    store.close()


def test_S20_a_proxy_that_nobody_uses_delays_no_end(
    simulator: RunningSimulator, tmp_path: Path
) -> None:
    seconds, store = run("list(ask(TOKEN, asked)); ask(TOKEN, asked)", simulator, tmp_path)
    assert float(seconds) < 1
    store.close()
