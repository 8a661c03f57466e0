"""
Claude: the Messages shapes, and the older text completions.

Source: "Anthropic Claude Messages API" and "Anthropic Claude Text Completions API" in the
Amazon Bedrock user guide.
"""

import json
from typing import Final

from bedrock_proxy_adapters.simulator.answers import (
    Answer,
    Prompt,
    Tokens,
    guardrail_members,
    invocation_metrics,
)
from bedrock_proxy_adapters.simulator.families.family import (
    Family,
    earlier_reports,
    last_members,
    messages_prompt,
)
from bedrock_proxy_adapters.simulator.values import Body, InvalidBody, Json, as_count, as_text

SIGNATURE: Final = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="
_REASONS: Final = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use"}
_COMPLETION_REASONS: Final = {
    "end": "stop_sequence",
    "length": "max_tokens",
    "tool": "stop_sequence",
}
_FORBIDDEN: Final = ("model", "modelId", "stream")


def _prompt(body: Body) -> Prompt:
    for name in _FORBIDDEN:
        if name in body:
            raise InvalidBody(f"{name}: Extra inputs are not permitted")
    if "prompt" in body:
        text = as_text(body["prompt"])
        return Prompt(text, text, as_count(body.get("max_tokens_to_sample")))
    for name in ("messages", "max_tokens", "anthropic_version"):
        if name not in body:
            raise InvalidBody(f"{name}: Field required")
    return messages_prompt(body, as_count(body["max_tokens"]))


def _usage(tokens: Tokens, output: int) -> dict[str, Json]:
    return {
        "input_tokens": tokens.input,
        "cache_creation_input_tokens": tokens.written,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": tokens.cache_write,
            "ephemeral_1h_input_tokens": tokens.cache_write_1h,
        },
        "output_tokens": output,
    }


def _model(answer: Answer) -> str:
    return answer.model.partition("anthropic.")[2].partition("-v")[0] or answer.model


def _head(answer: Answer) -> dict[str, Json]:
    return {
        "model": _model(answer),
        "id": "msg_bdrk_simulated",
        "type": "message",
        "role": "assistant",
    }


def _whole(answer: Answer) -> Body:
    if "prompt" in answer.body:
        return {"type": "completion", "completion": answer.text, **_completion_stop(answer)}
    content: list[Json] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thoughts, "signature": SIGNATURE})
    if answer.pieces:
        content.append({"type": "text", "text": answer.text})
    content += [
        {
            "type": "tool_use",
            "id": tool.id,
            "name": tool.name,
            "input": json.loads(tool.input_json),
        }
        for tool in answer.tools
    ]
    said: dict[str, Json] = {
        **_head(answer),
        "content": content,
        "stop_reason": answer.reason(_REASONS),
        "stop_sequence": None,
    }
    if answer.usage is not None:
        said["usage"] = _usage(answer.usage, answer.usage.output)
    return {**said, **guardrail_members(answer)}


def _completion_stop(answer: Answer) -> dict[str, Json]:
    stop = "\n\nHuman:" if answer.ending != "length" else None
    return {"stop_reason": answer.reason(_COMPLETION_REASONS), "stop": stop}


def _delta(index: int, delta: Body) -> Body:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def _block(index: int, start: Body, deltas: list[Body]) -> list[Body]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *[_delta(index, delta) for delta in deltas],
        {"type": "content_block_stop", "index": index},
    ]


def _stream(answer: Answer) -> list[Body]:
    if "prompt" in answer.body:
        return _completion_stream(answer)
    start: dict[str, Json] = {
        **_head(answer),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if answer.usage is not None:
        start["usage"] = _usage(answer.usage, min(1, answer.usage.output))
    chunks: list[Body] = [{"type": "message_start", "message": start}]
    index = 0
    if answer.thinking:
        deltas: list[Body] = [
            {"type": "thinking_delta", "thinking": piece} for piece in answer.thinking
        ]
        deltas.append({"type": "signature_delta", "signature": SIGNATURE})
        chunks += _block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    if answer.pieces:
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
        chunks += _block(index, {"type": "text", "text": ""}, deltas)
        index += 1
    for tool in answer.tools:
        half = len(tool.input_json) // 2
        fragments = ("", tool.input_json[:half], tool.input_json[half:])
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in fragments]
        opening: dict[str, Json] = {
            "type": "tool_use",
            "id": tool.id,
            "name": tool.name,
            "input": {},
        }
        chunks += _block(index, opening, deltas)
        index += 1
    last = {"stop_reason": answer.reason(_REASONS), "stop_sequence": None}
    for tokens in answer.reports[:-1]:
        undecided = {"stop_reason": None, "stop_sequence": None}
        usage: Body = {"output_tokens": tokens.output}
        chunks.append({"type": "message_delta", "delta": undecided, "usage": usage})
    delta: dict[str, Json] = {"type": "message_delta", "delta": last}
    if answer.usage is not None:
        # What went in was said at the start; most models on Bedrock do not say it again.
        delta["usage"] = {"output_tokens": answer.usage.output}
    chunks.append(delta)
    chunks.append({"type": "message_stop", **last_members(answer)})
    return chunks


def _completion_stream(answer: Answer) -> list[Body]:
    return [
        *(
            {"type": "completion", "completion": piece, "stop_reason": None, "stop": None}
            for piece in answer.pieces
        ),
        *earlier_reports(answer),
        {
            "type": "completion",
            "completion": "",
            **_completion_stop(answer),
            **guardrail_members(answer),
            **invocation_metrics(answer.usage),
        },
    ]


CLAUDE: Final = Family(_prompt, _whole, _stream)
