"""``GET /v1/usage``: the caller's own usage and what remains, on real servers."""

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from tests.running import TOKEN, Running, add_customer, body, served, server_environment

from bedrock_proxy import tokens
from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy_adapters.simulator import Script, start_in_thread
from bedrock_proxy_adapters.stores.sqlite import SqliteStore

_made: dict[str, str] = {}


def own_token(host: Running) -> str:
    """A customer of this module's own, with limits."""
    if host.name not in _made:
        token = tokens.mint(bytes(range(1, 33)))
        add_customer(
            host.store,
            token,
            Limits(requests_per_minute=60, requests_per_day=100, tokens_per_day=5_000),
        )
        _made[host.name] = token
    return _made[host.name]


def call(host: Running, method: str, path: str, token: str | None, content: bytes = b"") -> Any:
    connection = http.client.HTTPConnection(host.host, host.port, timeout=20)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request(method, path, content, headers)
    reply = connection.getresponse()
    said = reply.read()
    connection.close()
    return reply.status, {k.lower(): v for k, v in reply.getheaders()}, json.loads(said)


def test_usage_counts_what_was_settled_and_says_what_remains(host: Running) -> None:
    token = own_token(host)
    before = call(host, "GET", "/v1/usage", token)[2]
    host.simulator.script(Script(text="one two", input_tokens=7, output_tokens=3))
    assert 200 == call(host, "POST", "/bedrock", token, body(stream=False))[0]
    host.quiet()
    now = time.time()
    status, headers, said = call(host, "GET", "/v1/usage", token)
    assert (200, "application/json") == (status, headers["content-type"])
    assert said["customer_id"] == before["customer_id"]
    assert before["today"]["requests"] + 1 == said["today"]["requests"]
    assert before["month"]["tokens"] + 10 == said["month"]["tokens"]
    day = said["limits"]["requests_per_day"]
    assert (100, 100 - said["today"]["requests"]) == (day["limit"], day["remaining"])
    assert now < day["resets_at"] <= now + 86_401
    assert {"requests_per_minute", "requests_per_day", "tokens_per_day"} == set(said["limits"])
    assert str(day["remaining"]) == headers["x-ratelimit-remaining-requests-day"]
    assert 0 == said["in_flight"]


def test_every_answer_carries_the_limits(host: Running) -> None:
    token = own_token(host)
    status, headers, _ = call(host, "POST", "/bedrock", token, body(stream=False))
    assert 200 == status
    for name in ("requests", "requests-day", "tokens-day"):
        for part in ("limit", "remaining", "reset"):
            assert headers[f"x-ratelimit-{part}-{name}"].isdecimal()


@pytest.mark.parametrize("token", [None, "x" * 20, tokens.mint(bytes(32))])
def test_usage_is_nobody_elses_business(host: Running, token: str | None) -> None:
    assert 401 == call(host, "GET", "/v1/usage", token)[0]


def test_I12_a_revoked_token_and_a_disabled_customer_read_no_usage_from_then_on(
    host: Running,
) -> None:
    token = tokens.mint(bytes(range(2, 34)))
    customer_id = add_customer(host.store, token)
    assert 200 == call(host, "GET", "/v1/usage", token)[0]
    # As from the command line: the server's own memory of tokens hears nothing of it.
    operator = SqliteStore(host.store.path)
    disabled = CustomerStatus.DISABLED
    operator.update_customer(customer_id, lambda known: evolve(known, status=disabled))
    assert 403 == call(host, "GET", "/v1/usage", token)[0]
    operator.revoke_all_keys(customer_id)
    operator.close()
    assert 401 == call(host, "GET", "/v1/usage", token)[0]


def test_usage_cannot_be_posted(host: Running) -> None:
    status, headers, _ = call(host, "POST", "/v1/usage", own_token(host), b"{}")
    assert (405, "GET") == (status, headers["allow"])


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_to_ask_for_another_protocol_is_to_be_answered_in_this_one(
    protocol: str, tmp_path: Path
) -> None:
    """Whatever library for it happens to be installed: nothing here speaks it."""
    with start_in_thread() as simulator:
        environment = server_environment(simulator, tmp_path)
        with served(tmp_path / "serve", environment) as port:
            store = SqliteStore(tmp_path / "proxy.db")
            add_customer(store)
            store.close()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            headers = {
                "Authorization": f"Bearer {TOKEN}",
                "Connection": "Upgrade, HTTP2-Settings",
                "Upgrade": protocol,
                "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }
            for _ in range(2):
                connection.request("GET", "/v1/usage", headers=headers)
                reply = connection.getresponse()
                assert reply.status == 200
                assert json.loads(reply.read())["in_flight"] == 0
            connection.request("POST", "/bedrock", body(stream=False), headers)
            reply = connection.getresponse()
            assert (reply.status, "content" in json.loads(reply.read())) == (200, True)
            connection.close()
            # The name of the header comes in two pieces, too.
            with socket.create_connection(("127.0.0.1", port), 20) as raw:
                said = body(stream=False)
                raw.sendall(
                    f"POST /bedrock HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                    f"Content-Length: {len(said)}\r\nConnection: Upgrade, close\r\nUpg".encode()
                )
                time.sleep(0.3)
                raw.sendall(f"rade: {protocol}\r\n\r\n".encode() + said)
                answered = raw.makefile("rb").read()
            assert answered.startswith(b"HTTP/1.1 200 ")
        assert (tmp_path / "serve" / "serve.log").read_text().count("pgrade") == 0
