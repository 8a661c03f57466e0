"""
What a stream costs the process that serves it: CPU a thousand events, CPU a plain request,
memory, with authentication, admission and the SQLite ledger on.

A real ``bedrock-proxy serve`` over a simulated Bedrock in a process of its own; only the
proxy's CPU is counted. Run as ``python -m benchmarks.streams``. Figures depend on the
machine: they are printed, not judged.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from bedrock_proxy import tokens
from bedrock_proxy.customers import Customer, Key
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

TOKEN = tokens.mint(bytes(range(32)))
EVENTS = 200
COMMAND = [sys.executable, "-c", "from bedrock_proxy_adapters.cli import main; main()"]
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def body(stream: bool) -> str:
    return json.dumps(
        {
            "modelId": "anthropic.claude-3-haiku-20240307-v1:0",
            "stream": stream,
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 1_000,
            "messages": [{"role": "user", "content": "word " * 200}],
        }
    )


def started(arguments: list[str], env: dict[str, str], marker: str) -> tuple[Any, str]:
    """A process of ours, once it has said where it listens."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if marker in line:
            # Read on, so that the pipe never fills.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, line.split()[-1]
    raise RuntimeError(f"{arguments} ended")


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def script(simulator: str, pace: float) -> None:
    connection = http.client.HTTPConnection(*address(simulator))
    rule = {"script": {"events": EVENTS, "text": "word " * EVENTS, "pace": pace}, "times": None}
    connection.request("POST", "/_simulator/reset", "{}")
    connection.getresponse().read()
    connection.request("POST", "/_simulator/script", json.dumps(rule))
    assert connection.getresponse().status == 200
    connection.close()


def streams(proxy: str, count: int, rounds: int) -> None:
    def one() -> None:
        for _ in range(rounds):
            connection = http.client.HTTPConnection(*address(proxy), timeout=120)
            connection.request("POST", "/bedrock", body(stream=True), HEADERS)
            said = connection.getresponse().read()
            assert said.count(b'"content"') == EVENTS, said[:200]
            connection.close()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "bench.db")
        now = time.time_ns() // 1_000_000
        store.create_customer(
            Customer(id="c", name="n", email="e@example.com", created_at=now),
            Key(key_id="k", digest=tokens.digest(TOKEN, None), created_at=now),
        )
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_"))}
        simulator, fake = started(["simulate", "--port", "0"], kept, "Simulating")
        env = {
            **kept,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "simulated",
            "AWS_SECRET_ACCESS_KEY": "simulated",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": fake,
            "BEDROCK_PROXY_STORE": f"sqlite:///{folder}/bench.db",
        }
        server, proxy = started(["serve", "--port", "0", "--no-usage-log"], env, "Listening")
        watched = psutil.Process(server.pid)
        try:
            script(fake, 0.0)
            streams(proxy, 1, 1)
            for name, count, rounds, pace in (
                ("S1     8 streams without pause", 8, 5, 0.0),
                ("S2-100 100 streams, an event every 20 ms", 100, 1, 0.02),
            ):
                script(fake, pace)
                before = cpu(watched)
                streams(proxy, count, rounds)
                spent = (cpu(watched) - before) * 1_000 / (count * rounds * EVENTS / 1_000)
                print(f"{name}: {spent:.1f} CPU ms per 1,000 events")
            connection = http.client.HTTPConnection(*address(proxy), timeout=60)
            before = cpu(watched)
            for _ in range(300):
                connection.request("POST", "/bedrock", body(stream=False), HEADERS)
                assert connection.getresponse().read()
            print(
                f"N1     plain requests of 1 KB: {(cpu(watched) - before) * 1_000 / 300:.2f} CPU ms each"
            )
            print(f"memory after all of it: {watched.memory_info().rss / 2**20:.0f} MiB")
        finally:
            for process in (server, simulator):
                process.terminate()
                process.wait()
            store.close()


if __name__ == "__main__":
    main()
