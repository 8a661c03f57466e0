"""Everything that is measured, each in processes of its own: the proxy, its stores, the bare spikes."""

import contextlib
import importlib
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import define, fields, frozen

from bedrock_proxy import tokens
from bedrock_proxy.customers import Customer, Key, Limits
from bedrock_proxy.store import By
from bedrock_proxy_adapters.config import Settings, open_store
from bedrock_proxy_adapters.stores.dynamodb import create_table
from benchmarks import machine

ROOT: Final = Path(__file__).resolve().parents[1]
CUSTOMERS: Final = 8
LIMITS: Final = Limits(
    requests_per_minute=10**7,
    tokens_per_minute=10**10,
    concurrency=20_000,
    requests_per_day=10**9,
    tokens_per_day=10**14,
    tokens_per_month=10**15,
)
"""Every limit is on, and none is met."""
TOKENS: Final = tuple(tokens.mint(bytes([number]) * 32) for number in range(CUSTOMERS))
STREAMS: Final = "20000"
START: Final = 60.0
"""Seconds that a server may take to start."""

SERVE: Final = "from bedrock_proxy_adapters.cli import main; main()"


def add_customers(store: Any, limits: Limits = LIMITS) -> None:
    """A customer for each of :data:`TOKENS`."""
    now = time.time_ns() // 1_000_000
    for number, token in enumerate(TOKENS):
        store.create_customer(
            Customer(id=f"c{number}", name="n", email="e@x", limits=limits, created_at=now),
            Key(key_id=f"k{number}", digest=tokens.digest(token, None), created_at=now),
        )


@define
class Process:
    """A process of ours, and the lines it says."""

    popen: "subprocess.Popen[str]"
    lines: "queue.Queue[str | None]"
    reader: threading.Thread

    @property
    def pid(self) -> int:
        return self.popen.pid

    def line(self, timeout: float = START) -> str:
        """
        The next line it says.

        Raises:
            RuntimeError: It ended, or took too long.
        """
        try:
            said = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise RuntimeError(f"{self.popen.args!r} said nothing for {timeout:g} s") from None
        if said is None:
            raise RuntimeError(f"{self.popen.args!r} ended with {self.popen.wait()}")
        return said

    def ask(self, line: str, timeout: float) -> str:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line)
        self.popen.stdin.flush()
        return self.line(timeout)

    def stop(self) -> None:
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        self.popen.terminate()
        try:
            self.popen.wait(45)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.reader.join(10)


def start(
    arguments: list[str],
    core: int,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    *,
    lines_of: str = "stdout",
    program: str = sys.executable,
) -> Process:
    """Run Python, or another *program*, on a *core*; its output's or errors' lines are kept."""
    env = clean_environment() if environment is None else environment
    apart = {"stdout": subprocess.DEVNULL, "stderr": None}
    popen = subprocess.Popen(
        [program, *arguments],
        env=env,
        cwd=folder,
        stdin=subprocess.PIPE,
        text=True,
        **{**apart, lines_of: subprocess.PIPE},  # type: ignore[arg-type]
    )
    # The core is taken over by threads and processes that come later.
    machine.pin(popen.pid, core)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with getattr(popen, lines_of) as pipe:
            for line in pipe:
                lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return Process(popen, lines, reader)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's, without its AWS configuration or ours."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("AWS_", "BEDROCK_PROXY_")) and k != "PYTHONPATH"
    }
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "adapters", "."))
    return {**kept, "PYTHONPATH": path, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- stores -------------------------------------------------------------------------------------


@frozen
class Books:
    """A store while it is measured: its URL, and what its ledger says."""

    url: str
    count: Callable[[], tuple[int, int]]
    """Rows, and tokens in them."""
    leases: Callable[[], int]
    store: Any = None


@contextlib.contextmanager
def books(kind: str, folder: Path, limits: Limits = LIMITS) -> Iterator[Books]:
    """A new store of a *kind* with the customers in it."""
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            # It lives in the server (`benchmarks.memory`), which tells of it over HTTP.
            yield Books("memory:", lambda: (-1, -1), lambda: -1)
            return
        if kind == "sqlite":
            url = f"sqlite:///{folder / 'bench.db'}"
        elif kind == "redis":
            url = stack.enter_context(redis_server(folder))
        elif kind == "dynamodb":
            url = stack.enter_context(dynamodb_server(folder))
        else:
            raise ValueError(f"{kind} is no store")
        store = open_store(url)
        stack.callback(store.close)
        add_customers(store, limits)

        def count() -> tuple[int, int]:
            sums = store.sum_usage(By.CUSTOMER)
            return sum(each.requests for each in sums), sum(each.token_count for each in sums)

        yield Books(url, count, lambda: len(store.open_leases()), store)


def missing(kind: str) -> str | None:
    """Why a store cannot be measured here; None where it can."""
    if kind == "redis" and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        return "redis-server is not installed"
    if kind == "dynamodb" and not (ROOT / ".tools/ministack/bin/ministack").is_file():
        return "ministack is not installed (scripts/dynamodb-tools does that)"
    return None


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis that writes every second, as its ledger needs; its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    assert program is not None
    port = free_port()
    process = subprocess.Popen(
        [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder),
         "--save", "", "--appendonly", "yes", "--loglevel", "warning", "--logfile", "redis.log"],
    )  # fmt: skip
    machine.pin(process.pid, machine.cores().load)
    try:
        wait_for_port(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def dynamodb_server(folder: Path) -> Iterator[str]:
    """An emulated DynamoDB with a table; the store's URL. AWS's variables name it."""
    port = free_port()
    (folder / "ministack").mkdir()
    environment = clean_environment(
        BIND_HOST="127.0.0.1",
        GATEWAY_PORT=str(port),
        SERVICES="dynamodb",
        LOG_LEVEL="ERROR",
        TMPDIR=str(folder / "ministack"),
        S3_DATA_DIR=str(folder / "ministack" / "s3"),
    )
    with (folder / "ministack.log").open("wb") as log:
        process = subprocess.Popen(
            [str(ROOT / ".tools/ministack/bin/ministack")],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    machine.pin(process.pid, machine.cores().load)
    variables = aws(AWS_ENDPOINT_URL_DYNAMODB=f"http://127.0.0.1:{port}")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        wait_for_port(port)
        import boto3

        create_table(boto3.client("dynamodb", region_name="us-east-1"), "bench")
        yield "dynamodb://bench?region=us-east-1"
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        process.kill()
        process.wait()


def aws(**more: str) -> dict[str, str]:
    """AWS's own variables for a machine without AWS."""
    return {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


def wait_for_port(port: int, timeout: float = START) -> None:
    """
    Wait until something listens there.

    Raises:
        RuntimeError: Nothing does in time.
    """
    end = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"nothing listens on port {port}")
        time.sleep(0.02)


# --- what is measured ---------------------------------------------------------------------------


@frozen(kw_only=True)
class Target:
    """
    Something that answers.

    Attributes:
        name: In results.
        label: For people.
        kind: ``proxy``, ``spike`` or ``fake``.
        host: ``serve`` or ``gunicorn``; or the spike's module.
        upstream: ``async``, ``boto3``, or what `serve` chooses.
        most_streams: Beyond it there is no answer, or none in reasonable time.
    """

    name: str
    label: str
    kind: str
    host: str = "serve"
    store: str = "sqlite"
    upstream: str = "default"
    most_streams: int = 1_000


@define
class Running:
    """A target that runs."""

    target: Target
    port: int
    pid: int
    books: Books | None
    folder: Path
    seen: tuple[int, int] = (0, 0)

    @property
    def tokens(self) -> tuple[str, ...]:
        return TOKENS if self.target.kind == "proxy" else ()


def upstreams() -> dict[str, dict[str, str]]:
    """The upstreams that `serve` can be told to use, and how to tell it; empty: one, untold."""
    if "upstream" not in {each.name for each in fields(Settings)}:
        return {}
    found = {"boto3": {"BEDROCK_PROXY_UPSTREAM": "boto3"}}
    # `auto` is boto3 too where the extra `async` is not installed.
    with contextlib.suppress(ImportError):
        importlib.import_module("bedrock_proxy_adapters.upstream.aio")
        found["async"] = {"BEDROCK_PROXY_UPSTREAM": "auto"}
    return found


@contextlib.contextmanager
def running(
    target: Target, bedrock: int, *, limits: Limits = LIMITS, **settings: str
) -> Iterator[Running]:
    """*target*, calling the fake Bedrock at a port."""
    core = machine.cores().server
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if target.kind == "spike":
            process = start(["-m", f"benchmarks.spikes.{target.host}", str(bedrock)], core)
            stack.callback(process.stop)
            port = int(process.line())
            yield Running(target, port, process.pid, None, folder)
            return
        kept = stack.enter_context(books(target.store, folder, limits))
        process, port = launch(target, bedrock, kept.url, folder, **settings)
        stack.callback(process.stop)
        if target.store == "memory":
            kept = Books(kept.url, lambda: usage_told(port), lambda: -1)
        yield Running(target, port, process.pid, kept, folder)


def environment_for(target: Target, bedrock: int, url: str, **settings: str) -> dict[str, str]:
    endpoint = f"http://127.0.0.1:{bedrock}"
    inherited = {k: v for k, v in os.environ.items() if k == "AWS_ENDPOINT_URL_DYNAMODB"}
    ours = {"BEDROCK_PROXY_STORE": url, "BEDROCK_PROXY_MAX_STREAMS": STREAMS, **settings}
    return clean_environment(
        **aws(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=endpoint),
        **inherited,
        **upstreams().get(target.upstream, {}),
        **ours,
    )


def launch(
    target: Target, bedrock: int, url: str, folder: Path, **settings: str
) -> tuple[Process, int]:
    """The proxy's own processes, once they listen; and the port."""
    core = machine.cores().server
    environment = environment_for(target, bedrock, url, **settings)
    if target.host == "gunicorn":
        port = free_port()
        command = ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread"]
        command += ["--threads", "1100", "--worker-connections", "4000", "--timeout", "1000"]
        command += ["--keep-alive", "75", "--worker-tmp-dir", str(folder)]
        command += ["--log-level", "warning", "benchmarks.wsgi:application"]
        process = start(command, core, environment, folder)
        wait_for_port(port)
        return process, port
    command = ["-c", SERVE, "serve", "--port", "0"]
    if target.store == "memory":
        command = ["-m", "benchmarks.memory"]
    process = start(command, core, environment, folder, lines_of="stderr")
    while "Listening on" not in (line := process.line()):
        pass
    return process, int(line.rpartition(":")[2])


def usage_told(port: int) -> tuple[int, int]:
    """What the proxy itself says of all customers' usage."""
    import http.client
    import json

    requests = used = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        for token in TOKENS:
            connection.request("GET", "/v1/usage", headers={"Authorization": f"Bearer {token}"})
            today = json.loads(connection.getresponse().read())["month"]
            requests, used = requests + today["requests"], used + today["tokens"]
    return requests, used


SPIKES: Final = (
    Target(name="raw", label="bare spike: asyncio protocols, httptools", kind="spike", host="raw"),
    Target(
        name="aiohttp",
        label="bare spike: aiohttp, uvicorn",
        kind="spike",
        host="aiohttp_uvicorn",
    ),
    Target(
        name="boto3-threads",
        label="bare spike: boto3 in threads, uvicorn",
        kind="spike",
        host="boto3_uvicorn",
        most_streams=100,
    ),
)
