"""The traps of the shape of OpenAI, each with the smallest payload that springs it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.models.reading import (
    CLAUDE,
    COMMAND,
    COMMAND_R,
    DEEPSEEK,
    GPT_OSS,
    JAMBA,
    LLAMA,
    METRICS,
    MISTRAL,
    TITAN,
    WRITER,
    answer,
    choice,
    last_usage,
    read,
)

from bedrock_proxy.models import (
    converse_answer,
)
from bedrock_proxy.models.openai import InlineReasoning
from bedrock_proxy.parts import Json, Other, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.usage import Usage


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
