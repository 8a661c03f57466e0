"""
What admission costs: latency with four processes on one SQLite file, and CPU a request.

Run as ``python -m benchmarks.admission [--seconds 5]`` from the repository. Figures depend
on the machine and its disk: they are printed, not judged.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import evolve

from bedrock_proxy.accounts import estimated_row
from bedrock_proxy.admission import AdmissionRequest, Grant
from bedrock_proxy.customers import Customer, Key, Limits
from bedrock_proxy.usage import Basis, Outcome, State
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

DIGEST = sha256(b"benchmark").digest()
LIMITS = Limits(
    requests_per_minute=10**7,
    tokens_per_minute=10**10,
    concurrency=1_000,
    requests_per_day=10**9,
    tokens_per_month=10**15,
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def add_customers(store: Any, count: int) -> None:
    for number in range(count):
        store.create_customer(
            Customer(id=f"c{number}", name="n", email="e", limits=LIMITS, created_at=now_ms()),
            Key(
                key_id=f"k{number}",
                digest=DIGEST + number.to_bytes(2, "big"),
                created_at=now_ms(),
            ),
        )


def ask(request_id: str, customer: int) -> AdmissionRequest:
    return AdmissionRequest(
        request_id=request_id,
        customer_id=f"c{customer}",
        key_id=f"k{customer}",
        model_id="us.anthropic.claude-3-haiku-20240307-v1:0",
        model="anthropic.claude-3-haiku-20240307-v1:0",
        dialect="simple",
        operation="InvokeModelWithResponseStream",
        stream=True,
        at=now_ms(),
        input_tokens=400,
        output_tokens=600,
        cost_nanousd=None,
        price_version=None,
        client_request_id=None,
        lease_ms=300_000,
    )


def row(lease: Any) -> Any:
    return evolve(
        estimated_row(lease),
        output_tokens=120,
        token_count=520,
        duration_ms=5,
        basis=Basis.REPORTED,
        state=State.FINAL,
        outcome=Outcome.OK,
        error_code=None,
    )


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def saturate(path: str, name: str, seconds: float) -> None:
    """One of the processes: requests one after the other, without a pause."""
    store = SqliteStore(path)
    print("ready", flush=True)
    sys.stdin.readline()
    admits: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = len(admits)
        request = ask(f"{name}-{number}", number % 8)
        began = time.perf_counter()
        decision = store.admit(request)
        admits.append((time.perf_counter() - began) * 1000)
        assert isinstance(decision, Grant)
        store.finish(row(decision.lease), decision.lease)
    store.close()
    print(json.dumps(admits))


def processes(folder: Path, count: int, seconds: float) -> None:
    path = folder / f"{count}.db"
    store = SqliteStore(path)
    add_customers(store, 8)
    store.close()
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.admission",
                "--worker",
                str(path),
                f"p{n}",
                "--seconds",
                str(seconds),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    admits = [each for process in started for each in json.loads(process.communicate()[0])]
    print(
        f"sqlite, {count} processes saturating: admit p50 {percentile(admits, 0.5):.2f} ms, "
        f"p99 {percentile(admits, 0.99):.2f} ms, worst {max(admits):.1f} ms; "
        f"{len(admits) / seconds:.0f} requests/s"
    )


async def at_once(store: SqliteStore, width: int, each: int, turn: str) -> None:
    native = store.native()

    async def client(number: int) -> None:
        digest = DIGEST + (number % 8).to_bytes(2, "big")
        for step in range(each):
            owner = await native.find_token(digest, now_ms())
            assert owner is not None
            decision = await native.admit(ask(f"{turn}-{width}-{number}-{step}", number % 8))
            assert isinstance(decision, Grant)
            await native.finish(row(decision.lease), decision.lease)

    await asyncio.gather(*(client(number) for number in range(width)))


def cpu(folder: Path) -> None:
    for width, each in ((1, 600), (16, 120), (100, 30)):
        store = SqliteStore(folder / f"cpu{width}.db")
        add_customers(store, 8)
        asyncio.run(at_once(store, width, 20, "warm"))
        began = time.process_time()
        asyncio.run(at_once(store, width, each, "run"))
        spent = (time.process_time() - began) * 1000 / (width * each)
        print(f"sqlite, {width} at once: {spent:.3f} ms CPU for auth + admit + finish")
        store.close()


def memory() -> None:
    store = MemoryStore()
    add_customers(store, 8)
    admits: list[float] = []
    began = time.process_time()
    for number in range(5_000):
        customer = number % 8
        assert store.find_token(DIGEST + customer.to_bytes(2, "big"), now_ms())
        request = ask(f"m{number}", customer)
        start = time.perf_counter()
        decision = store.admit(request)
        admits.append((time.perf_counter() - start) * 1000)
        assert isinstance(decision, Grant)
        store.finish(row(decision.lease), decision.lease)
    spent = (time.process_time() - began) * 1000 / len(admits)
    print(
        f"memory: admit p50 {percentile(admits, 0.5):.3f} ms, p99 {percentile(admits, 0.99):.3f} ms;"
        f" {spent:.3f} ms CPU for auth + admit + finish"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to saturate")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        saturate(*options.worker, options.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        memory()
        cpu(Path(folder))
        for count in (1, 4):
            processes(Path(folder), count, options.seconds)


if __name__ == "__main__":
    main()
