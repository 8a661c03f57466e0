"""``bedrock-proxy serve`` goes on serving while nobody reads what it writes."""

import contextlib
import json
import os
import signal
import socket
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


def fill(pipe: int) -> None:
    """Write to *pipe* until it takes no more."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"-")
    os.set_blocking(pipe, True)


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_a_log_that_nobody_reads_stops_neither_requests_nor_the_server_that_stops(
    parser: str, tmp_path: Path
) -> None:
    """Nor does it tell of what anybody may send, however often that is."""
    begin = "from bedrock_proxy_adapters.cli import main; main()"
    if parser == "h11":
        hide = "import sys; sys.modules['bedrock_proxy_adapters.hosts.http11'] = None; "
        begin = hide + begin
    port = free_port()
    reading, writing = os.pipe()
    shrink(writing)
    with start_in_thread() as simulator, contextlib.ExitStack() as ends:
        ends.callback(os.close, reading)
        store = SqliteStore(tmp_path / "proxy.db")
        ends.callback(store.close)
        add_customer(store)
        process = subprocess.Popen(
            [sys.executable, "-c", begin, "serve", "--port", str(port)],
            cwd=tmp_path, env=server_environment(simulator, tmp_path),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writing,
        )  # fmt: skip
        ends.callback(process.wait)
        ends.callback(process.kill)
        told = b""
        while b"Listening" not in told:
            told += os.read(reading, 4096)
        fill(writing)
        os.close(writing)
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), 20) as wire:
                wire.sendall(b"x\r\n\r\n")
                assert wire.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"
        served = Served(port, simulator, store)
        assert served.get("/healthz")[0] == 200
        simulator.default(Script(text="slow " * 10, pace=0.2))
        with served.post("/bedrock", body()) as reply:
            assert reply.status == 200
            process.send_signal(signal.SIGTERM)
            reply.read()
        told = b""
        while piece := os.read(reading, 4096):
            told += piece
        process.wait(20)
        assert len(served.rows()) == 1
    stopping = b"Stopping: up to 30 s for 1 request(s) under way."
    assert told.strip(b"-").splitlines() == [stopping]
