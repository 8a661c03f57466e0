"""``bedrock-proxy store create``: says what it made, and may be repeated."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.servers import dynamodb, redis

from bedrock_proxy.errors import ConfigurationError, StoreUnavailable
from bedrock_proxy_adapters.cli.create import create


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name, value in dynamodb.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return CliRunner()


def test_a_dynamodb_table_is_made_and_what_was_done_is_said(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = dynamodb.shared("ministack")
    monkeypatch.setenv(
        "BEDROCK_PROXY_STORE",
        f"dynamodb://by-command?region=us-east-1&endpoint_url={emulator.url}",
    )
    first = runner.invoke(create, [], catch_exceptions=False)
    assert first.output.splitlines() == [
        "Created the DynamoDB table by-command in us-east-1, paid by request.",
        "Point-in-time recovery is on: the last 35 days can be restored.",
        "Expiry is on: ledger rows with a ttl are removed after it.",
    ]
    again = runner.invoke(create, ["--json"], catch_exceptions=False)
    assert json.loads(again.stdout) == {
        "table": "by-command",
        "region": "us-east-1",
        "created": False,
        "billing": None,
        "point_in_time_recovery": True,
        "expiry": True,
    }
    emulator.shared_client.delete_table(TableName="by-command")


def test_what_could_not_be_turned_on_is_said_and_is_no_failure(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = dynamodb.shared("dynalite")
    monkeypatch.setenv(
        "BEDROCK_PROXY_STORE",
        f"dynamodb://by-command?region=us-east-1&endpoint_url={emulator.url}",
    )
    made = runner.invoke(create, [], catch_exceptions=False)
    assert made.exit_code == 0
    assert made.stdout.splitlines() == [
        "Created the DynamoDB table by-command in us-east-1, paid by request."
    ]
    assert "Not turned on: point-in-time recovery" in made.stderr
    assert "Not turned on: expiry" in made.stderr
    emulator.shared_client.delete_table(TableName="by-command")


def test_a_file_is_made_too(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "new.db"
    monkeypatch.setenv("BEDROCK_PROXY_STORE", f"sqlite:///{path}")
    made = runner.invoke(create, [], catch_exceptions=False)
    assert made.output == f"Ready: {path}\n"
    assert path.exists()


@pytest.mark.parametrize("options", ["", "?durability=accepted"])
@pytest.mark.parametrize("given", [[], ["--json"]], ids=" ".join)
def test_a_redis_that_is_not_there_is_not_ready(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, options: str, given: list[str]
) -> None:
    """A deploy script goes by the exit code."""
    monkeypatch.setenv("BEDROCK_PROXY_STORE", f"redis://127.0.0.1:1/0{options}")
    said = runner.invoke(create, given)
    assert isinstance(said.exception, StoreUnavailable)
    assert (1, "") == (said.exit_code, said.output)


def test_a_redis_that_answers_is_ready(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis.serving() as server:
        monkeypatch.setenv("BEDROCK_PROXY_STORE", f"{server.url}/0")
        said = runner.invoke(create, [], catch_exceptions=False)
    assert f"Ready: {server.url}/0\n" == said.output


def test_a_store_in_memory_cannot_be_made_ready(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDROCK_PROXY_STORE", "memory:")
    with pytest.raises(ConfigurationError, match="nothing outlives"):
        runner.invoke(create, [], catch_exceptions=False)
