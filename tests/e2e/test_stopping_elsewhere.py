"""
Servers of one's own that stop (S20): the requests under way are told, their rows say so, and what
is read on for clients that left is settled.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.running import (
    RawClient,
    Running,
    add_customer,
    answers,
    free_port,
    on_gunicorn,
    server_environment,
    wait_for,
)

from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

PLAIN = """
from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import asgi_app

app = asgi_app(proxy_from_env())
"""

MOUNTED = """
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.asgi import asgi_app, end_on_sigterm

proxy = proxy_from_env()
bedrock = asgi_app(proxy)


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


@asynccontextmanager
async def lifespan(app):
    end_on_sigterm(bedrock, grace=1)
    yield
    await bedrock.shutdown()
    proxy.close()


app = Starlette(routes=[Mount("/", bedrock)], lifespan=lifespan)
app.add_middleware(Passing)
"""


@pytest.mark.parametrize(
    ("program", "patience"), [(PLAIN, "1"), (MOUNTED, "10")], ids=["plain", "mounted"]
)
def test_S20_under_a_uvicorn_of_ones_own_streams_are_told_that_it_stops(
    program: str, patience: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(program)
    port = free_port()
    with start_in_thread() as simulator, (tmp_path / "log").open("wb") as log:
        store = SqliteStore(tmp_path / "proxy.db")
        add_customer(store)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "program:app", "--port", str(port)),
                *("--lifespan", "on", "--timeout-graceful-shutdown", patience),
            ],
            env=server_environment(simulator, tmp_path),
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        running = Running("uvicorn", "127.0.0.1", port, simulator, store, process=process)
        try:
            wait_for(lambda: answers(port) or None, "uvicorn")
            simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=120.0))
            clients = [RawClient(running) for _ in range(3)]
            for client in clients:
                client.read_until(b'"go"')
            process.send_signal(signal.SIGTERM)
            for client in clients:
                said = client.read_rest()
                assert b'"code": "server_shutdown"' in said
                assert b"[DONE]" not in said
                client.leave()
            process.wait(20)
            assert [(Outcome.SHUTDOWN, Basis.PARTIAL)] * 3 == [
                (row.outcome, row.basis) for row in running.rows()
            ]
            assert not store.open_leases()
        finally:
            process.kill()
            process.wait()
            store.close()


@pytest.mark.parametrize(
    "how",
    [
        "SIGTERM",
        "--max-requests",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("SIGHUP", "SIGINT", "--preload")),
    ],
)
def test_S20_a_gunicorn_worker_ends_after_what_is_read_for_clients_that_left(
    how: str, tmp_path: Path
) -> None:
    # Of the two requests one is to see whether it serves.
    more = {"--max-requests": (how, "2"), "--preload": (how,)}.get(how, ())
    with on_gunicorn(tmp_path, *more) as running:
        process = running.process
        assert process is not None
        running.simulator.default(Script(events=60, pace=0.1, output_tokens=60))
        with RawClient(running) as client:
            client.read_until(b"data: ")
            client.leave(reset=True)
        if how != "--max-requests":
            time.sleep(0.7)  # it is noticed by writing
            process.send_signal(getattr(signal, how, signal.SIGTERM))
        if how not in {"SIGHUP", "--max-requests"}:
            process.wait(20)
            assert running.rows(), "settled when it has ended"
        (row,) = running.new_rows(0, 1)
        assert row.outcome is Outcome.CLIENT_GONE
        # With the hook of the how-to a signal to stop cuts it after two seconds.
        told = how not in {"SIGINT", "--max-requests"}
        assert row.basis is (Basis.PARTIAL if told else Basis.REPORTED)
        assert row.output_tokens > 0
        running.quiet()


@pytest.mark.parametrize("how", [pytest.param("SIGTERM", marks=pytest.mark.slow), "SIGHUP"])
def test_S20_a_gunicorn_worker_cuts_what_is_read_for_clients_that_left_when_the_grace_is_over(
    how: str, tmp_path: Path
) -> None:
    with on_gunicorn(tmp_path) as running:
        assert running.process is not None
        running.simulator.default(Script(events=300, pace=0.1, output_tokens=300))
        with RawClient(running) as client:
            client.read_until(b"data: ")
            client.leave(reset=True)
        time.sleep(0.7)
        begun = time.monotonic()
        running.process.send_signal(getattr(signal, how))
        (row,) = running.new_rows(0, 1)
        assert time.monotonic() - begun < 7
        assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)
        assert 0 < row.output_tokens < 100
        running.quiet()
