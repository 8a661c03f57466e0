"""Two servers in two processes, one DynamoDB table: limits, revocation and the books are one."""

import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from attrs import frozen
from tests.running import (
    TOKEN,
    add_customer,
    body,
    served,
    server_environment,
    wait_for,
)
from tests.servers import dynamodb

from bedrock_proxy import tokens
from bedrock_proxy.customers import Limits
from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.dynamodb import DynamoDBStore


@frozen
class Fleet:
    emulator: dynamodb.Emulator
    ports: tuple[int, int]
    store: DynamoDBStore
    customer_id: str


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    emulator = dynamodb.shared("ministack")
    folder = tmp_path_factory.mktemp("dynamodb-fleet")
    with ExitStack() as stack:
        simulator = stack.enter_context(start_in_thread())
        table = emulator.table()
        store = DynamoDBStore(table, emulator.client())
        customer_id = add_customer(store, TOKEN, Limits(requests_per_day=12))  # type: ignore[arg-type]
        environment = server_environment(
            simulator,
            folder,
            BEDROCK_PROXY_STORE=f"dynamodb://{table}?region=us-east-1&endpoint_url={emulator.url}",
        )
        one = stack.enter_context(served(folder / "one", environment))
        other = stack.enter_context(served(folder / "other", environment))
        yield Fleet(emulator, (one, other), store, customer_id)
        store.close()


def status_of(port: int, token: str = TOKEN) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/bedrock", body(stream=False), headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


def test_a_limit_holds_across_both(fleet: Fleet) -> None:
    statuses = [status_of(fleet.ports[n % 2]) for n in range(16)]
    assert [200] * 12 + [429] * 4 == statuses
    assert 12 == fleet.store.gate_state(fleet.customer_id).day_requests
    wait_for(lambda: len(fleet.store.list_rows().items) == 12 or None, "twelve rows")
    wait_for(lambda: not fleet.store.open_leases() or None, "open leases to end")


def test_I12_a_token_revoked_beside_them_is_refused_by_both_at_the_next_request(
    fleet: Fleet,
) -> None:
    assert [429, 429] == [status_of(port) for port in fleet.ports], "both remember whose it is"
    fleet.store.revoke_all_keys(fleet.customer_id)
    assert [401, 401] == [status_of(port) for port in fleet.ports]


def test_while_dynamodb_is_away_503_and_then_everything_goes_on(fleet: Fleet) -> None:
    token = tokens.mint(bytes(range(1, 33)))
    customer_id = add_customer(fleet.store, token, Limits())  # type: ignore[arg-type]
    assert [200, 200] == [status_of(port, token) for port in fleet.ports]
    fleet.emulator.pause()
    try:
        with ThreadPoolExecutor() as pool:  # each takes as long as the store is patient
            assert [503, 503] == list(pool.map(lambda port: status_of(port, token), fleet.ports))
    finally:
        fleet.emulator.resume()
    assert [200, 200] == [status_of(port, token) for port in fleet.ports]

    def settled() -> bool | None:
        rows = fleet.store.list_rows(customer_id=customer_id).items
        return len(rows) == 4 or None

    # A row that DynamoDB was too far away to take waits in the spool, and comes within seconds.
    wait_for(settled, "four rows")
