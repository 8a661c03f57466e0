"""The traps of the text completions, each with the smallest payload that springs it."""

from tests.core.models.reading import (
    COMMAND,
    COMMAND_R,
    LLAMA,
    METRICS,
    MISTRAL,
    TITAN,
    answer,
    last_usage,
    read,
)

from bedrock_proxy.parts import Json, Stop, Text, ToolUse, UsageReport
from bedrock_proxy.usage import Usage

# --- Titan -----------------------------------------------------------------------------------


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


# --- Llama, Mistral, Jurassic ----------------------------------------------------------------


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


# --- Cohere ----------------------------------------------------------------------------------


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
