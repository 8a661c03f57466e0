"""
Clients that leave (S01, S02, S03, S14, S21), servers that stop (S20): one row each with
the right usage, and nothing left running.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount
from tests.running import (
    RawClient,
    Running,
    add_customer,
    answers,
    body,
    free_port,
    on_gunicorn,
    on_uvicorn,
    post,
    server_environment,
    wait_for,
)

from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.cli import stalled
from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

LONG = Script(events=40, text="word " * 40, pace=0.002, input_tokens=9, output_tokens=40)


def under_middleware(app: Any) -> Any:
    """The proxy as people mount it: below a BaseHTTPMiddleware."""

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    outer = Starlette(routes=[Mount("/", app=app)])
    outer.add_middleware(Passing)
    return outer


@pytest.fixture(scope="module", params=["uvicorn", "middleware", "gunicorn"])
def draining(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(f"drain-{request.param}")
    if request.param == "gunicorn":
        with on_gunicorn(folder) as running:
            yield running
    else:
        wrap = under_middleware if request.param == "middleware" else (lambda app: app)
        with on_uvicorn(folder, wrap=wrap) as running:
            yield running


def resources(running: Running) -> tuple[int, int]:
    """Threads and file descriptors of the process that serves."""
    pid = os.getpid() if running.process is None else running.process.pid
    processes = [psutil.Process(pid), *psutil.Process(pid).children()]
    return sum(p.num_threads() for p in processes), sum(p.num_fds() for p in processes)


def leave(running: Running, rng: random.Random) -> str:
    """One client that leaves at a random byte; the id of its request."""
    with RawClient(running) as client:
        request_id = client.request_id
        client.read_bytes(len(client.received) + rng.randrange(1, 900))
        client.leave(reset=rng.random() < 0.5)
    return request_id


def test_S01_two_hundred_clients_that_leave_lose_nothing_of_the_bill(draining: Running) -> None:
    draining.simulator.reset()
    draining.simulator.default(LONG)
    assert 200 == post(draining)[0]
    draining.quiet()
    before = resources(draining)
    rng = random.Random(1)
    ids: list[str] = []

    def some(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(20):
            ids.append(leave(draining, own))

    threads = [threading.Thread(target=some, args=(rng.random(),)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 == len(set(ids))
    rows = {row.request_id: row for row in draining.new_rows(0, 201)}
    wrong = [
        row
        for request_id in ids
        if (row := rows[request_id]).basis is not Basis.REPORTED
        or (row.input_tokens, row.output_tokens) != (9, 40)
        or row.outcome not in {Outcome.CLIENT_GONE, Outcome.OK}
    ]
    assert [] == wrong
    assert sum(row.outcome is Outcome.CLIENT_GONE for row in rows.values()) > 100
    draining.quiet()
    # Kept connections may stay, as many as were open at once (here both of their ends are
    # in one process); two hundred of anything may not.
    wait_for(
        lambda: back_to(before, resources(draining)) or None, f"{before} from {resources(draining)}"
    )


def back_to(before: tuple[int, int], now: tuple[int, int]) -> bool:
    return all(have <= had + 100 for have, had in zip(now, before, strict=True))


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_S01_under_the_policy_cancel_the_call_is_closed_at_once(kind: str, tmp_path: Path) -> None:
    host = (
        on_uvicorn(tmp_path, disconnect="cancel")
        if kind == "uvicorn"
        else on_gunicorn(tmp_path, BEDROCK_PROXY_DISCONNECT="cancel")
    )
    with host as running:
        running.simulator.default(Script(events=2_000, text="word " * 2_000, pace=0.01))
        with RawClient(running) as client:
            request_id = client.request_id
            client.read_until(b"word")
            client.leave()
        running.simulator.wait_calls(1)[0].wait_aborted(10)
        row = running.row(request_id)
        assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)
        assert row.input_tokens > 0
        assert 0 < row.output_tokens < 1_000
        running.quiet()


def test_S02_a_client_that_leaves_in_silence_is_noticed_within_a_second(tmp_path: Path) -> None:
    with on_uvicorn(tmp_path, disconnect="cancel") as running:
        running.simulator.default(Script(pieces=("a", "b"), stall_after=3, stall=60.0))
        with RawClient(running) as client:
            request_id = client.request_id
            client.read_until(b'"a"')
            client.leave()
        left = time.monotonic()
        row = running.row(request_id, timeout=5)
        assert time.monotonic() - left < 1.5, "a ping would take 15 s"
        assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)


def test_S03_clients_that_close_after_the_last_event_were_served(draining: Running) -> None:
    draining.simulator.reset()
    draining.simulator.default(Script(text="one two three"))
    ids: list[str] = []
    for n in range(60):
        with RawClient(draining) as client:
            ids.append(client.request_id)
            client.read_until(b"data: [DONE]\n\n")
            client.leave(reset=n % 2 == 0)
    rows = [draining.row(request_id) for request_id in ids]
    assert {Outcome.OK} == {row.outcome for row in rows}


def test_S14_a_reader_that_stops_reading_holds_the_model_back(tmp_path: Path) -> None:
    with on_uvicorn(tmp_path, write_timeout=2.0, disconnect="cancel") as running:
        big = "x" * 10_000
        running.simulator.default(Script(pieces=(big,) * 2_000))
        with RawClient(running) as client:
            request_id = client.request_id
            call = running.simulator.wait_calls(1)[0]
            wait_for(lambda: call.aborted or None, "the write timeout", 20)
            # The kernel's own buffers take some megabytes; the rest was never read.
            assert call.events_written < 1_900
            row = running.row(request_id)
            assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)
        running.quiet()


def test_S14_the_connection_of_a_reader_that_stopped_reading_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the client still holds its own end open."""
    monkeypatch.setattr(stalled, "EVERY_S", 0.2)
    monkeypatch.setattr(stalled, "GIVEN_UP_S", 0.5)
    with on_uvicorn(tmp_path, write_timeout=1.0, serve=True) as running:
        assert running.server is not None
        connections = running.server.server_state.connections
        running.simulator.default(Script(pieces=("x" * 10_000,) * 2_000))
        with Unread(running) as client:
            wait_for(lambda: len(connections) or None, "the connection")
            wait_for(lambda: not connections or None, "the end of the connection")
            client.leave()
        running.quiet()
        assert [Outcome.CLIENT_GONE] == [row.outcome for row in running.rows()]


def test_S21_the_hosts_task_may_be_cancelled_at_every_await(tmp_path: Path) -> None:
    """One row each, whichever await the server's own task is cancelled at."""
    with on_uvicorn(tmp_path) as running:
        assert running.proxy is not None
        running.simulator.default(Script(events=4, text="a b c d", input_tokens=5, output_tokens=4))
        from bedrock_proxy_adapters.hosts.asgi import asgi_app

        app = asgi_app(running.proxy)
        content = body()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/bedrock",
            "raw_path": b"/bedrock",
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"host", b"t"),
                (b"authorization", f"Bearer {_token()}".encode()),
                (b"content-type", b"application/json"),
            ],
        }

        async def one(cancel_after: int) -> None:
            steps = 0
            stopped = asyncio.Event()

            async def receive() -> dict[str, Any]:
                nonlocal steps
                if steps == 0:
                    steps = 1
                    return {"type": "http.request", "body": content, "more_body": False}
                await stopped.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                await asyncio.sleep(0)

            task = asyncio.create_task(app(scope, receive, send))
            for _ in range(cancel_after):
                if task.done():
                    break
                await asyncio.sleep(0.002)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            stopped.set()

        async def all_of_them() -> int:
            for k in range(30):
                await one(k)
            until = time.monotonic() + 20
            while running.proxy is not None and running.proxy.under_way:
                assert time.monotonic() < until, "a flow was lost"
                await asyncio.sleep(0.01)
            # A watcher that was cancelled with the last of them takes one more turn of the loop.
            while (left := len(asyncio.all_tasks()) - 1) and time.monotonic() < until:
                await asyncio.sleep(0.01)
            return left

        assert 0 == asyncio.run(all_of_them()), "tasks were left"
        rows = running.rows()
        assert len(running.simulator.calls) == len(rows)
        assert len(rows) >= 15, "a request that was cancelled before its call has no row"
        assert {(5, 4, Basis.REPORTED)} == {
            (r.input_tokens, r.output_tokens, r.basis) for r in rows
        }
        assert not running.store.open_leases()


def _token() -> str:
    from tests.running import TOKEN

    return TOKEN


def test_S20_under_gunicorn_streams_finish_or_are_told_too(tmp_path: Path) -> None:
    with on_gunicorn(tmp_path) as running:
        assert running.process is not None
        running.simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=120.0))
        endless = [RawClient(running) for _ in range(10)]
        for client in endless:
            client.read_until(b'"go"')
        running.simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=1.0))
        with RawClient(running) as short:
            short.read_until(b'"go"')
            running.process.send_signal(signal.SIGTERM)
            short.read_until(b"data: [DONE]\n\n")
        for client in endless:
            said = client.read_rest()
            assert b'"code": "server_shutdown"' in said
            assert b"[DONE]" not in said
            client.leave()
        rows = running.new_rows(0, 11)
        assert {(Outcome.SHUTDOWN, Basis.PARTIAL): 10, (Outcome.OK, Basis.REPORTED): 1} == Counter(
            (row.outcome, row.basis) for row in rows
        )
        running.quiet()


@contextlib.contextmanager
def short_grace(folder: Path) -> Iterator[tuple[Running, "subprocess.Popen[bytes]", Path]]:
    """A real `bedrock-proxy serve` that gives its streams three seconds, and its log."""
    with start_in_thread() as simulator:
        store = SqliteStore(folder / "proxy.db")
        add_customer(store)
        port = free_port()
        said = folder / "serve.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.hosts.short_grace", "--port", str(port)],
                env=server_environment(simulator, folder),
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(lambda: answers(port) or None, "serve")
            yield (
                Running("uvicorn", "127.0.0.1", port, simulator, store, process=process),
                process,
                said,
            )
        finally:
            process.kill()
            process.wait()
            store.close()


@pytest.mark.parametrize("streams", [20])
def test_S20_sigterm_lets_streams_finish_and_tells_the_rest(streams: int, tmp_path: Path) -> None:
    """Told to stop with short and endless streams under way."""
    with short_grace(tmp_path) as (running, process, log):
        running.simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=120.0))
        endless = [RawClient(running) for _ in range(streams)]
        for client in endless:
            client.read_until(b'"go"')
        running.simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=1.0))
        short = [RawClient(running) for _ in range(5)]
        for client in short:
            client.read_until(b'"go"')
        process.send_signal(signal.SIGTERM)
        for client in short:
            client.read_until(b"data: [DONE]\n\n")
        for client in endless:
            said = client.read_rest()
            assert b'"code": "server_shutdown"' in said
            assert b"[DONE]" not in said
        assert 0 == process.wait(20)
        rows = store_rows(running.store)
        assert streams + 5 == len(rows)
        assert {(Outcome.SHUTDOWN, Basis.PARTIAL), (Outcome.OK, Basis.REPORTED)} == {
            (row.outcome, row.basis) for row in rows
        }
        assert not running.store.open_leases()
        assert b"Traceback" not in log.read_bytes()
        for client in [*endless, *short]:
            client.leave()


def test_S20_a_client_that_does_not_read_keeps_no_server_from_stopping(tmp_path: Path) -> None:
    """Neither one whose answer is under way, nor one that has not taken the end of a whole one."""
    with short_grace(tmp_path) as (running, process, log):
        running.simulator.default(Script(pieces=("x" * 60_000,) * 300))
        with Unread(running) as stuck:
            wait_for(lambda: len(running.simulator.calls) or None, "the call")
            call = running.simulator.calls[0]
            wait_until_it_stands(lambda: call.events_written)
            process.send_signal(signal.SIGTERM)
            # 3 s to finish, 1 s to be told, 1 s to take the rest.
            assert 0 == process.wait(30)
            (row,) = store_rows(running.store)
            assert (Outcome.CLIENT_GONE, Basis.PARTIAL) == (row.outcome, row.basis)
            assert not running.store.open_leases()
            assert b"Traceback" not in log.read_bytes()
            stuck.leave()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_S20_told_twice_it_ends_at_once_and_tells_everyone(
    sign: signal.Signals, tmp_path: Path
) -> None:
    with short_grace(tmp_path) as (running, process, log):
        running.simulator.default(Script(pieces=("go", "on"), stall_after=3, stall=120.0))
        endless = [RawClient(running) for _ in range(5)]
        for client in endless:
            client.read_until(b'"go"')
        process.send_signal(sign)
        wait_for(lambda: b"Stopping" in log.read_bytes() or None, "the first signal")
        again = time.monotonic()
        process.send_signal(sign)
        for client in endless:
            assert b'"code": "server_shutdown"' in client.read_rest()
            client.leave()
        assert time.monotonic() - again < 2.5, "it waited for the three seconds of grace"
        assert process.wait(10) in {0, 130}
        rows = store_rows(running.store)
        assert [(Outcome.SHUTDOWN, Basis.PARTIAL)] * 5 == [(r.outcome, r.basis) for r in rows]
        assert b"Traceback" not in log.read_bytes()


class Unread(RawClient):
    """A client that asks and then does not read, with little room for what comes."""

    def __init__(self, running: Running) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.received = b""
        self.ask(running)


def wait_until_it_stands(count: Callable[[], int], during: float = 1.0) -> None:
    """Wait until *count* has been the same for a while."""
    before, since = -1, time.monotonic()
    until = since + 20
    while time.monotonic() - since < during:
        assert time.monotonic() < until, "it goes on and on"
        now = count()
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.02)


def store_rows(store: SqliteStore) -> list[Any]:
    from bedrock_proxy.store import every_row

    return list(every_row(store))
