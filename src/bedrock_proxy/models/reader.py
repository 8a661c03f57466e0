"""
What a model family is to the proxy: how its answers are read, and where its request says
how much it may answer.
"""

from collections.abc import Callable, Sequence
from enum import Enum, unique
from typing import Protocol, TypeAlias

from attrs import frozen

from bedrock_proxy.parts import Json, Part
from bedrock_proxy.usage import NOTHING_SAID, Usage


class Reader(Protocol):
    """
    Reads one streamed answer. Made for one request, fed until the end, thrown away.

    Never raises, whatever the JSON: what it does not know becomes
    :class:`~bedrock_proxy.parts.Other`.

    Attributes:
        steady: Whether an event whose one part is a piece of text, read after another like it,
            depends on nothing but itself and leaves nothing behind. Such events need not be
            parsed (:mod:`bedrock_proxy.patterns`). Not so where a text is looked into, as for
            reasoning that is written inline.
    """

    @property
    def steady(self) -> bool: ...

    def read(self, event: Json) -> Sequence[Part]:
        """The parts of one event (the JSON inside a ``chunk`` of InvokeModelWithResponseStream)."""
        ...

    def finish(self) -> Sequence[Part]:
        """Whatever was held back, once the stream has ended."""
        ...


@unique
class Reserves(Enum):
    """Which tokens a call of a family reserves before it is made."""

    INPUT_AND_OUTPUT = "text models"
    INPUT = "embeddings and rerank: there is no output to count"
    NONE = "images and the like are not counted in tokens"


Path: TypeAlias = tuple[str, ...]
"""The keys that lead from a request body to one of its fields."""


@frozen
class Family:
    """
    A group of models that speak alike on the InvokeModel wire.

    Attributes:
        name: For people and for tests.
        reader: Makes a reader for one streamed answer.
        answer: The parts of a whole, non-streaming body, its stop and usage included.
        output_fields: Where the request body states its output maximum: the largest counts.
        generation_fields: Where, at its top, it asks for several generations at once, each of
            which may be that long.
        default_output: The maximum where the body states none, in tokens.
        body_has_stream: Whether the request body has a ``stream`` field of its own, which
            must match the operation that is called.
        reserves: See :class:`Reserves`.
    """

    name: str
    reader: Callable[[], Reader]
    answer: Callable[[Json], Sequence[Part]]
    output_fields: tuple[Path, ...] = ()
    generation_fields: tuple[str, ...] = ()
    default_output: int = 4_096
    body_has_stream: bool = False
    reserves: Reserves = Reserves.INPUT_AND_OUTPUT

    @property
    def reserves_input(self) -> bool:
        """Whether input tokens are estimated and reserved."""
        return self.reserves is not Reserves.NONE

    @property
    def reserves_output(self) -> bool:
        """Whether output tokens are estimated and reserved."""
        return self.reserves is Reserves.INPUT_AND_OUTPUT


class UsageCounts:
    """A reader's running token counts: the last word on each kind wins, nothing is added."""

    __slots__ = ("usage",)

    def __init__(self) -> None:
        self.usage = NOTHING_SAID

    def update(self, said: Usage) -> bool:
        """Take in what was said; whether that changed anything."""
        usage = self.usage.updated(said)
        if usage == self.usage:
            return False
        self.usage = usage
        return True
