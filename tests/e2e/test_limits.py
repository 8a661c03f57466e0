"""Limits, tokens and customers on real servers, changed through the command while they serve."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from tests.running import (
    RawClient,
    Running,
    body,
    on_gunicorn,
    on_uvicorn,
    post,
)

from bedrock_proxy_adapters.cli import bedrock_proxy
from bedrock_proxy_adapters.simulator import Script


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(f"limits-{request.param}")
    with on_uvicorn(folder) if request.param == "uvicorn" else on_gunicorn(folder) as running:
        running.simulator.default(Script(text="a b", input_tokens=5, output_tokens=5))
        yield running


def command(running: Running, *arguments: str) -> Any:
    """The operator's own command, on the database of a server that serves."""
    environment = {"BEDROCK_PROXY_STORE": f"sqlite:///{running.store.path}"}
    result = CliRunner().invoke(bedrock_proxy, [*arguments, "--json"], env=environment)
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


def customer(running: Running, *limits: str) -> tuple[str, str]:
    """A new customer: id and token."""
    made = command(
        running, "customers", "create", "--name", "C", "--email", "c@example.com", *limits
    )
    return made["customer_id"], made["token"]


def ask(
    running: Running, token: str, content: bytes | None = None
) -> tuple[int, dict[str, str], Any]:
    """One request; its body as JSON where it is."""
    status, headers, said = post(
        running,
        body(stream=False, max_tokens=100) if content is None else content,
        Authorization=f"Bearer {token}",
    )
    return status, headers, json.loads(said) if said[:1] == b"{" else said


def refused(answer: tuple[int, dict[str, str], Any], limit: str, code: str) -> dict[str, Any]:
    """It is a 429 whose body and headers say the same."""
    status, headers, said = answer
    assert 429 == status, said
    assert (limit, code) == (said["limit"], said["code"])
    assert headers["x-request-id"] == said["request_id"]
    assert said["retryable"] is ("retry_after" in said)
    assert headers.get("retry-after") == (
        str(said["retry_after"]) if "retry_after" in said else None
    )
    assert limit.replace("_", " ") in said["error"]
    told: dict[str, Any] = said
    return told


def headers_of(headers: dict[str, str], name: str) -> tuple[int, int, int]:
    """Limit, remaining, reset."""
    return (
        int(headers[f"x-ratelimit-limit-{name}"]),
        int(headers[f"x-ratelimit-remaining-{name}"]),
        int(headers[f"x-ratelimit-reset-{name}"]),
    )


DAY = 86_400


def until_midnight() -> int:
    return DAY - int(time.time()) % DAY


def test_T05_requests_a_minute_refuse_and_waiting_admits(host: Running) -> None:
    _, token = customer(host, "--requests-per-minute", "60", "--burst", "2")
    remaining = []
    for _ in range(2):
        status, headers, _ = ask(host, token)
        assert 200 == status
        limit, left, reset = headers_of(headers, "requests")
        assert 60 == limit
        assert 0 < reset <= 2
        remaining.append(left)
    assert [1, 0] == remaining
    answer = ask(host, token)
    said = refused(answer, "requests_per_minute", "rate_limited")
    assert 1 <= said["retry_after"] <= 2
    assert (60, 0) == headers_of(answer[1], "requests")[:2]
    time.sleep(said["retry_after"])
    assert 200 == ask(host, token)[0]


def test_T05_tokens_a_minute_refuse_and_waiting_admits(host: Running) -> None:
    _, token = customer(host, "--tokens-per-minute", "6000")
    big = body(stream=False, max_tokens=5_900)
    host.simulator.script(Script(text="a", input_tokens=6, output_tokens=5_894))
    status, headers, _ = ask(host, token, big)
    assert 200 == status
    assert 6_000 == headers_of(headers, "tokens")[0]
    host.quiet()
    said = refused(ask(host, token, body(max_tokens=200)), "tokens_per_minute", "rate_limited")
    assert 1 <= said["retry_after"] <= 3
    time.sleep(said["retry_after"])
    assert 200 == ask(host, token, body(stream=False, max_tokens=200))[0]


def test_a_request_larger_than_the_limit_itself_is_not_worth_repeating(host: Running) -> None:
    _, token = customer(host, "--tokens-per-minute", "1000")
    answer = ask(host, token, body(max_tokens=100_000))
    said = refused(answer, "tokens_per_minute", "rate_limited")
    assert said["retryable"] is False
    assert "retry_after" not in said
    assert "retry-after" not in answer[1]
    assert 1_000 == headers_of(answer[1], "tokens")[1], "nothing was consumed"


def test_concurrency_refuses_while_others_are_under_way(host: Running) -> None:
    _, token = customer(host, "--concurrency", "1")
    seen = len(host.simulator.calls)
    host.simulator.script(Script(text="a b c", gate=True))
    with RawClient(host, Authorization=f"Bearer {token}", Connection="close") as client:
        call = host.simulator.wait_calls(seen + 1)[seen]
        said = refused(ask(host, token), "concurrency", "rate_limited")
        assert 1 == said["retry_after"]
        call.release(100)
        client.read_rest()
    host.quiet()
    assert 200 == ask(host, token)[0]


@pytest.mark.parametrize(
    ("limit", "cap", "name"),
    [
        ("requests_per_day", 1, "requests-day"),
        ("tokens_per_day", 150, "tokens-day"),
        ("tokens_per_month", 150, None),
    ],
)
def test_budgets_refuse_until_they_roll_over(
    host: Running, limit: str, cap: int, name: str | None
) -> None:
    _, token = customer(
        host, "--requests-per-day", "unlimited", "--" + limit.replace("_", "-"), str(cap)
    )
    host.simulator.script(Script(text="a", input_tokens=10, output_tokens=90))
    status, headers, _ = ask(host, token)
    assert 200 == status
    if name is not None:
        total, left, reset = headers_of(headers, name)
        assert total == cap
        assert 0 <= left < cap
        assert abs(reset - until_midnight()) <= 2
    host.quiet()
    answer = ask(host, token)
    said = refused(answer, limit, "over_budget")
    assert said["retry_after"] >= until_midnight() - 2
    if name is not None:
        assert abs(said["retry_after"] - until_midnight()) <= 2
        assert headers_of(answer[1], name)[0] == cap


def test_T04_a_refusal_consumes_nothing(host: Running) -> None:
    customer_id, token = customer(host, "--requests-per-minute", "0", "--tokens-per-day", "9000")
    before = host.store.gate_state(customer_id)
    for _ in range(3):
        refused(ask(host, token), "requests_per_minute", "rate_limited")
    assert before == host.store.gate_state(customer_id)
    assert [] == [row for row in host.rows() if row.customer_id == customer_id]


def test_every_answer_names_the_limits_that_are_set_and_no_others(host: Running) -> None:
    _, token = customer(host, "--requests-per-minute", "60")
    for stream in (False, True):
        _, headers, _ = ask(host, token, body(stream=stream))
        assert {"requests", "requests-day"} == {
            name.removeprefix("x-ratelimit-limit-")
            for name in headers
            if name.startswith("x-ratelimit-limit-")
        }
    host.simulator.script(Script(error="ValidationException", error_message="no"))
    status, headers, _ = ask(host, token)
    assert 400 == status
    assert 60 == headers_of(headers, "requests")[0]
    status, headers, _ = ask(host, "bpk_junk-that-is-long-enough")
    assert 401 == status
    assert not any(name.startswith("x-ratelimit") for name in headers), "nobody's limits"


def test_own_usage_says_what_remains_and_costs_nothing(host: Running) -> None:
    customer_id, token = customer(host, "--requests-per-day", "2")
    assert 200 == ask(host, token)[0]
    host.quiet()
    for _ in range(3):
        connection = http.client.HTTPConnection(host.host, host.port, timeout=20)
        connection.request("GET", "/v1/usage", headers={"x-api-key": token})
        reply = connection.getresponse()
        said = json.loads(reply.read())
        connection.close()
        assert 200 == reply.status
        assert customer_id == said["customer_id"]
        day = said["limits"]["requests_per_day"]
        assert (2, 1) == (day["limit"], day["remaining"])
        assert 0 == day["resets_at"] % DAY
        assert (1, 10) == (said["today"]["requests"], said["today"]["tokens"])


# --- changed while it serves ------------------------------------------------------------------


def test_T09_a_changed_limit_holds_at_the_next_request(host: Running) -> None:
    customer_id, token = customer(host, "--requests-per-day", "1")
    update = ("customers", "update-limits", customer_id, "--requests-per-day")
    assert 200 == ask(host, token)[0]
    refused(ask(host, token), "requests_per_day", "over_budget")
    command(host, *update, "2")
    assert 200 == ask(host, token)[0]
    refused(ask(host, token), "requests_per_day", "over_budget")
    command(host, *update, "unlimited")
    assert 200 == ask(host, token)[0]
    command(host, *update, "0")
    said = refused(ask(host, token), "requests_per_day", "over_budget")
    assert "retry_after" not in said, "a limit of nothing does not pass"


def test_T09_a_disabled_customer_is_refused_at_the_next_request(host: Running) -> None:
    customer_id, token = customer(host)
    assert 200 == ask(host, token)[0]
    command(host, "customers", "disable", customer_id)
    status, _, said = ask(host, token)
    assert (403, "customer_disabled") == (status, said["code"])
    command(host, "customers", "enable", customer_id)
    assert 200 == ask(host, token)[0]


def test_I12_a_revoked_token_is_refused_at_the_next_request(host: Running) -> None:
    """Although the server remembers it: admission knows."""
    customer_id, token = customer(host)
    other = command(host, "customers", "add-token", customer_id)
    for each in (token, other["token"]):
        assert 200 == ask(host, each)[0]
    command(host, "customers", "revoke-token", customer_id, "--key", other["key_id"])
    status, headers, said = ask(host, other["token"])
    assert (401, "unauthorized") == (status, said["code"])
    assert "Bearer" == headers["www-authenticate"]
    assert 200 == ask(host, token)[0]
    unknown = ask(host, "bpk_junk-that-is-long-enough")[2]
    assert unknown["error"] == said["error"], "nobody learns which tokens there once were"


def test_a_rotated_token_says_so_and_ends_after_its_grace(host: Running) -> None:
    customer_id, old = customer(host)
    # The server has not met the token: it reads what the command has written.
    new = command(host, "customers", "rotate-token", customer_id, "--grace", "2")
    rotated_at = int(time.time())
    status, headers, _ = ask(host, old)
    assert 200 == status
    assert headers["deprecation"].startswith("@")
    assert abs(int(headers["deprecation"][1:]) - rotated_at) <= 2
    status, headers, _ = ask(host, new["token"])
    assert 200 == status
    assert "deprecation" not in headers
    time.sleep(max(0.0, new["old_expires_at"] / 1000 - time.time()) + 0.05)
    assert 401 == ask(host, old)[0]
    assert 200 == ask(host, new["token"])[0]


def test_rotating_without_grace_ends_a_token_that_the_server_remembers(host: Running) -> None:
    customer_id, old = customer(host)
    assert 200 == ask(host, old)[0]
    new = command(host, "customers", "rotate-token", customer_id, "--grace", "0")
    assert 401 == ask(host, old)[0]
    assert 200 == ask(host, new["token"])[0]


def test_a_model_that_is_not_on_the_list_never_reaches_bedrock(host: Running) -> None:
    customer_id, token = customer(host, "--models", "amazon.nova-lite-v1:0")
    calls = len(host.simulator.calls)
    status, _, said = ask(host, token)
    assert (403, "model_not_allowed") == (status, said["code"])
    assert calls == len(host.simulator.calls)
    assert [] == [row for row in host.rows() if row.customer_id == customer_id]
