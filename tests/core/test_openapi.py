"""The published description of the routes says what the route table and the answers say."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import validate
from tests.flows import MODEL, World, ask_claude, claude, converse, exception

from bedrock_proxy import __version__
from bedrock_proxy.admission import Limit, Refusal
from bedrock_proxy.errors import Code
from bedrock_proxy.routes import ROUTES, Gate

PLACE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(PLACE.read_text())
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


def described() -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation of the document, by its method and path."""
    return {
        (method.upper(), path): item[method]
        for path, item in DOCUMENT["paths"].items()
        for method in METHODS & item.keys()
    }


def check(schema: str, value: object) -> None:
    """Hold *value* against one of the document's schemas."""
    whole = {**DOCUMENT, "$ref": f"#/components/schemas/{schema}"}
    Draft202012Validator(whole).validate(value)


def test_the_document_is_openapi_3_1() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert __version__ == DOCUMENT["info"]["version"]


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {(route.method, route.path) for route in ROUTES if route.path != "*"}
    everywhere = {route.method for route in ROUTES if route.path == "*"}
    paths = {path for _, path in routes}
    assert routes | {(method, path) for method in everywhere for path in paths} == set(described())


def test_what_needs_no_token_is_what_the_table_says() -> None:
    public = {(r.method, r.path) for r in ROUTES if r.gate is Gate.PUBLIC}
    for (method, path), operation in described().items():
        anyone = (method, path) in public or (method, "*") in public
        assert anyone is (operation.get("security") == [])


def test_every_operation_tells_of_errors_in_its_dialects_shape() -> None:
    dialects = {(route.method, route.path): route.dialect.name for route in ROUTES}
    for key, operation in described().items():
        if "default" not in operation["responses"]:
            continue
        name = "NativeError" if dialects[key] == "bedrock" else "Error"
        assert operation["responses"]["default"] == {"$ref": f"#/components/responses/{name}"}


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for operation in described().values()]
    assert len(set(names)) == len(names)


def test_the_errors_codes_and_limits_are_all_listed() -> None:
    members = DOCUMENT["components"]["schemas"]["Error"]["properties"]
    assert [str(code) for code in Code] == members["code"]["enum"]
    assert [str(limit) for limit in Limit] == members["limit"]["enum"]


def test_answers_are_as_described() -> None:
    array = ("accept", "application/json")
    check("Ask", json.loads(ask_claude(stream_events="full")))
    for stream in (claude(), [*claude()[:3], exception("throttlingException")]):
        world = World().answers(stream)
        said = converse(world, ask_claude(stream_events="full"), array).said
        check("Chunks", json.loads(said))
    limited = World(refusal=Refusal(reason=Limit.CONCURRENCY, retry_after=1, cap=2))
    check("Error", json.loads(converse(limited).said))
    native = converse(World(), b"{", path=f"/model/{MODEL}/converse")
    check("NativeError", json.loads(native.said))
    check("Standing", json.loads(converse(World(), method="GET", path="/v1/usage").said))
    for path in ("/healthz", "/readyz"):
        check("Status", json.loads(converse(World(), method="GET", path=path).said))


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("Error", {"error": "x", "code": "invented", "request_id": "r", "retryable": True}),
        ("Chunks", [{"text": "x"}]),
        ("Ask", {"messages": []}),
        ("NativeError", {"error": "x"}),
    ],
)
def test_the_schemas_refuse_what_is_not_so(schema: str, wrong: object) -> None:
    with pytest.raises(ValidationError):
        check(schema, wrong)
