"""
What admission costs (L7): latency with four processes on one SQLite file, in memory and on a
Redis on the loopback interface; CPU a request. DynamoDB's round trips are counted by tests.

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
from collections.abc import Iterable, Iterator
from hashlib import sha256
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeAlias

from attrs import evolve

from bedrock_proxy.accounts import estimated_row
from bedrock_proxy.admission import AdmissionRequest, Grant
from bedrock_proxy.customers import Customer, Key, Limits
from bedrock_proxy.usage import Basis, Outcome, State
from bedrock_proxy_adapters.config import open_store
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from benchmarks.machine import percentile
from benchmarks.servers import missing, redis_server

Figure: TypeAlias = tuple[str, float, str, float | None]
"""What, how much, in which unit, and the target."""

GOALS = {"memory": 0.2, "sqlite": 10.0, "redis": 5.0}
"""Milliseconds at the 99th percentile (RELIABILITY.md, L7)."""

CUSTOMERS = 8
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


def saturate(url: str, name: str, seconds: float) -> None:
    """One of the processes: requests one after the other, without a pause."""
    store = open_store(url)
    print("ready", flush=True)
    sys.stdin.readline()
    admits: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = len(admits)
        request = ask(f"{name}-{number}", number % CUSTOMERS)
        began = time.perf_counter()
        decision = store.admit(request)
        admits.append((time.perf_counter() - began) * 1000)
        assert isinstance(decision, Grant)
        store.finish(row(decision.lease), decision.lease)
    store.close()
    print(json.dumps(admits))


def processes(url: str, count: int, seconds: float, goal: float | None = None) -> list[Figure]:
    """So many processes on one store that saturate it."""
    store = open_store(url)
    add_customers(store, CUSTOMERS)
    store.close()
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.admission",
                "--worker",
                url,
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
    name = f"{url.partition(':')[0]}, {count} process{'es' * (count > 1)} saturating"
    return [
        (f"{name}: admit p50", percentile(admits, 0.5), "ms", None),
        (f"{name}: admit p99", percentile(admits, 0.99), "ms", goal),
        (f"{name}: admit, the worst", max(admits), "ms", None),
        (f"{name}: in all", len(admits) / seconds, "requests/s", None),
    ]


async def at_once(store: SqliteStore, width: int, each: int, turn: str) -> None:
    native = store.native()

    async def client(number: int) -> None:
        digest = DIGEST + (number % CUSTOMERS).to_bytes(2, "big")
        for step in range(each):
            owner = await native.find_token(digest, now_ms())
            assert owner is not None
            told = native.admit(ask(f"{turn}-{width}-{number}-{step}", number % CUSTOMERS))
            decision = await told if isawaitable(told) else told
            assert isinstance(decision, Grant)
            await native.finish(row(decision.lease), decision.lease)

    await asyncio.gather(*(client(number) for number in range(width)))


WIDTHS = ((1, 600), (16, 120), (100, 30))
"""How many clients there are, and how many requests of each."""


def cpu(folder: Path, widths: Iterable[tuple[int, int]] = WIDTHS) -> list[Figure]:
    """What a request's three steps take of the processor in SQLite, alone and in company."""
    found: list[Figure] = []
    for width, each in widths:
        store = SqliteStore(folder / f"cpu{width}.db")
        add_customers(store, CUSTOMERS)
        asyncio.run(at_once(store, width, 20, "warm"))
        began = time.process_time()
        asyncio.run(at_once(store, width, each, "run"))
        spent = (time.process_time() - began) * 1000 / (width * each)
        found.append((f"sqlite, {width} at once: auth + admit + finish", spent, "CPU ms", None))
        store.close()
    return found


def memory() -> list[Figure]:
    """The store in memory, one request after the other."""
    store = MemoryStore()
    add_customers(store, CUSTOMERS)
    admits: list[float] = []
    began = time.process_time()
    for number in range(5_000):
        customer = number % CUSTOMERS
        assert store.find_token(DIGEST + customer.to_bytes(2, "big"), now_ms())
        request = ask(f"m{number}", customer)
        start = time.perf_counter()
        decision = store.admit(request)
        admits.append((time.perf_counter() - start) * 1000)
        assert isinstance(decision, Grant)
        store.finish(row(decision.lease), decision.lease)
    spent = (time.process_time() - began) * 1000 / len(admits)
    return [
        ("memory: admit p50", percentile(admits, 0.5), "ms", None),
        ("memory: admit p99", percentile(admits, 0.99), "ms", GOALS["memory"]),
        ("memory: auth + admit + finish", spent, "CPU ms", None),
    ]


def figures(seconds: float) -> Iterator[Figure]:
    """Everything, Redis where there is a server."""
    with tempfile.TemporaryDirectory() as folder:
        yield from memory()
        yield from cpu(Path(folder))
        for count in (1, 4):
            url = f"sqlite:///{folder}/{count}.db"
            yield from processes(url, count, seconds, GOALS["sqlite"] if count == 4 else None)
        if missing("redis") is None:
            with redis_server(Path(folder)) as url:
                yield from processes(url, 1, seconds, GOALS["redis"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to saturate")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        saturate(*options.worker, options.seconds)
        return
    for case, value, unit, goal in figures(options.seconds):
        print(f"{case}: {value:.3f} {unit}" + (f" (target {goal:g})" if goal is not None else ""))


if __name__ == "__main__":
    main()
