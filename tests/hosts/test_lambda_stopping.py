"""
SIGTERM on Lambda (RELIABILITY.md, S20): heard whatever threads there are, and settled within the
time that Lambda leaves to a runtime.
"""

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stories import ask, used
from tests.flows import World
from tests.hosts.runtime_api_emulator import Emulator
from tests.hosts.test_lambda_runtime import event, large, running
from tests.hosts.test_lambda_runtime_process import MODULE, asked, started
from tests.hosts.test_lambda_settlement import Shaky
from tests.running import add_customer, server_environment

from bedrock_proxy.admission import Lease
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy.store import every_row
from bedrock_proxy_adapters.hosts.lambda_runtime import STOP_GRACE, STOP_WRITE
from bedrock_proxy_adapters.hosts.lambda_sigterm import on_sigterm
from bedrock_proxy_adapters.hosts.settlement import STOP_WAIT, InsistentLedger
from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

AGENT = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
from bedrock_proxy_adapters.config import proxy_from_env
proxy = proxy_from_env()
"""
BLOCKED = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
SERVE = "from bedrock_proxy_adapters.hosts.lambda_runtime import serve\nserve(proxy)\n"
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "the handler's module began a thread": (AGENT, ["-m", MODULE]),
    "the program began a thread": (AGENT + SERVE, ["app.py"]),
    "every thread blocks it": (BLOCKED + AGENT + SERVE, ["app.py"]),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_S20_a_function_with_threads_of_its_own_still_ends_its_stream_and_settles(
    tmp_path: Path, setting: str
) -> None:
    program, arguments = SETTINGS[setting]
    (tmp_path / "app.py").write_text(program)
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        simulator.default(Script(text="word " * 400, pace=0.05))
        environment = server_environment(
            simulator, tmp_path, _HANDLER="app.proxy", LAMBDA_TASK_ROOT=str(tmp_path)
        )
        command = [sys.executable, *arguments]
        with started(tmp_path, emulator, environment, command) as process:
            told = emulator.invoke(asked()).told(60)
            told.wait_for(b"word")
            process.send_signal(signal.SIGTERM)
            error = json.loads(told.wait().chunks[-1].partition(b"data: ")[2])
            assert error["code"] == "server_shutdown"
            assert process.wait(20) == 0
        (row,) = every_row(store)
        assert row.outcome == "shutdown"
        assert not store.open_leases()
        store.close()


def test_S20_a_reader_that_stops_does_not_hold_up_the_row_when_the_function_is_told_to_stop() -> (
    None
):
    world = World().answers(large())
    with running(world) as (emulator, runtime):
        invoked = emulator.invoke(event("function_url"), read=100_000)
        invoked.told().wait_for(b"x" * 30_000)
        looks = 0
        while looks < 30:  # until the same write has been waiting for a while
            looks = looks + 1 if runtime._loops[0].api.writing else 0
            time.sleep(0.01)
        began = time.monotonic()
        runtime.stop()
        while not world.rows:
            assert time.monotonic() < began + 20
            time.sleep(0.005)
        assert time.monotonic() < began + 2.0, "not after the 120 seconds of a write"
        invoked.resumed.set()


def test_S20_a_store_that_hangs_is_given_up_within_what_a_stop_leaves() -> None:
    assert STOP_WRITE + STOP_WAIT < STOP_GRACE, "the rest is for what is not waiting"
    stuck = threading.Event()
    ports: Any = Shaky(until=stuck)
    lease = Lease(request=ask("r"), deadline=0)
    stopping = threading.Event()
    ledger = InsistentLedger(ports, time.monotonic() + 86_400, stopping.is_set)
    threading.Timer(0.3, stopping.set).start()
    with pytest.raises(StoreUnavailable):
        ledger.finish(used(lease), lease)
    assert stopping.is_set()
    stuck.set()


def test_a_program_has_its_own_handling_of_sigterm_back_afterwards() -> None:
    heard: list[int] = []
    acted = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with on_sigterm(acted.set):
            signal.raise_signal(signal.SIGTERM)
            assert acted.wait(20)
        assert heard == []
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_signals_are_none_of_its_business() -> None:
    acted = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with on_sigterm(acted.set):
            signal.raise_signal(signal.SIGUSR1)
            assert not acted.wait(0.2)
            signal.raise_signal(signal.SIGTERM)
            assert acted.wait(20)
    finally:
        signal.signal(signal.SIGUSR1, before)
