"""
Families whose answer is a list of ``choices`` or a chat event: OpenAI's gpt-oss and the
models that share its shapes, Jamba, Mistral chat, Command R.

Source: each one's page under "Inference request parameters and response fields" in the
Amazon Bedrock user guide. gpt-oss writes its reasoning into the text, in ``<reasoning>``
tags; Jamba ends with a chunk of metrics only; Command R repeats the full text at the end.
"""

import json
from collections.abc import Mapping
from typing import Final

from bedrock_proxy_adapters.simulator.answers import (
    Answer,
    Prompt,
    Tokens,
    guardrail_members,
)
from bedrock_proxy_adapters.simulator.families.family import (
    Family,
    earlier_reports,
    last_members,
    messages_prompt,
)
from bedrock_proxy_adapters.simulator.families.text import (
    mistral_stream,
    mistral_whole,
    prompt_at,
)
from bedrock_proxy_adapters.simulator.scripts import Tool
from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_count,
    as_list,
    as_object,
    as_text,
    texts,
)

_STOPS: Final = {"end": "stop", "length": "length", "tool": "tool_calls"}
_COHERE_REASONS: Final = {"end": "COMPLETE", "length": "MAX_TOKENS", "tool": "COMPLETE"}
CREATED: Final = 1_700_000_000
"""The moment every simulated chat completion was made: answers do not depend on the clock."""


def _prompt(body: Body) -> Prompt:
    if "prompt" in body and "messages" not in body:
        return prompt_at(body, "max_tokens")
    if "messages" not in body:
        raise InvalidBody(
            "Malformed input request: #: required key [messages] not found, please reformat "
            "your input and try again."
        )
    maximum = body.get("max_tokens", body.get("max_completion_tokens"))
    return messages_prompt(body, as_count(maximum))


def _usage(tokens: Tokens) -> Json:
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
    }


def _call(index: int, tool: Tool, arguments: str, opening: bool) -> Json:
    if not opening:
        return {"index": index, "type": "function", "function": {"arguments": arguments}}
    return {
        "index": index,
        "id": tool.id,
        "type": "function",
        "function": {"name": tool.name, "arguments": arguments},
    }


def _calls(answer: Answer) -> list[Json]:
    return [
        {
            "id": tool.id,
            "type": "function",
            "function": {"name": tool.name, "arguments": tool.input_json},
        }
        for tool in answer.tools
    ]


def _reasoned(text: str) -> str:
    return f"<reasoning>{text}</reasoning>" if text else ""


def _openai_envelope(answer: Answer, kind: str) -> dict[str, Json]:
    return {
        "id": "chatcmpl-simulated",
        "created": CREATED,
        "model": answer.model,
        "object": kind,
        "service_tier": "auto",
    }


def _openai_whole(answer: Answer) -> Body:
    text = _reasoned(answer.thoughts) + answer.text
    reason = answer.reason(_STOPS)
    if "messages" in answer.body:
        message: dict[str, Json] = {"role": "assistant", "content": text, "refusal": None}
        if answer.tools:
            message["tool_calls"] = _calls(answer)
        choice: Json = {"index": 0, "finish_reason": reason, "message": message}
        said = {"choices": [choice], **_openai_envelope(answer, "chat.completion")}
    else:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        said = {"choices": [choice], **_openai_envelope(answer, "text_completion")}
    if answer.usage is not None:
        said["usage"] = _usage(answer.usage)
    return {**said, **guardrail_members(answer)}


def _openai_stream(answer: Answer) -> list[Body]:
    chats = "messages" in answer.body

    def chunk(content: str | None, delta: Body, reason: str | None = None) -> Body:
        choice: dict[str, Json] = {"index": 0, "finish_reason": reason}
        if chats:
            choice["delta"] = {**delta, **({} if content is None else {"content": content})}
        else:
            choice["text"] = content or ""
        kind = "chat.completion.chunk" if chats else "text_completion"
        return {"choices": [choice], **_openai_envelope(answer, kind)}

    chunks = [chunk("", {"role": "assistant"})]
    chunks += [chunk(_reasoned(piece), {}) for piece in answer.thinking]
    chunks += [chunk(piece, {}) for piece in answer.pieces]
    for index, tool in enumerate(answer.tools):
        half = len(tool.input_json) // 2
        first = _call(index, tool, tool.input_json[:half], opening=True)
        second = _call(index, tool, tool.input_json[half:], opening=False)
        chunks += [chunk(None, {"tool_calls": [call]}) for call in (first, second)]
    chunks.append(chunk(None, {}, answer.reason(_STOPS)))
    options = as_object(answer.body.get("stream_options"))
    if options.get("include_usage") is True:
        envelope = _openai_envelope(answer, "chat.completion.chunk")
        told: list[Body] = [
            {"choices": [], **envelope, "usage": _usage(tokens)} for tokens in answer.reports
        ]
        chunks += told
    else:
        chunks[-1:] = [*earlier_reports(answer), chunks[-1]]
    chunks[-1] = {**chunks[-1], **last_members(answer)}
    return chunks


def _jamba_whole(answer: Answer) -> Body:
    message: Json = {
        "role": "assistant",
        "content": answer.text,
        "tool_calls": _calls(answer) or None,
    }
    choice: Json = {"index": 0, "message": message, "finish_reason": answer.reason(_STOPS)}
    said: dict[str, Json] = {"id": "chatcmpl-simulated", "choices": [choice]}
    if answer.usage is not None:
        said["usage"] = _usage(answer.usage)
    meta: Json = {"requestDurationMillis": 100}
    return {**said, "meta": meta, "model": answer.model, **guardrail_members(answer)}


def _jamba_stream(answer: Answer) -> list[Body]:
    usage = answer.usage
    last = len(answer.pieces) + 1
    chunks: list[Body] = []
    for number, piece in enumerate(("", *answer.pieces, "")):
        delta: dict[str, Json] = {"role": "assistant"} if number == 0 else {}
        delta["content"] = piece
        if number == last and answer.tools:
            delta["tool_calls"] = _calls(answer)
        reason = answer.reason(_STOPS) if number == last else None
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk: dict[str, Json] = {"id": "chatcmpl-simulated", "choices": [choice]}
        if usage is not None:
            so_far = usage.output if number == last else min(number, usage.output)
            chunk["usage"] = _usage(Tokens(usage.input, so_far))
        chunks.append(chunk)
    chunks += earlier_reports(answer)
    members = last_members(answer)
    return [*chunks, members] if members else chunks


def _mistral_choice(text: str, reason: str | None, calls: list[Json]) -> Body:
    message: dict[str, Json] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    return {"choices": [{"index": 0, "message": message, "stop_reason": reason}]}


def _mistral_whole(answer: Answer) -> Body:
    if "messages" not in answer.body:
        return mistral_whole(answer)
    reason = answer.reason(_STOPS)
    said = _mistral_choice(answer.text, reason, _calls(answer))
    return {**said, **guardrail_members(answer)}


def _mistral_stream(answer: Answer) -> list[Body]:
    if "messages" not in answer.body:
        return mistral_stream(answer)
    last = _mistral_choice("", answer.reason(_STOPS), _calls(answer))
    return [
        *(_mistral_choice(piece, None, []) for piece in answer.pieces),
        *earlier_reports(answer),
        {**last, **last_members(answer)},
    ]


def _command_r_prompt(body: Body) -> Prompt:
    if "message" not in body:
        raise InvalidBody(
            "Malformed input request: #: required key [message] not found, please reformat "
            "your input and try again."
        )
    message = as_text(body["message"])
    history = " ".join(texts(as_list(body.get("chat_history"))))
    parts = (as_text(body.get("preamble")), history, message)
    whole = " ".join(part for part in parts if part)
    return Prompt(whole, message, as_count(body.get("max_tokens")))


def _command_r_response(answer: Answer, reasons: Mapping[str, str]) -> dict[str, Json]:
    history: Json = [
        {"role": "USER", "message": answer.prompt.last},
        {"role": "CHATBOT", "message": answer.text},
    ]
    said: dict[str, Json] = {
        "response_id": "simulated",
        "text": answer.text,
        "generation_id": "simulated",
        "chat_history": history,
        "finish_reason": answer.reason(reasons),
    }
    if answer.tools:
        said["tool_calls"] = _cohere_calls(answer)
    return said


def _cohere_calls(answer: Answer) -> list[Json]:
    return [{"name": tool.name, "parameters": json.loads(tool.input_json)} for tool in answer.tools]


def _command_r_whole(answer: Answer) -> Body:
    return {**_command_r_response(answer, _COHERE_REASONS), **guardrail_members(answer)}


def _command_r_stream(answer: Answer) -> list[Body]:
    chunks: list[Body] = [
        {"is_finished": False, "event_type": "text-generation", "text": piece}
        for piece in answer.pieces
    ]
    if answer.tools:
        chunks.append(
            {
                "is_finished": False,
                "event_type": "tool-calls-generation",
                "tool_calls": _cohere_calls(answer),
            }
        )
    response = _command_r_response(answer, _COHERE_REASONS)
    if answer.usage is not None:
        counts: Json = {
            "input_tokens": answer.usage.input,
            "output_tokens": answer.usage.output,
        }
        response["meta"] = {"api_version": {"version": "1"}, "billed_units": counts}
    end: Body = {
        "is_finished": True,
        "event_type": "stream-end",
        "response": response,
        "finish_reason": answer.reason(_COHERE_REASONS),
        **last_members(answer),
    }
    return [*chunks, *earlier_reports(answer), end]


OPENAI: Final = Family(_prompt, _openai_whole, _openai_stream)
JAMBA: Final = Family(_prompt, _jamba_whole, _jamba_stream)
MISTRAL: Final = Family(_prompt, _mistral_whole, _mistral_stream)
COMMAND_R: Final = Family(_command_r_prompt, _command_r_whole, _command_r_stream)
