"""How the tests of the readers feed them."""

from collections.abc import Sequence
from typing import Any

from bedrock_proxy.models import (
    ConverseReader,
    family_of,
)
from bedrock_proxy.parts import Json, Part, UsageReport
from bedrock_proxy.usage import Usage

METRICS: Json = {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 3, "outputTokenCount": 4}}

CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
NOVA = "amazon.nova-lite-v1:0"
TITAN = "amazon.titan-text-express-v1"
LLAMA = "meta.llama3-8b-instruct-v1:0"
MISTRAL = "mistral.mistral-large-2407-v1:0"
COMMAND = "cohere.command-text-v14"
COMMAND_R = "cohere.command-r-v1:0"
JAMBA = "ai21.jamba-1-5-mini-v1:0"
GPT_OSS = "openai.gpt-oss-20b-1:0"
WRITER = "writer.palmyra-x5-v1:0"
DEEPSEEK = "deepseek.r1-v1:0"


def read(model: str, *events: Json) -> list[Part]:
    """The parts of a whole stream."""
    reader = family_of(model).reader()
    return [part for event in events for part in reader.read(event)] + list(reader.finish())


def answer(model: str, body: Json) -> list[Part]:
    return list(family_of(model).answer(body))


def converse(*events: tuple[str, Json]) -> list[Part]:
    reader = ConverseReader()
    return [part for kind, payload in events for part in reader.read(kind, payload)]


def last_usage(parts: Sequence[Part]) -> Usage:
    return [part.usage for part in parts if isinstance(part, UsageReport)][-1]


def choice(said: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> Json:
    return {"choices": [{"index": index, "delta": said, "finish_reason": reason}], **more}
