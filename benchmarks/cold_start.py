"""
What a cold start costs: from a process's start to the first byte of a streamed answer, and
what each import takes of it, by statement, by package and by module of ours.

A deployed function has bytecode, so these interpreters have too, whatever the environment
says of writing it. Machines differ by a factor of three: compare the ratios to ``import attrs``
of one run, not the milliseconds of two.

    python -m benchmarks.cold_start [--task UNPACKED_ZIP]
"""

import argparse
import json
import os
import statistics
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
    "attrs": "import attrs",
    "attrs, json and hashlib": "import attrs, json, hashlib",
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


def fresh(task: Path | None, bytecode: Path, **more: str) -> dict[str, str]:
    """The environment of an interpreter that finds its modules compiled."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": path_of(task),
        "PYTHONPYCACHEPREFIX": str(bytecode),
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


def cpu_of_imports(task: Path | None, bytecode: Path) -> dict[str, float]:
    """
    Milliseconds of CPU that each statement takes in a fresh interpreter: medians, taken in
    turns so that a slow moment is every statement's.
    """
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for lap in range(RUNS + 1):
        for name, statement in IMPORTS.items():
            timed = (
                f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
            )
            said = subprocess.run(
                [sys.executable, "-c", timed], env=fresh(task, bytecode), check=True,
                capture_output=True, text=True,
            ).stdout  # fmt: skip
            if lap:  # the first one compiles
                taken[name].append(float(said) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def by_module(task: Path | None, bytecode: Path) -> dict[str, float]:
    """Milliseconds of wall time that each module's own code takes, the best of some runs."""
    statement = (
        f"import {LOOP}; from bedrock_proxy_adapters.config import proxy_from_env; proxy_from_env()"
    )
    environment = fresh(task, bytecode, AWS_REGION="us-east-1", BEDROCK_PROXY_STORE="memory:")
    spent: dict[str, float] = {}
    for _ in range(RUNS):
        said = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", statement],
            env=environment, check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip
        for line in said.splitlines():
            fields = line.removeprefix("import time:").split("|")
            if len(fields) == 3 and fields[0].strip().isdecimal():
                name, took = fields[2].strip(), int(fields[0]) / 1000
                spent[name] = min(took, spent.get(name, took))
    return spent


def by_package(modules: dict[str, float]) -> list[tuple[float, str]]:
    """What the modules of each top-level package take together."""
    spent: dict[str, float] = {}
    for module, took in modules.items():
        name = module.partition(".")[0]
        name = "the standard library" if name in sys.stdlib_module_names else name
        spent[name] = spent.get(name, 0.0) + took
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
    with tempfile.TemporaryDirectory() as folder:
        bytecode = Path(folder)
        imports = cpu_of_imports(task, bytecode)
        modules = by_module(task, bytecode)
    print("import, CPU, median of", RUNS, "and its ratio to attrs")
    for name, took in imports.items():
        print(f"  {took:8.1f} ms  {took / imports['attrs']:5.2f}  {name}")
    print("import by package, wall, best of", RUNS, "(tracing makes it slower)")
    for took, name in by_package(modules)[:10]:
        print(f"  {took:8.1f} ms  {name}")
    print("import by module of ours")
    ours = ((took, name) for name, took in modules.items() if name.startswith("bedrock_proxy"))
    for took, name in sorted(ours, reverse=True)[:15]:
        print(f"  {took:8.1f} ms  {name}")
    runs = [first_byte(task) for _ in range(RUNS)]
    wall, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
    print("process start to first byte, best of", RUNS)
    print(f"  {wall:8.1f} ms  wall\n  {cpu:8.1f} ms  CPU")


if __name__ == "__main__":
    main()
