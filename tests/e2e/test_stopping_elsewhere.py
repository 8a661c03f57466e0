"""A server of one's own that stops (S20): the requests under way are told, and their rows say so."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.running import (
    RawClient,
    Running,
    add_customer,
    answers,
    free_port,
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
