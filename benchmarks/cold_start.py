"""
What a cold start costs: from a process's start to the first byte of a streamed answer, and
what each package's import takes of it.

    python -m benchmarks.cold_start [--task UNPACKED_ZIP]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.hosts.runtime_api_emulator import Emulator
from tests.running import ROOT, TOKEN, add_customer, body, server_environment

from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

RUNS = 7
TICK = os.sysconf("SC_CLK_TCK")
LOOP = "bedrock_proxy_adapters.hosts.lambda_runtime"
IMPORTS = {
    "python alone": "pass",
    "the core (bedrock_proxy.exchange)": "import bedrock_proxy.exchange",
    "the loop": f"import {LOOP}",
    "the loop and its stores": f"import {LOOP}, bedrock_proxy_adapters.stores.sqlite",
    "boto3": "import boto3",
    "boto3 and a bedrock-runtime client": (
        "import boto3; boto3.Session(region_name='us-east-1').client('bedrock-runtime')"
    ),
}


def path_of(task: Path | None) -> str:
    return str(task) if task else os.pathsep.join(str(ROOT / part) for part in ("src", "adapters"))


def cpu_of(statement: str, task: Path | None) -> float:
    """Milliseconds of CPU that *statement* takes in a fresh interpreter, the best of some."""
    timed = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    environment = {**os.environ, "PYTHONPATH": path_of(task), "AWS_EC2_METADATA_DISABLED": "true"}
    taken = [
        float(subprocess.run([sys.executable, "-c", timed], env=environment, check=True,
                             capture_output=True, text=True).stdout)
        for _ in range(RUNS)
    ]  # fmt: skip
    return min(taken) * 1000


def by_package(task: Path | None) -> list[tuple[float, str]]:
    """Milliseconds of wall time that each top-level package's own modules take to import."""
    statement = (
        f"import {LOOP}; from bedrock_proxy_adapters.config import proxy_from_env; proxy_from_env()"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": path_of(task),
        "AWS_REGION": "us-east-1",
        "BEDROCK_PROXY_STORE": "memory:",
    }
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement],
        env=environment, check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    spent: dict[str, float] = {}
    for line in said.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if len(fields) == 3 and fields[0].strip().isdecimal():
            name = fields[2].strip().partition(".")[0]
            name = "the standard library" if name in sys.stdlib_module_names else name
            spent[name] = spent.get(name, 0.0) + int(fields[0]) / 1000
    return sorted(((took, name) for name, took in spent.items()), reverse=True)


def first_byte(task: Path | None) -> tuple[float, float]:
    """Milliseconds, wall and CPU, from the process's start to the answer's first byte."""
    with tempfile.TemporaryDirectory() as folder, start_in_thread() as simulator, Emulator() as api:
        where = Path(folder)
        store = SqliteStore(where / "proxy.db")
        add_customer(store)
        text = (ROOT / "tests" / "events" / "function_url.json").read_text()
        event: dict[str, Any] = json.loads(text.replace("TOKEN", TOKEN))
        content = body().decode()
        event.update(body=content, isBase64Encoded=False)
        event["headers"]["content-length"] = str(len(content))
        invoked = api.invoke(event)
        environment = server_environment(
            simulator, where, AWS_LAMBDA_RUNTIME_API=api.address, PYTHONPATH=path_of(task)
        )
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", LOOP], env=environment, cwd=where,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            told = invoked.told(60)
            told.wait_for(b"data: ")
            wall = time.perf_counter() - began
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(stat[11]) + int(stat[12])) / TICK
            told.wait(60)
        finally:
            process.terminate()
            process.wait(20)
            store.close()
    return wall * 1000, cpu * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, help="an unpacked `make lambda-zip`; else the sources")
    task = parser.parse_args().task
    print("import, CPU, best of", RUNS)
    for name, statement in IMPORTS.items():
        print(f"  {cpu_of(statement, task):8.1f} ms  {name}")
    print("import by package, wall, one run (tracing makes it slower)")
    for took, name in by_package(task)[:10]:
        print(f"  {took:8.1f} ms  {name}")
    runs = [first_byte(task) for _ in range(RUNS)]
    wall, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
    print("process start to first byte, best of", RUNS)
    print(f"  {wall:8.1f} ms  wall\n  {cpu:8.1f} ms  CPU")


if __name__ == "__main__":
    main()
