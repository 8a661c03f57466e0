"""
What the simulated model says: a deterministic answer, its tokens counted by one rule.

**The rule**: a token is a word (a run of characters that are not white space). Input is
the words of every text in the prompt (system, messages, tool results); output is the words
of the thinking, of the text, and of each tool call's input. The model's maximum cuts the
thinking first, then the text; an answer that was cut calls no tool.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from attrs import evolve, frozen

from bedrock_proxy_adapters.simulator.scripts import Script, Tool
from bedrock_proxy_adapters.simulator.values import Body, Json

Ending: TypeAlias = Literal["end", "length", "tool"]

_WORD: Final = re.compile(r"\S+")
_PIECE: Final = re.compile(r"\s*\S+(?:\s+\Z)?")
_ECHOED_WORDS: Final = 20
LATENCY_MS: Final = 120
FIRST_BYTE_MS: Final = 40
"""Latencies are reported, not measured: answers are the same on every machine."""


def count_words(text: str) -> int:
    """How many tokens *text* is, by the rule."""
    return sum(1 for _ in _WORD.finditer(text))


def first_words(text: str, count: int) -> str:
    """*text* up to the end of its word number *count*."""
    if count <= 0:
        return ""
    last = next(itertools.islice(_WORD.finditer(text), count - 1, None), None)
    return text if last is None or not text[last.end() :].strip() else text[: last.end()]


def pieces_of(text: str) -> tuple[str, ...]:
    """A text in pieces of one word each, white space kept in front of the word."""
    return tuple(_PIECE.findall(text)) or ((text,) if text else ())


@frozen
class Prompt:
    """
    What the simulator reads in a request's body.

    Attributes:
        text: Every text in it, joined.
        last: The texts of the last message: what the default answer quotes.
        max_tokens: The body's own maximum, if it has one.
    """

    text: str
    last: str
    max_tokens: int | None = None


@frozen
class Tokens:
    """Token counts as a model reports them; *input* excludes what the cache knows."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0

    @property
    def written(self) -> int:
        """Everything written to the cache."""
        return self.cache_write + self.cache_write_1h

    @property
    def total(self) -> int:
        """Converse's totalTokens: the cache's tokens included."""
        return self.input + self.output + self.cache_read + self.written


@frozen
class Answer:
    """
    What the model says, whatever the family that says it.

    Attributes:
        model: The model id as called.
        body: The request body it was asked with.
        prompt: What was read in it.
        pieces: The visible text, as stream events cut it.
        thinking: The reasoning, in pieces.
        tools: Tool calls, each with an id.
        ending: Why it stopped.
        stop_reason: A stop reason in the model's own spelling, instead of the usual.
        reports: The token counts, in the order they are reported; none where the script
            leaves usage out.
        guardrail: Whether a guardrail intervened.
    """

    model: str
    body: Body
    prompt: Prompt
    pieces: tuple[str, ...]
    thinking: tuple[str, ...]
    tools: tuple[Tool, ...]
    ending: Ending
    stop_reason: str | None
    reports: tuple[Tokens, ...]
    guardrail: bool

    @property
    def text(self) -> str:
        """The whole visible text."""
        return "".join(self.pieces)

    @property
    def thoughts(self) -> str:
        """The whole reasoning."""
        return "".join(self.thinking)

    @property
    def usage(self) -> Tokens | None:
        """The counts that hold: those reported last."""
        return self.reports[-1] if self.reports else None

    def reason(self, spellings: Mapping[str, str]) -> str:
        """The stop reason, by a family's *spellings* of the usual ones."""
        return self.stop_reason or spellings[self.ending]


def echo(prompt: Prompt, model: str) -> str:
    """The default answer: a few dozen words about the prompt."""
    quoted = " ".join(first_words(prompt.last, _ECHOED_WORDS).split())
    return (
        f"You said: {quoted} This answer comes from a simulated {model}, which repeats the "
        "beginning of what it is told and then adds this sentence, so that there is enough "
        "to stream in several pieces."
    )


def _cut(pieces: tuple[str, ...], words: int) -> tuple[str, ...]:
    whole = "".join(pieces)
    left = len(first_words(whole, words))
    kept: list[str] = []
    for piece in pieces:
        if left <= 0:
            break
        kept.append(piece[:left])
        left -= len(piece)
    return tuple(kept)


def _in_events(words: tuple[str, ...], events: int) -> tuple[str, ...]:
    if events >= len(words):
        spaced = words if words[0][:1].isspace() else (" " + words[0], *words[1:])
        repeated = itertools.islice(itertools.cycle(spaced), events - len(words))
        return words + tuple(repeated)
    bounds = [len(words) * event // events for event in range(events + 1)]
    return tuple("".join(words[a:b]) for a, b in itertools.pairwise(bounds))


def _reports(tokens: Tokens, script: Script) -> tuple[Tokens, ...]:
    match script.usage:
        case "missing":
            return ()
        case "zero":
            return (Tokens(0, 0),)
        case "twice":
            return (tokens, tokens)
        case "cumulative":
            return (evolve(tokens, output=tokens.output // 2), tokens)
        case "normal":
            return (tokens,)


def compose(model: str, body: Body, prompt: Prompt, script: Script) -> Answer:
    """What *model* answers to *prompt* under *script*."""
    if script.pieces is not None:
        pieces = script.pieces
    elif script.text is not None:
        pieces = pieces_of(script.text)
    else:
        pieces = pieces_of(echo(prompt, model))
    if script.events is not None:
        pieces = _in_events(pieces or ("word",), script.events)
    thinking = pieces_of(script.thinking or "")
    tools = tuple(
        tool if tool.id else evolve(tool, id=f"tooluse_simulated{number:012d}")
        for number, tool in enumerate(script.tools)
    )
    ending: Ending = "tool" if tools else "end"
    said = count_words("".join(thinking)) + count_words("".join(pieces))
    if prompt.max_tokens is not None and said > prompt.max_tokens:
        thinking = _cut(thinking, prompt.max_tokens)
        pieces = _cut(pieces, prompt.max_tokens - count_words("".join(thinking)))
        tools, ending = (), "length"
        said = count_words("".join(thinking)) + count_words("".join(pieces))
    said += sum(count_words(tool.input_json) for tool in tools)
    tokens = Tokens(
        count_words(prompt.text) if script.input_tokens is None else script.input_tokens,
        said if script.output_tokens is None else script.output_tokens,
        script.cache_read_tokens,
        script.cache_write_tokens,
        script.cache_write_1h_tokens,
    )
    return Answer(
        model=model,
        body=body,
        prompt=prompt,
        pieces=pieces,
        thinking=thinking,
        tools=tools,
        ending=ending,
        stop_reason=script.stop_reason,
        reports=_reports(tokens, script),
        guardrail=script.guardrail,
    )


def invocation_metrics(tokens: Tokens | None, *, caches: bool = False) -> dict[str, Json]:
    """
    The member that Bedrock adds to a stream's last chunk, where there is usage to report.
    Cache counts of zero are told only where the family *caches*.
    Source: "InvokeModelWithResponseStream" in the Amazon Bedrock API reference.
    """
    if tokens is None:
        return {}
    metrics: dict[str, Json] = {
        "inputTokenCount": tokens.input,
        "outputTokenCount": tokens.output,
        "invocationLatency": LATENCY_MS,
        "firstByteLatency": FIRST_BYTE_MS,
    }
    if caches or tokens.cache_read or tokens.written:
        metrics["cacheReadInputTokenCount"] = tokens.cache_read
        metrics["cacheWriteInputTokenCount"] = tokens.written
    return {"amazon-bedrock-invocationMetrics": metrics}


def guardrail_trace(answer: Answer) -> dict[str, Json]:
    """
    An assessment in which a word filter blocked something, in Converse's spelling.
    Source: GuardrailAssessment in the Amazon Bedrock API reference.
    """
    assessment: dict[str, Json] = {
        "wordPolicy": {
            "customWords": [{"match": "simulated", "action": "BLOCKED", "detected": True}],
            "managedWordLists": [],
        },
    }
    return {
        "modelOutput": [answer.text],
        "outputAssessments": {"simulated": [assessment]},
        "actionReason": "Guardrail blocked.",
    }


def guardrail_members(answer: Answer) -> dict[str, Json]:
    """What a guardrail adds to an InvokeModel body, or to a stream's last chunk."""
    if not answer.guardrail:
        return {}
    trace = guardrail_trace(answer)
    return {
        "amazon-bedrock-guardrailAction": "INTERVENED",
        "amazon-bedrock-trace": {
            "guardrail": {
                "modelOutput": trace["modelOutput"],
                "outputs": [trace["outputAssessments"]],
                "actionReason": trace["actionReason"],
            }
        },
    }
