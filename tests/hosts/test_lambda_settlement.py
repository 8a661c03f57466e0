"""
Settlement on Lambda while the store is down (RELIABILITY.md, section 2): three tries within the
time there is, then one line of the log, from which the row is entered again.
"""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from click.testing import CliRunner
from tests.contracts.stories import add, admitted, ask, used
from tests.flows import World, claude
from tests.hosts import test_api_gateway as buffered
from tests.hosts import test_lambda_runtime as streamed
from tests.hosts.runtime_api_emulator import Emulator
from tests.hosts.test_api_gateway import Context, event
from tests.hosts.test_lambda_runtime_process import asked, started
from tests.running import TOKEN, add_customer, server_environment

from bedrock_proxy.admission import Lease
from bedrock_proxy.errors import StoreUnavailable, store_unavailable
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Outcome, UsageRecord
from bedrock_proxy_adapters.cli import bedrock_proxy
from bedrock_proxy_adapters.cli.enter import rows_in
from bedrock_proxy_adapters.hosts.settlement import TRIES, InsistentLedger
from bedrock_proxy_adapters.proxy import LoggingTelemetry
from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.unsettled import UNSETTLED


@define(eq=False)
class Shaky(World):
    """
    Ports whose ledger fails at first.

    Attributes:
        refusals: How many tries it refuses.
        losses: How many it takes after that, while the reply is lost.
        until: What it waits for in each try.
    """

    refusals: int = 0
    losses: int = 0
    until: threading.Event | None = None
    tries: list[str] = field(factory=list)
    spooled_at: float | None = None

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        self.tries.append(record.request_id)
        if self.until is not None:
            self.until.wait(60)
        if len(self.tries) <= self.refusals:
            raise store_unavailable()
        if record.request_id not in [row.request_id for row in self.rows]:
            self.rows.append(record)
        if len(self.tries) <= self.refusals + self.losses:
            raise store_unavailable()

    def spooled(self, record: UsageRecord, lease: Lease) -> None:
        self.spooled_at = time.time()
        World.spooled(self, record, lease)


HOSTS = pytest.mark.parametrize("host", [streamed, buffered], ids=["streamed", "buffered"])


@HOSTS
@pytest.mark.parametrize("refusals", [0, 1, 2])
def test_a_store_that_refuses_once_or_twice_takes_the_row_in_the_end(
    host: Any, refusals: int
) -> None:
    world = Shaky(refusals=refusals).answers(claude())
    host.ask(world, event("function_url"))
    assert (len(world.tries), world.row.outcome, world.spool) == (refusals + 1, Outcome.OK, [])


@HOSTS
@pytest.mark.parametrize("refusals", [3, 1_000])
def test_after_three_tries_the_row_is_given_up_to_the_log_once(host: Any, refusals: int) -> None:
    world = Shaky(refusals=refusals).answers(claude())
    host.ask(world, event("function_url"))
    assert (len(world.tries), len(world.rows), len(world.spool)) == (TRIES, 0, 1)
    assert world.faults == []


@HOSTS
@pytest.mark.parametrize("losses", [1, 2])
def test_A03_a_row_that_was_taken_though_the_reply_was_lost_is_one_row(
    host: Any, losses: int
) -> None:
    world = Shaky(losses=losses).answers(claude())
    host.ask(world, event("rest"))
    assert (len(world.tries), world.row.token_count, world.spool) == (losses + 1, 18, [])


def test_S18_a_store_that_hangs_is_given_up_before_the_function_is_killed() -> None:
    stuck = threading.Event()
    world = Shaky(until=stuck).answers(claude())
    with streamed.running(world) as (emulator, _):
        emulator.until_idle()
        invoked = emulator.invoke(event("function_url"), seconds=2.0)
        invoked.told().wait()
        emulator.until_idle()
        assert world.spooled_at is not None
        assert world.spooled_at < invoked.deadline
        stuck.set()
    assert (len(world.tries), len(world.spool)) == (1, 1)


def test_S18_a_store_that_hangs_behind_a_gateway_is_given_up_before_it_answers_for_us() -> None:
    stuck = threading.Event()
    world = Shaky(until=stuck).answers(claude())
    began = time.time()
    buffered.ask(world, event("rest"), Context(millis=900_000), deadline_s=2.0)
    assert world.spooled_at is not None
    assert world.spooled_at < began + 2.0
    stuck.set()


def test_a_store_that_hangs_is_given_up_when_the_function_is_told_to_stop() -> None:
    stuck, world = threading.Event(), Shaky(refusals=1_000)
    world.until = stuck
    ports: Any = world
    ledger = InsistentLedger(ports, time.monotonic() + 86_400, lambda: True)
    lease = Lease(request=ask("r"), deadline=0)
    with pytest.raises(StoreUnavailable):
        ledger.finish(used(lease), lease)
    stuck.set()
    for thread in threading.enumerate():
        if thread.name == "bedrock-proxy-settle":
            thread.join(20)
    assert world.tries == ["r"], "what was given up is not tried again"


def test_without_any_time_left_the_store_is_still_asked_once() -> None:
    ports: Any = Shaky()
    lease = Lease(request=ask("r"), deadline=0)
    InsistentLedger(ports, time.monotonic() - 1, lambda: False).finish(used(lease), lease)
    assert ports.row.request_id == "r"


@pytest.mark.parametrize("bounded", [False, True])
def test_a_defect_of_the_store_is_not_tried_again_and_is_told(bounded: bool) -> None:
    class Broken(Shaky):
        def finish(self, record: UsageRecord, lease: Lease) -> None:
            self.tries.append(record.request_id)
            raise ZeroDivisionError

    ports: Any = Broken()
    lease = Lease(request=ask("r"), deadline=0)
    until = time.monotonic() + 60 if bounded else None
    with pytest.raises(ZeroDivisionError):
        InsistentLedger(ports, until, lambda: False).finish(used(lease), lease)
    assert ports.tries == ["r"]


# --- the line ---------------------------------------------------------------------------------

ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"


def line_of(record: UsageRecord, lease: Lease, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    LoggingTelemetry().spooled(record, lease)
    [line] = [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL]
    return line


def test_the_line_holds_no_account_no_arn_and_nothing_in_the_clients_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    request = ask("r", model_id=ARN, model=ARN, client_request_id=TOKEN)
    lease = Lease(request=request, deadline=0)
    line = line_of(used(lease), lease, caplog)
    assert line.startswith(UNSETTLED)
    assert "\n" not in line
    for secret in ("arn:", "123456789012", TOKEN):
        assert secret not in line
    [row] = rows_in(line)
    assert row == evolve(
        used(lease),
        model_id="application-inference-profile/abc",
        model="application-inference-profile/abc",
        client_request_id=None,
    )


def test_the_line_has_the_time_of_the_admission(caplog: pytest.LogCaptureFixture) -> None:
    """The clock went back: the gate's own time is later than the one that the row was made with."""
    lease = Lease(request=ask("r", at=2_000), deadline=0)
    [row] = rows_in(line_of(used(lease, admitted_at=1_000), lease, caplog))
    assert row is not None
    assert row.admitted_at == 2_000


@pytest.mark.parametrize("losses", [0, 1], ids=["refused", "reply lost"])
def test_A04_an_entered_line_settles_exactly_once(
    caplog: pytest.LogCaptureFixture, losses: int
) -> None:
    """Over the store's own books: the row, the lease, the counters."""
    store = MemoryStore()
    add(store)
    lease = admitted(store, ask("r"))
    record = used(lease, 30)
    if losses:
        store.finish(record, lease)
    [row] = rows_in(line_of(record, lease, caplog))
    assert row is not None
    for _ in range(3):
        store.finish(row, Lease(request=evolve(lease.request, input_tokens=0), deadline=0))
        assert [each.token_count for each in every_row(store)] == [30]
        assert store.open_leases() == ()
        assert store.gate_state("ann").day_tokens == 30
        assert store.gate_state("ann").day_requests == 1


# --- end to end -------------------------------------------------------------------------------

DOWN = """
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy_adapters.config import proxy_from_env

proxy = proxy_from_env()

def finish(record, lease):
    print("TRIED", flush=True)
    raise store_unavailable()

proxy.store.finish = finish
"""


def test_a_function_whose_store_is_down_says_one_line_and_the_command_enters_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.py").write_text(DOWN)
    store = SqliteStore(tmp_path / "proxy.db")
    customer = add_customer(store)
    with start_in_thread() as simulator, Emulator() as emulator:
        environment = server_environment(
            simulator,
            tmp_path,
            _HANDLER="app.proxy",
            LAMBDA_TASK_ROOT=str(tmp_path),
            AWS_LAMBDA_FUNCTION_NAME="proxy",
        )
        with started(tmp_path, emulator, environment):
            told = emulator.invoke(asked()).told(60).wait()
            assert told.said.endswith(b"data: [DONE]\n\n"), "the client notices nothing"
            emulator.until_idle()
            emulator.until_idle()
    assert (tmp_path / "out").read_text().count("TRIED") == TRIES
    assert not list(tmp_path.glob("*spool*")), "a file would be lost with the sandbox"
    [line] = (tmp_path / "err").read_text().splitlines()
    assert line.startswith(UNSETTLED)
    assert TOKEN not in line
    [lease] = store.open_leases()
    assert list(every_row(store)) == []

    monkeypatch.setenv("BEDROCK_PROXY_STORE", f"sqlite:///{tmp_path / 'proxy.db'}")
    states = []
    for entered in (1, 0):
        done = CliRunner().invoke(bedrock_proxy, ["enter", str(tmp_path / "err"), "--json"])
        assert json.loads(done.stdout) == {
            "entered": entered,
            "there_already": 1 - entered,
            "different": 0,
            "unreadable": 0,
            "unknown_customer": 0,
        }
        [row] = every_row(store)
        assert row.request_id == lease.request.request_id
        assert row.request_id == told.prelude["headers"]["x-request-id"]
        assert (row.outcome, row.admitted_at) == (Outcome.OK, lease.request.at)
        assert store.open_leases() == ()
        states.append(store.gate_state(customer))
    assert states[0] == states[1]
    assert states[0].day_tokens == row.token_count
    store.close()
