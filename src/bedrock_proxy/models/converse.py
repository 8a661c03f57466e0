"""
Converse and ConverseStream, and Nova, whose own wire wraps the same events in one object
(AWS, Bedrock API reference, ``ConverseStreamOutput``; Amazon Nova user guide).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bedrock_proxy.models.counts import METRICS, converse_usage
from bedrock_proxy.models.reader import UsageCounts
from bedrock_proxy.models.values import items, mapping, named, position, string, tool_input
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport


class ConverseReader:
    """
    Reads the events of ConverseStream.

    Text blocks have no contentBlockStart; tool calls are told apart by the start that
    names them, not by their block's number.
    """

    __slots__ = ("_counts", "_started", "_tools")

    def __init__(self) -> None:
        self._counts = UsageCounts()
        self._started = 0
        self._tools: dict[int, int] = {}

    def read(self, event_type: str, payload: Json) -> Sequence[Part]:
        """The parts of one event, by its ``:event-type`` and its JSON payload."""
        handler = _HANDLERS.get(event_type)
        if handler is None or not isinstance(payload, dict):
            return (Other({event_type: payload}),)
        parts = handler(self, payload)
        return (Other({event_type: payload}),) if parts is None else parts

    def finish(self) -> Sequence[Part]:
        """Nothing is ever held back."""
        return ()

    def nothing(self, payload: dict[str, Json]) -> Sequence[Part] | None:  # noqa: ARG002
        return ()

    def block_start(self, payload: dict[str, Json]) -> Sequence[Part] | None:
        tool = mapping(payload.get("start")).get("toolUse")
        if not isinstance(tool, dict):
            return None if payload.get("start") else ()
        number = self._started
        self._started += 1
        self._tools[position(payload.get("contentBlockIndex"))] = number
        return (ToolUse(number, id=string(tool.get("toolUseId")), name=string(tool.get("name"))),)

    def block_delta(self, payload: dict[str, Json]) -> Sequence[Part] | None:
        delta = mapping(payload.get("delta"))
        text = delta.get("text")
        if isinstance(text, str):
            return (Text(text),) if text else ()
        tool = delta.get("toolUse")
        if isinstance(tool, dict):
            fragment = tool.get("input")
            # Nova may number the input's block differently from the one that named it.
            latest = self._started - 1
            number = self._tools.get(position(payload.get("contentBlockIndex")), latest)
            if number < 0 or not isinstance(fragment, str):
                return None
            return (ToolUse(number, fragment),) if fragment else ()
        return _reasoning(delta.get("reasoningContent"))

    def message_stop(self, payload: dict[str, Json]) -> Sequence[Part] | None:
        return (Stop(named(payload.get("stopReason"))),)

    def metadata(self, payload: dict[str, Json]) -> Sequence[Part] | None:
        usage = payload.get("usage")
        if usage is not None and self._counts.update(converse_usage(usage)):
            return (UsageReport(self._counts.usage),)
        return ()


# None says that the event was not recognised.
_HANDLERS: Final[
    Mapping[str, Callable[[ConverseReader, dict[str, Json]], Sequence[Part] | None]]
] = {
    "messageStart": ConverseReader.nothing,
    "contentBlockStart": ConverseReader.block_start,
    "contentBlockDelta": ConverseReader.block_delta,
    "contentBlockStop": ConverseReader.nothing,
    "messageStop": ConverseReader.message_stop,
    "metadata": ConverseReader.metadata,
}

EVENT_TYPES: Final = tuple(_HANDLERS)
"""The names of ConverseStream's events, Nova's own included."""


def _reasoning(content: Json) -> Sequence[Part] | None:
    """A piece of reasoning in either form: ``reasoningText`` wraps it in whole answers."""
    if not isinstance(content, dict):
        return None
    source = mapping(content.get("reasoningText")) or content
    text, signature = source.get("text"), source.get("signature")
    redacted = content.get("redactedContent")
    if isinstance(redacted, str):
        return (Thinking(signature=redacted, redacted=True),)
    if isinstance(text, str) or isinstance(signature, str):
        thinking = Thinking(string(text), named(signature))
        return (thinking,) if thinking.text or thinking.signature else ()
    return None


def converse_answer(body: Json) -> Sequence[Part]:
    """The parts of a Converse answer (or of Nova's own, which has the same members)."""
    source = mapping(body)
    content = mapping(mapping(source.get("output")).get("message")).get("content")
    parts: list[Part] = []
    if not isinstance(content, list) and "stopReason" not in source:
        return (Other(body),)
    tools = 0
    for block in items(content):
        said = mapping(block)
        tool = said.get("toolUse")
        cited = said.get("citationsContent")
        reasoning = _reasoning(said.get("reasoningContent"))
        text = said.get("text")
        if isinstance(text, str):
            if text:
                parts.append(Text(text))
        elif isinstance(tool, dict):
            parts.append(
                ToolUse(
                    tools,
                    tool_input(tool.get("input")),
                    id=string(tool.get("toolUseId")),
                    name=string(tool.get("name")),
                )
            )
            tools += 1
        elif reasoning is not None:
            parts.extend(reasoning)
        elif isinstance(cited, dict):
            _citations(cited, parts)
        else:
            parts.append(Other(block))
    parts.append(Stop(named(source.get("stopReason"))))
    usage = converse_usage(source.get("usage"))
    if not usage.is_empty:
        parts.append(UsageReport(usage))
    return parts


def _citations(cited: dict[str, Json], parts: list[Part]) -> None:
    """The cited text is text; who is cited follows as it came."""
    for piece in items(cited.get("content")):
        text = mapping(piece).get("text")
        if isinstance(text, str):
            if text:
                parts.append(Text(text))
        else:
            parts.append(Other(piece))
    rest: dict[str, Json] = {key: value for key, value in cited.items() if key != "content"}
    if any(rest.values()):
        parts.append(Other({"citationsContent": rest}))


class NovaReader:
    """
    Reads Nova's own events: ConverseStream's, each in an object that names it.

    On this wire every delta may open a block of its own, so block numbers say nothing.
    """

    __slots__ = ("_inner",)

    steady = True

    def __init__(self) -> None:
        self._inner = ConverseReader()

    def read(self, event: Json) -> Sequence[Part]:
        if not isinstance(event, dict):
            return (Other(event),)
        for name in EVENT_TYPES:
            if name in event:
                payload = event[name]
                parts = self._inner.read(name, payload)
                if len(parts) == 1 and isinstance(parts[0], Other):
                    return (Other(event),)
                return parts
        if "output" in event:
            return converse_answer(event)
        return () if METRICS in event else (Other(event),)

    def finish(self) -> Sequence[Part]:
        return ()
