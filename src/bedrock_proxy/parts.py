"""
What a model's answer is made of, whichever family spoke it.

Readers (``models/``) turn upstream JSON into parts; writers (``dialects/``) turn parts
into client bytes. A streamed answer is the same parts in smaller pieces: concatenating
the pieces of a stream gives the parts of the whole answer.
"""

from typing import TypeAlias

from attrs import frozen

from bedrock_proxy.usage import Usage

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
"""Any value that JSON can say."""


@frozen
class Text:
    """
    A piece of visible text.

    Attributes:
        text: The piece, exactly as the model sent it.
        index: Which generation it belongs to; 0 unless the client asked for several.
    """

    text: str
    index: int = 0


@frozen
class Thinking:
    """
    A piece of the model's reasoning: text, or the signature that lets it be sent back.

    Attributes:
        text: The piece of reasoning; empty where only a signature came.
        signature: The signature or the encrypted (redacted) reasoning, if any came.
        redacted: Whether *signature* holds redacted reasoning.
    """

    text: str = ""
    signature: str | None = None
    redacted: bool = False


@frozen
class ToolUse:
    """
    A piece of one tool call. The first piece names it; the rest add to its input.

    Attributes:
        index: Tells parallel calls apart; counts tool calls from 0 in order of appearance.
        input_json: A fragment of the input's JSON text; the fragments of one index
            concatenated are the input (empty means ``{}``).
        id: The call's id, on the first piece.
        name: The tool's name, on the first piece.
    """

    index: int
    input_json: str = ""
    id: str | None = None
    name: str | None = None


@frozen
class Stop:
    """
    A generation has ended: the stream is whole once one was seen.

    Attributes:
        reason: In the model's own spelling; None where it ended without naming one.
        index: Which generation.
    """

    reason: str | None
    index: int = 0


@frozen
class UsageReport:
    """The model's own token counts so far; a later report replaces an earlier one."""

    usage: Usage


@frozen
class Other:
    """An event no reader recognised, as it came: passed on, never dropped."""

    event: Json


Part: TypeAlias = Text | Thinking | ToolUse | Stop | UsageReport | Other
