"""
What a call may cost, before it is made: the tokens that are reserved.
"""

from collections.abc import Iterable
from typing import Final, cast

from bedrock_proxy.models.families import BY_SHAPE
from bedrock_proxy.models.reader import Family, Path
from bedrock_proxy.models.values import count
from bedrock_proxy.parts import Json
from bedrock_proxy.usage import Usage

BYTES_PER_TOKEN: Final = 3
"""UTF-8 bytes of text that are reckoned as one token; real text has more bytes a token."""
BLOCK_TOKENS: Final = 1_600
"""Tokens for an image or a document (Anthropic, "Vision": at most about 1,600 an image)."""

MAX_RESERVED: Final = 10**9
"""
The most tokens of a kind that are reserved for one call, whatever its body says: a thousand times
what any model of Bedrock reads or writes in one, and far from where any store stops counting.
"""

_CONVERSE_OUTPUT: Final[Path] = ("inferenceConfig", "maxTokens")
"""Where a Converse body states its output maximum, whatever the model."""
_CONVERSE_FREE: Final = 4_096
"""
What a Converse call without ``maxTokens`` reserves at least: it may answer as long as the
model can (``InferenceConfiguration``), whatever the model's own wire defaults to.
"""
_CONVERSE_OWN: Final = "additionalModelRequestFields"
"""Where a Converse body holds members of the model's own."""

_BLOCK_TYPES: Final = frozenset(
    {"image", "document", "image_url", "input_image", "file", "video", "audio", "input_audio"}
)
_WRAPPERS: Final = frozenset({"image", "document", "video", "audio"})
_BINARY: Final = frozenset({"data", "bytes", "file_data", "b64_json", "base64String"})
_OPAQUE: Final = frozenset({"signature", "redactedContent"})
"""Members that hold base64 beside the text of a reasoning block."""
_APART: Final = _OPAQUE.union(_WRAPPERS)
_CONTAINERS: Final = (dict, list)
_NUMBERS: Final = (int, float)
_IMAGE_LISTS: Final = frozenset({"images", "inputImage"})
"""Top-level members that hold bare base64 images (Llama, Cohere Embed; Titan Embed)."""
_TEXT_MEMBERS: Final = frozenset(
    {"messages", "prompt", "inputText", "message", "input", "texts", "inputs", "query"}
)


def estimate(family: Family, body: Json) -> Usage:
    """
    The tokens to reserve for a request body of *family*.

    Input is ⌈UTF-8 bytes of text strings ÷ 3⌉ + 1,600 for each image or document block,
    base64 never counted as text; output is the largest maximum that the body states, else the
    family's default, times the generations it asks for. What a family does not reserve is 0,
    and so is everything for an unknown model whose body holds no text to complete. Neither is
    more than :data:`MAX_RESERVED`.
    """
    if family is BY_SHAPE and not (isinstance(body, dict) and not _TEXT_MEMBERS.isdisjoint(body)):
        return _NOTHING
    most = _stated(body, family.output_fields)
    return _usage(family, body, family.default_output if most is None else most, body)


def estimate_converse(family: Family, body: Json) -> Usage:
    """
    The tokens to reserve for a Converse body; see :func:`estimate`.

    It states its maximum in one place, whatever the model. What stands beside that in the
    model's own words can add to what is reserved, but not lower it.
    """
    most = _stated(body, (_CONVERSE_OUTPUT,))
    if most is None:
        most = max(family.default_output, _CONVERSE_FREE)
    own: Json = body.get(_CONVERSE_OWN) if isinstance(body, dict) else None
    if own:
        most = max(most, _stated(own, family.output_fields) or 0)
    return _usage(family, body, most, own)


_NOTHING: Final = Usage(input_tokens=0, output_tokens=0)


def _usage(family: Family, body: Json, most: int, own: Json) -> Usage:
    """*most*: output tokens of one generation; *own*: what says how many there are to be."""
    if not family.reserves_input:
        return _NOTHING
    text_bytes, blocks = _weigh(body)
    tokens = min(-(-text_bytes // BYTES_PER_TOKEN) + blocks * BLOCK_TOKENS, MAX_RESERVED)
    if not family.reserves_output:
        return Usage(tokens, 0)
    return Usage(tokens, min(most * _generations(family, own), MAX_RESERVED))


def _stated(body: Json, paths: tuple[Path, ...]) -> int | None:
    """The largest number that *body* states in one of these places; None where in none."""
    most: int | None = None
    for path in paths:
        at: Json = body
        for key in path:
            at = at.get(key) if isinstance(at, dict) else None
        number = _number(at)
        if number is not None and (most is None or number > most):
            most = number
    return most


def _generations(family: Family, body: Json) -> int:
    most = 1
    if isinstance(body, dict):
        for name in family.generation_fields:
            most = max(most, _number(body.get(name)) or 0)
    return most


def _number(value: Json) -> int | None:
    """A number of tokens or generations, however large; None where none was said."""
    number = count(value)
    if number is None and type(value) in _NUMBERS and cast("float", value) > 0:
        return MAX_RESERVED  # more than can be believed is not the same as nothing
    return number


def _weigh(body: Json) -> tuple[int, int]:
    """The bytes of text and the number of blocks. A loop, for bodies may be deep and large."""
    size = 0
    blocks = 0
    rest: list[Json] = []
    within: list[Json] = []  # what is in a block, by its type or its wrapper
    if isinstance(body, dict) and not _IMAGE_LISTS.isdisjoint(body) and (images := _images(body)):
        blocks = images
        body = {key: value for key, value in body.items() if key not in _IMAGE_LISTS}
    rest.append(body if isinstance(body, _CONTAINERS) else [body])
    while rest or within:
        in_block = not rest
        node = within.pop() if in_block else rest.pop()
        values: Iterable[Json]
        if isinstance(node, dict):
            kind = node.get("type")
            if isinstance(kind, str) and kind in _BLOCK_TYPES:
                blocks += 1
                in_block = True
            if in_block or kind == "redacted_thinking" or not _APART.isdisjoint(node):
                binary = (in_block and kind != "text") or kind == "redacted_thinking"
                inner = within if in_block else rest
                for key, value in node.items():
                    if isinstance(value, str):
                        if key in _WRAPPERS or not _is_base64(key, value, binary):
                            size += len(value) if value.isascii() else _utf8(value)
                    elif value and isinstance(value, _CONTAINERS):
                        if key in _WRAPPERS and isinstance(value, dict) and "source" in value:
                            blocks += 1
                            within.append(value)
                        else:
                            inner.append(value)
                continue
            values = node.values()
        else:
            values = cast("list[Json]", node)
        inner = within if in_block else rest
        for value in values:
            if isinstance(value, str):
                size += len(value) if value.isascii() else _utf8(value)
            elif value and isinstance(value, _CONTAINERS):
                inner.append(value)
    return size, blocks


def _images(body: dict[str, Json]) -> int:
    """How many bare images a body holds at its top."""
    found = 0
    for name in _IMAGE_LISTS:
        images = body.get(name)
        if isinstance(images, str | list):
            found += len(images) if isinstance(images, list) else 1
    return found


def _is_base64(key: str, value: str, binary: bool) -> bool:
    """Whether a string is base64, by its name and by the block it is in."""
    if key in _OPAQUE:
        return True
    return binary and (key in _BINARY or value.startswith("data:"))


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
