"""
The table of model families, and which model belongs to which.

Output fields and defaults are those of AWS, Bedrock user guide, "Inference request
parameters and response fields for foundation models".
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Final

from attrs import evolve

from bedrock_proxy.models.converse import NovaReader
from bedrock_proxy.models.reader import Family, Path, Reader, Reserves
from bedrock_proxy.parts import Json, Part


def _whole(make: Callable[[], Reader]) -> Callable[[Json], Sequence[Part]]:
    """A body is read as the one event of a stream: the readers know both forms."""

    def answer(body: Json) -> Sequence[Part]:
        reader = make()
        return (*reader.read(body), *reader.finish())

    return answer


def _family(
    name: str,
    reader: Callable[[], Reader],
    *output_fields: Path,
    generation_fields: tuple[str, ...] = (),
    default_output: int = 4_096,
    body_has_stream: bool = False,
) -> Family:
    return Family(
        name,
        reader,
        _whole(reader),
        output_fields,
        generation_fields,
        default_output,
        body_has_stream,
    )


def _uncounted(name: str, reserves: Reserves) -> Family:
    return Family(name, _vectors, _whole(_vectors), default_output=0, reserves=reserves)


def _later(load: Callable[[], Callable[[], Reader]]) -> Callable[[], Reader]:
    """
    A reader whose module is loaded by the first answer that needs it: a function that serves one
    model does not wait for the others when it starts.
    """
    loaded = cache(load)  # an import statement looks around anew each time

    def make() -> Reader:
        return loaded()()

    return make


@_later
def _claude() -> Callable[[], Reader]:
    from bedrock_proxy.models.anthropic import ClaudeReader

    return ClaudeReader


@_later
def _completion() -> Callable[[], Reader]:
    from bedrock_proxy.models.completions import CompletionReader

    return CompletionReader


@_later
def _choices() -> Callable[[], Reader]:
    from bedrock_proxy.models.openai import ChoicesReader

    return ChoicesReader


@_later
def _gpt_oss() -> Callable[[], Reader]:
    from bedrock_proxy.models.openai import ChoicesReader

    return partial(ChoicesReader, inline_reasoning=True)


@_later
def _by_shape() -> Callable[[], Reader]:
    from bedrock_proxy.models.shapes import ShapeReader

    return ShapeReader


@_later
def _vectors() -> Callable[[], Reader]:
    from bedrock_proxy.models.shapes import VectorsReader

    return VectorsReader


_MAX_TOKENS: Final = ("max_tokens",)
_MAX_COMPLETION_TOKENS: Final = ("max_completion_tokens",)
_CONVERSE: Final = ("inferenceConfig", "maxTokens")
_TITAN: Final = ("textGenerationConfig", "maxTokenCount")
_MAX_GEN_LEN: Final = ("max_gen_len",)
_TO_SAMPLE: Final = ("max_tokens_to_sample",)

CLAUDE: Final = _family("claude", _claude, _MAX_TOKENS, _TO_SAMPLE)
NOVA: Final = _family("nova", NovaReader, _CONVERSE, ("inferenceConfig", "max_new_tokens"))
TITAN: Final = _family("titan-text", _completion, _TITAN, default_output=512)
LLAMA: Final = _family("llama", _completion, _MAX_GEN_LEN, default_output=512)
COMMAND: Final = _family(
    "cohere-command",
    _completion,
    _MAX_TOKENS,
    generation_fields=("num_generations",),
    default_output=20,
    body_has_stream=True,
)
COMMAND_R: Final = _family("cohere-command-r", _completion, _MAX_TOKENS)
JURASSIC: Final = _family(
    "ai21-j2",
    _completion,
    ("maxTokens",),
    generation_fields=("numResults",),
    default_output=200,
)
CHAT: Final = _family(
    "chat", _choices, _MAX_COMPLETION_TOKENS, _MAX_TOKENS, generation_fields=("n",)
)
GPT_OSS: Final = evolve(
    CHAT,
    name="gpt-oss",
    reader=_gpt_oss,
    answer=_whole(_gpt_oss),
    body_has_stream=True,
)
BY_SHAPE: Final = _family(
    "by-shape",
    _by_shape,
    _MAX_COMPLETION_TOKENS,
    _MAX_TOKENS,
    _TO_SAMPLE,
    _MAX_GEN_LEN,
    _TITAN,
    ("maxTokens",),
    _CONVERSE,
    ("inferenceConfig", "max_new_tokens"),
    generation_fields=("n", "num_generations", "numResults"),
)
MISTRAL: Final = evolve(
    BY_SHAPE, name="mistral", output_fields=(_MAX_TOKENS,), generation_fields=("n",)
)
EMBEDDING: Final = _uncounted("embedding", Reserves.INPUT)
RERANK: Final = _uncounted("rerank", Reserves.INPUT)
MEDIA: Final = _uncounted("media", Reserves.NONE)

_BY_PREFIX: Final[Mapping[str, Family]] = {
    "ai21.j2": JURASSIC,
    "ai21.jamba": evolve(CHAT, name="jamba"),
    "amazon.nova": NOVA,
    "amazon.nova-2-multimodal-embeddings": EMBEDDING,
    "amazon.nova-canvas": MEDIA,
    "amazon.nova-reel": MEDIA,
    "amazon.nova-sonic": MEDIA,
    "amazon.nova-2-sonic": MEDIA,
    "amazon.rerank": RERANK,
    "amazon.titan": TITAN,
    "amazon.titan-embed": EMBEDDING,
    "amazon.titan-image": MEDIA,
    "anthropic.": CLAUDE,
    "cohere.command": COMMAND,
    "cohere.command-a": COMMAND_R,
    "cohere.command-r": COMMAND_R,
    "cohere.embed": EMBEDDING,
    "cohere.rerank": RERANK,
    "deepseek.": evolve(CHAT, name="deepseek"),
    "google.": evolve(CHAT, name="gemma"),
    "luma.": MEDIA,
    "meta.llama": LLAMA,
    "minimax.": evolve(CHAT, name="minimax"),
    "mistral.": MISTRAL,
    "moonshot.": evolve(CHAT, name="kimi"),
    "moonshotai.": evolve(CHAT, name="kimi"),
    "nvidia.": evolve(CHAT, name="nemotron"),
    "openai.": evolve(CHAT, name="openai"),
    "openai.gpt-oss": GPT_OSS,
    "qwen.": evolve(CHAT, name="qwen"),
    "stability.": MEDIA,
    "twelvelabs.marengo": MEDIA,
    "writer.": evolve(CHAT, name="writer"),
    "zai.": evolve(CHAT, name="glm"),
}

_PREFIXES: Final = tuple(sorted(_BY_PREFIX, key=len, reverse=True))


@lru_cache(maxsize=512)  # clients choose the names
def family_of(model: str) -> Family:
    """
    The family of a canonical model id. An unknown name, and an ARN that does not tell its
    model, get the family that reads by shape.
    """
    for prefix in _PREFIXES:
        if model.startswith(prefix):
            return _BY_PREFIX[prefix]
    return BY_SHAPE
