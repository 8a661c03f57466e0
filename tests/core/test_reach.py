"""What else a native call names beside its model, and what of it may be reached."""

import json
from typing import Any

import pytest
from attrs import evolve
from tests.flows import MODEL, Conversation, World, claude, converse

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
