"""The route table: one gate before everything that is not public."""

import re
from typing import Any

import pytest
from tests.flows import World, claude, converse

from bedrock_proxy import routes
from bedrock_proxy.dialects.simple import SIMPLE
from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Request
from bedrock_proxy.routes import ROUTES, Gate, Route

PUBLIC = {"/healthz", "/readyz", "/metrics"}
"""RELIABILITY.md section 5 (beside OPTIONS anywhere and HEAD /)."""


def a_path(route: Route) -> str:
    """A path that *route* matches."""
    path = re.sub(r"\{\w+\}|\*", "some.model", route.path)
    path = path if path.startswith("/") else f"/{path}"
    assert route.variables(path) is not None, f"no path was made for {route.path}"
    return path


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_one_gate_without_a_token_every_route_but_the_public_ones_is_401(route: Route) -> None:
    world = World()
    talk = converse(world, method=route.method, path=a_path(route), token=None)
    assert (world.store_calls, world.calls, world.faults) == (0, [], [])
    if route.gate is Gate.PUBLIC:
        assert talk.status in {200, 403}
    else:
        assert (talk.status, talk.header("www-authenticate")) == (401, "Bearer")


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_the_public_routes_are_the_five_that_hold_no_customer_data(route: Route) -> None:
    public = (
        a_path(route) in PUBLIC
        or route.method == "OPTIONS"
        or (route.method, a_path(route)) == ("HEAD", "/")
    )
    assert public is (route.gate is Gate.PUBLIC)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.gate is Gate.ADMITTED], ids=named
)
def test_behind_the_gate_a_refusal_by_admission_stops_every_route(route: Route) -> None:
    world = World(owner=None)
    talk = converse(world, method=route.method, path=a_path(route))
    assert (talk.status, world.admitted, world.calls) == (401, [], [])


def find(path: str, method: str = "POST", decoded: bool = False) -> routes.Found:
    return routes.find(Request("r-1", method, path, (), path_is_decoded=decoded))


def fault(path: str, method: str = "POST") -> ClientFault:
    with pytest.raises(ClientFault) as caught:
        find(path, method)
    return caught.value


def test_both_paths_of_the_simple_dialect_lead_to_it() -> None:
    for path in ("/", "/bedrock", ""):
        assert find(path).route.dialect is SIMPLE
        assert find(path).route.operation == "invoke"


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/async-invoke", "GET"),
        ("/async-invoke", "POST"),
        ("/async-invoke/arn%3Aaws%3Abedrock", "GET"),
        ("/model/some.model/invoke-with-bidirectional-stream", "POST"),
        ("/guardrail/abc/version/1/describe", "POST"),
    ],
)
def test_an_operation_of_bedrock_that_has_no_route_is_refused_as_an_sdk_reads_it(
    path: str, method: str
) -> None:
    talk = converse(World(), method=method, path=path)
    assert (talk.status, talk.header("x-amzn-errortype")) == (404, "UnknownOperationException")
    said = b'{"message": "The proxy does not serve this operation of Bedrock."}'
    assert talk.said == said


def test_M31_any_other_path_is_refused_in_the_simple_dialects_form() -> None:
    for path in ("/nothing", "/model", "/models/x", "/guardrail"):
        assert b'"error": "There is nothing at this path."' in converse(World(), path=path).said


def test_M32_a_wrong_method_is_told_which_are_allowed() -> None:
    error = fault("/", "GET")
    assert (error.status, error.code) == (405, Code.METHOD_NOT_ALLOWED)
    assert dict(error.headers)["allow"] == "POST, HEAD"
    assert error.message == "GET is not allowed here; use POST or HEAD."
    assert fault("/", "G\r\nX").message.startswith("This method")


def test_M83_a_preflight_of_any_path_is_found_and_never_listed_as_allowed() -> None:
    for path in ("/", "/bedrock", "/nothing", "*", "/a\nb", ""):
        assert find(path, "OPTIONS").route.operation == "preflight"
    assert "OPTIONS" not in dict(fault("/", "GET").headers)["allow"]
    assert fault("/nothing").status == 404


@pytest.fixture
def with_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route with a model in its path, as the native wire has them."""
    pattern = r"/with-model/(.+)/ask"
    monkeypatch.setattr(routes, "ROUTES", (Route("POST", pattern, Gate.ADMITTED, "ask"),))


@pytest.mark.usefixtures("with_model")
@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/with-model/a.b-v1:0/ask", "a.b-v1:0"),
        ("/with-model/a.b-v1%3A0/ask", "a.b-v1:0"),
        ("/with-model/a%2Fb/ask", "a/b"),
        ("/with-model/a%252Fb/ask", "a%2Fb"),
        ("/with-model/a+b/ask", "a+b"),
        ("/with-model/a%zz/ask", "a%zz"),
        ("/with-model/a%0d%0ab/ask", "a\r\nb"),
        ("/with-model/%c3%a4/ask", "\xe4"),
    ],
)
def test_M35_a_model_in_the_path_is_decoded_once(path: str, model: str) -> None:
    assert find(path).model == model


@pytest.mark.usefixtures("with_model")
def test_M35_a_path_that_the_host_decoded_is_not_decoded_again() -> None:
    assert find("/with-model/a%2Fb/ask", decoded=True).model == "a%2Fb"


@pytest.mark.usefixtures("with_model")
def test_M35_a_model_that_is_not_utf_8_is_a_400() -> None:
    error = fault("/with-model/%ff/ask")
    assert (error.status, error.code) == (400, Code.INVALID_REQUEST)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_and_readiness_tell_no_more_than_that(path: str, method: str) -> None:
    talk = converse(World(), method=method, path=path, token=None)
    assert (talk.status, talk.said) == (200, b'{"status": "ok"}\n' if method == "GET" else b"")
    assert talk.header("content-length") == "17"


def test_a_stopping_server_is_healthy_but_not_ready() -> None:
    world = World(accepting=False)
    ready = converse(world, method="GET", path="/readyz", token=None)
    assert (ready.status, ready.said) == (503, b'{"status": "stopping"}\n')
    assert converse(world, method="GET", path="/healthz", token=None).status == 200


@pytest.mark.parametrize(
    "header", ["host", "x-forwarded-host", "x-forwarded-prefix", "x-original-url", "x-rewrite-url",
               "x-http-method-override", "forwarded"]
)  # fmt: skip
def test_no_header_changes_the_route(header: str) -> None:
    options: dict[str, Any] = {"path": "/nothing"}
    own = () if header == "host" else ((header, "/bedrock"),)
    world = World().answers(claude())
    assert converse(world, None, *own, **options).status == 404
    request = Request("r-1", "POST", "/nothing", ((header, "/healthz"),))
    with pytest.raises(ClientFault):
        routes.find(request)
