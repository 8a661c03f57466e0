"""
Token counts in the spellings of the wire.
"""

from collections.abc import Iterable
from typing import Final

from bedrock_proxy.http import Headers
from bedrock_proxy.models.values import count, items, mapping
from bedrock_proxy.parts import Json
from bedrock_proxy.usage import Usage

METRICS: Final = "amazon-bedrock-invocationMetrics"
"""The member that Bedrock adds to the last event of a stream."""


def invocation_metrics(event: Json) -> Usage | None:
    """
    Bedrock's own counts in the last event of InvokeModelWithResponseStream, or None.

    They are a second opinion: for Claude's tool streams they may state fewer output tokens
    than the model's own figures.
    """
    metrics = mapping(event).get(METRICS)
    if not isinstance(metrics, dict):
        return None
    return Usage(
        input_tokens=count(metrics.get("inputTokenCount")),
        output_tokens=count(metrics.get("outputTokenCount")),
        cache_read_tokens=count(metrics.get("cacheReadInputTokenCount")),
        cache_write_5m_tokens=count(metrics.get("cacheWriteInputTokenCount")),
    )


_HEADERS: Final = {
    "x-amzn-bedrock-input-token-count": 0,
    "x-amzn-bedrock-output-token-count": 1,
    "x-amzn-bedrock-cache-read-input-token-count": 2,
    "x-amzn-bedrock-cache-write-input-token-count": 3,
}


def header_usage(headers: Headers) -> Usage | None:
    """The counts in the response headers of InvokeModel, or None where there are none."""
    counts: list[int | None] | None = None
    for name, value in headers:
        field = _HEADERS.get(name)
        if field is not None and value.isascii() and value.isdigit() and len(value) < 16:
            counts = counts or [None, None, None, None]
            counts[field] = int(value)
    return None if counts is None else Usage(*counts)


def _first(source: dict[str, Json], names: Iterable[str]) -> int | None:
    for name in names:
        number = count(source.get(name))
        if number is not None:
            return number
    return None


def _writes(
    total: int | None, short: int | None, long: int | None
) -> tuple[int | None, int | None]:
    """Cache writes by lifetime. Without a breakdown they had the default one, five minutes."""
    if short is None and total is not None:
        short = max(0, total - (long or 0))
    return short, long


def anthropic_usage(usage: Json, so_far: Usage) -> Usage:
    """
    ``usage`` as the Anthropic Messages API writes it; *so_far* tells how earlier events
    broke the cache writes down, for the later ones that state their total only.
    """
    source = mapping(usage)
    split = mapping(source.get("cache_creation"))
    total = count(source.get("cache_creation_input_tokens"))
    short = count(split.get("ephemeral_5m_input_tokens"))
    long = count(split.get("ephemeral_1h_input_tokens"))
    if short is None and long is None and total is not None:
        long = so_far.cache_write_1h_tokens
    short, long = _writes(total, short, long)
    return Usage(
        count(source.get("input_tokens")),
        count(source.get("output_tokens")),
        count(source.get("cache_read_input_tokens")),
        short,
        long,
    )


def converse_usage(usage: Json) -> Usage:
    """
    ``TokenUsage`` of Converse, and Nova's own spelling of the same on the invoke wire
    (``…TokenCount``).
    """
    source = mapping(usage)
    by_lifetime: dict[Json, int | None] = {}
    for detail in items(source.get("cacheDetails")):
        lifetime = mapping(detail).get("ttl")
        if isinstance(lifetime, str):
            by_lifetime[lifetime] = count(mapping(detail).get("inputTokens"))
    short, long = _writes(
        _first(source, ("cacheWriteInputTokens", "cacheWriteInputTokenCount")),
        by_lifetime.get("5m"),
        by_lifetime.get("1h"),
    )
    return Usage(
        input_tokens=count(source.get("inputTokens")),
        output_tokens=count(source.get("outputTokens")),
        cache_read_tokens=_first(source, ("cacheReadInputTokens", "cacheReadInputTokenCount")),
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
    )


def openai_usage(usage: Json) -> Usage:
    """
    ``usage`` as OpenAI's APIs write it (Chat Completions, and Responses in other words),
    where the prompt's count includes cached tokens.
    """
    source = mapping(usage)
    prompt = _first(source, ("prompt_tokens", "input_tokens"))
    details = mapping(source.get("prompt_tokens_details", source.get("input_tokens_details")))
    cached = count(details.get("cached_tokens"))
    if prompt is not None and cached is not None:
        cached = min(cached, prompt)
        prompt -= cached
    return Usage(
        input_tokens=prompt,
        output_tokens=_first(source, ("completion_tokens", "output_tokens")),
        cache_read_tokens=cached,
    )


def cohere_usage(meta: Json) -> Usage:
    """
    ``meta`` as Cohere writes it. ``billed_units`` is what is charged (and what Bedrock's
    metrics state); ``tokens`` beside it counts the prompt's template too.
    """
    billed = mapping(mapping(meta).get("billed_units"))
    return Usage(
        input_tokens=count(billed.get("input_tokens")),
        output_tokens=count(billed.get("output_tokens")),
    )
