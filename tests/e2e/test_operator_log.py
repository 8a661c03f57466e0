"""``bedrock-proxy serve`` says on standard error why Bedrock or the store cannot be used."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.serving import Served
from tests.running import TOKEN, add_customer, body, free_port, server_environment, wait_for

from bedrock_proxy_adapters.simulator import RunningSimulator, Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

PROMPT = "canary-prompt"
PASSWORD = "canary-password"


@contextlib.contextmanager
def serving(folder: Path, **environment: str | None) -> Iterator[tuple[Served, RunningSimulator]]:
    """``serve`` over a fake Bedrock; what it says is in ``out`` and ``err``."""
    with start_in_thread() as simulator:
        store = SqliteStore(folder / "proxy.db")
        add_customer(store)
        port = free_port()
        told = server_environment(simulator, folder)
        for name, value in environment.items():
            told.pop(name, None)
            if value is not None:
                told[name] = value
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", "from bedrock_proxy_adapters.cli import main; main()",
                      "serve", "--port", str(port)],
                cwd=folder, env=told, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            wait_for(lambda: "Listening" in (folder / "err").read_text() or None, "serve", 60)
            yield Served(port, simulator, store), simulator
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            store.close()


def warnings(folder: Path) -> list[str]:
    lines = (folder / "err").read_text().splitlines()
    return [line for line in lines if not line.startswith(("Store:", "Listening", "Stopping"))]


def asked(served: Served) -> int:
    content = body(messages=[{"role": "user", "content": PROMPT}])
    with served.post("/bedrock", content) as reply:
        reply.read()
        return reply.status


CASES: dict[str, tuple[dict[str, str | None], int, tuple[str, ...]]] = {
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        502,
        ("no AWS credentials were found", "check the AWS credentials"),
    ),
    "a refused port": (
        {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://127.0.0.1:1"},
        502,
        ("Connection refused", "127.0.0.1:1", "us-east-1"),
    ),
    "a refused port, by boto3": (
        {
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://127.0.0.1:1",
            "BEDROCK_PROXY_UPSTREAM": "boto3",
        },
        502,
        ("Connection refused", "127.0.0.1:1", "us-east-1"),
    ),
    "a name that is nobody's": (
        {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://nobody.invalid:8080"},
        502,
        ("name is not known", "nobody.invalid:8080"),
    ),
    "redis away": (
        {"BEDROCK_PROXY_STORE": f"redis://user:{PASSWORD}@127.0.0.1:1/0"},
        503,
        ("customer database", "127.0.0.1:1", "Connection refused"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_serve_says_why_once(name: str, tmp_path: Path) -> None:
    environment, status, parts = CASES[name]
    with serving(tmp_path, HOME=str(tmp_path), **environment) as (served, _):
        assert [status] * 3 == [asked(served) for _ in range(3)]
        said = [line for line in warnings(tmp_path) if line.startswith("request ")]
    assert 1 == len(said), said
    for part in parts:
        assert part in said[0]
    everything = (tmp_path / "err").read_text() + (tmp_path / "out").read_text()
    for secret in (PROMPT, PASSWORD, TOKEN, "simulated"):
        assert secret not in everything


@pytest.mark.parametrize(
    ("error", "part"),
    [("AccessDeniedException", "access to the model in us-east-1"),
     ("ExpiredTokenException", "renew the AWS credentials")],
)  # fmt: skip
def test_serve_says_what_bedrock_refused(error: str, part: str, tmp_path: Path) -> None:
    arn = "arn:aws:sts::123456789012:assumed-role/canary-role"
    with serving(tmp_path) as (served, simulator):
        simulator.default(Script(error=error, error_message=f"{arn} said {PROMPT}"))
        assert 502 == asked(served)
        (said,) = warnings(tmp_path)
    assert error in said
    assert part in said
    for secret in (PROMPT, "123456789012", "canary-role", TOKEN):
        assert secret not in said


def test_while_all_is_well_nothing_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as (served, simulator):
        simulator.default(Script(text="a b"))
        assert 200 == asked(served)
    assert [] == warnings(tmp_path)


def test_that_a_row_waits_in_the_spool_is_said_and_that_it_waits_no_more(tmp_path: Path) -> None:
    database, away = tmp_path / "proxy.db", tmp_path / "away.db"
    with serving(tmp_path) as (served, simulator):
        simulator.default(Script(text="a b c", pace=0.1))
        content = body(messages=[{"role": "user", "content": PROMPT}])
        with served.post("/bedrock", content) as reply:
            assert 200 == reply.status
            database.rename(away)
            reply.read()
            spool = tmp_path / "proxy.db-spool"
            wait_for(lambda: spool.exists() or None, "the spool")
            away.rename(database)
        wait_for(lambda: "empty again" in (tmp_path / "err").read_text() or None, "the replay")
        served.new_row(0)
    said = [line for line in warnings(tmp_path) if "upkeep" not in line]
    assert 2 == len(said)
    assert "No such file" in said[0]
    assert "usage row waits in the spool" in said[0]
    assert "The spool is empty again: 1 usage row(s) were settled." == said[1]
