"""
The families that complete a text in a shape of their own: Titan, Llama, Mistral text,
Cohere Command and Command R, Jurassic-2. One handler for each shape, known by a key
(AWS, Bedrock user guide, "Inference request parameters and response fields").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bedrock_proxy.models.counts import METRICS, cohere_usage
from bedrock_proxy.models.reader import UsageCounts
from bedrock_proxy.models.values import (
    count,
    items,
    mapping,
    named,
    position,
    string,
    tool_input,
)
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, ToolUse, UsageReport
from bedrock_proxy.usage import Usage


class CompletionReader:
    """Reads a text completion, streaming or whole, by the shape of each event."""

    __slots__ = ("_counts", "_said", "_tools")

    steady = True

    def __init__(self) -> None:
        self._counts = UsageCounts()
        self._said = False
        self._tools: dict[int, int] = {}

    def read(self, event: Json) -> Sequence[Part]:
        if not isinstance(event, dict):
            return (Other(event),)
        parts: list[Part] = []
        for key, handler in _HANDLERS.items():
            if key in event:
                handler(self, event, parts)
                return parts
        return () if METRICS in event else (Other(event),)

    def finish(self) -> Sequence[Part]:
        return ()

    def _text(self, text: Json, parts: list[Part], index: int = 0) -> None:
        if isinstance(text, str):
            if text:
                self._said = True
                parts.append(Text(text, index))
        elif text is not None:
            parts.append(Other(text))

    def _report(self, said: Usage, parts: list[Part]) -> None:
        if self._counts.update(said):
            parts.append(UsageReport(self._counts.usage))

    # --- Titan --------------------------------------------------------------------------

    def titan_chunk(self, event: dict[str, Json], parts: list[Part]) -> None:
        self._text(event.get("outputText"), parts, position(event.get("index")))
        said = count(event.get("totalOutputTextTokenCount"))
        reason = named(event.get("completionReason"))
        # Titan states its output count in the last chunk only; a blocked answer ends with
        # it and names no reason.
        if reason is not None or said is not None:
            parts.append(Stop(reason, position(event.get("index"))))
        self._report(Usage(count(event.get("inputTextTokenCount")), said), parts)

    def titan_body(self, event: dict[str, Json], parts: list[Part]) -> None:
        results = items(event["results"])
        if not any("outputText" in mapping(result) for result in results):
            parts.append(Other(event))  # rerank models have results too
            return
        output: int | None = None
        for index, item in enumerate(results):
            result = mapping(item)
            if "outputText" not in result:
                parts.append(Other(item))
                continue
            self._text(result["outputText"], parts, index)
            parts.append(Stop(named(result.get("completionReason")), index))
            said = count(result.get("tokenCount"))
            if said is not None:
                output = said + (output or 0)
        self._report(Usage(count(event.get("inputTextTokenCount")), output), parts)

    # --- Llama, Mistral text, Jurassic-2 ----------------------------------------------------

    def llama(self, event: dict[str, Json], parts: list[Part]) -> None:
        self._text(event["generation"], parts)
        reason = named(event.get("stop_reason"))
        if reason is not None:
            parts.append(Stop(reason))
        said = Usage(
            count(event.get("prompt_token_count")), count(event.get("generation_token_count"))
        )
        self._report(said, parts)

    def mistral(self, event: dict[str, Json], parts: list[Part]) -> None:
        for index, item in enumerate(items(event["outputs"])):
            output = mapping(item)
            if "text" not in output:
                parts.append(Other(item))
                continue
            self._text(output["text"], parts, index)
            reason = named(output.get("stop_reason"))
            if reason is not None:
                parts.append(Stop(reason, index))

    def jurassic(self, event: dict[str, Json], parts: list[Part]) -> None:
        for index, item in enumerate(items(event["completions"])):
            completion = mapping(item)
            data = mapping(completion.get("data"))
            if "text" not in data:
                parts.append(Other(item))
                continue
            self._text(data["text"], parts, index)
            reason = named(mapping(completion.get("finishReason")).get("reason"))
            parts.append(Stop(reason, index))

    # --- Cohere -----------------------------------------------------------------------------

    def command_body(self, event: dict[str, Json], parts: list[Part]) -> None:
        for place, item in enumerate(items(event["generations"])):
            generation = mapping(item)
            if "text" not in generation:
                parts.append(Other(item))
                continue
            index = position(generation.get("index"), place)
            self._text(generation["text"], parts, index)
            parts.append(Stop(named(generation.get("finish_reason")), index))
        self._report(cohere_usage(event.get("meta")), parts)

    def command_chunk(self, event: dict[str, Json], parts: list[Part]) -> None:
        index = position(event.get("index"))
        self._text(event.get("text"), parts, index)
        if event.get("is_finished") is True:
            parts.append(Stop(named(event.get("finish_reason")), index))
            self._report(cohere_usage(mapping(event.get("response")).get("meta")), parts)

    def command_r_event(self, event: dict[str, Json], parts: list[Part]) -> None:
        kind = event["event_type"]
        if kind == "text-generation":
            self._text(event.get("text"), parts)
        elif kind == "stream-end":
            # The whole answer once more; it counts only where nothing was streamed.
            response = mapping(event.get("response"))
            if not self._said:
                self._text(response.get("text"), parts)
            self._calls(response.get("tool_calls"), parts)
            reason = named(event.get("finish_reason")) or named(response.get("finish_reason"))
            parts.append(Stop(reason))
            self._report(cohere_usage(response.get("meta")), parts)
        elif kind == "tool-calls-generation":
            self._said = self._said or named(event.get("text")) is not None
            self._calls(event.get("tool_calls"), parts)
        elif kind == "tool-calls-chunk":
            self._call_chunk(mapping(event.get("tool_call_delta")), event, parts)
        elif kind != "stream-start":
            parts.append(Other(event))

    def command_r_body(self, event: dict[str, Json], parts: list[Part]) -> None:
        self._text(event.get("text"), parts)
        self._calls(event.get("tool_calls"), parts)
        parts.append(Stop(named(event.get("finish_reason"))))
        self._report(cohere_usage(event.get("meta")), parts)

    def _calls(self, calls: Json, parts: list[Part]) -> None:
        if self._tools:
            return  # streamed before
        for place, item in enumerate(items(calls)):
            call = mapping(item)
            self._tools[place] = place
            parts.append(
                ToolUse(
                    place,
                    tool_input(call.get("parameters")),
                    id=string(call.get("id")),
                    name=string(call.get("name")),
                )
            )

    def _call_chunk(self, delta: dict[str, Json], event: Json, parts: list[Part]) -> None:
        key = position(delta.get("index"))
        text = delta.get("text")
        if "name" in delta or "parameters" in delta:
            fragment = string(delta.get("parameters"))
            name = named(delta.get("name"))
            if key not in self._tools:
                self._tools[key] = len(self._tools)
                parts.append(ToolUse(self._tools[key], fragment, id="", name=name or ""))
            elif fragment:
                parts.append(ToolUse(self._tools[key], fragment))
        elif isinstance(text, str):
            self._text(text, parts)
        else:
            parts.append(Other(event))


# What reads an event that has the member named; the most telling comes first.
_HANDLERS: Final[Mapping[str, Callable[[CompletionReader, dict[str, Json], list[Part]], None]]] = {
    "outputText": CompletionReader.titan_chunk,
    "generation": CompletionReader.llama,
    "outputs": CompletionReader.mistral,
    "event_type": CompletionReader.command_r_event,
    "is_finished": CompletionReader.command_chunk,
    "generations": CompletionReader.command_body,
    "results": CompletionReader.titan_body,
    "completions": CompletionReader.jurassic,
    "response_id": CompletionReader.command_r_body,
}

KEYS: Final = tuple(_HANDLERS)
"""The members by which a completion-shaped event is known."""
