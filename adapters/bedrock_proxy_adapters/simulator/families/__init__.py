"""
The model families the simulator speaks for, and which model id belongs to which.
"""

import re
from collections.abc import Mapping
from typing import Final

from bedrock_proxy_adapters.simulator.families.chat import COMMAND_R, JAMBA, MISTRAL, OPENAI
from bedrock_proxy_adapters.simulator.families.claude import CLAUDE
from bedrock_proxy_adapters.simulator.families.embed import (
    COHERE_EMBED,
    NOVA_EMBED,
    RERANK,
    TITAN_EMBED,
)
from bedrock_proxy_adapters.simulator.families.family import Family
from bedrock_proxy_adapters.simulator.families.nova import NOVA, TITAN
from bedrock_proxy_adapters.simulator.families.text import COMMAND, DEEPSEEK, J2, LLAMA
from bedrock_proxy_adapters.simulator.values import Body

FAMILIES: Final[Mapping[str, Family]] = {
    "claude": CLAUDE,
    "nova": NOVA,
    "nova-embed": NOVA_EMBED,
    "titan": TITAN,
    "titan-embed": TITAN_EMBED,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "command": COMMAND,
    "command-r": COMMAND_R,
    "cohere-embed": COHERE_EMBED,
    "rerank": RERANK,
    "jamba": JAMBA,
    "j2": J2,
    "deepseek": DEEPSEEK,
    "openai": OPENAI,
}
"""Families by name."""

_BY_PREFIX: Final = (
    ("anthropic.", "claude"),
    ("amazon.nova-2-multimodal-embeddings", "nova-embed"),
    ("amazon.nova", "nova"),
    ("amazon.titan-embed", "titan-embed"),
    ("amazon.titan-t", "titan"),
    ("amazon.rerank", "rerank"),
    ("meta.", "llama"),
    ("mistral.mistral-", "mistral"),
    ("mistral.mixtral-", "mistral"),
    ("mistral.", "openai"),
    ("cohere.embed", "cohere-embed"),
    ("cohere.rerank", "rerank"),
    ("cohere.command-r", "command-r"),
    ("cohere.command", "command"),
    ("ai21.jamba", "jamba"),
    ("ai21.j2", "j2"),
    ("deepseek.r1", "deepseek"),
    ("deepseek.", "openai"),
    ("openai.", "openai"),
    ("qwen.", "openai"),
    ("google.", "openai"),
    ("minimax.", "openai"),
    ("moonshot", "openai"),
    ("nvidia.", "openai"),
    ("writer.", "openai"),
    ("zai.", "openai"),
)

_BY_MEMBER: Final = (
    ("anthropic_version", "claude"),
    ("max_tokens_to_sample", "claude"),
    ("textGenerationConfig", "titan"),
    ("inputText", "titan-embed"),
    ("inferenceConfig", "nova"),
    ("schemaVersion", "nova"),
    ("max_gen_len", "llama"),
    ("texts", "cohere-embed"),
    ("documents", "rerank"),
    ("message", "command-r"),
)

_REGION: Final = re.compile(r"(?:us|eu|apac|jp|au|ca|us-gov|global)\.")
_ARN: Final = re.compile(r"arn:aws[a-z-]*:(?:bedrock|sagemaker):[a-z0-9-]*:\d*:[a-z-]+/(.+)")


def family_named(model_id: str) -> str | None:
    """
    The family a model id belongs to by its name, inference profiles and ARNs included; an
    empty string for an ARN whose model its name does not tell, None for an unknown model.
    """
    arn = _ARN.fullmatch(model_id)
    name = arn.group(1).rpartition("/")[2] if arn else model_id
    region = _REGION.match(name)
    plain = name[region.end() :] if region else name
    for prefix, family in _BY_PREFIX:
        if plain.startswith(prefix):
            return family
    return "" if arn else None


def family_of_body(body: Body) -> str:
    """The family that a body was written for, where the model id does not tell."""
    for member, family in _BY_MEMBER:
        if member in body:
            return family
    return "openai"


__all__ = ["FAMILIES", "Family", "family_named", "family_of_body"]
