"""
Claude: the Messages API, and the text completions of Claude 2 and Instant.

Events are those of Anthropic's own API (AWS, Bedrock user guide, "Anthropic Claude
Messages API"; Anthropic, "Streaming messages").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bedrock_proxy.models.counts import METRICS, anthropic_usage
from bedrock_proxy.models.reader import UsageCounts
from bedrock_proxy.models.values import mapping, named, position, string, tool_input
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport

_TOOL_BLOCKS: Final = {"tool_use", "server_tool_use", "mcp_tool_use"}


class ClaudeReader:
    """Reads Claude, streaming or whole, by messages or by completion."""

    __slots__ = ("_counts", "_stopped", "_tools")

    steady = True

    def __init__(self) -> None:
        self._counts = UsageCounts()
        self._stopped = False
        self._tools: dict[int, int] = {}

    def read(self, event: Json) -> Sequence[Part]:
        if not isinstance(event, dict):
            return (Other(event),)
        if "completion" in event:
            return self._completion(event)
        kind = event.get("type")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is not None:
            return handler(self, event)
        return () if METRICS in event else (Other(event),)

    def finish(self) -> Sequence[Part]:
        return ()

    def _completion(self, event: dict[str, Json]) -> Sequence[Part]:
        parts: list[Part] = []
        text = event["completion"]
        if not isinstance(text, str):
            parts.append(Other(event))
        elif text:
            parts.append(Text(text))
        reason = named(event.get("stop_reason"))
        if reason is not None:
            parts.append(Stop(reason))
        return parts

    def _usage(self, usage: Json, parts: list[Part]) -> None:
        counts = self._counts
        if usage is not None and counts.update(anthropic_usage(usage, counts.usage)):
            parts.append(UsageReport(counts.usage))

    def _block(self, block: dict[str, Json], index: int, event: Json) -> Part | None:
        kind = block.get("type")
        if kind == "text":
            text = string(block.get("text"))
            return Text(text) if text else None
        if kind == "thinking":
            thinking, signature = string(block.get("thinking")), named(block.get("signature"))
            return Thinking(thinking, signature) if thinking or signature else None
        if kind == "redacted_thinking":
            return Thinking(signature=string(block.get("data")), redacted=True)
        if kind in _TOOL_BLOCKS:
            tool = self._tools[index] = len(self._tools)
            return ToolUse(
                tool,
                tool_input(block.get("input")),
                id=string(block.get("id")),
                name=string(block.get("name")),
            )
        return Other(event)

    # --- events -------------------------------------------------------------------------

    def message_start(self, event: dict[str, Json]) -> Sequence[Part]:
        parts: list[Part] = []
        self._usage(mapping(event.get("message")).get("usage"), parts)
        return parts

    def block_start(self, event: dict[str, Json]) -> Sequence[Part]:
        index = position(event.get("index"), len(self._tools))
        part = self._block(mapping(event.get("content_block")), index, event)
        return () if part is None else (part,)

    def block_delta(self, event: dict[str, Json]) -> Sequence[Part]:
        delta = mapping(event.get("delta"))
        kind = delta.get("type")
        if kind == "text_delta":
            text = delta.get("text")
            if isinstance(text, str):
                return (Text(text),) if text else ()
        elif kind == "thinking_delta":
            text = delta.get("thinking")
            if isinstance(text, str):
                return (Thinking(text),) if text else ()
        elif kind == "signature_delta":
            signature = delta.get("signature")
            if isinstance(signature, str):
                return (Thinking(signature=signature),) if signature else ()
        elif kind == "input_json_delta":
            tool = self._tools.get(position(event.get("index")))
            fragment = delta.get("partial_json")
            if tool is not None and isinstance(fragment, str):
                return (ToolUse(tool, fragment),) if fragment else ()
        return (Other(event),)

    def message_delta(self, event: dict[str, Json]) -> Sequence[Part]:
        parts: list[Part] = []
        reason = named(mapping(event.get("delta")).get("stop_reason"))
        if reason is not None:
            self._stopped = True
            parts.append(Stop(reason))
        self._usage(event.get("usage"), parts)
        return parts

    def message_stop(self, event: dict[str, Json]) -> Sequence[Part]:  # noqa: ARG002
        if self._stopped:
            return ()
        self._stopped = True
        return (Stop(None),)

    def message(self, event: dict[str, Json]) -> Sequence[Part]:
        parts: list[Part] = []
        content = event.get("content")
        if not isinstance(content, list):
            parts.append(Other(event))
            content = []
        for index, block in enumerate(content):
            part = self._block(mapping(block), index, block)
            if part is not None:
                parts.append(part)
        self._stopped = True
        parts.append(Stop(named(event.get("stop_reason"))))
        self._usage(event.get("usage"), parts)
        return parts

    def nothing(self, event: dict[str, Json]) -> Sequence[Part]:  # noqa: ARG002
        return ()


_HANDLERS: Final[Mapping[str, Callable[[ClaudeReader, dict[str, Json]], Sequence[Part]]]] = {
    "message_start": ClaudeReader.message_start,
    "content_block_start": ClaudeReader.block_start,
    "content_block_delta": ClaudeReader.block_delta,
    "content_block_stop": ClaudeReader.nothing,
    "message_delta": ClaudeReader.message_delta,
    "message_stop": ClaudeReader.message_stop,
    "message": ClaudeReader.message,
    "ping": ClaudeReader.nothing,
}

EVENT_TYPES: Final = frozenset(_HANDLERS)
"""The values of ``type`` by which a Messages API event is known."""
