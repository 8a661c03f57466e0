"""What holds for every reader, and the counts beside the body."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.core.models.reading import LLAMA, METRICS, answer, read

from bedrock_proxy.models import (
    ConverseReader,
    Family,
    Reader,
    converse_answer,
    header_usage,
    invocation_metrics,
)
from bedrock_proxy.models.families import _BY_PREFIX, BY_SHAPE
from bedrock_proxy.parts import Json, Other, Part, UsageReport
from bedrock_proxy.usage import Usage

# --- answers that are no text ----------------------------------------------------------------


def test_embeddings_report_their_input() -> None:
    body: Json = {"embedding": [0.1], "inputTextTokenCount": 12}
    assert answer("amazon.titan-embed-text-v2:0", body) == [Other(body), UsageReport(Usage(12))]
    cohere: Json = {"embeddings": [[0.1]], "meta": {"billed_units": {"input_tokens": 3}}}
    assert answer("cohere.embed-v4:0", cohere) == [Other(cohere), UsageReport(Usage(3))]


def test_ranks_report_nothing() -> None:
    body: Json = {"results": [{"index": 0, "relevance_score": 0.9}]}
    assert answer("cohere.rerank-v3-5:0", body) == [Other(body)]
    assert answer("amazon.rerank-v1:0", body) == [Other(body)]


# --- counts beside the body ------------------------------------------------------------------


def test_invocation_metrics() -> None:
    metrics = {
        "inputTokenCount": 3,
        "outputTokenCount": 0,
        "cacheReadInputTokenCount": 5,
        "cacheWriteInputTokenCount": 6,
    }
    assert invocation_metrics({"x": 1, "amazon-bedrock-invocationMetrics": metrics}) == Usage(
        3, 0, 5, 6
    )
    assert invocation_metrics({"x": 1}) is None
    assert invocation_metrics({"amazon-bedrock-invocationMetrics": None}) is None
    assert invocation_metrics("x") is None


def test_header_usage() -> None:
    headers = (
        ("x-amzn-bedrock-input-token-count", "4"),
        ("x-amzn-bedrock-output-token-count", "0"),
        ("x-amzn-bedrock-cache-read-input-token-count", "5"),
        ("x-amzn-bedrock-cache-write-input-token-count", "6"),
        ("x-amzn-bedrock-invocation-latency", "100"),
    )
    assert header_usage(headers) == Usage(4, 0, 5, 6)
    assert header_usage((("x-amzn-bedrock-invocation-latency", "100"),)) is None
    assert header_usage((("x-amzn-bedrock-input-token-count", "²"),)) is None
    assert header_usage((("x-amzn-bedrock-input-token-count", "-1"),)) is None


@pytest.mark.parametrize("count", [True, -1, "5", [], {}, float("nan"), float("inf"), 10**30, None])
def test_what_is_no_count_is_not_said(count: Any) -> None:
    assert not [
        p
        for p in read(LLAMA, {"generation": "", "prompt_token_count": count})
        if isinstance(p, UsageReport)
    ]


# --- every reader ----------------------------------------------------------------------------

FAMILIES: dict[str, Family] = {family.name: family for family in (*_BY_PREFIX.values(), BY_SHAPE)}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_reader_takes_the_metrics_for_an_event(family: Family) -> None:
    if family.reserves_output:
        assert list(family.reader().read(METRICS)) == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("event", [{"never": "seen"}, {}, [], "x", 1, None, True], ids=str)
def test_what_no_reader_knows_is_passed_on_and_never_dropped(family: Family, event: Json) -> None:
    assert list(family.reader().read(event)) == [Other(event)]


KEYS = [
    "type", "index", "delta", "message", "content", "content_block", "usage", "choices", "text",
    "completion", "stop_reason", "finish_reason", "finishReason", "reason", "outputs", "generation",
    "generations", "event_type", "is_finished", "response", "meta", "billed_units", "input_tokens",
    "outputText", "results", "completions", "data", "tool_calls", "tool_call_delta", "function",
    "name", "id", "arguments", "parameters", "output", "contentBlockDelta", "contentBlockStart",
    "start", "toolUse", "input", "reasoningContent", "reasoningText", "messageStop", "metadata",
    "citationsContent", "cacheDetails", "ttl", "cache_creation", "prompt_tokens_details",
    "cached_tokens", "amazon-bedrock-invocationMetrics", "inputTokenCount", "thinking", "model",
    "inferenceConfig", "maxTokens", "source", "image", "images",
]  # fmt: skip
WORDS = [
    "message_start", "content_block_start", "content_block_delta", "message_delta", "message",
    "text_delta", "input_json_delta", "thinking_delta", "signature_delta", "tool_use", "thinking",
    "redacted_thinking", "text", "stream-end", "text-generation", "tool-calls-generation",
    "tool-calls-chunk", "[DONE]", "<reasoning>", "openai.gpt-oss-20b", "image", "\ud800",
]  # fmt: skip
JSON: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
READERS: dict[str, Callable[[], Reader]] = {
    family.reader.__name__: family.reader for family in FAMILIES.values()
}


@settings(max_examples=150)
@given(st.lists(JSON, max_size=4))
@example(
    [{"choices": [{"message": {"tool_calls": [{"function": {"arguments": {"a": float("nan")}}}]}}]}]
)
@example([{"type": "content_block_start", "index": 10**40, "content_block": {"type": "tool_use"}}])
def test_no_json_makes_any_reader_raise(events: list[Json]) -> None:
    for make in READERS.values():
        reader = make()
        for event in events:
            parts = [*reader.read(event), *reader.finish()]
            assert all(isinstance(part, Part) for part in parts)
    for family in FAMILIES.values():
        for event in events:
            family.answer(event)
    converse_reader = ConverseReader()
    for event in events:
        converse_answer(event)
        invocation_metrics(event)
        for kind in ("contentBlockDelta", "contentBlockStart", "messageStop", "metadata", "new"):
            converse_reader.read(kind, event)
