"""
Real servers for tests: the proxy on uvicorn (in this process) or gunicorn (in another),
over a fake Bedrock and a SQLite file that both processes can read.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import boto3
import uvicorn
from attrs import define, field
from tests.servers.ports import free_port

from bedrock_proxy import tokens
from bedrock_proxy.customers import UNLIMITED, Customer, Key, Limits
from bedrock_proxy.rules import Rules
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.cli.server import listening, server_for
from bedrock_proxy_adapters.hosts.asgi import Application, asgi_app
from bedrock_proxy_adapters.proxy import Disconnect, Proxy
from bedrock_proxy_adapters.simulator import RunningSimulator, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.upstream.boto3 import OUR_RETRIES, Boto3Upstream, bedrock_client

ROOT = Path(__file__).resolve().parents[1]
TOKEN = tokens.mint(bytes(range(32)))
CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"

T = TypeVar("T")

HostName = Literal["uvicorn", "gunicorn"]


def add_customer(store: SqliteStore, token: str = TOKEN, limits: Limits = UNLIMITED) -> str:
    """A customer with *token*; its id."""
    customer_id = f"cust_{abs(hash(token)) % 10**8}"
    key_id = tokens.mint_key_id(os.urandom(tokens.KEY_ID_BYTES))
    now = time.time_ns() // 1_000_000
    store.create_customer(
        Customer(id=customer_id, name="T", email="t@example.com", limits=limits, created_at=now),
        Key(key_id=key_id, digest=tokens.digest(token, None), created_at=now),
    )
    return customer_id


@define(eq=False)
class Running:
    """A proxy that serves, its fake Bedrock and its store."""

    name: HostName
    host: str
    port: int
    simulator: RunningSimulator
    store: SqliteStore
    proxy: Proxy | None = None
    process: "subprocess.Popen[bytes] | None" = None
    before: set[str] = field(factory=set)
    server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def rows(self) -> list[UsageRecord]:
        return list(every_row(self.store))

    def row(self, request_id: str, timeout: float = 20.0) -> UsageRecord:
        """The ledger row of a request, as soon as it is there; exactly one."""
        return wait_for(
            lambda: next((row for row in self.rows() if row.request_id == request_id), None),
            f"the row of {request_id}",
            timeout,
        )

    def new_rows(self, seen: int, count: int, timeout: float = 30.0) -> list[UsageRecord]:
        """The rows after the first *seen*, once there are *count* of them."""

        def enough() -> list[UsageRecord] | None:
            rows = self.rows()[seen:]
            return rows if len(rows) >= count else None

        return wait_for(enough, f"{count} rows", timeout)

    def quiet(self, timeout: float = 20.0) -> None:
        """Wait until no lease is open and, where it can be seen, nothing is under way."""
        wait_for(lambda: not self.store.open_leases() or None, "open leases to end", timeout)
        if self.proxy is not None:
            proxy = self.proxy
            wait_for(lambda: not proxy.under_way or None, "requests to end", timeout)


def wait_for(found: Callable[[], T | None], what: str, timeout: float = 20.0) -> T:
    """What *found* gives once it gives something."""
    until = time.monotonic() + timeout
    while True:
        value = found()
        if value is not None:
            return value
        assert time.monotonic() < until, f"waited {timeout:g} s for {what}"
        time.sleep(0.02)


def client_of(simulator: RunningSimulator) -> Any:
    """The client that the proxy makes for itself, with credentials that are made up."""
    session = boto3.Session(
        aws_access_key_id="simulated", aws_secret_access_key="simulated", region_name="us-east-1"
    )
    return bedrock_client(endpoint_url=simulator.url, session=session)


# --- hosts ------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_uvicorn(
    folder: Path,
    *,
    wrap: Callable[[Any], Any] = lambda app: app,
    http_parser: Literal["h11", "httptools"] = "httptools",
    disconnect: Disconnect = "drain",
    rules: Rules | None = None,
    write_timeout: float = 120.0,
    serve: bool = False,
) -> Iterator[Running]:
    """The proxy on uvicorn, in a thread of this process; with *serve*, as that command has it."""
    with start_in_thread() as simulator:
        store = SqliteStore(folder / "proxy.db")
        add_customer(store)
        proxy = Proxy(
            store=store,
            upstream=Boto3Upstream(client_of(simulator), retries=OUR_RETRIES),
            rules=rules,
            disconnect=disconnect,
            write_timeout=write_timeout,
        )
        server: uvicorn.Server
        listener: socket.socket | None = None
        if serve:
            server = server_for(Application(proxy, holds=False), announce=False)
            listener = listening("127.0.0.1", 0)
        else:
            server = uvicorn.Server(
                uvicorn.Config(
                    wrap(asgi_app(proxy)),
                    host="127.0.0.1",
                    port=0,
                    log_level="error",
                    access_log=False,
                    http=http_parser,
                    lifespan="on",
                )
            )
        sockets = None if listener is None else [listener]
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        wait_for(lambda: server.started or None, "uvicorn")
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        try:
            yield Running("uvicorn", host, port, simulator, store, proxy, server=server)
        finally:
            server.should_exit = True
            thread.join(30)
            store.close()


def server_environment(simulator: RunningSimulator, folder: Path, **more: str) -> dict[str, str]:
    """What a server process needs, and nothing of this machine's own AWS configuration."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BEDROCK_PROXY_"))}
    return {
        **kept,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "simulated",
        "AWS_SECRET_ACCESS_KEY": "simulated",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": simulator.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "BEDROCK_PROXY_STORE": f"sqlite:///{folder / 'proxy.db'}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "adapters"), str(ROOT)]),
        **more,
    }


@contextlib.contextmanager
def on_gunicorn(
    folder: Path, *more: str, threads: int = 64, **environment: str
) -> Iterator[Running]:
    """The proxy on gunicorn with threads and *more* arguments, configured by its environment."""
    with start_in_thread() as simulator:
        store = SqliteStore(folder / "proxy.db")
        add_customer(store)
        port = free_port()
        command = [
            sys.executable,
            *("-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread"),
            *("--threads", str(threads), "--log-level", "warning", "--timeout", "1000"),
            *("--graceful-timeout", "8", "--worker-tmp-dir", str(folder)),
            *("--config", "python:tests.hosts.gunicorn_conf", *more),
            "tests.hosts.gunicorn_app:application",
        ]
        with (folder / "gunicorn.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=server_environment(simulator, folder, **environment),
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(lambda: answers(port) or None, "gunicorn")
            yield Running("gunicorn", "127.0.0.1", port, simulator, store, process=process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            store.close()


@contextlib.contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[int]:
    """`bedrock-proxy serve` in a process of its own; its port."""
    port = free_port()
    folder.mkdir()
    main = "from bedrock_proxy_adapters.cli import main; main()"
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", main, "serve", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: answers(port) or None, "the server", 60)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def answers(port: int) -> bool:
    """Whether something healthy listens at *port*."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


# --- clients ----------------------------------------------------------------------------------


def body(stream: bool = True, **more: object) -> bytes:
    """A request in the simple dialect."""
    return json.dumps(
        {
            "modelId": CLAUDE,
            "stream": stream,
            "anthropic_version": "bedrock-2023-05-31",
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "Say hello."}],
            **more,
        }
    ).encode()


def post(
    running: Running, content: bytes | None = None, timeout: float = 60.0, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request, read to its end."""
    connection = http.client.HTTPConnection(running.host, running.port, timeout=timeout)
    try:
        connection.request(
            "POST", "/bedrock", body() if content is None else content, _headers(headers)
        )
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    finally:
        connection.close()


def _headers(more: dict[str, str]) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


class RawClient:
    """A client that reads as little as it likes and leaves as rudely as it likes."""

    def __init__(self, running: Running, content: bytes | None = None, **headers: str) -> None:
        self.socket = socket.socket()
        self.received = b""
        self.ask(running, content, **headers)

    def ask(self, running: Running, content: bytes | None = None, **headers: str) -> None:
        """Connect, and send the request."""
        content = body() if content is None else content
        lines = [
            "POST /bedrock HTTP/1.1",
            f"Host: {running.host}:{running.port}",
            f"Content-Length: {len(content)}",
            *(f"{name}: {value}" for name, value in _headers(headers).items()),
        ]
        try:
            self.socket.settimeout(60)
            self.socket.connect((running.host, running.port))
            self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        except OSError:
            self.socket.close()
            raise

    def read_until(self, marker: bytes, timeout: float = 20.0) -> bytes:
        """Read on until *marker* has come."""
        self.socket.settimeout(timeout)
        while marker not in self.received:
            piece = self.socket.recv(65536)
            assert piece, f"the connection ended before {marker!r}: {self.received!r}"
            self.received += piece
        return self.received

    def read_bytes(self, count: int) -> None:
        """Read exactly *count* bytes, or to the end."""
        while len(self.received) < count:
            piece = self.socket.recv(count - len(self.received))
            if not piece:
                return
            self.received += piece

    def read_rest(self, timeout: float = 60.0) -> bytes:
        self.socket.settimeout(timeout)
        while piece := self.socket.recv(65536):
            self.received += piece
        return self.received

    @property
    def request_id(self) -> str:
        head = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")[0].decode()
        for line in head.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "x-request-id":
                return value.strip()
        raise AssertionError(f"no x-request-id in {head}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def leave(self, *, reset: bool = False) -> None:
        """Close: politely (FIN) or not (RST)."""
        if reset:
            self.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
        self.socket.close()


def sse_text(said: bytes) -> str:
    """The visible text of a stream of Server-Sent Events, or of nothing else."""
    pieces: list[str] = []
    for line in said.decode().split("\n"):
        data = line.removeprefix("data: ")
        if data != line and data != "[DONE]":
            pieces.append(json.loads(data).get("content", ""))
    return "".join(pieces)
