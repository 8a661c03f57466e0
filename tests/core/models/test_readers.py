"""The traps of the wire, each with the smallest payload that springs it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bedrock_proxy.models import (
    ConverseReader,
    Family,
    Reader,
    converse_answer,
    family_of,
    header_usage,
    invocation_metrics,
)
from bedrock_proxy.models.families import _BY_PREFIX, BY_SHAPE
from bedrock_proxy.models.openai import InlineReasoning
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.usage import Usage

METRICS: Json = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3, "outputTokenCount": 4}}

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
NOVA = "amazon.nova-lite-v1:0"
TITAN = "amazon.titan-text-express-v1"
LLAMA = "meta.llama3-8b-instruct-v1:0"
MISTRAL = "mistral.mistral-large-2407-v1:0"
COMMAND = "cohere.command-text-v14"
COMMAND_R = "cohere.command-r-v1:0"
JAMBA = "ai21.jamba-1-5-mini-v1:0"
GPT_OSS = "openai.gpt-oss-20b-1:0"
WRITER = "writer.palmyra-x5-v1:0"
DEEPSEEK = "deepseek.r1-v1:0"


def read(model: str, *events: Json) -> list[Part]:
    """The parts of a whole stream."""
    reader = family_of(model).reader()
    return [part for event in events for part in reader.read(event)] + list(reader.finish())


def answer(model: str, body: Json) -> list[Part]:
    return list(family_of(model).answer(body))


def converse(*events: tuple[str, Json]) -> list[Part]:
    reader = ConverseReader()
    return [part for kind, payload in events for part in reader.read(kind, payload)]


def last_usage(parts: Sequence[Part]) -> Usage:
    return [part.usage for part in parts if isinstance(part, UsageReport)][-1]


def choice(said: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> Json:
    return {"choices": [{"index": index, "delta": said, "finish_reason": reason}], **more}


# --- Converse ---------------------------------------------------------------------------------


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


# --- Claude ------------------------------------------------------------------------------------


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


# --- Nova -----------------------------------------------------------------------------------


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


# --- Titan ------------------------------------------------------------------------------------


def test_titan_counts_are_null_until_the_last_chunk() -> None:
    parts = read(
        TITAN,
        {
            "outputText": "a",
            "index": 0,
            "totalOutputTextTokenCount": None,
            "completionReason": None,
            "inputTextTokenCount": 13,
        },
        {
            "outputText": "b",
            "index": 0,
            "totalOutputTextTokenCount": 100,
            "completionReason": "LENGTH",
            "inputTextTokenCount": None,
            **METRICS,
        },  # type: ignore[dict-item]
    )
    assert parts == [
        Text("a"),
        UsageReport(Usage(13)),
        Text("b"),
        Stop("LENGTH"),
        UsageReport(Usage(13, 100)),
    ]


def test_titan_counts_are_floats_under_guardrails_and_a_blocked_answer_ends_without_a_reason() -> (
    None
):
    parts = read(
        TITAN,
        {
            "outputText": "blocked",
            "index": 0.0,
            "totalOutputTextTokenCount": 3.0,
            "inputTextTokenCount": 6.0,
        },
    )
    assert parts == [Text("blocked"), Stop(None), UsageReport(Usage(6, 3))]
    assert all(
        type(count) is int
        for count in (last_usage(parts).input_tokens, last_usage(parts).output_tokens)
    )
    whole = answer(
        TITAN,
        {
            "inputTextTokenCount": 28.0,
            "results": [{"tokenCount": 197.0, "outputText": "a", "completionReason": "FINISH"}],
        },
    )
    assert whole == [Text("a"), Stop("FINISH"), UsageReport(Usage(28, 197))]


# --- Llama, Mistral, Jurassic ---------------------------------------------------------------------


def test_llama_states_its_input_once_and_its_output_cumulatively() -> None:
    parts = read(
        LLAMA,
        {
            "generation": "a",
            "prompt_token_count": 32,
            "generation_token_count": 1,
            "stop_reason": None,
        },
        {
            "generation": "b",
            "prompt_token_count": None,
            "generation_token_count": 2,
            "stop_reason": None,
        },
        {
            "generation": "",
            "prompt_token_count": None,
            "generation_token_count": 3,
            "stop_reason": "stop",
        },
    )
    assert [part for part in parts if not isinstance(part, UsageReport)] == [
        Text("a"),
        Text("b"),
        Stop("stop"),
    ]
    assert last_usage(parts) == Usage(32, 3)


def test_mistral_speaks_two_shapes() -> None:
    assert read(
        MISTRAL,
        {"outputs": [{"text": " a", "stop_reason": None}]},
        {"outputs": [{"text": "b", "stop_reason": "length"}], **METRICS},
    ) == [  # type: ignore[dict-item]
        Text(" a"),
        Text("b"),
        Stop("length"),
    ]
    call = {"id": "x", "function": {"name": "n", "arguments": '{"a":1}'}}
    body: Json = {
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [call, {**call, "id": "y"}],
                },
                "stop_reason": "tool_calls",
            }
        ]
    }
    assert answer(MISTRAL, body) == [
        ToolUse(0, '{"a":1}', id="x", name="n"),
        ToolUse(1, '{"a":1}', id="y", name="n"),
        Stop("tool_calls"),
    ]


def test_jurassic_puts_its_reason_in_an_object() -> None:
    body: Json = {
        "id": 1,
        "prompt": {"text": "q"},
        "completions": [
            {"data": {"text": "a"}, "finishReason": {"reason": "length", "length": 10}}
        ],
    }
    assert answer("ai21.j2-mid-v1", body) == [Text("a"), Stop("length")]


# --- Cohere -----------------------------------------------------------------------------------


def test_cohere_command_may_send_one_whole_chunk() -> None:
    whole: Json = {
        "id": "x",
        "generations": [
            {"text": "a", "finish_reason": "MAX_TOKENS"},
            {"text": "b", "finish_reason": "COMPLETE"},
        ],
        "prompt": "q",
        **METRICS,
    }  # type: ignore[dict-item]
    assert read(COMMAND, whole) == [
        Text("a"),
        Stop("MAX_TOKENS"),
        Text("b", 1),
        Stop("COMPLETE", 1),
    ]


def test_cohere_command_interleaves_generations() -> None:
    parts = read(
        COMMAND,
        {"index": 0, "is_finished": False, "text": "a"},
        {"index": 1, "is_finished": False, "text": "x"},
        {"index": 0, "is_finished": False, "text": "b"},
        {"index": 1, "is_finished": True, "finish_reason": "COMPLETE"},
        {"index": 0, "is_finished": True, "finish_reason": "MAX_TOKENS"},
        {
            "is_finished": True,
            "finish_reason": "COMPLETE",
            "response": {"generations": [{"text": "ab"}]},
            **METRICS,
        },  # type: ignore[dict-item]
    )
    assert parts == [
        Text("a"),
        Text("x", 1),
        Text("b"),
        Stop("COMPLETE", 1),
        Stop("MAX_TOKENS"),
        Stop("COMPLETE"),
    ]


def test_command_r_repeats_the_full_text_at_the_end() -> None:
    end: Json = {
        "is_finished": True,
        "event_type": "stream-end",
        "response": {
            "text": "ab",
            "meta": {
                "billed_units": {"input_tokens": 7, "output_tokens": 2},
                "tokens": {"input_tokens": 73},
            },
        },
        "finish_reason": "COMPLETE",
    }
    pieces: list[Json] = [
        {"is_finished": False, "event_type": "text-generation", "text": text} for text in "ab"
    ]
    assert read(COMMAND_R, *pieces, end) == [
        Text("a"),
        Text("b"),
        Stop("COMPLETE"),
        UsageReport(Usage(7, 2)),
    ]
    assert read(COMMAND_R, end) == [Text("ab"), Stop("COMPLETE"), UsageReport(Usage(7, 2))]


def test_command_r_repeats_its_tool_calls_too() -> None:
    calls: Json = [{"name": "n", "parameters": {"a": 1}}]
    parts = read(
        COMMAND_R,
        {"event_type": "tool-calls-generation", "is_finished": False, "tool_calls": calls},
        {
            "event_type": "stream-end",
            "is_finished": True,
            "finish_reason": "COMPLETE",
            "response": {"tool_calls": calls},
        },
    )
    assert parts == [ToolUse(0, '{"a":1}', id="", name="n"), Stop("COMPLETE")]
    chunks = read(
        COMMAND_R,
        {"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "name": "n"}},
        {"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "parameters": '{"a":'}},
        {"event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "parameters": "1}"}},
        {"event_type": "tool-calls-generation", "tool_calls": calls},
    )
    assert chunks == [ToolUse(0, id="", name="n"), ToolUse(0, '{"a":'), ToolUse(0, "1}")]


# --- the shape of OpenAI ------------------------------------------------------------------------


def test_jamba_ends_with_a_chunk_of_metrics_only() -> None:
    parts = read(
        JAMBA,
        choice(
            {"role": "assistant", "content": ""},
            usage={"prompt_tokens": 17, "completion_tokens": 0},
        ),
        choice({"content": " Hi"}, usage={"prompt_tokens": 17, "completion_tokens": 1}),
        {
            "choices": [
                {"index": 0, "delta": {"content": ""}, "finish_reason": "stop", "stop_reason": 518}
            ],
            "usage": {"prompt_tokens": 17, "completion_tokens": 2},
        },
        METRICS,
    )
    assert [part for part in parts if not isinstance(part, UsageReport)] == [
        Text(" Hi"),
        Stop("stop"),
    ]
    assert last_usage(parts) == Usage(17, 2)


def test_writer_may_end_with_a_string() -> None:
    assert read(WRITER, choice({"content": "a"}), choice({}, "stop"), "[DONE]") == [
        Text("a"),
        Stop("stop"),
    ]
    assert read("somebody.unknown-model", choice({"content": "a"}), "[DONE]") == [Text("a")]


def test_deepseek_completes_a_text() -> None:
    assert read(
        DEEPSEEK,
        {"choices": [{"text": "a", "stop_reason": None}]},
        {"choices": [{"text": "", "stop_reason": "length"}]},
    ) == [Text("a"), Stop("length")]


def test_reasoning_in_a_field_of_its_own() -> None:
    for field in ("reasoning_content", "reasoning"):
        assert read(
            "qwen.qwen3-32b-v1:0", choice({field: "hm", "content": None}), choice({"content": "a"})
        ) == [Thinking("hm"), Text("a")]


def test_tool_calls_in_pieces_and_in_parallel() -> None:
    def call(index: int, arguments: str, **named: Any) -> Json:
        function = {"arguments": arguments, **({"name": named["name"]} if named else {})}
        return choice(
            {
                "tool_calls": [
                    {"index": index, "function": function, **({"id": named["id"]} if named else {})}
                ]
            }
        )

    parts = read(
        GPT_OSS,
        call(0, "", id="i", name="n"),
        call(1, "{", id="j", name="m"),
        call(0, "{}"),
        call(1, "}"),
    )
    assert parts == [
        ToolUse(0, "", id="i", name="n"),
        ToolUse(1, "{", id="j", name="m"),
        ToolUse(0, "{}"),
        ToolUse(1, "}"),
    ]


def test_cached_prompt_tokens_are_taken_out_of_the_input() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert last_usage(read(GPT_OSS, {"choices": [], "usage": usage})) == Usage(6, 2, 4)


REASONED = "<reasoning>we <b> think</reasoning>Hello <reasoning>again</reasoning>!<reas"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 12, 100])
def test_gpt_oss_reasoning_tags_may_be_cut_anywhere(size: int) -> None:
    pieces = [REASONED[at : at + size] for at in range(0, len(REASONED), size)]
    parts = read(GPT_OSS, *(choice({"content": piece}) for piece in pieces))
    assert "".join(p.text for p in parts if isinstance(p, Text)) == "Hello !<reas"
    assert "".join(p.text for p in parts if isinstance(p, Thinking)) == "we <b> thinkagain"


@given(st.text(alphabet="<>/reasoning ab", max_size=60), st.lists(st.integers(1, 5), max_size=40))
def test_inline_reasoning_is_told_apart_alike_however_it_is_cut(
    text: str, sizes: list[int]
) -> None:
    def joined(pieces: list[str]) -> list[tuple[type, str]]:
        tags = InlineReasoning(0)
        runs: list[tuple[type, str]] = []
        for part in [p for piece in pieces for p in tags.feed(piece)] + tags.finish():
            assert isinstance(part, Text | Thinking)
            if runs and runs[-1][0] is type(part):
                runs[-1] = (type(part), runs[-1][1] + part.text)
            else:
                runs.append((type(part), part.text))
        return runs

    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    assert joined([text]) == joined([*pieces, text[at:]])


def test_what_is_held_back_for_a_tag_comes_before_the_stop() -> None:
    assert read(GPT_OSS, choice({"content": "a <"}, "stop")) == [
        Text("a "),
        Text("<"),
        Stop("stop"),
    ]


def test_other_models_keep_their_angle_brackets() -> None:
    assert read(JAMBA, choice({"content": "<reasoning>x"})) == [Text("<reasoning>x")]


def test_an_opaque_gpt_oss_is_known_by_its_chunks() -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
    assert read(
        arn, choice({"content": "<reasoning>x</reasoning>"}, model="openai.gpt-oss-20b-1:0")
    ) == [Thinking("x")]


def test_content_may_come_in_blocks() -> None:
    """Mistral's reasoning models send their content so."""
    picture: Json = {"type": "image_url", "image_url": {"url": "x"}}
    blocks: Json = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text"}]},
        {"type": "thinking", "thinking": "m"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": ""},
        picture,
    ]
    body: Json = {"choices": [{"message": {"content": blocks}, "finish_reason": "stop"}]}
    expected = [Thinking("h"), Thinking("m"), Text("a"), Other(picture), Stop("stop")]
    assert expected == answer(MISTRAL, body)


@pytest.mark.parametrize(
    ("model", "event", "strange"),
    [
        (MISTRAL, {"outputs": [{"text": "a"}, {"image": 1}]}, {"image": 1}),
        (TITAN, {"results": [{"outputText": "a"}, {"image": 1}]}, {"image": 1}),
        (COMMAND, {"generations": [{"text": "a"}, {"image": 1}]}, {"image": 1}),
        ("ai21.j2-mid-v1", {"completions": [{"data": {"text": "a"}}, 5]}, 5),
        (LLAMA, {"generation": {"image": 1}}, {"image": 1}),
        (JAMBA, {"choices": [{"delta": {"content": 5}}]}, 5),
        ("anthropic.claude-v2", {"completion": 5}, {"completion": 5}),
        (COMMAND_R, {"event_type": "citation-generation"}, {"event_type": "citation-generation"}),
        (CLAUDE, {"type": "message", "content": None}, {"type": "message", "content": None}),
    ],
)
def test_a_text_that_is_none_is_passed_on(model: str, event: Json, strange: Json) -> None:
    assert Other(strange) in read(model, event)


def test_a_citation_without_text_is_passed_on() -> None:
    body: Json = {
        "output": {"message": {"content": [{"citationsContent": {"content": [{"new": 1}]}}]}},
        "stopReason": "end_turn",
    }
    assert [Other({"new": 1}), Stop("end_turn")] == list(converse_answer(body))


def test_a_body_that_is_no_converse_answer_is_passed_on() -> None:
    assert [Other({"message": "no"})] == list(converse_answer({"message": "no"}))


def test_a_choice_that_says_something_new_is_passed_on() -> None:
    event = choice({"content": "a", "audio": {"id": "x"}})
    assert read(JAMBA, event) == [Text("a"), Other(event)]


# --- answers that are no text ---------------------------------------------------------------------


def test_embeddings_report_their_input() -> None:
    body: Json = {"embedding": [0.1], "inputTextTokenCount": 12}
    assert answer("amazon.titan-embed-text-v2:0", body) == [Other(body), UsageReport(Usage(12))]
    cohere: Json = {"embeddings": [[0.1]], "meta": {"billed_units": {"input_tokens": 3}}}
    assert answer("cohere.embed-v4:0", cohere) == [Other(cohere), UsageReport(Usage(3))]


def test_ranks_report_nothing() -> None:
    body: Json = {"results": [{"index": 0, "relevance_score": 0.9}]}
    assert answer("cohere.rerank-v3-5:0", body) == [Other(body)]
    assert answer("amazon.rerank-v1:0", body) == [Other(body)]


# --- counts beside the body -------------------------------------------------------------------------


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


# --- every reader -------------------------------------------------------------------------------

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
