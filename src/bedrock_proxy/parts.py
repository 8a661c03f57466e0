"""
What a model's answer is made of, whichever family spoke it.

Readers (``models/``) turn upstream JSON into parts; writers (``dialects/``) turn parts
into client bytes. A streamed answer is the same parts in smaller pieces: concatenating
the pieces of a stream gives the parts of the whole answer.
"""

from typing import TypeAlias

from bedrock_proxy.slotted import Slotted
from bedrock_proxy.usage import Usage

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
"""Any value that JSON can say."""


class Text(Slotted):
    """
    A piece of visible text.

    Attributes:
        text: The piece, exactly as the model sent it.
        index: Which generation it belongs to; 0 unless the client asked for several.
    """

    __slots__ = ("index", "text")

    def __init__(self, text: str, index: int = 0) -> None:
        self.text = text
        self.index = index


class Thinking(Slotted):
    """
    A piece of the model's reasoning: text, or the signature that lets it be sent back.

    Attributes:
        text: The piece of reasoning; empty where only a signature came.
        signature: The signature or the encrypted (redacted) reasoning, if any came.
        redacted: Whether *signature* holds redacted reasoning.
    """

    __slots__ = ("redacted", "signature", "text")

    def __init__(
        self, text: str = "", signature: str | None = None, redacted: bool = False
    ) -> None:
        self.text = text
        self.signature = signature
        self.redacted = redacted


class ToolUse(Slotted):
    """
    A piece of one tool call. The first piece names it; the rest add to its input.

    Attributes:
        index: Tells parallel calls apart; counts tool calls from 0 in order of appearance.
        input_json: A fragment of the input's JSON text; the fragments of one index
            concatenated are the input (empty means ``{}``).
        id: The call's id, on the first piece.
        name: The tool's name, on the first piece.
    """

    __slots__ = ("id", "index", "input_json", "name")

    def __init__(
        self,
        index: int,
        input_json: str = "",
        id: str | None = None,  # noqa: A002 -- as every family calls it
        name: str | None = None,
    ) -> None:
        self.index = index
        self.input_json = input_json
        self.id = id
        self.name = name


class Stop(Slotted):
    """
    A generation has ended: the stream is whole once one was seen.

    Attributes:
        reason: In the model's own spelling; None where it ended without naming one.
        index: Which generation.
    """

    __slots__ = ("index", "reason")

    def __init__(self, reason: str | None, index: int = 0) -> None:
        self.reason = reason
        self.index = index


class UsageReport(Slotted):
    """The model's own token counts so far; a later report replaces an earlier one."""

    __slots__ = ("usage",)

    def __init__(self, usage: Usage) -> None:
        self.usage = usage


class Other(Slotted):
    """An event no reader recognised, as it came: passed on, never dropped."""

    __slots__ = ("event",)

    def __init__(self, event: Json) -> None:
        self.event = event


Part: TypeAlias = Text | Thinking | ToolUse | Stop | UsageReport | Other
