"""
AWS's own programs on both sides of the Runtime API: its Python runtime client against our
emulator, so that the emulator is what our loop can be tested on; and its Runtime Interface
Emulator, with our loop as the function.
"""

import contextlib
import http.client
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.tools import missing
from tests.hosts.runtime_api_emulator import Emulator
from tests.hosts.test_lambda_runtime_process import MODULE, asked, started
from tests.running import ROOT, add_customer, free_port, server_environment

from bedrock_proxy.store import every_row
from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

TOOLS = Path(os.environ.get("BEDROCK_PROXY_TOOLS", ROOT / ".tools")) / "lambda"
CLIENT = TOOLS / "bin" / "python"


HANDLER = """
def answer(event, context):
    if event.get("fail"):
        raise ValueError("as asked")
    return {"event": event, "id": context.aws_request_id,
            "left": context.get_remaining_time_in_millis()}
"""


@pytest.fixture
def client() -> list[str]:
    if not CLIENT.exists():
        missing("awslambdaric is not installed: run scripts/test-servers")
    return [str(CLIENT), "-m", "awslambdaric", "app.answer"]


@pytest.fixture
def emulator_of_aws() -> Path:
    machine = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), "none")
    found = TOOLS / f"aws-lambda-rie-{machine}"
    if not found.exists():
        missing("aws-lambda-rie is not installed: run scripts/test-servers")
    return found


def test_our_emulator_serves_awss_own_runtime_client(tmp_path: Path, client: list[str]) -> None:
    (tmp_path / "app.py").write_text(HANDLER)
    environment = {"PATH": os.environ["PATH"], "LAMBDA_TASK_ROOT": str(tmp_path)}
    with Emulator() as emulator, started(tmp_path, emulator, environment, client):
        for number in range(3):
            invoked = emulator.invoke({"number": number}, echo=f"echo-{number}", trace_id="Root=1")
            told = invoked.told(60).wait()
            answer = json.loads(told.body)
            assert (told.kind, answer["event"]) == ("response", {"number": number})
            assert answer["id"] == invoked.request_id
            assert 0 < answer["left"] <= 60_000
            emulator.until_idle()
        told = emulator.invoke({"fail": True}).told(60).wait()
        assert told.kind == "error"
        assert json.loads(told.body)["errorMessage"] == "as asked"
        assert emulator.invoke({}).told(60).wait().kind == "response"


def test_our_emulator_hears_of_its_failed_start(tmp_path: Path, client: list[str]) -> None:
    environment = {"PATH": os.environ["PATH"], "LAMBDA_TASK_ROOT": str(tmp_path)}
    with Emulator() as emulator, started(tmp_path, emulator, environment, client):
        told = emulator.starts.get(timeout=60).wait()
        assert told.headers["lambda-runtime-function-error-type"] == "Runtime.ImportModuleError"


@contextlib.contextmanager
def on_rie(rie: Path, folder: Path, environment: dict[str, str]) -> Iterator[int]:
    """Our loop as a function of AWS's emulator; the port to invoke it at."""
    front, api = free_port(), free_port()
    addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{front}"]
    addresses += ["--runtime-api-address", f"127.0.0.1:{api}"]
    with (folder / "rie.log").open("wb") as log:
        process = subprocess.Popen(
            [str(rie), *addresses, sys.executable, "-m", MODULE],
            env={**environment, "AWS_LAMBDA_FUNCTION_TIMEOUT": "60"},
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield front
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def invoke(port: int, event: object) -> tuple[int, bytes]:
    until = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            path = "/2015-03-31/functions/function/invocations"
            connection.request("POST", path, json.dumps(event))
            reply = connection.getresponse()
            return reply.status, reply.read()
        except ConnectionRefusedError:
            assert time.monotonic() < until, "the emulator did not start"
            time.sleep(0.05)
        finally:
            connection.close()


def test_awss_own_emulator_accepts_the_loop(tmp_path: Path, emulator_of_aws: Path) -> None:
    with start_in_thread() as simulator:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        environment = server_environment(simulator, tmp_path)
        with on_rie(emulator_of_aws, tmp_path, environment) as port:
            ids = []
            for _ in range(3):
                status, answer = invoke(port, asked())
                prelude, nuls, said = answer.partition(bytes(8))
                log = (tmp_path / "rie.log").read_text()
                assert (status, len(nuls)) == (200, 8), (answer, log)
                head = json.loads(prelude)
                assert (head["statusCode"], head["headers"]["content-type"]) == (
                    200,
                    "text/event-stream",
                )
                assert said.endswith(b"data: [DONE]\n\n")
                ids.append(head["headers"]["x-request-id"])
                rows = {row.request_id for row in every_row(store)}
                assert set(ids[:-1]) <= rows
            assert "did not take the answer" not in log
            status, answer = invoke(port, {"no": "request"})
            assert json.loads(answer.partition(bytes(8))[0])["statusCode"] == 400
        assert len(set(ids)) == 3
        store.close()
