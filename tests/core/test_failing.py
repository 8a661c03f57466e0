"""What the operator is told of while Bedrock or the store cannot be used, and what not."""

import gc
import json

import pytest
from attrs import define
from tests.flows import (
    Conversation,
    World,
    claude,
    converse,
    exception,
    whole_claude,
)

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.course import Course
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.errors import Code, ProxyError, store_unavailable
from bedrock_proxy.ports import Loggable, Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.usage import UsageRecord

DENIED = (
    "User: arn:aws:sts::123456789012:assumed-role/prod/i-0 is not authorized to perform: "
    "bedrock:InvokeModel on resource: arn:aws:bedrock:us-east-1::foundation-model/x because ..."
)


def replied(name: str, status: int = 403, message: str = "Bedrock said so.") -> World:
    world = World()
    for _ in range(3):
        head = UpstreamHead(status, (("x-amzn-errortype", name),))
        world.answers([json.dumps({"message": message}).encode()], head)
    return world


def unreachable(trouble: Trouble, detail: str = "") -> World:
    world = World()
    for _ in range(3):
        world.answers([], UpstreamUnreachable(trouble, detail))
    return world


CONFIG, ERROR, STORE = map(str, (Code.UPSTREAM_CONFIG, Code.UPSTREAM_ERROR, Code.STORE_UNAVAILABLE))


@pytest.mark.parametrize(
    ("world", "cause"),
    [
        (replied("AccessDeniedException"), "AccessDeniedException"),
        (
            replied("AccessDeniedException", message=DENIED),
            "AccessDeniedException: bedrock:InvokeModel is not allowed",
        ),
        (replied("ExpiredTokenException"), "ExpiredTokenException"),
        (replied("com.amazon#UnrecognizedClientException:http://x"), "UnrecognizedClientException"),
        (replied("a new name: canary", 403), "HTTP 403"),
        (World().answers([exception("accessDeniedException", DENIED)]),
         "AccessDeniedException: bedrock:InvokeModel is not allowed"),
        (unreachable(Trouble.CREDENTIALS, Loggable("no AWS credentials were found")),
         "no AWS credentials were found"),
        (unreachable(Trouble.CREDENTIALS, "what somebody said"), "credentials"),
    ],
    ids=str,
)  # fmt: skip
def test_that_bedrock_may_not_be_called_is_told_with_the_reason(world: World, cause: str) -> None:
    converse(world)
    assert [(CONFIG, cause, False)] == world.failings


def test_that_bedrock_cannot_be_reached_is_told_with_the_reason() -> None:
    world = unreachable(Trouble.UNREACHABLE, Loggable("ConnectionRefusedError, at h:443"))
    talk = converse(world)
    assert [(ERROR, "ConnectionRefusedError, at h:443", False)] == world.failings
    assert b"h:443" not in talk.said


def test_a_refusal_that_comes_in_mid_stream_is_told_too() -> None:
    world = World().answers([*claude()[:3], exception("expiredTokenException")])
    converse(world)
    assert [(CONFIG, "ExpiredTokenException", False)] == world.failings


@pytest.mark.parametrize(
    "world",
    [
        World().answers(claude()),
        World().answers([whole_claude()], UpstreamHead(200, ())),
        World().answers(claude()[:3]),
        replied("ThrottlingException", 429),
        replied("ValidationException", 400),
        replied("InternalServerException", 500),
        unreachable(Trouble.TIMEOUT),
        unreachable(Trouble.BROKEN),
        unreachable(Trouble.REJECTED),
    ],
    ids=str,
)
def test_nothing_is_told_of_what_the_operator_cannot_mend(world: World) -> None:
    converse(world)
    assert [] == world.failings


def test_that_the_store_is_away_is_told_at_admission() -> None:
    error = store_unavailable("the spool is full")
    world = World(admit_error=error)
    assert 503 == converse(world).status
    assert [(STORE, "the spool is full", False)] == world.failings


def test_that_a_row_could_not_be_written_is_told_and_it_is_kept() -> None:
    world = World(finish_error=store_unavailable("away")).answers(claude())
    assert 200 == converse(world).status
    assert [(STORE, "away", True)] == world.failings
    assert 1 == len(world.spool)


def test_a_defect_of_the_store_is_told_as_the_defect_it_is() -> None:
    world = World(finish_error=ValueError("x")).answers(claude())
    converse(world)
    assert [] == world.failings
    assert 1 == len(world.faults) == len(world.spool)


@define(eq=False)
class Away(World):
    """Its store fails, each time with an error of its own."""

    where: str = ""

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        if self.where == "token":
            raise store_unavailable("away")
        return World.find_token(self, digest, at)

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        if self.where == "admission":
            raise store_unavailable("away")
        return World.admit(self, request)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        if self.where == "settlement":
            raise store_unavailable("away")
        World.finish(self, record, lease)


@pytest.mark.parametrize("where", ["bedrock", "token", "admission", "settlement"])
def test_L5_what_was_told_leaves_nothing_that_knows_itself(where: str) -> None:
    kinds = (Course, Conversation, ProxyError)
    gc.collect()
    known = {id(each) for each in gc.get_objects() if isinstance(each, kinds)}
    gc.disable()
    try:
        world = Away(where=where)
        world.replies = (
            replied("AccessDeniedException") if where == "bedrock" else World().answers(claude())
        ).replies
        converse(world)
        assert 1 == len(world.failings)
        del world
        found = [each for each in gc.get_objects() if isinstance(each, kinds)]
        assert not [type(each).__name__ for each in found if id(each) not in known]
    finally:
        gc.enable()
