"""
Amazon's own: Nova, Titan text.

Sources: "Complete request schema" in the Amazon Nova user guide; "Amazon Titan Text models"
in the Amazon Bedrock user guide. Nova gives every text delta a new block index on this wire;
Titan's counts are null until the last chunk, and floats under a guardrail.
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
    or_null,
)
from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_count,
    as_object,
    as_text,
)

_NOVA_REASONS: Final = {"end": "end_turn", "length": "max_tokens", "tool": "tool_use"}
_TITAN_REASONS: Final = {"end": "FINISH", "length": "LENGTH", "tool": "FINISH"}


def _nova_prompt(body: Body) -> Prompt:
    if "messages" not in body:
        raise InvalidBody(
            "Malformed input request: #: required key [messages] not found, please reformat "
            "your input and try again."
        )
    limits = as_object(body.get("inferenceConfig"))
    maximum = limits.get("maxTokens", limits.get("max_new_tokens"))
    return messages_prompt(body, as_count(maximum))


def _nova_usage(tokens: Tokens) -> dict[str, Json]:
    return {
        "inputTokens": tokens.input,
        "outputTokens": tokens.output,
        "cacheReadInputTokenCount": tokens.cache_read,
        "cacheWriteInputTokenCount": tokens.written,
    }


def _reasoning(text: str) -> Json:
    return {"reasoningContent": {"reasoningText": {"text": text}}}


def _nova_whole(answer: Answer) -> Body:
    content: list[Json] = [_reasoning(answer.thoughts)] if answer.thinking else []
    if answer.pieces:
        content.append({"text": answer.text})
    content += [
        {
            "toolUse": {
                "name": tool.name,
                "toolUseId": tool.id,
                "input": json.loads(tool.input_json),
            }
        }
        for tool in answer.tools
    ]
    said: dict[str, Json] = {
        "output": {"message": {"content": content, "role": "assistant"}},
        "stopReason": answer.reason(_NOVA_REASONS),
    }
    if answer.usage is not None:
        total = answer.usage.input + answer.usage.output
        said["usage"] = {**_nova_usage(answer.usage), "totalTokens": total}
    return {**said, **guardrail_members(answer)}


def _nova_stream(answer: Answer) -> list[Body]:
    chunks: list[Body] = [{"messageStart": {"role": "assistant"}}]
    index = 0
    deltas: list[Json] = [{"reasoningContent": {"text": piece}} for piece in answer.thinking]
    deltas += [{"text": piece} for piece in answer.pieces]
    for delta in deltas:
        chunks.append({"contentBlockDelta": {"delta": delta, "contentBlockIndex": index}})
        chunks.append({"contentBlockStop": {"contentBlockIndex": index}})
        index += 1
    for tool in answer.tools:
        start: Json = {"toolUse": {"toolUseId": tool.id, "name": tool.name}}
        given: Json = {"toolUse": {"input": tool.input_json}}
        chunks.append({"contentBlockStart": {"start": start, "contentBlockIndex": index}})
        chunks.append({"contentBlockDelta": {"delta": given, "contentBlockIndex": index}})
        chunks.append({"contentBlockStop": {"contentBlockIndex": index}})
        index += 1
    chunks.append({"messageStop": {"stopReason": answer.reason(_NOVA_REASONS)}})
    chunks += [
        {"metadata": {"usage": _nova_usage(tokens), "metrics": {}, "trace": {}}}
        for tokens in answer.reports[:-1]
    ]
    if answer.usage is not None:
        usage = _nova_usage(answer.usage)
        metadata: Json = {"usage": usage, "metrics": {}, "trace": {}}
        metrics = invocation_metrics(answer.usage, caches=True)
        chunks.append({"metadata": metadata, **guardrail_members(answer), **metrics})
    return chunks


def _titan_prompt(body: Body) -> Prompt:
    if "inputText" not in body:
        raise InvalidBody(
            "Malformed input request: #: required key [inputText] not found, please reformat "
            "your input and try again."
        )
    text = as_text(body["inputText"])
    limits = as_object(body.get("textGenerationConfig"))
    return Prompt(text, text, as_count(limits.get("maxTokenCount")))


def _number(count: int | None, answer: Answer) -> float | None:
    return float(count) if answer.guardrail and count is not None else count


def _titan_whole(answer: Answer) -> Body:
    result: dict[str, Json] = {
        "outputText": answer.text,
        "completionReason": answer.reason(_TITAN_REASONS),
    }
    said: dict[str, Json] = {"results": [result]}
    if answer.usage is not None:
        said["inputTextTokenCount"] = _number(answer.usage.input, answer)
        result["tokenCount"] = _number(answer.usage.output, answer)
    return {**said, **guardrail_members(answer)}


def _titan_stream(answer: Answer) -> list[Body]:
    usage = answer.usage
    pieces = answer.pieces or ("",)
    last = len(pieces) - 1
    chunks: list[Body] = []
    for number, piece in enumerate(pieces):
        ends = number == last
        input_count = or_null(usage, "input") if number == 0 else None
        output_count = or_null(usage, "output") if ends else None
        chunk: dict[str, Json] = {
            "outputText": piece,
            "index": _number(0, answer),
            "totalOutputTextTokenCount": _number(output_count, answer),
            "completionReason": answer.reason(_TITAN_REASONS) if ends else None,
            "inputTextTokenCount": _number(input_count, answer),
        }
        if ends:
            chunks += earlier_reports(answer)
            chunk |= last_members(answer)
        chunks.append(chunk)
    return chunks


NOVA: Final = Family(_nova_prompt, _nova_whole, _nova_stream, caches=True)
TITAN: Final = Family(_titan_prompt, _titan_whole, _titan_stream)
