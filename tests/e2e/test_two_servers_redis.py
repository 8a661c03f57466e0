"""Two servers in two processes, one Redis: limits, revocation and the books are one."""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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
from tests.servers.redis import Server, serving

from bedrock_proxy.customers import Limits
from bedrock_proxy_adapters.simulator import start_in_thread
from bedrock_proxy_adapters.stores.redis import RedisStore


@frozen
class Fleet:
    ports: tuple[int, int]
    redis: Server
    store: RedisStore
    customer_id: str
    folder: Path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        simulator = stack.enter_context(start_in_thread())
        redis = stack.enter_context(serving())
        url = redis.url + "?timeout=2"
        store = RedisStore.from_url(url)
        customer_id = add_customer(store, TOKEN, Limits(requests_per_day=12))  # type: ignore[arg-type]
        environment = server_environment(simulator, folder, BEDROCK_PROXY_STORE=url)
        one = stack.enter_context(served(folder / "one", environment))
        other = stack.enter_context(served(folder / "other", environment))
        yield Fleet((one, other), redis, store, customer_id, folder)
        store.close()


def call(port: int) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", "/bedrock", body(stream=False), headers)
        reply = connection.getresponse()
        said = reply.read()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, json.loads(said)
    finally:
        connection.close()


def wait_for_rows(fleet: Fleet, count: int) -> None:
    wait_for(lambda: len(fleet.store.list_rows().items) == count or None, f"{count} rows")
    wait_for(lambda: not fleet.store.open_leases() or None, "open leases to end")


def test_while_redis_is_away_503_and_then_everything_goes_on(fleet: Fleet) -> None:
    assert call(fleet.ports[0])[0] == 200
    fleet.redis.stop()
    for port in fleet.ports:
        status, headers, said = call(port)
        assert (status, said["code"]) == (503, "store_unavailable")
        assert headers["retry-after"] == "5"
    fleet.redis.start()
    assert call(fleet.ports[0])[0] == 200
    assert call(fleet.ports[1])[0] == 200
    # A row that Redis was too far away to take waits in the spool, and comes within seconds.
    wait_for_rows(fleet, 3)


def test_a_limit_holds_across_both(fleet: Fleet) -> None:
    statuses = [call(fleet.ports[n % 2])[0] for n in range(16)]
    used = fleet.store.gate_state(fleet.customer_id).day_requests
    assert used == 12
    wait_for_rows(fleet, 12)
    assert set(statuses) == {200, 429}
    said = call(fleet.ports[0])[2]
    assert said["limit"] == "requests_per_day"


def test_I12_a_token_revoked_beside_them_is_refused_by_both_at_the_next_request(
    fleet: Fleet,
) -> None:
    assert [call(port)[0] for port in fleet.ports] == [429, 429], "both remember whose it is"
    fleet.store.revoke_all_keys(fleet.customer_id)
    assert [call(port)[0] for port in fleet.ports] == [401, 401]


def test_no_password_is_ever_shown(fleet: Fleet) -> None:
    said = "".join(path.read_text() for path in fleet.folder.glob("*/serve.log"))
    assert f"Store: redis://127.0.0.1:{fleet.redis.port}" in said
    assert "timeout=2" not in said
