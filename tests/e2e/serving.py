"""The examples' applications under the servers that people run them on."""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from tests.running import ROOT, TOKEN, add_customer, free_port, server_environment, wait_for

from bedrock_proxy.store import every_row
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.simulator import RunningSimulator
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

EXAMPLES = ROOT / "examples"


@frozen
class Served:
    """An example that serves: where, over which fake Bedrock, with which store."""

    port: int
    simulator: RunningSimulator
    store: SqliteStore

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rows(self) -> list[UsageRecord]:
        return list(every_row(self.store))

    def new_row(self, seen: int) -> UsageRecord:
        """The one row that came after the first *seen*."""
        (row,) = wait_for(lambda: self.rows()[seen:] or None, "a ledger row")
        return row

    @contextlib.contextmanager
    def post(
        self, path: str, content: bytes, token: str = TOKEN
    ) -> Iterator[http.client.HTTPResponse]:
        """The reply, its body still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
        }
        with contextlib.closing(connection):
            connection.request("POST", path, content, headers)
            yield connection.getresponse()

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read()


@contextlib.contextmanager
def served(
    example: str, command: tuple[str, ...], alive: str, simulator: RunningSimulator, folder: Path
) -> Iterator[Served]:
    """
    Run ``python -m`` *command* (``{port}`` filled in) in the folder of *example*, until it
    answers GET *alive* with 200.
    """
    store = SqliteStore(folder / "proxy.db")
    add_customer(store)
    port = free_port()
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *(word.format(port=port) for word in command)],
            cwd=EXAMPLES / example,
            env=server_environment(simulator, folder, PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    example_served = Served(port, simulator, store)

    def answers() -> bool | None:
        assert process.poll() is None, log.read_text()
        try:
            return example_served.get(alive)[0] == 200 or None
        except OSError:
            return None

    try:
        wait_for(answers, f"{example} to serve", 60)
        yield example_served
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        store.close()
