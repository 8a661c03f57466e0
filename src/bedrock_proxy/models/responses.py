"""
The shape of OpenAI's Responses API, which Bedrock's OpenAI-compatible endpoint speaks too
(OpenAI API reference, "Responses" and "Streaming events").
"""

from collections.abc import Sequence
from typing import Final

from bedrock_proxy.models.counts import openai_usage
from bedrock_proxy.models.values import items, mapping, named, string, tool_input
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport

PREFIX: Final = "response."
"""What the type of every streaming event begins with."""

_SPOKEN: Final = {
    "response.output_text.delta": Text,
    "response.refusal.delta": Text,
    "response.reasoning_text.delta": Thinking,
    "response.reasoning_summary_text.delta": Thinking,
}
_ENDS: Final = {"response.completed", "response.incomplete", "response.failed"}
_REPEATS: Final = (".created", ".queued", ".in_progress", ".added", ".done", ".searching")
"""Ends of the types that only announce what deltas say, or say it again."""


class ResponsesReader:
    """Reads a response: its streaming events, or the whole object."""

    __slots__ = ("_filled", "_tools")

    steady = False  # every delta is numbered

    def __init__(self) -> None:
        self._tools: dict[str, int] = {}
        self._filled: set[str] = set()

    def read(self, event: Json) -> Sequence[Part]:
        source = mapping(event)
        if source.get("object") == "response":
            return _whole(source)
        kind = string(source.get("type"))
        make = _SPOKEN.get(kind)
        if make is not None:
            delta = string(source.get("delta"))
            return (make(delta),) if delta else ()
        if kind == "response.output_item.added":
            return self._begun(mapping(source.get("item")))
        if kind == "response.function_call_arguments.delta":
            return self._argued(string(source.get("item_id")), string(source.get("delta")))
        if kind == "response.output_item.done":
            return self._done(mapping(source.get("item")))
        if kind in _ENDS:
            return _end(mapping(source.get("response")))
        return () if kind.endswith(_REPEATS) else (Other(event),)

    def finish(self) -> Sequence[Part]:
        return ()

    def _begun(self, item: dict[str, Json]) -> Sequence[Part]:
        if item.get("type") != "function_call":
            return ()
        number = self._tools.setdefault(string(item.get("id")), len(self._tools))
        return (_call(number, item, ""),)

    def _argued(self, item_id: str, delta: str) -> Sequence[Part]:
        number = self._tools.get(item_id)
        if number is None or not delta:
            return ()
        self._filled.add(item_id)
        return (ToolUse(number, delta),)

    def _done(self, item: dict[str, Json]) -> Sequence[Part]:
        """Only for a call whose input did not come in pieces."""
        item_id = string(item.get("id"))
        number = self._tools.get(item_id)
        if number is None or item_id in self._filled:
            return ()
        return self._argued(item_id, tool_input(item.get("arguments")))


def _whole(body: dict[str, Json]) -> Sequence[Part]:
    parts: list[Part] = []
    calls = 0
    for item in map(mapping, items(body.get("output"))):
        kind = string(item.get("type"))
        if kind == "function_call":
            parts.append(_call(calls, item, tool_input(item.get("arguments"))))
            calls += 1
        elif kind in {"message", "reasoning"}:
            for block in (*items(item.get("summary")), *items(item.get("content"))):
                parts.extend(_block(block))
        else:
            parts.append(Other(item))
    return (*parts, *_end(body))


def _block(block: Json) -> Sequence[Part]:
    source = mapping(block)
    kind = string(source.get("type"))
    text = string(source.get("refusal" if kind == "refusal" else "text"))
    if kind in {"output_text", "refusal"}:
        return (Text(text),) if text else ()
    if kind in {"reasoning_text", "summary_text"}:
        return (Thinking(text),) if text else ()
    return (Other(block),)


def _call(number: int, item: dict[str, Json], arguments: str) -> ToolUse:
    call_id = named(item.get("call_id")) or string(item.get("id"))
    return ToolUse(number, arguments, id=call_id, name=string(item.get("name")))


def _end(response: dict[str, Json]) -> Sequence[Part]:
    incomplete = mapping(response.get("incomplete_details"))
    reason = named(incomplete.get("reason")) or named(response.get("status"))
    usage = openai_usage(response.get("usage"))
    report = () if usage.is_empty else (UsageReport(usage),)
    return (*report, Stop(reason))
