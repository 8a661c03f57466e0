"""``bedrock-proxy enter``: the rows that only a log has."""

import json
import time
from pathlib import Path

import pytest
from attrs import evolve
from tests.adapters.cli.conftest import Run
from tests.contracts.stories import add, admitted, ask, used

from bedrock_proxy.admission import Lease
from bedrock_proxy.periods import DAY_MS
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.unsettled import UNSETTLED, unsettled_line


@pytest.fixture
def leases(store: SqliteStore) -> list[Lease]:
    add(store)
    return [admitted(store, ask(f"r{number}")) for number in range(3)]


@pytest.fixture
def lines(leases: list[Lease]) -> list[str]:
    return [unsettled_line(used(lease, 30 + n), lease) for n, lease in enumerate(leases)]


def settled(store: SqliteStore) -> dict[str, int]:
    """Every row's tokens; the counters say the same, and no lease is left of those rows."""
    found = {row.request_id: row.token_count for row in every_row(store)}
    held = [lease for lease in store.open_leases() if lease.request.request_id in found]
    assert held == []
    return found


AS_TEXT = "START RequestId: 1\n{}\n[CRITICAL]\t2026-01-31T00:00:00Z\t1\t{}\nEND\n{}\n"


def test_the_rows_of_a_log_are_entered_once_however_often_it_is_given(
    run: Run, store: SqliteStore, lines: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text(AS_TEXT.format(*lines))
    assert run("enter", str(log)).out == "rows entered: 3\n"
    state = store.gate_state("ann")
    assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}
    assert (state.day_requests, state.day_tokens) == (3, 93)
    again = run("enter", "-", "--json", stdin=log.read_text())
    assert (again.json["entered"], again.json["there_already"], again.code) == (0, 3, 0)
    assert run("enter", str(log)).out == "rows entered: 0\nthere already: 3\n"
    assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}
    assert store.gate_state("ann") == state


def in_json_log(lines: list[str]) -> str:
    """Lambda's JSON log format: a line is an object, the message a string in it."""
    said = [{"level": "CRITICAL", "message": line, "logger": "bedrock_proxy"} for line in lines]
    return "\n".join(map(json.dumps, said))


def from_aws_logs(lines: list[str]) -> str:
    """``aws logs filter-log-events``: JSON over many lines."""
    events = [{"logStreamName": "s", "message": line + "\n", "eventId": "1"} for line in lines]
    return json.dumps({"events": events, "searchedLogStreams": []}, indent=4)


def from_aws_logs_as_text(lines: list[str]) -> str:
    """``--query 'events[].message' --output text``: tabs between the messages."""
    return "\t".join(lines)


def from_aws_logs_of_a_json_log(lines: list[str]) -> str:
    """The one in the other: escaped twice."""
    return from_aws_logs(in_json_log(lines).splitlines())


def in_one_line(lines: list[str]) -> str:
    return json.dumps(json.loads(from_aws_logs_of_a_json_log(lines)))


@pytest.mark.parametrize(
    "shape",
    [
        in_json_log,
        from_aws_logs,
        from_aws_logs_as_text,
        from_aws_logs_of_a_json_log,
        in_one_line,
    ],
)
def test_a_log_may_be_given_in_any_of_the_shapes_that_aws_has_for_it(
    run: Run,
    store: SqliteStore,
    lines: list[str],
    shape,  # type: ignore[no-untyped-def]
) -> None:
    said = run("enter", "-", "--json", stdin=shape(lines))
    assert said.json == {
        "entered": 3,
        "there_already": 0,
        "different": 0,
        "unreadable": 0,
        "unknown_customer": 0,
    }
    assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}


def test_A07_an_estimate_that_the_reaper_made_meanwhile_is_corrected_once(
    run: Run, store: SqliteStore, leases: list[Lease], lines: list[str]
) -> None:
    assert store.reap(max(lease.deadline for lease in leases) + 1) == 3
    assert {row.state for row in every_row(store)} == {State.ESTIMATED}
    for _ in range(2):
        run("enter", "-", stdin="\n".join(lines))
        assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}
        assert {row.basis for row in every_row(store)} == {Basis.REPORTED}
        assert store.gate_state("ann").day_tokens == 93


def test_what_the_ledger_says_otherwise_is_told_and_stays(
    run: Run, store: SqliteStore, leases: list[Lease], lines: list[str]
) -> None:
    run("enter", "-", stdin="\n".join(lines))
    before = store.gate_state("ann")
    other = unsettled_line(used(leases[1], 77), leases[1])
    said = run("enter", "-", stdin=f"START\n{lines[0]}\n{other}\n")
    assert said.code == 1
    assert "rows entered: 0\nthere already: 1\n" == said.out
    assert "1 of the rows could not be entered: 0 cannot be read or cannot be right, 0 are of " in (
        said.err
    )
    assert "1 differ from the ledger" in said.err
    assert "Line 3: the ledger has other figures for r1, which stay." in said.err
    assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}
    assert store.gate_state("ann") == before


def test_an_estimate_that_the_truth_has_overtaken_is_there_already(
    run: Run, store: SqliteStore, leases: list[Lease], lines: list[str]
) -> None:
    run("enter", "-", stdin=lines[0])
    guess = used(leases[0], 99, basis=Basis.ESTIMATED, state=State.ESTIMATED)
    said = run("enter", "-", "--json", stdin=unsettled_line(guess, leases[0]))
    assert (said.code, said.json["there_already"], said.json["entered"]) == (0, 1, 0)
    assert settled(store) == {"r0": 30}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token_count": 1}, "token_count of r0 is 1, but its counts add up to 30."),
        ({"admitted_at": 1}, "admitted_at of r0 is 1970-01-01 00:00:00Z"),
        ({"admitted_at": 1_768_000_000}, "admitted_at of r0 is 1970-01-21 11:06:40Z"),
        ({"admitted_at": 10**14}, "admitted_at of r0 is 5138-11-16 09:46:40Z"),
        ({"admitted_at": 10**30}, "admitted_at of r0 is no time"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_right_is_refused_by_its_line(
    run: Run,
    store: SqliteStore,
    leases: list[Lease],
    lines: list[str],
    changed: dict[str, int],
    said: str,
) -> None:
    wrong = UNSETTLED + json.dumps({**used(leases[0]).as_dict(), **changed})
    refused = run("enter", "-", stdin=f"START\n{lines[1]}\n{wrong}\n")
    assert refused.code == 1
    assert f"Line 3: {said}" in refused.err
    assert settled(store) == {"r1": 31}


@pytest.mark.parametrize(
    "bad",
    [
        UNSETTLED,
        UNSETTLED + '{"request_id": "r9"',
        UNSETTLED + '{"request_id": "r9"}',
        UNSETTLED + "[1]",
        UNSETTLED + "7",
        UNSETTLED + '{\\"request_id',
        '"' + UNSETTLED + '{\\"request_id',
        UNSETTLED + "[" * 100_000,
    ],
    ids=range(8),
)
def test_a_line_that_cannot_be_read_is_counted_and_holds_up_no_other(
    run: Run, store: SqliteStore, lines: list[str], bad: str
) -> None:
    said = run("enter", "-", stdin="\n".join([lines[0], bad, *lines[1:]]))
    assert said.code == 1
    assert "1 of the rows could not be entered: 1 cannot be read" in said.err
    assert "Line 2: the row cannot be read." in said.err
    assert settled(store) == {"r0": 30, "r1": 31, "r2": 32}


@pytest.mark.parametrize(
    ("name", "value"),
    [("token_count", "30"), ("token_count", -1), ("admitted_at", True), ("basis", "guessed"),
     ("customer_id", ""), ("request_id", None), ("output_tokens", 1.5)],
)  # fmt: skip
def test_a_row_with_a_figure_that_is_none_is_not_entered(
    run: Run, store: SqliteStore, leases: list[Lease], name: str, value: object
) -> None:
    row = {**used(leases[0]).as_dict(), name: value}
    assert run("enter", "-", stdin=UNSETTLED + json.dumps(row)).code == 1
    assert settled(store) == {}


def test_a_row_of_a_customer_that_the_store_does_not_know_is_refused(
    run: Run, store: SqliteStore, leases: list[Lease]
) -> None:
    """It is most likely another database."""
    lease = leases[0]
    strange = evolve(used(lease), customer_id="bob")
    said = run("enter", "-", stdin=unsettled_line(strange, lease))
    assert said.code == 1
    assert "1 are of customers that are not in this store" in said.err
    assert settled(store) == {}


def test_A08_the_true_figures_of_a_clock_that_was_ahead_are_entered_where_the_estimate_is(
    run: Run, store: SqliteStore
) -> None:
    add(store)
    now = time.time_ns() // 1_000_000
    leases = [admitted(store, ask(f"r{n}", now + 3 * DAY_MS)) for n in range(2)]
    lines = [unsettled_line(used(each, 30), each) for each in leases]
    store.rebuild(now, set_clock=True)
    assert settled(store) == {"r0": 100, "r1": 100}
    # Of r1 there is nothing in this ledger.
    lines[1] = lines[1].replace('"r1"', '"r2"')
    said = run("enter", "-", stdin="\n".join(lines))
    assert (said.out, said.code) == ("rows entered: 1\n", 1)
    assert "Line 2: admitted_at of r2 is" in said.err
    assert settled(store) == {"r0": 30, "r1": 100}
