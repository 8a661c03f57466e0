"""``bedrock-proxy serve`` goes on serving while nobody reads what it writes."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.serving import Served
from tests.running import add_customer, body, free_port, server_environment, wait_for

from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

fcntl = pytest.importorskip("fcntl")


def shrink(pipe: int) -> None:
    """Let *pipe* hold a page instead of sixteen, where the system can."""
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)


def test_a_pipe_that_nobody_reads_stops_neither_requests_nor_health(tmp_path: Path) -> None:
    requests = 400 if not hasattr(fcntl, "F_SETPIPE_SZ") else 60
    port = free_port()
    with start_in_thread() as simulator, (tmp_path / "err").open("wb") as err:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        process = subprocess.Popen(
            [sys.executable, "-c", "from bedrock_proxy_adapters.cli import main; main()",
             "serve", "--port", str(port)],
            cwd=tmp_path, env=server_environment(simulator, tmp_path),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err,
        )  # fmt: skip
        assert process.stdout is not None
        shrink(process.stdout.fileno())
        try:
            wait_for(lambda: "Listening" in (tmp_path / "err").read_text() or None, "serve", 60)
            served = Served(port, simulator, store)
            simulator.default(Script(text="quick"))
            for _ in range(requests):
                with served.post("/bedrock", body()) as reply:
                    assert 200 == reply.status
                    reply.read()
            assert 200 == served.get("/healthz")[0]
            wait_for(lambda: len(served.rows()) == requests or None, "the rows")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            store.close()
    lines = [json.loads(line) for line in out.splitlines()]
    assert requests == len({line["request_id"] for line in lines}), "and it was read in the end"
