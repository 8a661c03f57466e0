"""
Reading by shape: for models whose name does not tell, or tells nothing known.
"""

from collections.abc import Callable, Sequence
from typing import Final

from bedrock_proxy.models import anthropic, completions, converse, responses
from bedrock_proxy.models.counts import METRICS, cohere_usage
from bedrock_proxy.models.openai import DONE, ChoicesReader
from bedrock_proxy.models.reader import Reader
from bedrock_proxy.models.values import count, mapping, string
from bedrock_proxy.parts import Json, Other, Part, UsageReport
from bedrock_proxy.usage import Usage

_BY_KEY: Final[tuple[tuple[str, Callable[[], Reader]], ...]] = (
    ("completion", anthropic.ClaudeReader),
    *((name, converse.NovaReader) for name in converse.EVENT_TYPES),
    ("output", converse.NovaReader),
    *((name, completions.CompletionReader) for name in completions.KEYS),
)


class ShapeReader:
    """
    Reads whatever comes: each event goes to the reader whose shape it has.

    Chat choices that say they come from gpt-oss have its inline reasoning.
    """

    __slots__ = ("_readers",)

    steady = False  # one of its readers may look into the text

    def __init__(self) -> None:
        self._readers: dict[Callable[[], Reader], Reader] = {}

    def read(self, event: Json) -> Sequence[Part]:
        if not isinstance(event, dict):
            return () if event == DONE else (Other(event),)
        kind = event.get("type")
        if isinstance(kind, str) and kind in anthropic.EVENT_TYPES:
            return self._reader(anthropic.ClaudeReader).read(event)
        if event.get("object") == "response" or (
            isinstance(kind, str) and kind.startswith(responses.PREFIX)
        ):
            return self._reader(responses.ResponsesReader).read(event)
        if "choices" in event:
            inline = "gpt-oss" in string(event.get("model"))
            return self._reader(_inline_choices if inline else ChoicesReader).read(event)
        for key, make in _BY_KEY:
            if key in event:
                return self._reader(make).read(event)
        return () if METRICS in event else vectors_answer(event)

    def finish(self) -> Sequence[Part]:
        return [part for reader in self._readers.values() for part in reader.finish()]

    def _reader(self, make: Callable[[], Reader]) -> Reader:
        reader = self._readers.get(make)
        if reader is None:
            reader = self._readers[make] = make()
        return reader


def _inline_choices() -> Reader:
    return ChoicesReader(inline_reasoning=True)


def vectors_answer(body: Json) -> Sequence[Part]:
    """The parts of an answer that is no text (embeddings, ranks, images): its usage, and itself."""
    source = mapping(body)
    usage = Usage(input_tokens=count(source.get("inputTextTokenCount")))
    usage = usage.completed(cohere_usage(source.get("meta")))
    other = Other(body)
    return (other,) if usage.is_empty else (other, UsageReport(usage))


class VectorsReader:
    """Reads answers that are no text: they come whole."""

    __slots__ = ()

    steady = False

    def read(self, event: Json) -> Sequence[Part]:
        return vectors_answer(event)

    def finish(self) -> Sequence[Part]:
        return ()
