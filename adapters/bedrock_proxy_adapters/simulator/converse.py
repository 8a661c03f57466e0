"""
Converse, ConverseStream and CountTokens: one shape for every model.

Source: Converse, ConverseStream and CountTokens in the Amazon Bedrock API reference. Real
streams send no contentBlockStart for text or reasoning, and sort their members.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Final

from bedrock_proxy_adapters.simulator.answers import (
    LATENCY_MS,
    Answer,
    Prompt,
    Tokens,
    count_words,
    guardrail_trace,
)
from bedrock_proxy_adapters.simulator.families.family import messages_prompt
from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_count,
    as_object,
    as_text,
    parse_body,
)

SIGNATURE: Final = "c2ltdWxhdGVkIHNpZ25hdHVyZQ=="
_REASONS: Final[Mapping[str, str]] = {
    "end": "end_turn",
    "length": "max_tokens",
    "tool": "tool_use",
}


def converse_prompt(body: Body) -> Prompt:
    """
    The prompt of a Converse body.

    Raises:
        InvalidBody: It has no messages.
    """
    if "messages" not in body:
        raise InvalidBody("The messages member is required.")
    limits = as_object(body.get("inferenceConfig"))
    return messages_prompt(body, as_count(limits.get("maxTokens")))


def _reason(answer: Answer) -> str:
    if answer.guardrail and answer.stop_reason is None:
        return "guardrail_intervened"
    return answer.reason(_REASONS)


def _signs(answer: Answer) -> bool:
    """Only Claude signs its reasoning."""
    return "anthropic." in answer.model


def _usage(tokens: Tokens) -> dict[str, Json]:
    usage: dict[str, Json] = {}
    if tokens.written:
        written = (("5m", tokens.cache_write), ("1h", tokens.cache_write_1h))
        usage["cacheDetails"] = [
            {"inputTokens": count, "ttl": ttl} for ttl, count in written if count
        ]
    if tokens.cache_read or tokens.written:
        usage["cacheReadInputTokenCount"] = tokens.cache_read
        usage["cacheReadInputTokens"] = tokens.cache_read
        usage["cacheWriteInputTokenCount"] = tokens.written
        usage["cacheWriteInputTokens"] = tokens.written
    usage["inputTokens"] = tokens.input
    usage["outputTokens"] = tokens.output
    usage["totalTokens"] = tokens.total
    return usage


def converse_whole(answer: Answer) -> Body:
    """The body of Converse's answer."""
    content: list[Json] = []
    if answer.thinking:
        reasoning: dict[str, Json] = {"text": answer.thoughts}
        if _signs(answer):
            reasoning["signature"] = SIGNATURE
        content.append({"reasoningContent": {"reasoningText": reasoning}})
    if answer.pieces:
        content.append({"text": answer.text})
    content += [
        {
            "toolUse": {
                "input": json.loads(tool.input_json),
                "name": tool.name,
                "toolUseId": tool.id,
            }
        }
        for tool in answer.tools
    ]
    said: dict[str, Json] = {
        "metrics": {"latencyMs": LATENCY_MS},
        "output": {"message": {"content": content, "role": "assistant"}},
        "stopReason": _reason(answer),
    }
    if answer.guardrail:
        said["trace"] = {"guardrail": guardrail_trace(answer)}
    if answer.usage is not None:
        said["usage"] = _usage(answer.usage)
    return said


def converse_events(answer: Answer) -> list[tuple[str, dict[str, Json]]]:
    """The events of ConverseStream's answer: name and payload."""
    events: list[tuple[str, dict[str, Json]]] = [("messageStart", {"role": "assistant"})]
    index = 0

    def deltas(given: list[Json]) -> None:
        events.extend(
            ("contentBlockDelta", {"contentBlockIndex": index, "delta": delta}) for delta in given
        )
        events.append(("contentBlockStop", {"contentBlockIndex": index}))

    if answer.thinking:
        thoughts: list[Json] = [{"reasoningContent": {"text": piece}} for piece in answer.thinking]
        if _signs(answer):
            thoughts.append({"reasoningContent": {"signature": SIGNATURE}})
        deltas(thoughts)
        index += 1
    if answer.pieces:
        deltas([{"text": piece} for piece in answer.pieces])
        index += 1
    for tool in answer.tools:
        start: Json = {"toolUse": {"name": tool.name, "toolUseId": tool.id}}
        events.append(("contentBlockStart", {"contentBlockIndex": index, "start": start}))
        half = len(tool.input_json) // 2
        fragments = (tool.input_json[:half], tool.input_json[half:])
        deltas([{"toolUse": {"input": part}} for part in fragments])
        index += 1
    events.append(("messageStop", {"stopReason": _reason(answer)}))
    for number, tokens in enumerate(answer.reports or (None,)):
        metadata: dict[str, Json] = {"metrics": {"latencyMs": LATENCY_MS}}
        if answer.guardrail and number == len(answer.reports) - 1:
            metadata["trace"] = {"guardrail": guardrail_trace(answer)}
        if tokens is not None:
            metadata["usage"] = _usage(tokens)
        events.append(("metadata", metadata))
    return events


def counted_body(body: Body) -> tuple[str, Body]:
    """
    What CountTokens is to count: ``converse`` and its body, or ``invokeModel`` and the
    decoded inner body.

    Raises:
        InvalidBody: The input holds neither, or no base64.
    """
    given = as_object(body.get("input"))
    if "converse" in given:
        return "converse", as_object(given["converse"])
    if "invokeModel" not in given:
        raise InvalidBody("The input must hold one of converse and invokeModel.")
    encoded = as_text(as_object(given["invokeModel"]).get("body"))
    try:
        return "invokeModel", parse_body(base64.b64decode(encoded, validate=True))
    except binascii.Error:
        raise InvalidBody("The body is not base64.") from None


def token_count(prompt: Prompt, scripted: int | None) -> Body:
    """The body of CountTokens's answer."""
    return {"inputTokens": count_words(prompt.text) if scripted is None else scripted}
