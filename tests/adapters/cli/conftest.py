"""The command, as an operator runs it: in a folder of its own, on a database there."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from click.testing import CliRunner

from bedrock_proxy.errors import BedrockProxyError
from bedrock_proxy_adapters.cli import bedrock_proxy
from bedrock_proxy_adapters.stores.sqlite import SqliteStore


@frozen
class Said:
    """What a run of the command ended in."""

    code: int
    out: str
    err: str
    error: BedrockProxyError | None

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Said]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "proxy.db"
    monkeypatch.setenv("BEDROCK_PROXY_STORE", f"sqlite:///{path}")
    return path


@pytest.fixture
def run(database: Path) -> Run:
    """The command in this process. An error of ours stands for exit code 1 and its sentence."""

    def run(*arguments: str, stdin: str | None = None) -> Said:
        result = CliRunner().invoke(bedrock_proxy, arguments, input=stdin)
        if isinstance(result.exception, BedrockProxyError):
            return Said(1, result.stdout, f"{result.stderr}{result.exception}", result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr, None)

    return run


@pytest.fixture
def store(database: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(database)) as made:
        yield made


@pytest.fixture
def ann(run: Run) -> dict[str, str]:
    """A customer: ``customer_id``, ``key_id`` and ``token``."""
    created: dict[str, str] = run(
        "customers", "create", "--name", "Ann", "--email", "ann@example.com", "--json"
    ).json
    return created
