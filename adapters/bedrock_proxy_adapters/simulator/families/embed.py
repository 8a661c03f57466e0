"""
Models that do not talk: embeddings (Titan, Nova, Cohere) and rerank (Cohere, Amazon).

Vectors come from the text's digest, so equal texts are equal vectors and different texts
are not. Rerank scores by the words that query and document share. Source: each one's page
under "Inference request parameters and response fields" in the Amazon Bedrock user guide.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from bedrock_proxy_adapters.simulator.answers import Answer, Prompt
from bedrock_proxy_adapters.simulator.families.family import Family
from bedrock_proxy_adapters.simulator.values import (
    Body,
    InvalidBody,
    Json,
    as_count,
    as_list,
    as_object,
    as_text,
)


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector of *dimensions* that depends on *text* alone."""
    raw = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    values = [int.from_bytes(raw[at : at + 2], "big") / 32768 - 1 for at in range(0, len(raw), 2)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [round(value / length, 8) for value in values]


def _required(body: Body, *names: str) -> None:
    for name in names:
        if name not in body:
            raise InvalidBody(
                f"Malformed input request: #: required key [{name}] not found, please reformat "
                "your input and try again."
            )


def _titan_prompt(body: Body) -> Prompt:
    _required(body, "inputText")
    text = as_text(body["inputText"])
    return Prompt(text, text)


def _titan(answer: Answer) -> Body:
    embedding = vector(answer.prompt.text, as_count(answer.body.get("dimensions")) or 1024)
    said: dict[str, Json] = {
        "embedding": embedding,
        "embeddingsByType": {"float": embedding},
    }
    if answer.usage is not None:
        said["inputTextTokenCount"] = answer.usage.input
    return said


def _nova_text(body: Body) -> tuple[str, Body]:
    parameters = as_object(body.get("singleEmbeddingParams"))
    return as_text(as_object(parameters.get("text")).get("value")), parameters


def _nova_prompt(body: Body) -> Prompt:
    _required(body, "taskType")
    text, _ = _nova_text(body)
    return Prompt(text, text)


def _nova(answer: Answer) -> Body:
    text, parameters = _nova_text(answer.body)
    dimensions = as_count(parameters.get("embeddingDimension")) or 3072
    return {"embeddings": [{"embeddingType": "TEXT", "embedding": vector(text, dimensions)}]}


def _strings(value: Json) -> list[str]:
    return [as_text(item) for item in as_list(value)]


def _cohere_prompt(body: Body) -> Prompt:
    _required(body, "texts", "input_type")
    text = " ".join(_strings(body["texts"]))
    return Prompt(text, text)


def _cohere(answer: Answer) -> Body:
    given = _strings(answer.body["texts"])
    dimensions = as_count(answer.body.get("output_dimension")) or 1024
    vectors = [vector(text, dimensions) for text in given]
    kinds = _strings(answer.body.get("embedding_types"))
    if not kinds and "embed-v4" in answer.model:
        kinds = ["float"]
    said: dict[str, Json] = {"id": "simulated", "texts": given}
    if kinds:
        by_type = {kind: [_as(kind, item) for item in vectors] for kind in kinds}
        return {**said, "embeddings": by_type, "response_type": "embeddings_by_type"}
    return {**said, "embeddings": vectors, "response_type": "embeddings_floats"}


def _as(kind: str, values: list[float]) -> Sequence[float]:
    if kind == "float":
        return values
    largest = max(abs(value) for value in values)
    scaled = [round(value / largest * 127) for value in values]
    return [value + 128 for value in scaled] if kind == "uint8" else scaled


def _documents(body: Body) -> list[str]:
    return [
        item if isinstance(item, str) else as_text(as_object(item).get("text"))
        for item in as_list(body["documents"])
    ]


def _rerank_prompt(body: Body) -> Prompt:
    _required(body, "query", "documents")
    query = as_text(body["query"])
    return Prompt(" ".join((query, *_documents(body))), query)


def _rerank(answer: Answer) -> Body:
    asked = set(as_text(answer.body["query"]).lower().split())
    scores = [
        (len(asked & set(document.lower().split())) / (len(asked) or 1), index)
        for index, document in enumerate(_documents(answer.body))
    ]
    scores.sort(key=lambda scored: (-scored[0], scored[1]))
    wanted = as_count(answer.body.get("top_n")) or len(scores)
    return {
        "results": [
            {"index": index, "relevance_score": round(score, 7)} for score, index in scores[:wanted]
        ]
    }


TITAN_EMBED: Final = Family(_titan_prompt, _titan, talks=False)
NOVA_EMBED: Final = Family(_nova_prompt, _nova, talks=False)
COHERE_EMBED: Final = Family(_cohere_prompt, _cohere, talks=False)
RERANK: Final = Family(_rerank_prompt, _rerank, talks=False)
