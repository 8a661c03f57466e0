"""CORS (RELIABILITY.md, M83): off until origins are named, and then for these alone."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flows import MODEL, TOKEN, GivenBody, World, claude

from bedrock_proxy import cors
from bedrock_proxy.drive import Interrupts, drive
from bedrock_proxy.exchange import exchange
from bedrock_proxy.http import Head, Request
from bedrock_proxy.ports import Ports, UpstreamHead
from bedrock_proxy.rules import Rules

LISTED, OTHER = "https://app.example.com", "https://app.example.com.evil.test"
BODY = json.dumps({"modelId": MODEL, "stream": True, "max_tokens": 5, "messages": []}).encode()


def talk(
    origins: tuple[str, ...],
    origin: str | None,
    method: str = "POST",
    path: str = "/bedrock",
    world: World | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    fields = {"host": "h", **({} if origin is None else {"origin": origin})}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    world = World() if world is None else world
    request = Request("r-1", method, path, tuple(fields.items()))
    flow = exchange(request, Rules(cors_origins=origins))
    every: Any = world
    ports = Ports(
        clock=world.time,
        pause=world.time,
        body=GivenBody(BODY),
        tokens=every,
        gate=every,
        ledger=every,
        upstream=every,
        slots=every,
        telemetry=every,
    )
    said = list(drive(flow, ports, Interrupts()))
    head, body = said[0], b"".join(s for s in said[1:] if isinstance(s, bytes))
    assert isinstance(head, Head)
    assert world.faults == []
    names = [name for name, _ in head.headers]
    assert len(set(names)) == len(names)
    return head.status, dict(head.headers), body


def preflight(origins: tuple[str, ...], origin: str | None, **headers: str) -> Any:
    asked = {"access_control_request_method": "POST", **headers}
    return talk(origins, origin, "OPTIONS", **asked)


def cross(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control")}


@pytest.mark.parametrize("origins", [(), ("https://b.test",), ("https://b.test", "http://c.test")])
@pytest.mark.parametrize("origin", [LISTED, OTHER, "null", "", None])
def test_M83_a_preflight_from_an_origin_that_is_not_named_is_a_403_without_cors_headers(
    origins: tuple[str, ...], origin: str | None
) -> None:
    status, headers, body = preflight(origins, origin)
    assert (status, json.loads(body)["code"]) == (403, "origin_not_allowed")
    assert cross(headers) == {}


def test_M83_a_preflight_from_a_named_origin_is_answered_with_what_the_routes_take() -> None:
    wanted = "authorization, content-type, x-stainless-lang"
    status, headers, body = preflight(
        ("https://b.test", LISTED), LISTED, access_control_request_headers=wanted
    )
    assert (status, body) == (204, b"")
    assert "content-length" not in headers, "RFC 9110, section 8.6"
    assert cross(headers) == {
        "access-control-allow-origin": LISTED,
        "access-control-allow-methods": "GET, HEAD, POST",
        "access-control-allow-headers": wanted,
        "access-control-max-age": "600",
    }
    assert headers["vary"].split(", ")[0] == "origin"


def test_M83_what_is_not_a_list_of_header_names_is_not_repeated() -> None:
    for wanted in ("a b", "a,,b", "x: y", "é", ""):
        _, headers, _ = preflight((LISTED,), LISTED, access_control_request_headers=wanted)
        assert "access-control-allow-headers" not in headers


def test_M83_options_that_asks_for_nothing_is_no_preflight() -> None:
    assert talk((LISTED,), LISTED, "OPTIONS")[0] == 403


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/bedrock", "POST", 200), ("/bedrock", "GET", 405), ("/no", "POST", 404),
     ("/healthz", "GET", 200), ("/v1/usage", "GET", 200), (f"/model/{MODEL}/invoke-with-response-stream", "POST", 200)],
)  # fmt: skip
def test_M83_every_answer_says_whose_page_may_read_it(path: str, method: str, status: int) -> None:
    token = {"authorization": f"Bearer {TOKEN}"}
    for origins, origin, expected in (
        ((LISTED,), LISTED, (LISTED, "*", "origin")),
        ((LISTED,), OTHER, (None, None, "origin")),
        ((LISTED,), None, (None, None, "origin")),
        (("*",), OTHER, ("*", "*", "origin")),
        ((), LISTED, (None, None, None)),
    ):
        world = World().answers(claude())
        found, headers, _ = talk(origins, origin, method, path, world, **token)
        assert found == status
        names = ("access-control-allow-origin", "access-control-expose-headers", "vary")
        assert tuple(headers.get(name) for name in names) == expected
    assert talk((LISTED,), LISTED)[1]["access-control-allow-origin"] == LISTED  # a 401, too


def test_M83_a_failed_call_still_says_it_once() -> None:
    world = World().answers(
        [b'{"message": "no"}'], UpstreamHead(400, (("x-amzn-errortype", "ValidationException"),))
    )
    status, headers, _ = talk((LISTED,), LISTED, world=world, authorization=f"Bearer {TOKEN}")
    assert (status, headers["access-control-allow-origin"]) == (400, LISTED)


def test_M83_two_origins_are_none() -> None:
    request = Request("r", "POST", "/", (("origin", LISTED), ("origin", LISTED)))
    assert cors.headers(request, (LISTED,)) == (("vary", "origin"),)


@given(origin=st.text(max_size=40), wildcard=st.booleans())
def test_M83_no_origin_is_ever_let_in_by_resembling_one(origin: str, wildcard: bool) -> None:
    request = Request("r", "POST", "/", (("origin", origin),))
    said = dict(cors.headers(request, ("*",) if wildcard else (LISTED,)))
    assert "access-control-allow-credentials" not in said
    allowed = said.get("access-control-allow-origin")
    assert allowed == ("*" if wildcard else (LISTED if origin == LISTED else None))
