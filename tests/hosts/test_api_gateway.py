"""
The buffered Lambda host: every shape of event in, the shape's own answer out, settled
before the handler returns.
"""

import base64
import copy
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_native import RECORDED
from tests.core.test_native_faults import frames_of
from tests.fixtures import Recording, recordings, require_fixtures
from tests.flows import MODEL, TOKEN, World, chunk, claude, frame

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Basis, Outcome
from bedrock_proxy_adapters.hosts.api_gateway import (
    ALB_ANSWER_BYTES,
    ANSWER_BYTES,
    api_gateway_handler,
)
from bedrock_proxy_adapters.hosts.events import Shape, read_event
from bedrock_proxy_adapters.proxy import Proxy

EVENTS = Path(__file__).resolve().parents[1] / "events"
SHAPES = {
    "rest": Shape.REST,
    "http_api_v1": Shape.HTTP_V1,
    "http_api_v2": Shape.HTTP_V2,
    "function_url": Shape.FUNCTION_URL,
    "alb": Shape.ALB,
    "alb_multi_value": Shape.ALB,
}
HELLO = [{"content": "Hel"}, {"content": "lo"}, {"done": True}]
JSON_HEAD = UpstreamHead(200, (("content-type", "application/json"),))


@define
class Context:
    """What Lambda hands over beside the event."""

    aws_request_id: str = "8f1c7a34-0000-4000-8000-000000000001"
    millis: int = 60_000

    def get_remaining_time_in_millis(self) -> int:
        return self.millis


def event(name: str, **changes: Any) -> Any:
    """The event in a file, with our token, and with *changes* at its top."""
    text = (EVENTS / f"{name}.json").read_text().replace("TOKEN", TOKEN)
    return {**json.loads(text), **changes}


def with_path(name: str, path: str, **changes: Any) -> Any:
    found = event(name, **changes)
    staged = f"/prod{path}" if name.startswith("http_api") else path
    found["rawPath" if "rawPath" in found else "path"] = staged
    return found


def with_body(found: Any, body: bytes) -> Any:
    return {**found, "body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def headers_to(found: Any, **headers: str) -> Any:
    """*found* with further headers, wherever it has them."""
    found = copy.deepcopy(found)
    for name, value in headers.items():
        name = name.replace("_", "-")
        if found.get("headers") is not None:
            found["headers"][name] = value
        if found.get("multiValueHeaders") is not None:
            found["multiValueHeaders"][name] = [value]
    return found


def ask(world: World, found: Any, context: Any = None, **options: Any) -> dict[str, Any]:
    ports: Any = world
    rules = options.pop("rules", Rules())
    base_path = options.pop("base_path", "")
    proxy = Proxy(store=ports, upstream=ports, telemetry=ports, rules=rules, base_path=base_path)
    handler = api_gateway_handler(proxy, **options)
    answer = handler(found, context if context is not None else Context())
    assert proxy.under_way == 0
    assert world.faults == []
    json.dumps(answer)
    return answer


def body_of(answer: dict[str, Any]) -> bytes:
    body = answer["body"]
    return base64.b64decode(body, validate=True) if answer["isBase64Encoded"] else body.encode()


def header_of(answer: dict[str, Any], name: str) -> str | None:
    many = answer.get("multiValueHeaders")
    if many is not None:
        assert len(many.get(name, [""])) == 1
        return many[name][0] if name in many else None
    return answer["headers"].get(name)


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gets_the_whole_stream_as_one_array_in_its_own_form(name: str) -> None:
    world = World().answers(claude())
    answer = ask(world, event(name))
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, HELLO)
    assert answer["isBase64Encoded"] is False
    assert header_of(answer, "content-type") == "application/json"
    assert header_of(answer, "content-length") is None
    assert world.row.request_id == header_of(answer, "x-request-id") == Context().aws_request_id
    assert (world.row.outcome, world.row.token_count) == (Outcome.OK, 18)
    lists = name in {"rest", "http_api_v1", "alb_multi_value"}
    assert ("multiValueHeaders" in answer, "headers" in answer) == (lists, not lists)
    assert answer.get("statusDescription") == ("200 OK" if name.startswith("alb") else None)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_known_by_what_only_it_has(name: str) -> None:
    found = read_event(event(name), "", "r-1")
    assert found is not None
    request = found.request
    assert SHAPES[name] is found.shape
    assert (request.method, request.path, request.can_stream) == ("POST", "/bedrock", False)
    assert request.first("authorization") == f"Bearer {TOKEN}"
    assert request.first("host")
    assert len(request.all("host")) == 1
    wanted = {"rest": "a=1&a=2&b=c+d", "http_api_v1": "a=1&a=2&b=c+d", "alb": "a=2&b=c%20d"}
    assert wanted.get(name, "a=1&a=2&b=c%20d") == request.query
    assert request.first("cookie") == ("s=1; t=2" if name == "http_api_v2" else None)


@pytest.mark.parametrize("name", ["console_test", "scheduled", "websocket"])
def test_anything_else_is_answered_quietly(name: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    answer = ask(world, event(name))
    assert (answer["statusCode"], answer["body"]) == (400, "")
    assert (world.store_calls, caplog.records) == (0, [])


@pytest.mark.parametrize(
    "found", [None, [], "", 5, {}, {"requestContext": None}, {"version": "2.0"}]
)
def test_what_is_no_event_at_all_is_answered_too(found: Any) -> None:
    assert ask(World(), found)["statusCode"] == 400


def test_a_context_of_another_runtime_is_not_needed() -> None:
    world = World().answers(claude())
    assert ask(world, event("rest"), object())["statusCode"] == 200
    assert len(world.row.request_id) == 36


# --- malformed --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("body", ["{", "a", "e30", "e30=!", "é", "e3 0=", "\ud800"])
def test_M80_a_body_that_is_no_base64_is_a_400(name: str, body: str) -> None:
    world = World()
    answer = ask(world, event(name, body=body, isBase64Encoded=True))
    assert answer["statusCode"] == 400
    said = json.loads(answer["body"])
    assert said["code"] == "invalid_request"
    assert "base64" in said["error"]
    assert world.calls == []


@pytest.mark.parametrize("name", SHAPES)
def test_M81_a_null_body_is_a_400_and_null_headers_are_a_401(name: str) -> None:
    assert ask(World(), event(name, body=None))["statusCode"] == 400
    assert ask(World(), event(name, body={"a": 1}))["statusCode"] == 400
    assert ask(World(), event(name, body="\ud800"))["statusCode"] == 400
    bare = {k: None if isinstance(v, dict) and k != "requestContext" else v
            for k, v in event(name).items()}  # fmt: skip
    answer = ask(World(), bare)
    assert answer["statusCode"] == 401
    assert header_of(answer, "www-authenticate") == "Bearer"


@pytest.mark.parametrize("name", SHAPES)
def test_M81_headers_may_be_of_any_case(name: str) -> None:
    found = event(name)
    for key in ("headers", "multiValueHeaders"):
        if found.get(key):
            found[key] = {n.upper(): v for n, v in found[key].items()}
    assert ask(World().answers(claude()), found)["statusCode"] == 200


@pytest.mark.parametrize("name", ["rest", "http_api_v1"])
def test_M81_either_map_of_headers_is_enough_in_v1(name: str) -> None:
    for absent in ("headers", "multiValueHeaders"):
        found = event(name)
        del found[absent]
        assert ask(World().answers(claude()), found)["statusCode"] == 200
    twice = event(name)
    twice["multiValueHeaders"]["Authorization"] *= 2
    assert ask(World(), twice)["statusCode"] == 400  # M40


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    changes=st.lists(st.tuples(st.integers(0, 60), JSON | st.just("drop")), max_size=3),
)
def test_M81_no_event_is_a_500(name: str, changes: list[tuple[int, Any]]) -> None:
    found = event(name)
    for place, value in changes:
        spots = list(_spots(found))
        holder, key = spots[place % len(spots)]
        if value == "drop":
            del holder[key]
        else:
            holder[key] = value
    assert ask(World().answers(claude()), found)["statusCode"] < 500


def _spots(node: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for key, value in node.items():
        yield node, key
        if isinstance(value, dict) and key != "identity":
            yield from _spots(value)


def test_M27_a_body_beyond_the_limit_is_a_413_before_it_is_decoded() -> None:
    rules = Rules(max_body_bytes=100)
    for found in (event("rest", body="a" * 101), with_body(event("alb"), b"a" * 101)):
        found = headers_to(found, content_length="10") if "elb" in str(found) else found
        assert ask(World(), found, rules=rules)["statusCode"] == 413


# --- paths and keys ---------------------------------------------------------------------------


def path_of(name: str, path: str, base_path: str = "", **context: Any) -> str:
    found = event(name)
    found["rawPath" if "rawPath" in found else "path"] = path
    found["requestContext"].update(context)
    arrived = read_event(found, base_path, "r-1")
    assert arrived is not None
    return arrived.request.path


def test_the_stage_is_stripped_where_the_front_leaves_it_in_the_path() -> None:
    for name in ("http_api_v1", "http_api_v2"):
        assert path_of(name, "/prod/v1/x") == "/v1/x"
        assert path_of(name, "/prod") == "/"
        assert path_of(name, "/production/x") == "/production/x"
        assert path_of(name, "/prod/x", stage="$default") == "/prod/x"
    # REST events never have it: a first segment of that name is the client's own.
    assert path_of("rest", "/prod/x") == "/prod/x"
    assert path_of("alb", "/prod/x") == "/prod/x"


@pytest.mark.parametrize("name", SHAPES)
def test_the_base_path_is_stripped_after_the_stage(name: str) -> None:
    path = "/prod/ai/bedrock" if name.startswith("http_api") else "/ai/bedrock"
    assert path_of(name, path, "/ai") == "/bedrock"
    world = World().answers(claude())
    found = with_path(name, "/ai/bedrock")
    assert ask(world, found, base_path="/ai")["statusCode"] == 200


@pytest.mark.parametrize("name", SHAPES)
def test_M35_a_path_is_decoded_once_wherever_that_happens(name: str) -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.a.b-v1:0"
    decoded = name.startswith("http_api")
    for spelt, status in (
        (arn if decoded else quote(arn, safe=""), 200),
        (arn, 200),
        (quote(arn, safe="") if decoded else quote(quote(arn, safe=""), safe=""), 400),
    ):
        world = World().answers([b"{}"], JSON_HEAD)
        found = with_body(with_path(name, f"/model/{spelt}/invoke"), b'{"max_tokens": 1}')
        assert status == ask(world, headers_to(found, content_length="17"))["statusCode"]
        if status == 200:
            assert world.calls[0].model_id == arn


def test_the_gateways_own_api_key_is_not_a_credential_of_ours() -> None:
    keyed = headers_to(event("rest"), x_api_key="the-gateways-own-key")
    assert ask(World(), keyed)["statusCode"] == 400  # two that differ: M41
    keyed["requestContext"]["identity"]["apiKey"] = "the-gateways-own-key"
    assert ask(World().answers(claude()), keyed)["statusCode"] == 200
    for name in ("headers", "multiValueHeaders"):
        del keyed[name]["Authorization"]
    assert ask(World(), keyed)["statusCode"] == 401
    ours = headers_to(event("http_api_v2"), x_api_key=TOKEN)
    del ours["headers"]["authorization"]
    assert ask(World().answers(claude()), ours)["statusCode"] == 200


# --- the native wire --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_a_native_stream_is_its_bytes_in_base64(name: str) -> None:
    world = World().answers(claude())
    found = with_path(name, f"/model/{MODEL}/invoke-with-response-stream")
    answer = ask(world, found)
    assert answer["isBase64Encoded"] is True
    assert body_of(answer) == b"".join(claude())
    assert header_of(answer, "content-type") == "application/vnd.amazon.eventstream"
    assert header_of(answer, "x-amzn-requestid") == "aws-1"


@pytest.mark.parametrize(
    "recording", [r for r in RECORDED if r.status == 200], ids=lambda recording: recording.id
)
def test_every_recording_passes_on_the_native_route(recording: Recording) -> None:
    head = UpstreamHead(200, recording.response_headers)
    world = World().answers([recording.response], head)
    operation = {
        "InvokeModel": "invoke",
        "InvokeModelWithResponseStream": "invoke-with-response-stream",
        "Converse": "converse",
        "ConverseStream": "converse-stream",
        "CountTokens": "count-tokens",
    }.get(recording.operation)
    path = f"/model/{recording.model_id}/{operation}"
    path = "/guardrail/274u1upxm897/version/1/apply" if operation is None else path
    body = json.dumps(recording.body or {})
    found = headers_to(with_path("http_api_v2", path, body=body), content_length=str(len(body)))
    answer = ask(world, found)
    assert (answer["statusCode"], body_of(answer)) == (200, recording.response)
    assert recording.operation == world.row.operation


@pytest.mark.parametrize(
    "recording",
    [
        *recordings(operation="InvokeModel"),
        *recordings(operation="InvokeModelWithResponseStream"),
    ],
    ids=lambda recording: recording.id,
)
def test_every_invoke_recording_passes_in_the_simple_dialect(recording: Recording) -> None:
    require_fixtures()
    body = recording.response
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    world = World().answers(pieces, UpstreamHead(recording.status, recording.response_headers))
    streamed = recording.operation == "InvokeModelWithResponseStream"
    sent = {k: v for k, v in (recording.body or {}).items() if k != "stream"}
    sent = json.dumps({"modelId": recording.model_id, **sent, "stream": streamed})
    found = headers_to(event("rest", body=sent), content_length=str(len(sent)))
    answer = ask(world, found)
    expected = recording.expected
    fault = expected.get("error") or expected.get("exception")
    if fault:
        said = json.loads(answer["body"])
        assert answer["statusCode"] >= 400
        assert (world.row.error_code, world.row.token_count) == (said["code"], 0)
        if said["code"] != "upstream_config":
            assert fault["message"] == said["error"]
        return
    assert answer["statusCode"] == 200
    if not streamed:
        assert recording.response == body_of(answer)
        return
    elements = json.loads(answer["body"])
    assert elements[-1] == {"done": True}
    text = "".join(element.get("content", "") for element in elements)
    assert expected.get("text_without_inline_reasoning", expected["text"]) == text
    source = {**(expected.get("invocation_metrics") or {}), **(expected["usage"] or {})}
    assert (source.get("input_tokens", 0), source.get("output_tokens", 0)) == (
        world.row.input_tokens,
        world.row.output_tokens,
    ) or world.row.basis is Basis.ESTIMATED


# --- time and size ----------------------------------------------------------------------------


def stalled(*frames: bytes) -> World:
    """Bedrock says *frames* and then nothing until it is closed."""
    world = World()

    def wait() -> None:
        until = time.monotonic() + 20
        while not world.used[0].closed:
            assert time.monotonic() < until, "nobody closed the call"
            time.sleep(0.005)

    return world.answers([*frames, wait])


@pytest.mark.parametrize(
    ("name", "context", "options"),
    [
        ("alb", Context(millis=500), {}),
        ("rest", Context(millis=900_000), {"deadline_s": 0.2}),
        ("function_url", None, {"deadline_s": 0.1}),
    ],
)
def test_S18_before_the_time_is_up_there_is_one_terminal_error_and_a_row(
    name: str, context: Any, options: Any
) -> None:
    world = stalled()
    answer = ask(world, event(name), context, **options)
    assert answer["statusCode"] == 504
    assert json.loads(answer["body"])["code"] == "timeout"
    assert (world.row.outcome, world.row.basis) == (Outcome.TIMEOUT, Basis.PARTIAL)
    if name == "rest":
        world = stalled(*claude()[:3])
        elements = json.loads(ask(world, event(name), context, **options)["body"])
        assert elements[0] == {"content": "Hel"}
        assert (len(elements), elements[-1]["code"]) == (2, "timeout")


def test_S18_where_no_time_is_left_bedrock_is_not_called() -> None:
    world = stalled()
    answer = ask(world, event("http_api_v2"), Context(millis=-5))
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (504, "timeout")
    assert (world.calls, world.rows, len(world.released)) == ([], [], 1)


def test_S18_a_native_stream_ends_in_an_exception_frame() -> None:
    world = stalled(*claude()[:3])
    found = with_path("function_url", f"/model/{MODEL}/invoke-with-response-stream")
    frames = frames_of(body_of(ask(world, found, deadline_s=0.2)))
    assert [f.raw for f in frames[:-1]] == claude()[:3]
    assert frames[-1].text(":exception-type") == "modelTimeoutException"


def test_the_timer_does_not_outlive_the_call() -> None:
    before = threading.active_count()
    for _ in range(5):
        ask(World().answers(claude()), event("rest"))
    until = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < until, "a timer was left"
        time.sleep(0.01)


def whole(size: int) -> World:
    body = b'{"content": [], "stop_reason": "end_turn", "x": "%b"}' % (b"x" * size)
    return World().answers([body], JSON_HEAD)


@pytest.mark.parametrize(("name", "limit"), [("rest", ANSWER_BYTES), ("alb", ALB_ANSWER_BYTES)])
def test_an_answer_too_large_for_the_front_is_a_clear_error_and_billed(
    name: str, limit: int
) -> None:
    found = with_path(name, f"/model/{MODEL}/invoke")
    assert ask(whole(limit - 4_000), found)["statusCode"] == 200
    for size in (limit - 100, 2 * limit):
        world = whole(size)
        answer = ask(world, found)
        assert answer["statusCode"] == 413
        assert f"{limit // 1024**2} MB" in json.loads(answer["body"])["message"]
        assert header_of(answer, "x-amzn-errortype") == "ValidationException"
        assert header_of(answer, "x-request-id") == world.row.request_id
        assert world.row.outcome == Outcome.OK


def test_base64_and_escapes_count_towards_the_limit() -> None:
    frames = [frame("contentBlockDelta", {"delta": {"text": "x" * 90_000}})] * 54
    stream = [*frames, frame("messageStop", {"stopReason": "end_turn"})]
    assert sum(map(len, stream)) < ANSWER_BYTES
    found = with_path("function_url", f"/model/{MODEL}/converse-stream")
    assert ask(World().answers(stream), found)["statusCode"] == 413
    assert ask(World().answers([*stream[:40], stream[-1]]), found)["statusCode"] == 200

    def said(text: str) -> World:
        delta = {"type": "text_delta", "text": text}
        block = {"type": "content_block_delta", "index": 0, "delta": delta}
        return World().answers([chunk(block), *claude()[-2:]])

    # Escaped twice: in the array, and again in the answer that holds it.
    assert ask(said('"' * 1_200_000), event("rest"))["statusCode"] == 200
    beyond = said('"' * 2_000_000)
    assert ask(beyond, event("rest"))["statusCode"] == 413
    assert (beyond.row.outcome, beyond.row.output_tokens) == (Outcome.OK, 7)


def test_a_port_that_needs_an_event_loop_is_refused_when_the_handler_is_made() -> None:
    class Native(World):
        kind = "native"

    world: Any = Native()
    with pytest.raises(ConfigurationError, match="event loop"):
        api_gateway_handler(Proxy(store=world, upstream=world, telemetry=world))
