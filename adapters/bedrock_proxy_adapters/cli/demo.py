"""
``bedrock-proxy demo``: the newcomer's first minute, without an AWS account.

A simulated Bedrock and the proxy on a SQLite file, a customer, an answer streamed to the
terminal as it arrives, its ledger row; then the proxy stays up, with lines to paste.
"""

import http.client
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bedrock_proxy import tokens
from bedrock_proxy.customers import DEFAULT_REQUESTS_PER_DAY, Customer, Key, Limits
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.store import every_row
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.cli.output import table, url_of
from bedrock_proxy_adapters.cli.server import GRACE, listening, server_for

if TYPE_CHECKING:
    from bedrock_proxy_adapters.proxy import Proxy
    from bedrock_proxy_adapters.stores.sqlite import SqliteStore

_WIDTH = 79
"""A terminal's usual 80 columns, but for the last: some wrap there."""

MODEL = "anthropic.claude-3-haiku-20240307-v1:0"

_ANSWER = (
    "Your token was checked, the day's limit was charged, Bedrock (a simulated one) was "
    "called, and each piece of this sentence left for you before the next one was made. "
    "When it ends, one row in the ledger says what it cost."
)


@click.command()
@click.option("--once", is_flag=True, help="End after the answer instead of staying up.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    metavar="NUMBER",
    type=click.IntRange(0, 65535),
    help="Port the proxy listens on; 0 takes a free one.",
)
def demo(once: bool, port: int) -> None:
    """Show the main job on this machine alone: no AWS account, nothing to configure."""
    from bedrock_proxy_adapters.proxy import Proxy
    from bedrock_proxy_adapters.simulator import Script, start_in_thread
    from bedrock_proxy_adapters.stores.sqlite import SqliteStore
    from bedrock_proxy_adapters.upstream.boto3 import Boto3Upstream

    with (
        listening("127.0.0.1", 0 if once else port) as listener,
        tempfile.TemporaryDirectory(prefix="bedrock-proxy-demo-") as folder,
        start_in_thread(Script(text=_ANSWER, pace=0.04)) as simulator,
    ):
        click.secho("1. A simulated Bedrock", bold=True)
        click.echo(f"   {simulator.url}\n")

        store = SqliteStore(Path(folder) / "demo.db")
        proxy = Proxy(store=store, upstream=Boto3Upstream(simulator.client()))
        served = _Served(proxy, listener)
        click.secho("2. The proxy, on SQLite", bold=True)
        click.echo(f"   {served.url}\n")

        customer_id, token = _customer(store)
        click.secho("3. A customer", bold=True)
        click.echo(f"   customer_id {customer_id}")
        click.echo(f"   token       {token}\n")

        click.secho("4. An answer, streamed as it arrives", bold=True)
        pieces = _stream(served.host, served.port, token)
        click.echo()

        click.secho("5. Its row in the ledger", bold=True)
        _show(_row(store, pieces))

        if not once:
            click.echo()
            try:
                _lines_to_paste(served.url, token)
                _until_interrupted()
            except KeyboardInterrupt:
                click.echo()
        served.stop()


class _Served:
    """The proxy on uvicorn, in a thread of its own."""

    def __init__(self, proxy: "Proxy", listener: socket.socket) -> None:
        from bedrock_proxy_adapters.hosts.asgi import asgi_app

        self._server = server_for(asgi_app(proxy), announce=False)
        # The socket listens already: what connects before the server is up waits in its queue.
        self.host, self.port = listener.getsockname()[:2]
        self.url = url_of(listener)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End what is under way, then the server."""
        self._server.should_exit = True
        self._thread.join(GRACE)


def _customer(store: "SqliteStore") -> tuple[str, str]:
    token = tokens.mint(os.urandom(tokens.RANDOM_BYTES))
    now = time.time_ns() // 1_000_000
    customer = Customer(
        id="cust_" + secrets.token_hex(8),
        name="Demo",
        email="demo@example.com",
        limits=Limits(requests_per_day=DEFAULT_REQUESTS_PER_DAY),
        created_at=now,
    )
    key_id = tokens.mint_key_id(os.urandom(tokens.KEY_ID_BYTES))
    store.create_customer(
        customer, Key(key_id=key_id, digest=tokens.digest(token, None), created_at=now)
    )
    return customer.id, token


def _body(stream: bool) -> dict[str, Any]:
    return {
        "modelId": MODEL,
        "stream": stream,
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "What just happened?"}],
    }


def _stream(host: str, port: int, token: str) -> int:
    """Print the answer piece by piece, as a client would see it; how many pieces there were."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request(
        "POST",
        "/bedrock",
        json.dumps(_body(stream=True)),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    reply = connection.getresponse()
    if reply.status != 200:
        raise ConfigurationError(f"The demo's own request was refused: {reply.read().decode()}")
    pieces = 0
    sys.stdout.write("   ")
    column = 3
    for line in reply:
        data = line.decode().strip().removeprefix("data: ")
        if not data or data == "[DONE]" or data.startswith(":"):
            continue
        word = json.loads(data).get("content", "")
        if column + len(word) > _WIDTH:
            sys.stdout.write("\n   ")
            column = 3
            word = word.lstrip()
        sys.stdout.write(word)
        sys.stdout.flush()
        column += len(word)
        pieces += 1
    connection.close()
    sys.stdout.write("\n")
    return pieces


def _row(store: "SqliteStore", pieces: int) -> UsageRecord:
    for _ in range(100):
        for row in every_row(store):
            return row
        time.sleep(0.05)
    raise ConfigurationError(f"{pieces} pieces arrived, but the ledger has no row.")


def _show(row: UsageRecord) -> None:
    click.echo(f"   {row.customer_id}  {row.model}")
    table(
        (" ", "INPUT", "OUTPUT", "BASIS", "OUTCOME", "FIRST BYTE", "TOTAL"),
        [
            (
                " ",
                row.input_tokens,
                row.output_tokens,
                row.basis,
                row.outcome,
                f"{row.first_byte_ms} ms",
                f"{row.duration_ms} ms",
            )
        ],
    )


def _lines_to_paste(url: str, token: str) -> None:
    def curl(stream: bool, *options: str) -> str:
        head = " ".join(("curl", *options, f"{url}/bedrock"))
        return (
            f"{head} -H 'Authorization: Bearer {token}' "
            f"-H 'Content-Type: application/json' -d '{json.dumps(_body(stream))}'"
        )

    click.secho("Try it yourself, in another terminal:", bold=True)
    click.echo("\n# the whole answer at once")
    click.echo(curl(False, "-s"))
    click.echo("\n# Server-Sent Events")
    click.echo(curl(True, "-sN"))
    click.echo("\n# one JSON array")
    click.echo(curl(True, "-sN", "-H 'Accept: application/json'"))
    click.echo("\nThe proxy stays up until Ctrl-C.")


def _until_interrupted() -> NoReturn:
    """Waits for Ctrl-C, which may come just before the wait does: no wait is for ever."""
    while True:
        time.sleep(0.5)
