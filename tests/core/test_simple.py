"""The simple dialect, byte for byte: what goes to the model, and what comes back."""

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flows import (
    MODEL,
    Conversation,
    World,
    ask_claude,
    chunk,
    claude,
    converse,
    events,
    exception,
    frame,
    request,
    text_of,
)

from bedrock_proxy.dialects.simple import SIMPLE, error_object
from bedrock_proxy.errors import ClientFault, Code, LimitReached
from bedrock_proxy.ports import Operation, UpstreamCall, UpstreamHead

JSON = ("accept", "application/json")


def upstream(body: bytes | str) -> UpstreamCall:
    """What goes to Bedrock for *body*."""
    raw = body.encode() if isinstance(body, str) else body
    return SIMPLE.call(request(), raw, "invoke", None).upstream


def streamed(frames: list[bytes], *headers: tuple[str, str], **options: Any) -> Conversation:
    body = options.pop("body", None)
    return converse(World().answers(frames), body, *headers, **options)


# --- the request ----------------------------------------------------------------------------------


def test_modelId_names_the_model_and_is_removed() -> None:
    call = upstream('{"modelId": "a.b", "prompt": "x"}')
    assert (call.model_id, call.body) == ("a.b", b'{"prompt": "x"}')


def test_without_modelId_model_names_the_model_and_is_removed() -> None:
    call = upstream('{"prompt": "x", "model": "a.b"}')
    assert (call.model_id, call.body) == ("a.b", b'{"prompt": "x"}')


def test_beside_modelId_model_stays() -> None:
    call = upstream('{"model": "openai.gpt-oss-20b", "modelId": "openai.gpt-oss-20b-1:0", "n": 1}')
    assert call.model_id == "openai.gpt-oss-20b-1:0"
    assert call.body == b'{"model": "openai.gpt-oss-20b", "n": 1}'


def test_a_modelId_that_names_nothing_is_not_replaced_by_model() -> None:
    for nothing in ('""', "null", "5"):
        with pytest.raises(ClientFault, match="names no model"):
            upstream(f'{{"modelId": {nothing}, "model": "a.b"}}')


@pytest.mark.parametrize(
    ("stream", "operation"),
    [
        ("", Operation.INVOKE),
        ('"stream": false, ', Operation.INVOKE),
        ('"stream": true, ', Operation.INVOKE_STREAM),
    ],
)
def test_stream_chooses_the_operation_and_is_removed(stream: str, operation: Operation) -> None:
    call = upstream(f'{{"modelId": "a.b", {stream}"prompt": "x"}}')
    assert (call.operation, call.body) == (operation, b'{"prompt": "x"}')


@pytest.mark.parametrize("model", ["cohere.command-text-v14", "cohere.command-light-text-v14",
                                   "openai.gpt-oss-120b-1:0", "us.openai.gpt-oss-20b-1:0"])  # fmt: skip
@pytest.mark.parametrize("stream", ["true", "false"])
def test_where_the_models_own_body_has_stream_it_stays_in_its_place(
    model: str, stream: str
) -> None:
    call = upstream(f'{{"a": 1, "stream": {stream}, "modelId": "{model}", "b": 2}}')
    assert call.body == b'{"a": 1, "stream": %b, "b": 2}' % stream.encode()
    assert call.operation.streams is (stream == "true")


def test_a_body_of_such_a_model_without_stream_is_not_given_one() -> None:
    assert upstream('{"modelId": "cohere.command-text-v14", "a": 1}').body == b'{"a": 1}'


def test_command_r_has_no_stream_of_its_own() -> None:
    assert upstream('{"modelId": "cohere.command-r-v1:0", "stream": true}').body == b"{}"


@pytest.mark.parametrize("choice", ["text", "full"])
def test_stream_events_is_removed(choice: str) -> None:
    body = f'{{"modelId": "a.b", "stream_events": "{choice}", "stream": true, "x": 1}}'
    assert upstream(body).body == b'{"x": 1}'


def test_the_rest_goes_in_its_senders_own_words() -> None:
    rest = (
        '{"z":1,"a" :\t[1,2.50,-0.0,1E-7,1.0e+2,12345678901234567890,true , null],'
        '"u":"\\u00e4\\ud83d\\ude00\\/","t":"\u00e4\u20ac\U0001f600\u2028\\n\\u0000\\"\\\\",'
        '"e":{},"l":[],"":{"b":1,"a":{"y":1,"x":2}}}'
    )
    assert upstream('{"modelId":"a.b",' + rest[1:]).body == rest.encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OURS = {"modelId", "model", "stream", "stream_events"}


@given(st.dictionaries(st.text(max_size=5).filter(lambda k: k not in OURS), VALUES, max_size=5))
def test_any_body_reaches_the_model_with_its_values_in_their_order(rest: dict[str, Any]) -> None:
    sent = upstream(json.dumps({"modelId": "a.b", **rest, "stream": True})).body
    # repr tells 1 from 1.0 and True, and shows the order.
    assert repr(json.loads(sent)) == repr(rest)


def test_only_headers_of_ours_go_upstream() -> None:
    body, mark = ask_claude(stream=False), ("x-amzn-bedrock-guardrailidentifier", "g")
    call = SIMPLE.call(request(mark, JSON), body, "invoke", None).upstream
    assert call.headers == (("content-type", "application/json"), ("accept", "application/json"))
    call = SIMPLE.call(request(mark, JSON), ask_claude(), "invoke", None).upstream
    assert call.headers == (("content-type", "application/json"),)


# --- a whole answer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b'{"a":1}', b'{ "a" : "\xc3\xa4" }\r\n', b"not json at all", b"", b"\x00\xff" * 99]
)
def test_an_answer_that_is_not_streamed_is_bedrocks_own_byte_for_byte(body: bytes) -> None:
    head = UpstreamHead(200, (("content-type", "application/json"), ("x-amzn-requestid", "aws-1")))
    pieces = [body[:3], body[3:]] if body else []
    talk = converse(World().answers([p for p in pieces if p], head), ask_claude(stream=False))
    assert (talk.status, talk.said) == (200, body)
    assert talk.head is not None
    assert talk.head.headers == (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("x-request-id", "r-1"),
    )


def test_a_whole_body_that_is_cut_short_is_a_502_and_not_an_answer() -> None:
    head = UpstreamHead(200, (("content-length", "9"),))
    talk = converse(World().answers([b'{"a": 1'], head), ask_claude(stream=False))
    assert (talk.status, json.loads(talk.said)["code"]) == (502, "upstream_torn")


# --- a stream of events ---------------------------------------------------------------------------

HELLO_EVENTS = (
    b'data: {"content": "Hel"}\n\n'
    b'data: {"content": "lo"}\n\n'
    b"data: [DONE]\n\n"
)  # fmt: skip
HELLO_ARRAY = b'[{"content": "Hel"},\n{"content": "lo"},\n{"done": true}]\n'


def test_a_stream_is_these_bytes_and_these_headers() -> None:
    talk = streamed(claude())
    assert (talk.status, talk.said) == (200, HELLO_EVENTS)
    assert talk.head is not None
    assert talk.head.headers == (
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        ("x-request-id", "r-1"),
    )


def test_an_array_is_these_bytes_and_these_headers() -> None:
    talk = streamed(claude(), JSON)
    assert (talk.status, talk.said) == (200, HELLO_ARRAY)
    assert talk.head is not None
    assert talk.head.headers == (("content-type", "application/json"), ("x-request-id", "r-1"))
    assert len(talk.pieces) > 1


def test_an_array_from_a_host_that_buffers_is_one_piece_of_known_length() -> None:
    talk = streamed(claude(), can_stream=False)
    assert (talk.said, len(talk.pieces)) == (HELLO_ARRAY, 1)
    assert talk.header("content-length") == str(len(HELLO_ARRAY))


def test_an_answer_without_a_word_is_still_whole() -> None:
    assert streamed(claude([])).said == b"data: [DONE]\n\n"
    assert streamed(claude([]), JSON).said == b'[{"done": true}]\n'


@pytest.mark.parametrize(
    ("accept", "array"),
    [
        ((), False),
        (("application/json",), True),
        (("Application/JSON; charset=utf-8",), True),
        (("text/html, application/json;q=0.9",), True),
        (("application/json", "text/html"), True),
        (("application/json, text/event-stream",), False),
        (("text/event-stream, application/json",), False),
        (("application/json", "text/event-stream"), False),
        (("application/json, */*",), False),
        (("*/*",), False),
        (("text/event-stream",), False),
        (("text/html",), False),
        (("application/*",), False),
        (("",), False),
    ],
)
def test_accept_chooses_the_array_only_where_it_asks_for_json_alone(
    accept: tuple[str, ...], array: bool
) -> None:
    talk = streamed(claude(), *(("accept", value) for value in accept))
    assert talk.said == (HELLO_ARRAY if array else HELLO_EVENTS)


def test_where_the_host_buffers_accept_changes_nothing() -> None:
    assert streamed(claude(), ("accept", "text/event-stream"), can_stream=False).said == HELLO_ARRAY


def test_accept_changes_nothing_where_nothing_is_streamed() -> None:
    for accept in ("text/event-stream", "application/json", "text/html"):
        talk = streamed([b'{"x":1}'], ("accept", accept), body=ask_claude(stream=False))
        assert talk.said == b'{"x":1}'


def test_a_second_generation_carries_its_index() -> None:
    frames = [
        chunk({"text": "A", "index": 0, "is_finished": False}),
        chunk({"text": "B", "index": 1, "is_finished": False}),
        chunk({"index": 0, "is_finished": True, "finish_reason": "COMPLETE"}),
        chunk({"index": 1, "is_finished": True, "finish_reason": "MAX_TOKENS"}),
    ]
    body = {"modelId": "cohere.command-text-v14", "prompt": "x", "num_generations": 2}
    talk = streamed(frames, body=json.dumps({**body, "stream": True}).encode())
    assert talk.said == (
        b'data: {"content": "A"}\n\n'
        b'data: {"content": "B", "index": 1}\n\n'
        b"data: [DONE]\n\n"
    )  # fmt: skip
    talk = streamed(frames, body=json.dumps(
        {**body, "stream": True, "stream_events": "full"}).encode())  # fmt: skip
    assert b'data: {"stop_reason": "COMPLETE"}\n\n' in talk.said
    assert b'data: {"stop_reason": "MAX_TOKENS", "index": 1}\n\n' in talk.said


def rich() -> list[bytes]:
    """A Claude stream with thinking and a tool call."""
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
        (
            {"type": "thinking", "thinking": "", "signature": ""},
            [
                {"type": "thinking_delta", "thinking": "Let me"},
                {"type": "signature_delta", "signature": "sig=="},
            ],
        ),
        ({"type": "redacted_thinking", "data": "blob=="}, []),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": "Hi"}]),
        (
            {"type": "tool_use", "id": "tool-1", "name": "look", "input": {}},
            [
                {"type": "input_json_delta", "partial_json": '{"q":'},
                {"type": "input_json_delta", "partial_json": '"x"}'},
            ],
        ),
    ]
    plain = claude([])
    frames = plain[:1]
    for index, (block, deltas) in enumerate(blocks):
        frames.append(
            chunk({"type": "content_block_start", "index": index, "content_block": block})
        )
        frames += [
            chunk({"type": "content_block_delta", "index": index, "delta": d}) for d in deltas
        ]
        frames.append(chunk({"type": "content_block_stop", "index": index}))
    return [*frames, *plain[-2:]]


def test_by_default_only_visible_text_is_told() -> None:
    expected = b'data: {"content": "Hi"}\n\ndata: [DONE]\n\n'
    assert streamed(rich()).said == expected
    assert streamed(rich(), body=ask_claude(stream_events="text")).said == expected


def test_full_events_tell_thinking_tools_the_stop_and_at_last_the_usage() -> None:
    talk = streamed(rich(), body=ask_claude(stream_events="full"))
    assert talk.said == (
        b'data: {"thinking": "Let me"}\n\n'
        b'data: {"thinking": "", "signature": "sig=="}\n\n'
        b'data: {"thinking": "", "redacted": "blob=="}\n\n'
        b'data: {"content": "Hi"}\n\n'
        b'data: {"tool_use": {"index": 0, "id": "tool-1", "name": "look", "input_json": ""}}\n\n'
        b'data: {"tool_use": {"index": 0, "input_json": "{\\"q\\":"}}\n\n'
        b'data: {"tool_use": {"index": 0, "input_json": "\\"x\\"}"}}\n\n'
        b'data: {"stop_reason": "end_turn"}\n\n'
        b'data: {"usage": {"input_tokens": 11, "output_tokens": 7, "token_count": 18}}\n\n'
        b"data: [DONE]\n\n"
    )


def test_full_events_in_an_array_are_the_same_objects() -> None:
    body = ask_claude(stream_events="full")
    array = json.loads(streamed(rich(), JSON, body=body).said)
    lines = [json.loads(data) for data in events(streamed(rich(), body=body).said)[:-1]]
    assert array == [*lines, {"done": True}]


def test_what_no_reader_knows_is_passed_on_and_never_dropped() -> None:
    frames = claude()
    frames.insert(2, chunk({"type": "of_a_later_day", "x": [1, "\u2028"]}))
    assert streamed(frames).said.startswith(
        b'data: {"event": {"type": "of_a_later_day", "x": [1, "\\u2028"]}}\n\n'
    )


# --- framing --------------------------------------------------------------------------------------


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[str], list[bytes]]:
    """Pieces of text, and the same upstream bytes cut anywhere."""
    pieces = draw(st.lists(st.text(max_size=12), max_size=5))
    whole = b"".join(_frames(pieces))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return pieces, [whole[a:b] for a, b in pairwise([0, *cuts, len(whole)]) if a < b]


def _frames(pieces: list[str]) -> list[bytes]:
    """As :func:`claude`, with text as UTF-8 rather than escaped."""
    frames = claude([])
    deltas = []
    for piece in pieces:
        event = {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": piece},
        }
        inner = json.dumps(event, ensure_ascii=False).encode()
        deltas.append(frame("chunk", {"bytes": base64.b64encode(inner).decode()}))
    return [*frames[:2], *deltas, *frames[2:]]


@given(answers(), st.booleans(), st.booleans())
def test_S23_the_same_bytes_in_any_pieces_are_the_same_bytes_out(
    answer: tuple[list[str], list[bytes]], array: bool, can_stream: bool
) -> None:
    pieces, cut = answer
    headers = (JSON,) if array else ()
    talk = streamed(cut, *headers, can_stream=can_stream)
    assert talk.said == streamed(_frames(pieces), *headers, can_stream=can_stream).said
    talk.said.decode("ascii")
    if array or not can_stream:
        said = [item.get("content", "") for item in json.loads(talk.said)]
        assert "".join(said) == "".join(pieces)
    else:
        assert text_of(talk.said) == "".join(pieces)


SEPARATORS = "\u2028\u2029\x85\v\f\x1c\x1d\x1e\r\n\x00\ufeff"


@pytest.mark.parametrize("separator", SEPARATORS, ids=[f"U+{ord(c):04X}" for c in SEPARATORS])
def test_S22_no_separator_in_the_text_is_one_on_the_wire(separator: str) -> None:
    text = f"a{separator}b{separator}{separator}c"
    talk = streamed(_frames([text]))
    # Python's splitlines knows every separator that any SSE parser might split at.
    assert [line for line in talk.said.decode().splitlines() if line] == [
        "data: " + json.dumps({"content": text}),
        "data: [DONE]",
    ]
    assert text_of(talk.said) == text
    assert json.loads(streamed(_frames([text]), JSON).said)[0] == {"content": text}


def test_S23_a_pair_of_surrogates_split_across_frames_is_whole_again() -> None:
    def half(escape: bytes) -> bytes:
        inner = (
            b'{"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"%b"}}' % escape
        )
        return frame("chunk", {"bytes": base64.b64encode(inner).decode()})

    frames = claude([])
    talk = streamed([*frames[:2], half(b"\\ud83d"), half(b"\\ude00"), *frames[2:]])
    assert talk.said == (
        b'data: {"content": "\\ud83d"}\n\ndata: {"content": "\\ude00"}\n\ndata: [DONE]\n\n'
    )
    joined = text_of(talk.said).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    assert joined == "\U0001f600"
    assert (talk.world.faults, len(talk.world.rows)) == ([], 1)


# --- errors: one object in three places -----------------------------------------------------------

THROTTLED = {
    "error": "Bedrock is throttling this model; wait and send it again.",
    "code": "upstream_throttled",
    "request_id": "r-1",
    "retryable": True,
    "retry_after": 1,
}
TORN = [*claude()[:3], exception("throttlingException")]
FIRST = [exception("throttlingException")]


def test_an_error_is_the_same_object_as_body_as_event_and_as_element() -> None:
    world = World()
    for _ in range(3):
        world.answers(FIRST)
    body = converse(world)
    assert (body.status, body.said) == (429, json.dumps(THROTTLED).encode() + b"\n")
    event = streamed(TORN)
    expected = b'data: {"content": "Hel"}\n\nevent: error\ndata: %b\n\n'
    assert (event.status, event.said) == (200, expected % json.dumps(THROTTLED).encode())
    element = streamed(TORN, JSON)
    expected = b'[{"content": "Hel"},\n%b]\n'
    assert (element.status, element.said) == (200, expected % json.dumps(THROTTLED).encode())


def test_a_refusal_is_json_of_known_length_that_says_when_to_come_back() -> None:
    world = World()
    for _ in range(3):
        world.answers(FIRST)
    talk = converse(world)
    assert talk.head is not None
    assert talk.head.headers == (
        ("content-type", "application/json"),
        ("content-length", str(len(talk.said))),
        ("x-request-id", "r-1"),
        ("retry-after", "1"),
    )


def test_a_buffered_answer_that_breaks_after_its_first_words_ends_in_the_error() -> None:
    talk = streamed(TORN, can_stream=False)
    assert (talk.status, json.loads(talk.said)) == (200, [{"content": "Hel"}, THROTTLED])


def test_an_error_without_a_wait_or_a_limit_does_not_name_them() -> None:
    error = error_object(ClientFault("No."), "r-1")
    assert list(error) == ["error", "code", "request_id", "retryable"]


def test_an_error_of_a_limit_names_it_and_when_to_come_back() -> None:
    fault = LimitReached("No more.", retry_after=7, limit="requests_per_day")
    assert error_object(fault, "r-1") == {
        "error": "No more.",
        "code": "rate_limited",
        "request_id": "r-1",
        "retryable": True,
        "limit": "requests_per_day",
        "retry_after": 7,
    }


def test_errors_too_are_ascii_on_the_wire() -> None:
    reply = SIMPLE.refusal(ClientFault("nicht m\xf6glich\u2028"), "r-1")
    assert reply.body.decode("ascii").count("\n") == 1


DOCUMENTED = {
    "invalid_request": 400, "unauthorized": 401, "customer_disabled": 403,
    "model_not_allowed": 403, "price_unknown": 403, "model_not_found": 404, "not_found": 404,
    "method_not_allowed": 405, "timeout": 408, "too_large": 413, "unsupported_media_type": 415,
    "rate_limited": 429, "over_budget": 429, "upstream_throttled": 429, "internal": 500,
    "upstream_error": 502, "upstream_config": 502, "upstream_torn": 502, "overloaded": 503,
    "store_unavailable": 503, "server_shutdown": 503, "upstream_timeout": 504,
    "origin_not_allowed": 403,
}  # fmt: skip


def test_every_code_has_its_documented_status() -> None:
    assert {str(code): ClientFault("x", code).status for code in Code} == DOCUMENTED


def test_the_model_that_was_asked_is_the_one_in_the_row() -> None:
    assert streamed(claude()).world.rows[0].model_id == MODEL
