"""
The shape of OpenAI's Chat Completions (and of its older text completions): Jamba, Mistral
chat, gpt-oss, DeepSeek, Writer, Qwen, Kimi, MiniMax, Gemma and whatever else answers with
``choices`` (AWS, Bedrock user guide, "Inference request parameters and response fields").
"""

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from bedrock_proxy.models.counts import METRICS, openai_usage
from bedrock_proxy.models.reader import UsageCounts
from bedrock_proxy.models.values import count, items, mapping, named, position, string, tool_input
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport

DONE: Final = "[DONE]"
"""What ends an OpenAI stream; Writer's models send it as a JSON string of its own."""

_OPEN: Final = "<reasoning>"
_CLOSE: Final = "</reasoning>"

_SPOKEN: Final = ("content", "text")
_THOUGHT: Final = ("reasoning_content", "reasoning")
_KNOWN: Final = {*_SPOKEN, *_THOUGHT, "role", "tool_calls", "logprobs", "annotations"}


class InlineReasoning:
    """
    Tells inline ``<reasoning>…</reasoning>`` from text, where a tag may be cut anywhere.

    gpt-oss writes its reasoning so on the InvokeModel wire.
    """

    __slots__ = ("_held", "_index", "_inside")

    def __init__(self, index: int) -> None:
        self._held = ""
        self._inside = False
        self._index = index

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain; what may still become a tag is held back."""
        parts: list[Part] = []
        text = self._held + text
        at = 0
        while True:
            tag = _CLOSE if self._inside else _OPEN
            found = text.find(tag, at)
            if found < 0:
                break
            self._say(text[at:found], parts)
            self._inside = not self._inside
            at = found + len(tag)
        end = len(text) - _overlap(text, at, tag)
        self._held = text[end:]
        self._say(text[at:end], parts)
        return parts

    def finish(self) -> list[Part]:
        """What was held back and did not become a tag."""
        parts: list[Part] = []
        held, self._held = self._held, ""
        self._say(held, parts)
        return parts

    def _say(self, text: str, parts: list[Part]) -> None:
        if text:
            parts.append(Thinking(text) if self._inside else Text(text, self._index))


def _overlap(text: str, start: int, tag: str) -> int:
    """How many characters at the end of *text* (from *start*) are the beginning of *tag*."""
    for length in range(min(len(tag) - 1, len(text) - start), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


@frozen
class _Call:
    number: int
    call_id: str | None


class ChoicesReader:
    """Reads ``choices``, streaming (``delta``) or whole (``message``, ``text``)."""

    __slots__ = ("_counts", "_inline", "_started", "_tags", "_tools", "steady")

    def __init__(self, inline_reasoning: bool = False) -> None:
        self.steady = not inline_reasoning
        self._counts = UsageCounts()
        self._inline = inline_reasoning
        self._tags: dict[int, InlineReasoning] = {}
        self._tools: dict[tuple[int, int | None], _Call] = {}
        self._started = 0

    def read(self, event: Json) -> Sequence[Part]:
        if not isinstance(event, dict):
            return () if event == DONE else (Other(event),)
        parts: list[Part] = []
        choices = event.get("choices")
        if isinstance(choices, list):
            for place, choice in enumerate(choices):
                self._choice(mapping(choice), place, event, parts)
        elif "usage" not in event and METRICS not in event:
            parts.append(Other(event))
        usage = event.get("usage")
        if usage is not None and self._counts.update(openai_usage(usage)):
            parts.append(UsageReport(self._counts.usage))
        return parts

    def finish(self) -> Sequence[Part]:
        return [part for tags in self._tags.values() for part in tags.finish()]

    def _choice(self, choice: dict[str, Json], place: int, event: Json, parts: list[Part]) -> None:
        index = position(choice.get("index"), place)
        said = choice.get("delta")
        if said is None:
            said = choice.get("message")
        message = mapping(said) if said is not None else {"text": choice.get("text")}
        for name in _THOUGHT:
            thought = message.get(name)
            if isinstance(thought, str) and thought:
                parts.append(Thinking(thought))
                break
        for name in _SPOKEN:
            self._content(message.get(name), index, parts)
        for call in items(message.get("tool_calls")):
            self._tool(mapping(call), index, parts)
        if any(value and name not in _KNOWN for name, value in message.items()):
            parts.append(Other(event))
        # Mistral says stop_reason where OpenAI says finish_reason; Jamba has both, and a
        # token number in the first.
        reason = named(choice.get("finish_reason")) or named(choice.get("stop_reason"))
        if reason is not None:
            if index in self._tags:
                parts.extend(self._tags[index].finish())
            parts.append(Stop(reason, index))

    def _content(self, content: Json, index: int, parts: list[Part]) -> None:
        if isinstance(content, str):
            if not content:
                return
            if not self._inline:
                parts.append(Text(content, index))
                return
            tags = self._tags.get(index)
            if tags is None:
                tags = self._tags[index] = InlineReasoning(index)
            parts.extend(tags.feed(content))
        elif isinstance(content, list):
            for block in content:
                self._block(mapping(block), block, index, parts)
        elif content is not None:
            parts.append(Other(content))

    def _block(self, block: dict[str, Json], whole: Json, index: int, parts: list[Part]) -> None:
        kind = block.get("type")
        text = block.get("text")
        thinking = block.get("thinking")
        if kind == "text" and isinstance(text, str):
            if text:
                parts.append(Text(text, index))
        elif kind == "thinking" and isinstance(thinking, str):
            if thinking:
                parts.append(Thinking(thinking))
        elif kind == "thinking" and isinstance(thinking, list):
            parts.extend(
                Thinking(piece) for item in thinking if (piece := string(mapping(item).get("text")))
            )
        else:
            parts.append(Other(whole))

    def _tool(self, call: dict[str, Json], choice: int, parts: list[Part]) -> None:
        function = mapping(call.get("function"))
        call_id = named(call.get("id"))
        name = named(function.get("name"))
        fragment = tool_input(function.get("arguments"))
        number = count(call.get("index"))
        # Mistral leaves the index out; then whatever is named anew is a new call.
        key = (choice, number)
        known = self._tools.get(key)
        renamed = call_id is not None and known is not None and call_id != known.call_id
        unnumbered = number is None and call_id is None and name is not None
        if known is None or renamed or unnumbered:
            tool = self._tools[key] = _Call(self._started, call_id)
            self._started += 1
            parts.append(ToolUse(tool.number, fragment, id=call_id or "", name=name or ""))
        elif fragment:
            parts.append(ToolUse(known.number, fragment))
