"""The JavaScript client of the examples, in Node: against scripted servers, and a real proxy."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import tools
from tests.running import CLAUDE, TOKEN, Running, add_customer, on_uvicorn

from bedrock_proxy import tokens
from bedrock_proxy.customers import Limits
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.simulator import Fault

FOLDER = Path(__file__).parent / "javascript"
SCRIPTED = FOLDER / "client.test.mjs"
POOR = tokens.mint(bytes(reversed(range(32))))


def names() -> list[str]:
    """The names of the tests in the JavaScript file."""
    found: list[str] = []
    for name in re.findall(r'^ *test\([`"](.+)[`"], ', SCRIPTED.read_text(), re.MULTILINE):
        if "${format}" in name:
            found += [name.replace("${format}", format_) for format_ in ("sse", "array")]
        else:
            found.append(name)
    return found


@pytest.fixture(scope="module")
def scripted() -> dict[str, bool]:
    """Name and outcome of every test that Node ran."""
    command = [tools.node(), "--test", "--test-reporter=tap", str(SCRIPTED)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    outcomes = re.findall(r"^ *(not ok|ok) \d+ - (.+?)(?: #.*)?$", ran.stdout, re.MULTILINE)
    print(ran.stdout, ran.stderr)
    return {name.replace("\\\\", "\\").replace("\\#", "#"): word == "ok" for word, name in outcomes}


@pytest.mark.parametrize("name", names())
def test_in_node(scripted: dict[str, bool], name: str) -> None:
    assert scripted[name]


def test_every_scripted_test_is_listed_here(scripted: dict[str, bool]) -> None:
    own = {name for name in scripted if not name.endswith(".mjs")}
    assert own == set(names())
    assert len(own) > 30


# --- a real proxy -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tools.node()
    with on_uvicorn(tmp_path_factory.mktemp("node")) as running:
        add_customer(running.store, POOR, Limits(requests_per_day=0))
        yield running


@pytest.fixture
def running(proxy: Running) -> Running:
    proxy.simulator.reset()
    return proxy


def ask(running: Running, how: str, token: str = TOKEN, **more: Any) -> list[dict[str, Any]]:
    job = {
        "endpoint": f"{running.url}/bedrock",
        "token": token,
        "how": how,
        "request": {
            "modelId": CLAUDE,
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Grüß Gott 😀"}],
        },
        **more,
    }
    ran = subprocess.run(
        [tools.node(), str(FOLDER / "ask.mjs")],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (ran.returncode, ran.stderr)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_whole_answer(running: Running) -> None:
    running.simulator.script(text="Grüße, 日本 😀")
    answer, end = ask(running, "whole")
    assert "Grüße, 日本 😀" == answer["whole"]["content"][0]["text"]
    assert {"end": "whole"} == end


@pytest.mark.parametrize("how", ["sse", "array"])
def test_an_answer_as_it_comes(running: Running, how: str) -> None:
    before = len(running.rows())
    running.simulator.script(pieces=("Grüße, ", "日本 ", "😀"), chunk_sizes=(1, 7))
    *pieces, end = ask(running, how)
    assert [{"content": "Grüße, "}, {"content": "日本 "}, {"content": "😀"}] == pieces
    assert {"end": "whole"} == end
    (row,) = running.new_rows(before, 1)
    assert (Outcome.OK, Basis.REPORTED) == (row.outcome, row.basis)


@pytest.mark.parametrize("how", ["sse", "array"])
def test_a_fault_in_the_middle_is_thrown_with_its_request_id(running: Running, how: str) -> None:
    before = len(running.rows())
    fault = Fault("exception", after=4, name="modelStreamErrorException")
    running.simulator.script(pieces=("one", "two", "three", "four"), faults=(fault,))
    *pieces, end = ask(running, how)
    assert pieces
    assert ("error", "upstream_error", None) == (end["end"], end["code"], end["status"])
    (row,) = running.new_rows(before, 1)
    assert row.request_id == end["requestId"]
    assert Outcome.ERROR == row.outcome


@pytest.mark.parametrize("how", ["sse", "array"])
def test_S01_an_abort_leaves_one_row(running: Running, how: str) -> None:
    before = len(running.rows())
    running.simulator.script(events=100, output_tokens=500, pace=0.01)
    *pieces, end = ask(running, how, abortAfter=2)
    assert len(pieces) >= 2
    assert {"end": "aborted"} == end
    (row,) = running.new_rows(before, 1)
    running.quiet()
    assert (Outcome.CLIENT_GONE, 500) == (row.outcome, row.output_tokens)
    assert before + 1 == len(running.rows())


def test_a_refused_token_and_a_used_up_limit_are_told_apart(running: Running) -> None:
    (unknown,) = ask(running, "sse", token=tokens.mint(bytes(32)))
    assert ("unauthorized", 401, False, None) == (
        unknown["code"],
        unknown["status"],
        unknown["retryable"],
        unknown["limit"],
    )
    (poor,) = ask(running, "sse", token=POOR)
    assert (429, "requests_per_day") == (poor["status"], poor["limit"])
    assert poor["requestId"]
