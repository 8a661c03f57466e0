"""Every recorded answer is read as an independent decoder read it."""

import base64
import json
from typing import Any

import pytest
from tests.fixtures import FIXTURES, Recording, recordings, require_fixtures

from bedrock_proxy.eventstream import Decoder
from bedrock_proxy.models import (
    ConverseReader,
    converse_answer,
    family_of,
    header_usage,
    invocation_metrics,
)
from bedrock_proxy.models.names import parse_model_id
from bedrock_proxy.parts import Part, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.usage import Usage


def of(*operations: str) -> Any:
    """The recordings with an answer; one that skips (or fails) where there are none."""
    found = [one for name in operations for one in recordings(operation=name, status=200)]
    return pytest.mark.parametrize(
        "recording", found or [None], ids=lambda one: getattr(one, "id", "absent")
    )


@pytest.fixture(autouse=True)
def _recordings_are_here() -> None:
    require_fixtures()


def read_stream(recording: Recording, *, cut: int = 0) -> tuple[list[Part], Usage | None]:
    """The parts and the metrics of a recorded stream, fed whole or in pieces of *cut* bytes."""
    decoder = Decoder()
    data = recording.response
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]
    frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    decoder.close()
    if recording.operation == "ConverseStream":
        converse = ConverseReader()
        return [
            part
            for frame in frames
            for part in converse.read(frame.text(":event-type") or "", json.loads(frame.payload))
        ], None
    reader = family_of(parse_model_id(recording.model_id).canonical).reader()
    parts: list[Part] = []
    metrics = None
    for frame in frames:
        if frame.text(":message-type") != "event":
            continue
        event = json.loads(base64.b64decode(json.loads(frame.payload)["bytes"]))
        parts += reader.read(event)
        metrics = invocation_metrics(event) or metrics
    parts += reader.finish()
    return parts, metrics


def counted(usage: Usage | None) -> dict[str, int]:
    """The counts in the spelling of the recordings."""
    if usage is None:
        return {}
    short, long = usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_write_input_tokens": None
        if short is None and long is None
        else (short or 0) + (long or 0),
    }
    return {name: count for name, count in counts.items() if count is not None}


def relevant(usage: dict[str, Any] | None) -> dict[str, int]:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
    return {name: usage[name] for name in names if name in usage} if usage else {}


def check(recording: Recording, parts: list[Part], other_source: dict[str, int]) -> None:
    expected = recording.expected
    text = "".join(part.text for part in parts if isinstance(part, Text))
    assert expected.get("text_without_inline_reasoning", expected["text"]) == text

    thinking = "".join(part.text for part in parts if isinstance(part, Thinking))
    assert expected.get("inline_reasoning_text", "") + expected["reasoning_text"] == thinking
    signatures = [
        p.signature for p in parts if isinstance(p, Thinking) and p.signature and not p.redacted
    ]
    assert expected.get("reasoning_signature_deltas", 0) in {len(signatures), 0}
    redacted = [part for part in parts if isinstance(part, Thinking) and part.redacted]
    assert expected.get("redacted_reasoning_blocks", 0) == len(redacted)

    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if isinstance(part, ToolUse):
            if part.index not in calls:
                calls[part.index] = {"id": part.id, "name": part.name, "json": ""}
            else:
                assert part.id is None
                assert part.name is None
            calls[part.index]["json"] += part.input_json
    assert list(range(len(calls))) == list(calls)
    read = [(call["id"], call["name"], json.loads(call["json"] or "{}")) for call in calls.values()]
    assert [(call["id"], call["name"], call["input"]) for call in expected["tool_calls"]] == read

    stops = [part.reason for part in parts if isinstance(part, Stop)]
    if "exception" in expected:
        assert stops == []
    else:
        assert stops[-1] == expected["stop_reason"]

    reports = [part.usage for part in parts if isinstance(part, UsageReport)]
    reported = counted(reports[-1] if reports else None)
    expected_usage = relevant(expected["usage"])
    if reported and not expected_usage:
        # Cohere's billed units are no `usage` to the independent decoder; Bedrock's own
        # metrics repeat them.
        assert recording.family.startswith("cohere-command")
        assert other_source == reported
    else:
        assert expected_usage == reported


@of("InvokeModelWithResponseStream", "ConverseStream")
def test_a_recorded_stream_is_read_as_recorded(recording: Recording) -> None:
    parts, metrics = read_stream(recording)
    expected = relevant(recording.expected.get("invocation_metrics"))
    assert expected == counted(metrics)
    check(recording, parts, expected)


@of("InvokeModelWithResponseStream", "ConverseStream")
def test_S23_a_recorded_stream_cut_anywhere_gives_the_same_parts(recording: Recording) -> None:
    assert read_stream(recording, cut=37) == read_stream(recording)


@of("InvokeModel", "Converse")
def test_a_recorded_answer_is_read_as_recorded(recording: Recording) -> None:
    usage = header_usage(recording.response_headers)
    expected = relevant(recording.expected.get("header_usage"))
    assert expected == counted(usage)
    if recording.operation == "Converse":
        parts = list(converse_answer(recording.json()))
    else:
        parts = list(
            family_of(parse_model_id(recording.model_id).canonical).answer(recording.json())
        )
    if "text" in recording.expected:
        check(recording, parts, expected)
    else:
        stated = recording.expected.get("input_text_token_count")
        reports = [part.usage.input_tokens for part in parts if isinstance(part, UsageReport)]
        body = recording.json()
        assert reports == [count for count in [stated or body.get("inputTextTokenCount")] if count]


@of("InvokeModelWithResponseStream", "InvokeModel")
def test_a_recorded_answer_is_read_alike_by_its_shape_alone(recording: Recording) -> None:
    """The model's name is not needed, but for gpt-oss's inline reasoning it must be in the body."""
    opaque = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
    family, by_shape = family_of(parse_model_id(recording.model_id).canonical), family_of(opaque)
    if recording.operation == "InvokeModel":
        assert family.answer(recording.json()) == by_shape.answer(recording.json())
        return
    one, other = family.reader(), by_shape.reader()
    for frame in Decoder().feed(recording.response):
        if frame.text(":message-type") == "event":
            event = json.loads(base64.b64decode(json.loads(frame.payload)["bytes"]))
            assert list(one.read(event)) == list(other.read(event))


def test_most_recordings_are_covered() -> None:
    """A loader that finds nothing must not pass for one that finds everything."""
    assert FIXTURES is not None
    assert len(recordings()) >= 141
    assert len(recordings(operation="InvokeModelWithResponseStream", status=200)) >= 20
