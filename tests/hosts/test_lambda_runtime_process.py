"""
The streaming Lambda host as the process that Lambda starts: over a fake Bedrock and a SQLite
file, told everything by its environment.
"""

import contextlib
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.hosts.runtime_api_emulator import Emulator
from tests.running import ROOT, TOKEN, add_customer, body, server_environment

from bedrock_proxy.store import every_row
from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

MODULE = "bedrock_proxy_adapters.hosts.lambda_runtime"
WRAPPER = ROOT / "examples" / "lambda-function-url" / "stream"


def asked(**more: object) -> dict[str, Any]:
    """A Function URL's event."""
    text = (ROOT / "tests" / "events" / "function_url.json").read_text().replace("TOKEN", TOKEN)
    found = json.loads(text)
    content = body(**more).decode()  # type: ignore[arg-type]
    headers = {**found["headers"], "content-length": str(len(content))}
    return {**found, "headers": headers, "body": content, "isBase64Encoded": False}


@contextlib.contextmanager
def started(
    folder: Path, emulator: Emulator, environment: dict[str, str], command: list[str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", MODULE] if command is None else command
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            command,
            env={**environment, "AWS_LAMBDA_RUNTIME_API": emulator.address},
            cwd=folder,
            stdout=out,
            stderr=err,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


@pytest.mark.parametrize("wrapped", [False, True], ids=["module", "wrapper"])
def test_a_function_streams_logs_its_usage_and_ends_when_told_to(
    tmp_path: Path, wrapped: bool
) -> None:
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        environment = server_environment(simulator, tmp_path)
        command = ["sh", str(WRAPPER), sys.executable, "/var/runtime/bootstrap.py"]
        with started(tmp_path, emulator, environment, command if wrapped else None) as process:
            told = emulator.invoke(asked()).told(60).wait()
            assert (told.prelude["statusCode"], told.trailers) == (200, {})
            assert told.said.startswith(b'data: {"content": ')
            assert told.said.endswith(b"data: [DONE]\n\n")
            emulator.until_idle()
            emulator.until_idle()
            (row,) = every_row(store)
            assert row.request_id == told.prelude["headers"]["x-request-id"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        (line,) = (tmp_path / "out").read_text().splitlines()
        logged = json.loads(line)
        assert (logged["event_type"], logged["request_id"]) == ("bedrock_stream", row.request_id)
        assert logged["token_count"] == row.token_count
        assert (tmp_path / "err").read_text() == ""
        store.close()


def test_S20_a_function_that_is_told_to_stop_ends_its_stream_and_settles(tmp_path: Path) -> None:
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        simulator.default(Script(text="word " * 400, pace=0.05))
        with started(tmp_path, emulator, server_environment(simulator, tmp_path)) as process:
            told = emulator.invoke(asked()).told(60)
            told.wait_for(b"word")
            process.send_signal(signal.SIGTERM)
            error = json.loads(told.wait().chunks[-1].partition(b"data: ")[2])
            assert error["code"] == "server_shutdown"
            assert told.trailers["Lambda-Runtime-Function-Error-Type"] == "Function.ServerShutdown"
            assert process.wait(20) == 0
        (row,) = every_row(store)
        assert row.outcome == "shutdown"
        assert not store.open_leases()
        store.close()


MINE = """
from bedrock_proxy_adapters.config import proxy_from_env

mine = proxy_from_env()
text = "no proxy"

def make():
    return mine

def broken():
    raise RuntimeError("no luck")
"""


@pytest.mark.parametrize(
    "handler", ["app.mine", "app.make", "bedrock_proxy_adapters.config.proxy_from_env"]
)
def test_the_handler_setting_names_a_proxy_or_what_makes_one(tmp_path: Path, handler: str) -> None:
    (tmp_path / "app.py").write_text(MINE)
    with start_in_thread() as simulator, Emulator() as emulator:
        environment = server_environment(
            simulator, tmp_path, _HANDLER=handler, LAMBDA_TASK_ROOT=str(tmp_path)
        )
        with started(tmp_path, emulator, environment):
            event = asked()
            event["rawPath"] = "/healthz"
            event["requestContext"]["http"]["method"] = "GET"
            told = emulator.invoke(event).told(60).wait()
            assert (told.prelude["statusCode"], told.said) == (200, b'{"status": "ok"}\n')


@pytest.mark.parametrize(
    ("environment", "kind", "said"),
    [
        ({"_HANDLER": "nowhere.proxy"}, "Runtime.ImportModuleError", "nowhere"),
        ({"_HANDLER": "app.nothing"}, "Runtime.HandlerNotFound", "nothing"),
        ({"_HANDLER": "app.text"}, "Runtime.InvalidConfiguration", "neither a Proxy"),
        ({"_HANDLER": "app.broken"}, "Runtime.InitError", "no luck"),
        ({"_HANDLER": "proxy"}, "Runtime.InvalidConfiguration", "module.name"),
        ({"BEDROCK_PROXY_STORE": "mysql://x"}, "Runtime.InvalidConfiguration", "mysql"),
        ({"BEDROCK_PROXY_LAMBDA_MODE": "no"}, "Runtime.InvalidConfiguration", "LAMBDA_MODE"),
        ({"AWS_LAMBDA_MAX_CONCURRENCY": "x"}, "Runtime.InvalidConfiguration", "CONCURRENCY"),
    ],
)
def test_a_function_that_cannot_start_says_why(
    tmp_path: Path, environment: dict[str, str], kind: str, said: str
) -> None:
    (tmp_path / "app.py").write_text(MINE)
    with start_in_thread() as simulator, Emulator() as emulator:
        environment = {**server_environment(simulator, tmp_path), **environment}
        environment["LAMBDA_TASK_ROOT"] = str(tmp_path)
        with started(tmp_path, emulator, environment) as process:
            told = emulator.starts.get(timeout=60).wait()
            assert told.headers["lambda-runtime-function-error-type"] == kind
            error = json.loads(told.body)
            assert error["errorType"] == kind
            assert said in error["errorMessage"]
            assert process.wait(20) == 1
        assert said in (tmp_path / "err").read_text()
        assert emulator.polls == 0


def test_elsewhere_than_on_lambda_it_says_what_to_use(tmp_path: Path) -> None:
    with start_in_thread() as simulator:
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            env=server_environment(simulator, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "AWS_LAMBDA_RUNTIME_API is not set: this program is for AWS Lambda. "
        "Elsewhere use `bedrock-proxy serve`.\n"
    )


def test_events_that_come_at_once_are_served_at_once(tmp_path: Path) -> None:
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        simulator.default(Script(text="word " * 100, pace=0.02))
        environment = server_environment(simulator, tmp_path, AWS_LAMBDA_MAX_CONCURRENCY="8")
        with started(tmp_path, emulator, environment):
            invoked = [emulator.invoke(asked()) for _ in range(8)]
            told = [each.told(60) for each in invoked]
            for each in told:
                each.wait_for(b"word")
            assert not any(each.ended.is_set() for each in told), "one after another"
            assert all(each.wait(60).said.endswith(b"[DONE]\n\n") for each in told)
            for _ in range(16):
                emulator.until_idle()
        rows = list(every_row(store))
        assert len({row.request_id for row in rows}) == len(rows) == 8
        store.close()


def test_the_zip_that_the_templates_deploy_serves_on_its_own(tmp_path: Path) -> None:
    """Unpacked as Lambda does, started by its own wrapper, with nothing else on the path."""
    made = [
        sys.executable,
        str(ROOT / "scripts" / "lambda-zip"),
        "--output",
        str(tmp_path),
        "x86_64",
    ]
    subprocess.run(made, check=True, capture_output=True, timeout=300)
    task = tmp_path / "task"
    with zipfile.ZipFile(tmp_path / "bedrock-proxy-lambda-x86_64.zip") as archive:
        archive.extractall(task)
        assert archive.getinfo("stream").external_attr >> 16 == 0o100755
        names = set(archive.namelist())
        for name in names:
            if name.endswith(".py"):
                folder, _, module = name.rpartition("/")
                tag = sys.implementation.cache_tag
                compiled = f"{folder}/__pycache__/{module[:-3]}.{tag}.pyc".lstrip("/")
                # Flags 1: taken as it is, whatever the times of the files (PEP 552).
                assert archive.read(compiled)[4:8] == b"\1\0\0\0", compiled
    with start_in_thread() as simulator, Emulator() as emulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        environment = server_environment(simulator, tmp_path, LAMBDA_TASK_ROOT=str(task))
        del environment["PYTHONPATH"]
        bare = getattr(sys, "_base_executable", sys.executable)
        command = ["sh", str(task / "stream"), bare, "/var/runtime/bootstrap.py"]
        with started(tmp_path, emulator, environment, command):
            told = emulator.invoke(asked()).told(60).wait()
            assert told.said.endswith(b"data: [DONE]\n\n")
        store.close()
