"""The usage log on Lambda: one bare line on standard output, unless somebody configured it."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.hosts.runtime_api_emulator import Emulator
from tests.hosts.test_lambda_runtime_process import MODULE, asked, started
from tests.running import ROOT, TOKEN, add_customer, server_environment

from bedrock_proxy.store import every_row
from bedrock_proxy_adapters.hosts.lambda_log import (
    OURS,
    USAGE,
    log_faults_to_stderr,
    log_usage_to_stdout,
)
from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

BUFFERED = ROOT / "examples" / "lambda-buffered"

# As Lambda's own runtime (awslambdaric) sets logging up before it loads the handler.
MANAGED = """
import json, logging, sys

class Handler(logging.Handler):
    def emit(self, record):
        sys.stderr.write(f"[{record.levelname}]\\t{record.getMessage()}\\n")

logging.getLogger().addHandler(Handler())
"""
CALL = """
import handler
print(handler.handler(json.load(sys.stdin), None)["statusCode"], file=sys.stderr)
"""


@pytest.mark.parametrize("level", ["", "logging.getLogger().setLevel(logging.INFO)\n"])
@pytest.mark.parametrize("lambda_", [True, False], ids=["on Lambda", "elsewhere"])
def test_the_buffered_handler_writes_one_bare_line_on_lambda_and_nothing_elsewhere(
    tmp_path: Path, level: str, lambda_: bool
) -> None:
    with start_in_thread() as simulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        environment = server_environment(simulator, tmp_path)
        environment["PYTHONPATH"] += os.pathsep + str(BUFFERED)
        if lambda_:
            environment["AWS_LAMBDA_FUNCTION_NAME"] = "proxy"
        done = subprocess.run(
            [sys.executable, "-c", MANAGED + level + CALL],
            env=environment,
            cwd=tmp_path,
            input=(BUFFERED / "event.json").read_text().replace("TOKEN", TOKEN),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        [row] = every_row(store)
        store.close()
    assert "200" in done.stderr
    said = [line for line in done.stdout.splitlines() if line]
    if lambda_:
        assert [json.loads(line)["request_id"] for line in said] == [row.request_id]
        assert row.request_id not in done.stderr
    else:
        assert said == []


OWN = """
from bedrock_proxy_adapters.config import proxy_from_env
proxy = proxy_from_env()
"""
SERVE = "from bedrock_proxy_adapters.hosts.lambda_runtime import serve\nserve(proxy)\n"
ROOT_LOG = "import logging\nlogging.basicConfig(level=logging.INFO)\n"
NAMED_LOG = """
import logging, sys
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("mine %(message)s"))
logging.getLogger("bedrock_proxy.usage").addHandler(handler)
logging.getLogger("bedrock_proxy.usage").setLevel(logging.INFO)
"""


@pytest.mark.parametrize("own", [False, True], ids=["module", "serve"])
@pytest.mark.parametrize(
    ("configured", "begins"), [("", "{"), (ROOT_LOG, "{"), (NAMED_LOG, "mine {")]
)
def test_the_streaming_host_writes_one_line_however_it_is_started(
    tmp_path: Path, own: bool, configured: str, begins: str
) -> None:
    (tmp_path / "app.py").write_text(configured + OWN + (SERVE if own else ""))
    command = [sys.executable, *(["app.py"] if own else ["-m", MODULE])]
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        environment = server_environment(
            simulator,
            tmp_path,
            _HANDLER="app.proxy",
            LAMBDA_TASK_ROOT=str(tmp_path),
            AWS_LAMBDA_FUNCTION_NAME="proxy",
        )
        with started(tmp_path, emulator, environment, command):
            assert emulator.invoke(asked()).told(60).wait().whole
            emulator.until_idle()
            emulator.until_idle()
        [row] = every_row(store)
        store.close()
    [line] = (tmp_path / "out").read_text().splitlines()
    assert line.startswith(begins)
    assert json.loads(line.removeprefix("mine "))["request_id"] == row.request_id
    assert row.request_id not in (tmp_path / "err").read_text()


# --- whose configuration counts ---------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[logging.Handler]:
    """Loggers as a program finds them; what it had is put back. A handler of somebody's own."""
    loggers = [logging.getLogger(name) for name in (USAGE, OURS, None)]
    kept = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers[:] = []
        one.setLevel(logging.NOTSET if one.name != "root" else logging.WARNING)
        one.propagate = True
    yield logging.StreamHandler(io.StringIO())
    for one, handlers, level, propagate in kept:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


def heard(handler: logging.Handler) -> str:
    stream: Any = getattr(handler, "stream")  # noqa: B009
    text: str = stream.getvalue()
    return text


def by_name(handler: logging.Handler) -> None:
    logging.getLogger(USAGE).addHandler(handler)
    logging.getLogger(USAGE).setLevel(logging.INFO)


def by_the_package(handler: logging.Handler) -> None:
    logging.getLogger(OURS).addHandler(handler)
    logging.getLogger(OURS).setLevel(logging.INFO)


def by_its_level(handler: logging.Handler) -> None:
    logging.getLogger().addHandler(handler)
    logging.getLogger(USAGE).setLevel(logging.INFO)


@pytest.mark.parametrize("configure", [by_name, by_the_package, by_its_level])
def test_a_usage_log_that_somebody_configured_is_left_alone(
    fresh: logging.Handler,
    capsys: pytest.CaptureFixture[str],
    configure: Callable[[logging.Handler], None],
) -> None:
    configure(fresh)
    log_faults_to_stderr()
    log_usage_to_stdout()
    logging.getLogger(USAGE).info("line")
    assert heard(fresh) == "line\n"
    assert capsys.readouterr() == ("", "")


def test_one_that_was_silenced_stays_silent(
    fresh: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger(USAGE).setLevel(logging.WARNING)
    log_usage_to_stdout()
    logging.getLogger(USAGE).info("line")
    assert capsys.readouterr() == ("", "")


def test_a_level_without_any_handler_is_no_reason_to_say_nothing(
    fresh: logging.Handler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logging.getLogger(USAGE).setLevel(logging.INFO)
    log_usage_to_stdout()
    logging.getLogger(USAGE).info("line")
    assert capsys.readouterr() == ("line\n", "")


def test_a_handler_that_comes_later_takes_over(
    fresh: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        log_usage_to_stdout()
        log_faults_to_stderr()
    logging.getLogger(USAGE).info("ours")
    assert capsys.readouterr() == ("ours\n", "")
    by_name(fresh)
    logging.getLogger(USAGE).info("theirs")
    assert heard(fresh) == "theirs\n"
    assert capsys.readouterr() == ("", "")


def test_a_fault_is_on_standard_error_once(
    fresh: logging.Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    log_faults_to_stderr()
    logging.getLogger("bedrock_proxy.lambda").warning("one")
    logging.getLogger().addHandler(fresh)  # an agent's: Lambda's log does not hear it
    logging.getLogger("bedrock_proxy.lambda").warning("two")
    assert capsys.readouterr() == ("", "one\ntwo\n")
    assert heard(fresh) == "two\n"
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    logging.getLogger("bedrock_proxy.lambda").warning("three")
    assert capsys.readouterr() == ("", "three\n")
