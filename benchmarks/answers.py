"""
What the fake Bedrock answers, and what a client must get of it, byte for byte.

Frames look as Claude's do on the wire (recorded answers): every event in a `chunk` whose
payload is base64, with a padding of its own length; Converse events as plain JSON. They are
made once, before anything is measured.
"""

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final
from zlib import crc32

from bedrock_proxy_adapters.simulator import frames

MODEL: Final = "anthropic.claude-3-haiku-20240307-v1:0"
EVENT_STREAM: Final = "application/vnd.amazon.eventstream"
PLAIN_BYTES: Final = 1024
"""The length of an answer that is no stream."""

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_WORDS: Final = (
    " the",
    " kaleidoscope of",
    " greetings tum",
    "bles",
    " through",
    " a",
    " day",
    ".",
)


def texts(events: int, size: int = 0) -> list[str]:
    """The pieces of text of a stream of so many *events*; words, or *size* characters each."""
    if size:
        return [(" word" * size)[:size]] * events
    return [_WORDS[number % len(_WORDS)] for number in range(events)]


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _padding(payload: bytes) -> str:
    return _ALPHABET[: 4 + crc32(payload) % 56]


def _chunk(event: dict[str, Any], number: int) -> bytes:
    payload = _dump(event)
    wrapped = {
        "bytes": base64.b64encode(payload).decode(),
        "p": _padding(payload + bytes([number & 255])),
    }
    return frames.event("chunk", _dump(wrapped))


@cache
def invoke_stream(events: int, size: int = 0) -> tuple[bytes, ...]:
    """The frames of InvokeModelWithResponseStream: one a text, the first and last with company."""
    said = {
        "type": "message",
        "role": "assistant",
        "model": "claude-3-haiku-20240307",
        "id": "msg_bdrk_01",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 1},
    }
    metrics = {
        "inputTokenCount": 25,
        "outputTokenCount": events,
        "invocationLatency": 1155,
        "firstByteLatency": 152,
    }
    block = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    first = _chunk({"type": "message_start", "message": said}, 0) + _chunk(block, 0)
    made = [
        _chunk(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}},
            number,
        )
        for number, t in enumerate(texts(events, size))
    ]
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    last = (
        _chunk({"type": "content_block_stop", "index": 0}, 0)
        + _chunk({"type": "message_delta", "delta": stop, "usage": {"output_tokens": events}}, 0)
        + _chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics}, 0)
    )
    return _joined(first, made, last)


@cache
def converse_stream(events: int) -> tuple[bytes, ...]:
    """The frames of ConverseStream, in the same parts."""

    def event(name: str, payload: dict[str, Any]) -> bytes:
        return frames.event(name, _dump({**payload, "p": _padding(_dump(payload))}))

    made = [
        event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": t}})
        for t in texts(events)
    ]
    usage = {"inputTokens": 25, "outputTokens": events, "totalTokens": 25 + events}
    last = (
        event("contentBlockStop", {"contentBlockIndex": 0})
        + event("messageStop", {"stopReason": "end_turn"})
        + event("metadata", {"metrics": {"latencyMs": 1155}, "usage": usage})
    )
    return _joined(event("messageStart", {"role": "assistant"}), made, last)


def _joined(first: bytes, made: list[bytes], last: bytes) -> tuple[bytes, ...]:
    made[0] = first + made[0]
    made[-1] += last
    return tuple(made)


@cache
def plain() -> bytes:
    """A whole answer of 1 KB."""
    said = {
        "id": "msg_bdrk_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-3-haiku-20240307",
        "content": [{"type": "text", "text": ""}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 180},
    }
    rest = PLAIN_BYTES - len(_dump(said))
    said["content"] = [{"type": "text", "text": ("word " * rest)[:rest]}]
    return _dump(said)


@cache
def converse_plain() -> bytes:
    """The same by Converse."""

    def said(text: str) -> bytes:
        message = {"role": "assistant", "content": [{"text": text}]}
        usage = {"inputTokens": 25, "outputTokens": 180, "totalTokens": 205}
        return _dump(
            {
                "metrics": {"latencyMs": 1155},
                "output": {"message": message},
                "stopReason": "end_turn",
                "usage": usage,
            }
        )

    rest = PLAIN_BYTES - len(said(""))
    return said(("word " * rest)[:rest])


# --- what clients get -----------------------------------------------------------------------


def sse(events: int) -> bytes:
    """The stream in the simple dialect."""
    said = (f'data: {{"content": {json.dumps(t)}}}\n\n' for t in texts(events))
    return "".join(said).encode() + b"data: [DONE]\n\n"


def array(events: int) -> bytes:
    """The stream as one JSON array."""
    elements = [*({"content": t} for t in texts(events)), {"done": True}]
    return ("[" + ",\n".join(map(json.dumps, elements)) + "]\n").encode()


EXPECTED: Final[dict[str, Callable[[int], bytes]]] = {
    "sse": sse,
    "array": array,
    "invoke": lambda events: b"".join(invoke_stream(events)),
    "converse": lambda events: b"".join(converse_stream(events)),
    "plain": lambda _: plain(),
    "converse-plain": lambda _: converse_plain(),
}
"""The body that a client must have received, by the name of a dialect."""

ENDS: Final[dict[str, bytes]] = {"sse": b'"}\n\n', "array": b'"}'}
"""What every event ends with, where that can be told by looking."""

PING: Final = b": ping\n\n"
"""What the proxy says while Bedrock is silent, or it could not yet ask it."""


def request(dialect: str, number: str = "") -> tuple[str, bytes, dict[str, str]]:
    """
    Path, body and headers of a request in a *dialect*.

    Args:
        number: Goes along in the prompt, so that the fake Bedrock can tell what it sent when.
    """
    prompt = f"{'word ' * 200}<{number}>"
    claude = {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 1_000,
        "messages": [{"role": "user", "content": prompt}],
    }
    converse = {
        "messages": [{"role": "user", "content": [{"text": prompt}]}],
        "inferenceConfig": {"maxTokens": 1_000},
    }
    model = f"/model/{MODEL.replace(':', '%3A')}"
    simple = {"modelId": MODEL, "stream": dialect != "plain", **claude}
    if dialect == "array":
        return "/bedrock", _dump(simple), {"accept": "application/json"}
    if dialect in ("sse", "plain"):
        return "/bedrock", _dump(simple), {}
    path, said = {
        "invoke": ("invoke-with-response-stream", claude),
        "invoke-plain": ("invoke", claude),
        "converse": ("converse-stream", converse),
        "converse-plain": ("converse", converse),
    }[dialect]
    return f"{model}/{path}", _dump(said), {}


EXPECTED["invoke-plain"] = EXPECTED["plain"]
