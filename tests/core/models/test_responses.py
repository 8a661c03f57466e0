"""The OpenAI-compatible endpoint's answers, read by shape: Chat Completions and Responses."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import Recording, recordings, require_fixtures

from bedrock_proxy.models import family_of
from bedrock_proxy.models.responses import ResponsesReader
from bedrock_proxy.parts import Json, Part, Stop, Text, Thinking, ToolUse, UsageReport

SPOKEN = [r for r in recordings(family="mantle-openai") if r.operation != "openai:/v1/models"]
KINDS = [
    "response.created",
    "response.output_text.delta",
    "response.completed",
    "response.output_item.added",
    "response.output_item.done",
    "response.function_call_arguments.delta",
    "response.x",
]


def events_of(recording: Recording) -> list[Json]:
    lines = recording.response.decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.strip()]


def read(recording: Recording) -> Sequence[Part]:
    family = family_of("unknown.by-name")
    if dict(recording.response_headers).get("content-type", "").startswith("text/event-stream"):
        reader = family.reader()
        parts = [part for event in events_of(recording) for part in reader.read(event)]
        return [*parts, *reader.finish()]
    return family.answer(recording.json())


def test_three_recordings_are_here() -> None:
    require_fixtures()
    assert 3 == len(SPOKEN)


@pytest.mark.parametrize("recording", SPOKEN, ids=lambda r: r.id)
def test_a_recording_of_the_openai_endpoint_is_read_whole(recording: Recording) -> None:
    expected: dict[str, Any] = recording.expected
    parts = read(recording)
    assert expected["text"] == "".join(p.text for p in parts if isinstance(p, Text))
    if expected.get("reasoning_text"):
        assert expected["reasoning_text"] == "".join(
            p.text for p in parts if isinstance(p, Thinking)
        )
    usage = [p.usage for p in parts if isinstance(p, UsageReport)][-1]
    counts = expected["usage"]
    assert counts.get("input_tokens", counts.get("prompt_tokens")) == usage.input_tokens
    assert counts.get("output_tokens", counts.get("completion_tokens")) == usage.output_tokens
    assert any(isinstance(p, Stop) for p in parts)
    for call in expected.get("function_calls", ()):
        tool = next(p for p in parts if isinstance(p, ToolUse))
        assert (call["name"], call["call_id"], call["arguments"]) == (
            tool.name,
            tool.id,
            tool.input_json,
        )


def test_a_streamed_call_has_its_input_once() -> None:
    reader = ResponsesReader()
    item: dict[str, Json] = {
        "type": "function_call",
        "id": "i",
        "call_id": "c",
        "name": "f",
        "arguments": "",
    }
    parts = [
        *reader.read({"type": "response.output_item.added", "item": item}),
        *reader.read(
            {"type": "response.function_call_arguments.delta", "item_id": "i", "delta": '{"a":'}
        ),
        *reader.read(
            {"type": "response.function_call_arguments.delta", "item_id": "i", "delta": "1}"}
        ),
        *reader.read(
            {"type": "response.output_item.done", "item": {**item, "arguments": '{"a":1}'}}
        ),
    ]
    assert [ToolUse(0, "", id="c", name="f"), ToolUse(0, '{"a":'), ToolUse(0, "1}")] == parts
    whole = ResponsesReader()
    whole.read({"type": "response.output_item.added", "item": item})
    assert [ToolUse(0, '{"a":1}')] == list(
        whole.read({"type": "response.output_item.done", "item": {**item, "arguments": '{"a":1}'}})
    )


def test_a_cut_answer_says_why_it_stopped() -> None:
    response: dict[str, Json] = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    parts = ResponsesReader().read({"type": "response.incomplete", "response": response})
    assert Stop("max_output_tokens") == parts[-1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["item", "id", "delta", "response", "type", "usage", "output", "content", "object"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(KINDS),
    st.dictionaries(
        st.sampled_from(["item", "item_id", "delta", "response", "object"]), JSON, max_size=4
    ),
)
def test_no_event_of_this_shape_raises(kind: str, members: dict[str, Json]) -> None:
    family_of("unknown.model").reader().read({"type": kind, **members})
    ResponsesReader().read({"object": "response", "output": list(members.values())})
