"""What else a native call names beside its model, and what of it may be reached."""

import base64
import json
from typing import Any

import pytest
from attrs import evolve
from tests.flows import MODEL, Conversation, World, ask_claude, claude, converse

from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.rules import Rules

JSON_HEAD = UpstreamHead(200, (("content-type", "application/json"),))
HERE = Rules(region="us-east-1", account="123456789012")
OWN = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc1"
STREAMS = {"converse-stream", "invoke-with-response-stream"}
OPERATIONS = ("converse", "converse-stream", "invoke", "invoke-with-response-stream")
OF_BODIES = ("converse", "converse-stream")


def world(models: frozenset[str] | None = None) -> World:
    made = World()
    assert made.owner is not None
    made.owner = evolve(made.owner, models=models)
    return made


def sent(
    world: World, operation: str, body: Any, *headers: tuple[str, str], rules: Rules = HERE
) -> Conversation:
    """What becomes of a call; whether it is answered or refused."""
    if operation in STREAMS:
        world.answers(claude())
    else:
        world.answers([b"{}"], JSON_HEAD)
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return converse(world, body, *headers, path=f"/model/{MODEL}/{operation}", rules=rules)


# --- guardrails -------------------------------------------------------------------------------


def guarded(world: World, operation: str, guardrail: Any) -> Conversation:
    """The same call under a guardrail, named where the operation has a place for it."""
    if operation in OF_BODIES:
        own = {"guardrailIdentifier": guardrail, "guardrailVersion": "1"}
        return sent(world, operation, {"messages": [], "guardrailConfig": own})
    header = ("x-amzn-bedrock-guardrailidentifier", guardrail)
    return sent(world, operation, {"messages": []}, header)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("guardrail", ["abc1", OWN, ""])
def test_a_guardrail_of_the_proxys_own_account_goes_up_as_it_was_named(
    operation: str, guardrail: str
) -> None:
    free = world()
    assert guarded(free, operation, guardrail).status == 200
    call = free.calls[0]
    if operation in OF_BODIES:
        assert json.loads(call.body)["guardrailConfig"]["guardrailIdentifier"] == guardrail
    else:
        assert dict(call.headers)["x-amzn-bedrock-guardrailidentifier"] == guardrail


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("guardrail", "status"),
    [
        (OWN.replace("us-east-1", "eu-west-1"), 403),
        (OWN.replace("123456789012", "222222222222"), 403),
        (OWN.replace("arn:aws:", "arn:aws-cn:"), 403),
        (OWN.replace("guardrail/", "prompt/"), 400),
        (OWN.replace("bedrock", "s3"), 400),
        (OWN + ".x", 400),
        ("ABC", 400),
        ("a/b", 400),
        ("guardrail/abc1", 400),
        ("a" * 2_049, 400),
    ],
)
def test_M74_a_guardrail_of_elsewhere_or_of_another_spelling_is_refused(
    operation: str, guardrail: str, status: int
) -> None:
    free = world()
    assert guarded(free, operation, guardrail).status == status
    assert (free.calls, free.admitted) == ([], [])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_M75_under_a_list_a_call_has_those_guardrails_that_the_list_names(operation: str) -> None:
    named = frozenset({MODEL, "guardrail/abc1", OWN})
    for guardrail in ("abc1", OWN, ""):
        assert guarded(world(named), operation, guardrail).status == 200
    for guardrail in ("abc2", OWN.replace("abc1", "abc2")):
        limited = world(named)
        refused = guarded(limited, operation, guardrail)
        assert refused.status == 403
        path = "/guardrail/abc2/version/1/apply"
        assert refused.said == converse(limited, b"{}", path=path, rules=HERE).said
        assert (limited.calls, limited.admitted) == ([], [])


@pytest.mark.parametrize(
    ("config", "status"),
    [
        (None, 200),
        ({}, 200),
        ({"guardrailIdentifier": None}, 200),
        ({"guardrailIdentifier": 1}, 400),
        ({"guardrailIdentifier": ["abc1"]}, 400),
        ([{"guardrailIdentifier": "abc1"}], 400),
        ("abc1", 400),
    ],
)
def test_a_guardrail_is_named_by_a_string_or_not_at_all(config: Any, status: int) -> None:
    body = {"messages": [], "guardrailConfig": config}
    for operation in OF_BODIES:
        assert sent(world(frozenset({MODEL})), operation, body).status == status


def test_M75_a_guardrails_name_may_not_hide_behind_escapes_nor_on_another_route() -> None:
    hidden = rb'{"messages": [], "guardrail\u0043onfig": {"guardrail\u0049dentifier": "zzz"}}'
    limited = world(frozenset({MODEL}))
    assert sent(limited, "converse", hidden).status == 403
    header = ("x-amzn-bedrock-guardrailidentifier", "zzz")
    for operation in (*OPERATIONS, "count-tokens"):
        assert sent(limited, operation, {"messages": []}, header).status == 403
    assert limited.calls == []


# --- objects in S3 ----------------------------------------------------------------------------

URI = "s3://operators-own/payroll.csv"
AT = {"s3Location": {"uri": URI, "bucketOwner": "123456789012"}}
IN_CONVERSE = {
    "an image": {"image": {"format": "png", "source": AT}},
    "a document": {"document": {"name": "d", "format": "csv", "source": AT}},
    "a video": {"video": {"format": "mp4", "source": AT}},
    "audio": {"audio": {"format": "mp3", "source": AT}},
    "a tool's result": {
        "toolResult": {"toolUseId": "t", "content": [{"image": {"format": "png", "source": AT}}]}
    },
}
IN_MODELS = {
    "Nova": {"messages": [{"role": "user", "content": [{"video": {"source": AT}}]}]},
    "Pegasus": {"inputPrompt": "Say it.", "mediaSource": AT},
    "Marengo": {"inputType": "image", "image": {"mediaSource": AT}},
    "unknown": {"x": [[{"y": AT}]]},
    "unknown, shorter": {"s3Location": URI},
}


def asked(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": "Repeat it."}, *content]}]}


def bodies() -> list[Any]:
    """Every operation with every way to name an object, as it can be put in its body."""
    found: list[Any] = []
    for name, block in IN_CONVERSE.items():
        body = asked(block)
        found += [pytest.param(each, body, id=f"{each}, {name}") for each in OF_BODIES]
        counted = {"input": {"converse": body}}
        found.append(pytest.param("count-tokens", counted, id=f"count-tokens, {name}"))
    for name, body in IN_MODELS.items():
        for each in ("invoke", "invoke-with-response-stream"):
            found.append(pytest.param(each, body, id=f"{each}, {name}"))
        inner = base64.b64encode(json.dumps(body).encode()).decode()
        counted = {"input": {"invokeModel": {"body": inner}}}
        found.append(pytest.param("count-tokens", counted, id=f"count-tokens, {name}"))
    return found


def allowing(*places: str) -> Rules:
    return evolve(HERE, s3_locations=places)


@pytest.mark.parametrize(("operation", "body"), bodies())
def test_M69_bedrock_reads_an_object_in_s3_only_where_the_operator_allows_it(
    operation: str, body: Any
) -> None:
    free = world()
    refused = sent(free, operation, body)
    assert (refused.status, refused.header("x-amzn-errortype")) == (400, "ValidationException")
    assert b"send its bytes" in refused.said
    assert (free.calls, free.admitted) == ([], [])
    for place in ("s3://another/", "s3://operators-own/pay/", "s3://operators/"):
        assert sent(world(), operation, body, rules=allowing(place)).status == 400
    for place in ("s3://operators-own/", "s3://operators-own/pay", "any"):
        free = world()
        rules = allowing("s3://another/", place)
        assert sent(free, operation, body, rules=rules).status == 200
        assert free.calls[0].body == json.dumps(body).encode()


@pytest.mark.parametrize("body", IN_MODELS.values(), ids=IN_MODELS)
def test_M69_the_simple_dialect_is_no_way_around(body: dict[str, Any]) -> None:
    free = world()
    refused = converse(free, ask_claude(**{"messages": [], **body}))
    assert (refused.status, json.loads(refused.said)["code"]) == (400, "invalid_request")
    assert free.calls == []


@pytest.mark.parametrize("at", range(len("s3Location")))
def test_M69_nor_is_a_name_with_escapes(at: int) -> None:
    name = "s3Location"
    hidden = f"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"
    body = json.dumps(asked(IN_CONVERSE["a document"])).replace(name, hidden).encode()
    assert json.loads(body) == asked(IN_CONVERSE["a document"])
    assert sent(world(), "converse", body).status == 400
    escaped = "".join(f"\\u{ord(each):04X}" for each in name)
    assert sent(world(), "converse", body.replace(hidden.encode(), escaped.encode())).status == 400


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/in/../out/a", "s3://bucket/in/..", "s3://bucket/in/./a", "S3://bucket/in/a"],
)
def test_M69_a_place_is_not_left_by_another_spelling(uri: str) -> None:
    body = {"mediaSource": {"s3Location": {"uri": uri}}}
    assert sent(world(), "invoke", body, rules=allowing("s3://bucket/in/")).status == 400


@pytest.mark.parametrize(
    "content",
    [
        {"text": f'See "s3Location" and {URI}.'},
        {"text": json.dumps(AT)},
        {"toolUse": {"toolUseId": "t", "name": "read", "input": AT}},
        {"toolResult": {"toolUseId": "t", "content": [{"json": {"location": AT}}]}},
        {"image": {"format": "png", "source": {"bytes": "czNMb2NhdGlvbg=="}}},
        {"image": {"format": "png", "source": {"s3Location": None}}},
        {"image": {"format": "png", "source": {"s3Location": {"uri": 1}}}},
    ],
)
def test_what_only_looks_like_an_object_in_s3_passes(content: Any) -> None:
    body = asked(content)
    schema = {"properties": {"s3Location": {"properties": {"uri": {"type": "string"}}}}}
    body["toolConfig"] = {"tools": [{"toolSpec": {"name": "r", "inputSchema": {"json": schema}}}]}
    assert sent(world(), "converse", body).status == 200
    assert sent(world(), "invoke", {**body, "tools": [{"input_schema": schema}]}).status == 200


@pytest.mark.parametrize("inner", ["*", "e30", "e30=\n", "é", "W10=", "eyJhIjoxLCJhIjoyfQ=="])
def test_what_count_tokens_is_to_count_must_be_readable(inner: str) -> None:
    body = {"input": {"invokeModel": {"body": inner}}}
    assert sent(world(), "count-tokens", body).status == 400
