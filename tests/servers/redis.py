"""
A redis-server of our own: on a free port of the loopback interface, gone when the tests end.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
from attrs import define
from redis import Redis, exceptions
from tests.servers.ports import free_port


def program() -> str:
    """Where redis-server is, as `scripts/test-servers` installs it."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return path
    return _missing("redis-server is not installed (scripts/test-servers does that on Debian)")


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@define
class Server:
    """
    A running server.

    Attributes:
        options: What it was started with, beside where it is.
    """

    folder: Path
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    def client(self) -> Redis:
        return Redis(port=self.port, socket_timeout=30)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                program(),
                *("--bind", "127.0.0.1", "--port", str(self.port)),
                *("--unixsocket", str(self.socket), "--dir", str(self.folder)),
                *("--save", "", "--loglevel", "warning", "--logfile", "redis.log"),
                *self.options,
            ]
        )
        end = time.monotonic() + 30
        with self.client() as client:
            while True:
                assert self.process.poll() is None, (self.folder / "redis.log").read_text()
                try:
                    client.ping()
                    break
                except exceptions.RedisError:
                    assert time.monotonic() < end, "redis-server does not answer"
                    time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server with an append-only file and these options more."""
    program()
    # A socket's path may be no longer than 107 bytes (unix(7)): not in pytest's own folder.
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = Server(Path(folder), free_port(), ("--appendonly", "yes", *options))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@cache
def shared() -> Server:
    """
    One server for all tests that mind their own prefix; a cluster of one node, so that a
    script whose keys are not in one slot fails.
    """
    context = serving(
        *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
        *("--appendfsync", "no"),
    )
    server = context.__enter__()
    atexit.register(context.__exit__, None, None, None)
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            time.sleep(0.05)
    return server
