"""The traps of Converse, Claude and Nova, each with the smallest payload that springs it."""

from tests.core.models.reading import CLAUDE, METRICS, NOVA, answer, converse, last_usage, read

from bedrock_proxy.models import (
    converse_answer,
)
from bedrock_proxy.parts import Json, Other, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.usage import Usage

# --- Converse --------------------------------------------------------------------------------


def test_converse_text_comes_without_a_block_start() -> None:
    parts = converse(
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "a"}, "p": "abc"}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}}),
    )
    assert parts == [Text("a"), Stop("end_turn"), UsageReport(Usage(1, 2))]


def test_converse_reasoning_signature_and_redaction() -> None:
    def delta(content: Json) -> tuple[str, Json]:
        return ("contentBlockDelta", {"delta": {"reasoningContent": content}})

    assert converse(
        delta({"text": "hm"}), delta({"signature": "s"}), delta({"redactedContent": "cg=="})
    ) == [Thinking("hm"), Thinking(signature="s"), Thinking(signature="cg==", redacted=True)]


def test_converse_tool_calls_are_numbered_by_appearance_not_by_block() -> None:
    assert converse(
        (
            "contentBlockStart",
            {"contentBlockIndex": 3, "start": {"toolUse": {"toolUseId": "i", "name": "n"}}},
        ),
        ("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"toolUse": {"input": "{"}}}),
        (
            "contentBlockStart",
            {"contentBlockIndex": 7, "start": {"toolUse": {"toolUseId": "j", "name": "m"}}},
        ),
        ("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"toolUse": {"input": "}"}}}),
    ) == [
        ToolUse(0, id="i", name="n"),
        ToolUse(0, "{"),
        ToolUse(1, id="j", name="m"),
        ToolUse(0, "}"),
    ]


def test_converse_cache_writes_are_told_apart_by_lifetime() -> None:
    usage: Json = {
        "inputTokens": 1,
        "outputTokens": 2,
        "cacheReadInputTokens": 3,
        "cacheWriteInputTokens": 30,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 10}, {"ttl": "5m", "inputTokens": 20}],
    }
    assert last_usage(converse(("metadata", {"usage": usage}))) == Usage(1, 2, 3, 20, 10)
    only_1h = {**usage, "cacheDetails": [{"ttl": "1h", "inputTokens": 30}]}  # type: ignore[dict-item]
    assert last_usage(converse(("metadata", {"usage": only_1h}))) == Usage(1, 2, 3, 0, 30)
    unsaid = {**usage, "cacheDetails": None}  # type: ignore[dict-item]
    assert last_usage(converse(("metadata", {"usage": unsaid}))) == Usage(1, 2, 3, 30, None)


def test_an_unknown_converse_event_or_block_is_passed_on_whole() -> None:
    assert converse(("somethingNew", {"a": 1})) == [Other({"somethingNew": {"a": 1}})]
    citation: Json = {"contentBlockIndex": 0, "delta": {"citation": {"title": "t"}}}
    assert converse(("contentBlockDelta", citation)) == [Other({"contentBlockDelta": citation})]
    start: Json = {"contentBlockIndex": 0, "start": {"toolResult": {"toolUseId": "i"}}}
    assert converse(("contentBlockStart", start)) == [Other({"contentBlockStart": start})]


def test_a_whole_converse_answer() -> None:
    body: Json = {
        "output": {
            "message": {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
                    {"text": "a"},
                    {
                        "citationsContent": {
                            "content": [{"text": "b"}],
                            "citations": [{"title": "t"}],
                        }
                    },
                    {"toolUse": {"toolUseId": "i", "name": "n", "input": {}}},
                    {"toolUse": {"toolUseId": "j", "name": "m", "input": {"ä": 1}}},
                    {"toolResult": {"toolUseId": "i"}},
                ],
            }
        },
        "stopReason": "tool_use",
        "usage": {"inputTokens": 1, "outputTokens": 0},
    }
    assert list(converse_answer(body)) == [
        Thinking("hm", "s"),
        Text("a"),
        Text("b"),
        Other({"citationsContent": {"citations": [{"title": "t"}]}}),
        ToolUse(0, id="i", name="n"),
        ToolUse(1, '{"ä":1}', id="j", name="m"),
        Other({"toolResult": {"toolUseId": "i"}}),
        Stop("tool_use"),
        UsageReport(Usage(1, 0)),
    ]


# --- Claude ----------------------------------------------------------------------------------


def test_claude_counts_come_in_two_events_and_the_later_wins() -> None:
    parts = read(
        CLAUDE,
        {"type": "message_start", "message": {"usage": {"input_tokens": 22, "output_tokens": 1}}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 12},
        },
        {"type": "message_stop", **METRICS},  # type: ignore[dict-item]
    )
    assert parts == [
        UsageReport(Usage(22, 1)),
        Stop("end_turn"),
        UsageReport(Usage(22, 12)),
    ]


def test_S16_claude_zero_counts_are_counts() -> None:
    usage = {"input_tokens": 5, "output_tokens": 9, "cache_read_input_tokens": 7}
    zero = {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0}
    parts = read(
        CLAUDE,
        {"type": "message_start", "message": {"usage": usage}},
        {"type": "message_delta", "delta": {}, "usage": zero},
    )
    assert last_usage(parts) == Usage(0, 0, 0)


def test_S17_claude_counts_repeated_are_not_summed() -> None:
    event: Json = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 12}}
    assert last_usage(read(CLAUDE, event, event)) == Usage(output_tokens=12)


def test_claude_cache_writes_keep_their_lifetimes_when_only_the_total_is_repeated() -> None:
    start: Json = {
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }
    parts = read(
        CLAUDE,
        {"type": "message_start", "message": {"usage": start}},
        {"type": "message_delta", "delta": {}, "usage": {"cache_creation_input_tokens": 30}},
    )
    assert last_usage(parts) == Usage(cache_write_5m_tokens=10, cache_write_1h_tokens=20)
    without: Json = {
        "type": "message_start",
        "message": {"usage": {"cache_creation_input_tokens": 30}},
    }
    assert last_usage(read(CLAUDE, without)) == Usage(cache_write_5m_tokens=30)


def test_claude_blocks_of_every_kind() -> None:
    def start(index: int, block: Json) -> Json:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, said: Json) -> Json:
        return {"type": "content_block_delta", "index": index, "delta": said}

    parts = read(
        CLAUDE,
        {"type": "ping"},
        start(0, {"type": "thinking", "thinking": "", "signature": ""}),
        delta(0, {"type": "thinking_delta", "thinking": "hm"}),
        delta(0, {"type": "signature_delta", "signature": "s"}),
        {"type": "content_block_stop", "index": 0},
        start(1, {"type": "redacted_thinking", "data": "xx"}),
        start(2, {"type": "text", "text": ""}),
        delta(2, {"type": "text_delta", "text": "a"}),
        start(3, {"type": "tool_use", "id": "i", "name": "n", "input": {}}),
        delta(3, {"type": "input_json_delta", "partial_json": ""}),
        delta(3, {"type": "input_json_delta", "partial_json": "{}"}),
        start(4, {"type": "server_tool_use", "id": "j", "name": "m", "input": {}}),
        {"type": "message_stop"},
    )
    assert parts == [
        Thinking("hm"),
        Thinking(signature="s"),
        Thinking(signature="xx", redacted=True),
        Text("a"),
        ToolUse(0, id="i", name="n"),
        ToolUse(0, "{}"),
        ToolUse(1, id="j", name="m"),
        Stop(None),
    ]


def test_claude_events_of_a_later_day_are_passed_on() -> None:
    for event in (
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta"}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "web_search_tool_result"},
        },
        {"type": "something_new"},
        {"type": "error", "error": {"type": "overloaded_error"}},
    ):
        assert read(CLAUDE, event) == [Other(event)]  # type: ignore[arg-type,list-item]


def test_claude_text_completions() -> None:
    parts = read(
        "anthropic.claude-v2:1",
        {"type": "completion", "completion": " a", "stop_reason": None, "stop": None},
        {"completion": "", "stop_reason": "stop_sequence", "stop": "\n\nHuman:", **METRICS},  # type: ignore[dict-item]
    )
    assert parts == [Text(" a"), Stop("stop_sequence")]


def test_a_whole_claude_message() -> None:
    body: Json = {
        "type": "message",
        "content": [
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "i", "name": "n", "input": {"x": 1}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }
    assert answer(CLAUDE, body) == [
        Text("a"),
        ToolUse(0, '{"x":1}', id="i", name="n"),
        Stop("tool_use"),
        UsageReport(Usage(1, 2)),
    ]


# --- Nova ------------------------------------------------------------------------------------


def test_nova_gives_every_delta_a_new_block_index() -> None:
    parts = read(
        NOVA,
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "a"}, "contentBlockIndex": 0}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockDelta": {"delta": {"text": "b"}, "contentBlockIndex": 1}},
        {
            "contentBlockStart": {
                "start": {"toolUse": {"toolUseId": "i", "name": "n"}},
                "contentBlockIndex": 2,
            }
        },
        {"contentBlockDelta": {"delta": {"toolUse": {"input": "{}"}}, "contentBlockIndex": 3}},
        {"messageStop": {"stopReason": "tool_use"}},
        {
            "metadata": {
                "usage": {
                    "inputTokens": 5,
                    "outputTokens": 6,
                    "cacheReadInputTokenCount": 0,
                    "cacheWriteInputTokenCount": 2,
                }
            },
            **METRICS,  # type: ignore[dict-item]
        },
    )
    assert parts == [
        Text("a"),
        Text("b"),
        ToolUse(0, id="i", name="n"),
        ToolUse(0, "{}"),
        Stop("tool_use"),
        UsageReport(Usage(5, 6, 0, 2)),
    ]


def test_nova_under_a_guardrail_states_its_input_only() -> None:
    body: Json = {
        "output": {"message": {"content": [{"text": "a"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 30},
    }
    assert last_usage(answer(NOVA, body)) == Usage(input_tokens=30)
