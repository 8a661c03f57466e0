"""
What a model family is to the simulator: how it reads a body, and the shapes it answers in.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import frozen

from bedrock_proxy_adapters.simulator.answers import (
    Answer,
    Prompt,
    Tokens,
    guardrail_members,
    invocation_metrics,
)
from bedrock_proxy_adapters.simulator.values import Body, Json, as_list, texts

Stream: TypeAlias = Callable[[Answer], Sequence[Body]]


@frozen
class Family:
    """
    One family of models on the InvokeModel wire.

    Attributes:
        prompt: Reads a request body; raises InvalidBody for one that Bedrock refuses.
        whole: The body of InvokeModel's answer.
        stream: The chunks of InvokeModelWithResponseStream's; None where the family does
            not stream.
        caches: Whether it tells cache counts also where they are zero.
        talks: Whether Converse serves it. Embeddings and rerank models do not talk.
    """

    prompt: Callable[[Body], Prompt]
    whole: Callable[[Answer], Body]
    stream: Stream | None = None
    talks: bool = True
    caches: bool = False


def messages_prompt(body: Body, max_tokens: int | None) -> Prompt:
    """The prompt of a body with ``messages`` and, perhaps, ``system``."""
    messages = as_list(body.get("messages"))
    system = texts(body.get("system"))
    return Prompt(
        text=" ".join((*system, *texts(messages))),
        last=" ".join(texts(messages[-1])) if messages else "",
        max_tokens=max_tokens,
    )


def earlier_reports(answer: Answer) -> list[dict[str, Json]]:
    """Chunks of metrics alone, for all counts but the last, where usage is told repeatedly."""
    return [invocation_metrics(tokens) for tokens in answer.reports[:-1]]


def last_members(answer: Answer) -> dict[str, Json]:
    """What Bedrock adds to a stream's last chunk."""
    return {**guardrail_members(answer), **invocation_metrics(answer.usage)}


def or_null(tokens: Tokens | None, name: str) -> int | None:
    """A count, or null where usage is left out."""
    if tokens is None:
        return None
    return tokens.input if name == "input" else tokens.output
