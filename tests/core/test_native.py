"""
Bedrock's own wire in process: every recording passes byte for byte and is billed as its
independent reader read it; what goes up, what comes back, and how errors look.
The faults of the stream are in ``test_native_faults.py``.
"""

import json
from typing import Any
from urllib.parse import quote

import pytest
from attrs import evolve
from tests.fixtures import Recording, recordings, require_fixtures
from tests.flows import (
    MODEL,
    OK_HEAD,
    TOKEN,
    Conversation,
    SlowHead,
    World,
    ask_claude,
    claude,
    converse,
)

from bedrock_proxy.admission import Limit, Refusal
from bedrock_proxy.ports import Operation, UpstreamHead
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Basis, Outcome, State

OPERATIONS = {
    "InvokeModel": "invoke",
    "InvokeModelWithResponseStream": "invoke-with-response-stream",
    "Converse": "converse",
    "ConverseStream": "converse-stream",
    "CountTokens": "count-tokens",
}
RECORDED = [r for name in [*OPERATIONS, "ApplyGuardrail"] for r in recordings(operation=name)]
OPERATORS = {403}
"""The recorded refusals that are the operator's fault: credentials and model access."""

BODY = json.dumps(
    {"max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
).encode()
JSON_HEAD = UpstreamHead(
    200,
    (
        ("content-type", "application/json"),
        ("x-amzn-requestid", "aws-1"),
        ("x-amzn-bedrock-input-token-count", "11"),
        ("connection", "keep-alive"),
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("set-cookie", "a=b"),
    ),
)


def native(
    world: World,
    operation: str = "invoke-with-response-stream",
    *headers: tuple[str, str],
    body: bytes = BODY,
    model: str = MODEL,
    **options: Any,
) -> Conversation:
    """One request on the native wire, driven to its end."""
    return converse(world, body, *headers, path=f"/model/{model}/{operation}", **options)


def refused(status: int, kind: str) -> UpstreamHead:
    return UpstreamHead(
        status,
        (
            ("content-type", "application/json"),
            ("x-amzn-errortype", kind),
            ("x-amzn-requestid", "aws-9"),
        ),
    )


# --- the recordings ---------------------------------------------------------------------------


def test_the_recordings_are_here() -> None:
    require_fixtures()
    assert len(RECORDED) == 137


def replay(recording: Recording) -> tuple[World, Conversation]:
    """The recording as Bedrock's answer, in pieces of 37 bytes, and what the client got."""
    world = World()
    body = recording.response
    for _ in range(3):
        world.answers(
            [body[at : at + 37] for at in range(0, len(body), 37)],
            UpstreamHead(recording.status, recording.response_headers),
        )
    sent = json.dumps(recording.body if recording.body is not None else {}).encode()
    if recording.operation == "ApplyGuardrail":
        path = "/guardrail/274u1upxm897/version/1/apply"
    else:
        path = f"/model/{quote(recording.model_id, safe='')}/{OPERATIONS[recording.operation]}"
    # One of them names an object in S3.
    conversation = converse(world, sent, path=path, rules=Rules(s3_locations=("any",)))
    assert world.calls[0].body == sent
    return world, conversation


def counts(expected: dict[str, Any]) -> dict[str, int] | None:
    """What the ledger must hold: the model's own figures, else the metrics', else the headers'."""
    merged: dict[str, int] = {}
    for source in ("header_usage", "invocation_metrics", "usage"):
        merged |= {k: v for k, v in (expected.get(source) or {}).items() if isinstance(v, int)}
    if "input_text_token_count" in expected and "input_tokens" not in merged:
        merged["input_tokens"] = expected["input_text_token_count"]
    if not {"input_tokens", "output_tokens"} & merged.keys():
        return None
    return {
        "input": merged.get("input_tokens", 0),
        "output": merged.get("output_tokens", 0),
        "read": merged.get("cache_read_input_tokens", 0),
        "write": merged.get("cache_write_input_tokens", 0),
    }


@pytest.mark.parametrize(
    "recording", [r for r in RECORDED if r.status == 200], ids=lambda recording: recording.id
)
def test_a_recorded_answer_passes_byte_for_byte_and_is_billed_right(recording: Recording) -> None:
    world, conversation = replay(recording)
    row = world.row
    assert conversation.status == 200
    assert recording.response == conversation.said
    assert (recording.operation, recording.model_id) == (
        row.operation,
        row.model_id if recording.operation != "ApplyGuardrail" else "",
    )
    assert (row.dialect, row.attempts) == ("bedrock", 1)
    for name, value in recording.response_headers:
        if name in {"content-type", "x-amzn-requestid"} or name.startswith("x-amzn-bedrock-"):
            assert value == conversation.header(name)
    if recording.expected.get("exception"):
        assert (row.outcome, row.token_count) == (Outcome.ERROR, 0)
        return
    assert row.outcome == Outcome.OK
    billed = {
        "input": row.input_tokens,
        "output": row.output_tokens,
        "read": row.cache_read_tokens,
        "write": row.cache_write_5m_tokens + row.cache_write_1h_tokens,
    }
    if recording.operation in {"CountTokens", "ApplyGuardrail"}:
        assert not any(billed.values())
        assert (row.basis, row.state) == (Basis.REPORTED, State.FINAL)
        return
    wanted = counts(recording.expected)
    if wanted is None:
        assert (row.basis, row.state) == (Basis.ESTIMATED, State.ESTIMATED)
    else:
        assert wanted == billed
        assert (row.basis, row.state) == (Basis.REPORTED, State.FINAL)


@pytest.mark.parametrize(
    "recording", [r for r in RECORDED if r.status != 200], ids=lambda recording: recording.id
)
def test_a_recorded_refusal_keeps_bedrocks_words_unless_the_operator_is_at_fault(
    recording: Recording,
) -> None:
    world, conversation = replay(recording)
    recorded = dict(recording.response_headers)
    assert (world.row.token_count, world.row.outcome) == (0, Outcome.ERROR)
    if recording.status in OPERATORS:
        assert (conversation.status, world.row.error_code) == (502, "upstream_config")
        assert conversation.header("x-amzn-errortype") == "InternalServerException"
        assert recording.json()["message"] not in conversation.said.decode()
        assert "operator" in json.loads(conversation.said)["message"]
    else:
        assert recording.status == conversation.status
        assert recording.response == conversation.said
        assert recorded.get("x-amzn-errortype") == conversation.header("x-amzn-errortype")
    assert recorded.get("x-amzn-requestid", "r-1") == conversation.header("x-amzn-requestid")
    assert conversation.header("x-request-id") == "r-1"


# --- what goes up ---------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS.values())
def test_a_body_goes_up_as_it_came_unknown_members_and_spelling_included(operation: str) -> None:
    body = b'{ "messages" : [],\n "x-new": 1e3, "\\u0061": "\\u00e9\xc3\xa9", "n": 1.0 }\n'
    world = World().answers(claude())
    native(world, operation, body=body)
    assert world.calls[0].body == body
    assert OPERATIONS[world.calls[0].operation.value] == operation


def test_the_headers_that_matter_go_up_and_no_others() -> None:
    forwarded = (
        ("content-type", "application/json; charset=utf-8"),
        ("accept", "application/json"),
        ("x-amzn-bedrock-guardrailidentifier", "gr1"),
        ("x-amzn-bedrock-guardrailversion", "DRAFT"),
        ("x-amzn-bedrock-performanceconfig-latency", "optimized"),
        ("x-amzn-bedrock-request-metadata", '{"team": "a"}'),
        ("x-amzn-bedrock-service-tier", "flex"),
        ("x-amzn-bedrock-trace", "ENABLED"),
    )
    kept_back = (
        ("x-amz-security-token", "t"),
        ("x-amz-date", "d"),
        ("x-amzn-trace-id", "Root=1"),
        ("x-amzn-bedrock-invented", "1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("amz-sdk-invocation-id", "7"),
        ("cookie", "c"),
        ("user-agent", "u"),
    )
    world = World().answers([b"{}"], JSON_HEAD)
    native(world, "invoke", *forwarded, *kept_back)
    assert dict(forwarded) == dict(world.calls[0].headers)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*", "text/html"])
def test_accept_never_chooses_the_format(accept: str) -> None:
    world = World().answers(claude())
    conversation = native(world, "invoke-with-response-stream", ("accept", accept))
    assert conversation.said == b"".join(claude())
    assert conversation.header("content-type") == "application/vnd.amazon.eventstream"
    assert "accept" not in dict(world.calls[0].headers)
    stream = (("x-amzn-bedrock-accept", "application/json"),)
    world = World().answers(claude())
    native(world, "invoke-with-response-stream", *stream)
    assert stream[0] in world.calls[0].headers


@pytest.mark.parametrize(
    "headers",
    [
        (("x-amzn-bedrock-trace", "ENABLED"), ("x-amzn-bedrock-trace", "DISABLED")),
        (("x-amzn-bedrock-guardrailidentifier", "a\r\nx-evil: 1"),),
        (("x-amzn-bedrock-request-metadata", "\xe9"),),
    ],
)
def test_a_header_that_is_ambiguous_or_unprintable_is_a_400(headers: Any) -> None:
    world = World()
    assert native(world, "converse", *headers).status == 400
    assert (world.calls, world.admitted) == ([], [])


@pytest.mark.parametrize(
    ("spelt", "named"),
    [
        (MODEL, MODEL),
        (quote(MODEL, safe=""), MODEL),
        ("us.amazon.nova-lite-v1%3A0", "us.amazon.nova-lite-v1:0"),
        *(
            (spelling, "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.a.b-v1:0")
            for spelling in (
                "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.a.b-v1:0",
                "arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fus.a.b-v1%3A0",
            )
        ),
    ],
)
def test_M35_a_model_id_may_be_raw_or_percent_encoded(spelt: str, named: str) -> None:
    world = World().answers([b"{}"], JSON_HEAD)
    assert native(world, "invoke", model=spelt).status == 200
    assert named == world.calls[0].model_id == world.row.model_id


@pytest.mark.parametrize(
    "spelt",
    [
        "..",
        "%2e%2e",
        "a%252Fb",
        "a b",
        "a%0d%0ab",
        "%ff",
        "a%00",
        "x" * 2049,
        "%C3%A9",
        "http%3A//x",
    ],
)
def test_M73_any_other_spelling_is_a_400_in_bedrocks_shape(spelt: str) -> None:
    world = World()
    conversation = native(world, "converse", model=spelt)
    assert conversation.status == 400
    assert conversation.header("x-amzn-errortype") == "ValidationException"
    assert world.calls == []


def test_M74_M76_an_arn_of_elsewhere_and_a_model_off_the_list_are_403() -> None:
    world = World()
    arn = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc"
    conversation = native(world, "converse", model=arn, rules=Rules(region="us-east-1"))
    assert (conversation.status, conversation.header("x-amzn-errortype")) == (
        403,
        "AccessDeniedException",
    )
    assert world.owner is not None
    world.owner = evolve(world.owner, models=frozenset({"amazon.nova-lite-v1:0"}))
    for path in (f"/model/us.{MODEL}/converse", "/guardrail/abc/version/1/apply"):
        assert converse(world, BODY, path=path).status == 403
    assert world.calls == []


def test_what_is_reserved_is_what_the_body_may_use() -> None:
    def reserved(operation: str, body: Any) -> int:
        world = World().answers(claude())
        native(world, operation, body=json.dumps(body).encode())
        return world.admitted[0].output_tokens

    ask = {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}
    assert reserved("converse", {**ask, "inferenceConfig": {"maxTokens": 77}}) == 77
    assert reserved("converse", ask) == 4_096
    assert reserved("converse-stream", {**ask, "max_tokens": 1}) == 4_096
    assert reserved("invoke", {**ask, "max_tokens": 9}) == 9
    assert reserved("count-tokens", {"input": {"converse": ask}}) == 0


def test_a_guardrail_is_called_by_its_id_or_arn_and_version() -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc1"
    for spelt, version, named in (
        ("abc1", "DRAFT", "abc1"),
        (arn, "12", arn),
        (quote(arn, safe=""), "12", arn),
    ):
        world = World().answers([b'{"action": "NONE"}'], JSON_HEAD)
        path = f"/guardrail/{spelt}/version/{version}/apply"
        assert converse(world, b'{"source": "INPUT"}', path=path).status == 200
        call = world.calls[0]
        assert (call.operation, call.model_id, call.guardrail_version) == (
            Operation.APPLY_GUARDRAIL,
            named,
            version,
        )
        assert (world.row.token_count, world.row.input_tokens) == (0, 0)
    for spelt, version in (("abc1", "0"), ("abc1", "1:1"), ("ab:c", "1"), (arn + ".x", "1"),
                           (arn.replace("guardrail/", "prompt/"), "1"), ("a%2Fb", "1")):  # fmt: skip
        path = f"/guardrail/{spelt}/version/{version}/apply"
        assert converse(World(), b"{}", path=path).status == 400


# --- what comes back --------------------------------------------------------------------------


def test_bedrocks_headers_that_matter_come_back_and_no_others() -> None:
    conversation = native(World().answers([b'{"a": 1}'], JSON_HEAD), "converse")
    assert conversation.head is not None
    assert dict(conversation.head.headers) == {
        "content-type": "application/json",
        "x-amzn-requestid": "aws-1",
        "x-amzn-bedrock-input-token-count": "11",
        "content-length": "8",
        "x-request-id": "r-1",
    }


def test_the_head_goes_with_bedrocks_own_and_silence_brings_no_ping() -> None:
    world = World()
    heads: list[float] = []
    world.replies.append(SlowHead(OK_HEAD, [50.0, *claude()], world.time, delay=40.0))
    conversation = native(
        world,
        on_say=lambda conversation, said: (
            None if isinstance(said, bytes) else heads.append(world.time.monotonic)
        ),
    )
    assert heads == [1_040.0]
    assert world.row.first_byte_ms == 40_000
    assert conversation.said == b"".join(claude())


@pytest.mark.parametrize("operation", ["invoke", "converse", "count-tokens"])
def test_S08_a_body_that_is_cut_short_is_a_502(operation: str) -> None:
    head = evolve(JSON_HEAD, headers=(*JSON_HEAD.headers, ("content-length", "99")))
    conversation = native(World().answers([b'{"a": 1}'], head), operation)
    assert (conversation.status, conversation.header("x-amzn-requestid")) == (502, "aws-1")
    assert conversation.header("x-amzn-errortype") == "InternalServerException"


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("no token", 401, "AccessDeniedException"),
        ("bad JSON", 400, "ValidationException"),
        ("media type", 415, "ValidationException"),
        ("limit", 429, "ThrottlingException"),
        ("method", 405, "ValidationException"),
        ("overloaded", 503, "ServiceUnavailableException"),
        ("late", 504, "ModelTimeoutException"),
    ],
)
def test_errors_of_ours_look_like_bedrocks(name: str, status: int, kind: str) -> None:
    world = World()
    options: dict[str, Any] = {}
    headers: tuple[tuple[str, str], ...] = ()
    if name == "no token":
        options["token"] = None
    elif name == "bad JSON":
        options["body"] = b'{"a": NaN}'
    elif name == "media type":
        headers = (("content-type", "text/plain"),)
    elif name == "limit":
        world.refusal = Refusal(reason=Limit.REQUESTS_PER_MINUTE, retry_after=7, cap=2)
    elif name == "method":
        options["method"] = "GET"
    elif name == "overloaded":
        world.streams = False
    else:
        world.replies.append(SlowHead(OK_HEAD, [], world.time, delay=1_000.0))
    conversation = native(world, "converse-stream", *headers, **options)
    assert (status, kind) == (conversation.status, conversation.header("x-amzn-errortype"))
    assert list(json.loads(conversation.said)) == ["message"]
    assert conversation.header("content-type") == "application/json"
    assert conversation.header("x-request-id") == conversation.header("x-amzn-requestid") == "r-1"
    if name == "limit":
        assert conversation.header("retry-after") == "7"
    if name == "no token":
        assert conversation.header("www-authenticate") == "Bearer"


def test_S04_a_throttled_call_is_tried_again_and_then_says_bedrocks_own_words() -> None:
    world = World()
    for _ in range(3):
        world.answers([b'{"message":"Too many!"}'], refused(429, "ThrottlingException"))
    conversation = native(world)
    assert (conversation.status, world.row.attempts) == (429, 3)
    assert conversation.said == b'{"message":"Too many!"}'
    assert conversation.header("retry-after") == "1"
    assert conversation.header("x-amzn-requestid") == "aws-9"


@pytest.mark.parametrize("status", [424, 409, 500])
def test_bedrocks_own_status_is_kept(status: int) -> None:
    world = World().answers([b'{"message":"m"}'], refused(status, "ModelErrorException"))
    conversation = native(world, "invoke")
    assert (status, b'{"message":"m"}') == (conversation.status, conversation.said)


def test_an_arn_that_the_client_did_not_send_is_not_told() -> None:
    foreign = "arn:aws:iam::999999999999:role/secret"
    own = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.a.b-v1:0"
    said = json.dumps({"message": f"{foreign} may not use {own}."}).encode()
    conversation = native(
        World().answers([said], refused(400, "ValidationException")), "invoke", model=own
    )
    assert json.loads(conversation.said) == {"message": f"<arn> may not use {own}."}
    own = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc"
    said = json.dumps({"message": f"no {own}"}).encode()
    conversation = native(
        World().answers([said], refused(404, "ResourceNotFoundException")),
        "invoke",
        ("x-amzn-bedrock-guardrailidentifier", own),
    )
    assert said == conversation.said


def test_the_x_api_key_header_is_a_credential_too() -> None:
    world = World().answers(claude())
    assert native(world, "converse-stream", ("x-api-key", TOKEN), token=None).status == 200


def test_M77_a_clients_own_id_is_recorded_beside_ours() -> None:
    world = World().answers(claude())
    native(world, "invoke-with-response-stream", ("amz-sdk-invocation-id", "4f-2"))
    assert (world.row.client_request_id, world.row.request_id) == ("4f-2", "r-1")
    world = World().answers(claude())
    native(world, "invoke-with-response-stream", ("amz-sdk-invocation-id", "a b\x00"))
    assert world.row.client_request_id is None


def test_the_simple_route_still_speaks_its_own_dialect() -> None:
    assert b"data: " in converse(World().answers(claude()), ask_claude()).said
