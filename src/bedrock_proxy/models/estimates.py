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
_PLACES: Final = frozenset(
    {
        *("messages", "system", "content", "toolResult", "guardContent"),
        *("inputs", "singleEmbeddingParams"),  # Cohere Embed, Nova embeddings
        *("inferenceConfig", "textGenerationConfig", "guardrailConfig", "cachePoint", "thinking"),
    }
)
"""
Members whose inside the APIs define: there they take blocks, and names are their own. What is under
any other name (a tool's input, a result's JSON, a schema) is the client's, and the model reads all
of it, whatever it looks like.
"""
_API_NAMES: Final = 256
"""Bytes of the names of an object that an API defines, at most."""
_HOLDERS: Final = frozenset({"source", "image_url", "input_audio", "file"})
"""Objects of a block that hold its medium."""
_BASE64: Final = frozenset({"data", "bytes"})
_DATA_URLS: Final = frozenset({"url", "image_url", "file_data", *_WRAPPERS})
_OPAQUE: Final = {"thinking": "signature", "redacted_thinking": "data"}
"""Blocks of Claude's with a member that only Claude can read (Anthropic, "Extended thinking")."""
_REASONING: Final = "reasoningContent"
"""The same of a Converse body."""
_APART_TYPES: Final = _BLOCK_TYPES.union(_OPAQUE)
_APART: Final = _WRAPPERS.union((_REASONING,))
_BINARY_FORMATS: Final = frozenset({"pdf", "doc", "docx", "xls", "xlsx"})
"""The formats of a ``DocumentBlock`` that are not text."""
_BINARY_BEGINS: Final = ("JVBERi", "UEsDB", "0M8R4")
"""How PDF, ZIP (docx, xlsx) and OLE files (doc, xls) begin, in base64."""
_BINARY_URLS: Final = tuple(
    f"data:{media}"
    for media in ("image/", "audio/", "video/", "application/pdf", "application/vnd.")
)
_TEXT_URLS: Final = ("data:image/svg",)
_CONTAINERS: Final = (dict, list)
_NUMBERS: Final = (int, float)
_VALUE_BYTES: Final = 2
"""
Counted for each value beside its own: quotation marks, colon and comma, ``null``, brackets that
hold nothing.
"""
_DOUBLE_BYTES: Final = 8
"""Counted for a number that is no integer. It can have 24 digits, and has two or three."""
_BITS_A_DIGIT: Final = 3
_IMAGE_LISTS: Final = frozenset({"images", "inputImage"})
"""Top-level members that hold bare base64 images (Llama, Cohere Embed; Titan Embed)."""
_TEXT_MEMBERS: Final = frozenset(
    {"messages", "prompt", "inputText", "message", "input", "texts", "inputs", "query"}
)


def estimate(family: Family, body: Json) -> Usage:
    """
    The tokens to reserve for a request body of *family*.

    Input is ⌈UTF-8 bytes ÷ 3⌉ + 1,600 for each image or document block. What counts are strings
    and, in all that is the client's own (schemas, a tool's input, a result's JSON), the names of
    members, numbers, and a little for each value. Left out is only what the API takes as base64 at
    that very place: media, signatures, redacted thinking. A text that is sent as the bytes of a
    document counts decoded. Output is the largest maximum that the body states, else the
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
    """The bytes that are read and the number of blocks. Loops, for bodies may be deep and large."""
    size = 0
    blocks = 0
    api: list[Json] = []  # where the API takes blocks
    own: list[Json] = []  # what is the client's own
    if isinstance(body, dict) and not _IMAGE_LISTS.isdisjoint(body):
        blocks = _images(body, own)
        body = {key: value for key, value in body.items() if key not in _IMAGE_LISTS}
    api.append(body if isinstance(body, _CONTAINERS) else [body])
    while api:
        node = api.pop()
        if isinstance(node, dict):
            names = "".join(node)
            if len(names) > _API_NAMES:
                size += _utf8(names)
            kind = node.get("type")
            if (isinstance(kind, str) and kind in _APART_TYPES) or not _APART.isdisjoint(node):
                more, found = _block(node, kind, api, own)
                size += more
                blocks += found
                continue
            for key, value in node.items():
                if isinstance(value, str):
                    size += len(value) if value.isascii() else _utf8(value)
                elif value and isinstance(value, _CONTAINERS):
                    (api if key in _PLACES else own).append(value)
                elif isinstance(value, int) and value > MAX_RESERVED:
                    size += _digits(value)  # a setting is small
        else:
            for value in cast("list[Json]", node):
                if isinstance(value, str):
                    size += len(value) if value.isascii() else _utf8(value)
                elif value:
                    size += _one(value, api)
    while own:
        node = own.pop()
        size += _VALUE_BYTES * len(cast("list[Json]", node))
        values: Iterable[Json]
        if isinstance(node, dict):
            names = "".join(node)
            size += len(names) if names.isascii() else _utf8(names)
            values = node.values()
        else:
            values = cast("list[Json]", node)
        for value in values:
            if isinstance(value, str):
                size += len(value) if value.isascii() else _utf8(value)
            elif value:  # what is empty has been counted as a value
                if isinstance(value, _CONTAINERS):
                    own.append(value)
                elif isinstance(value, float):
                    size += _DOUBLE_BYTES
                else:
                    size += value.bit_length() // _BITS_A_DIGIT
    return size, blocks


def _block(node: dict[str, Json], kind: Json, api: list[Json], own: list[Json]) -> tuple[int, int]:
    """
    The bytes that are read of an object with something in it that is not read as it is, but for
    its names; and how many blocks it is.
    """
    medium = isinstance(kind, str) and kind in _BLOCK_TYPES
    opaque = _OPAQUE.get(kind) if isinstance(kind, str) else None
    size = 0
    blocks = int(medium)
    for key, value in node.items():
        if isinstance(value, str) and (key == opaque or (medium and key in _DATA_URLS)):
            size += 0 if key == opaque else _data_url(value)
        elif isinstance(value, dict) and key in _WRAPPERS and "source" in value:
            blocks += 1
            size += _wrapped(value, api, own, is_document=key == "document")
        elif isinstance(value, dict) and medium and key in _HOLDERS:
            media = value.get("media_type")
            decoded = value.get("type", "base64") == "base64"
            is_text = not decoded or (isinstance(media, str) and media.startswith("text/"))
            size += _held(value, api, own, is_text=is_text, decoded=decoded)
        elif isinstance(value, dict) and key == _REASONING:
            size += _reasoning(value, own)
        else:
            size += _one(value, api if key in _PLACES else own)
    return size, blocks


def _wrapped(node: dict[str, Json], api: list[Json], own: list[Json], *, is_document: bool) -> int:
    """What is read of an ``ImageBlock``, ``DocumentBlock``, ``VideoBlock`` or ``AudioBlock``."""
    size = _names(node)
    for key, value in node.items():
        if key != "source" or not isinstance(value, dict):
            size += _one(value, own)
            continue
        is_text = is_document
        if is_document:
            data = value.get("bytes")
            known = node.get("format")
            if known is None:
                is_text = not (isinstance(data, str) and data.startswith(_BINARY_BEGINS))
            else:
                is_text = not (isinstance(known, str) and known in _BINARY_FORMATS)
        size += _held(value, api, own, is_text=is_text, decoded=True)
    return size


def _held(
    node: dict[str, Json], api: list[Json], own: list[Json], *, is_text: bool, decoded: bool
) -> int:
    """
    What is read of the object that holds a medium.

    Args:
        is_text: Whether what stands for the medium is read as text.
        decoded: Whether it is base64 then, too.
    """
    size = _names(node)
    for key, value in node.items():
        if isinstance(value, str) and key in _BASE64:
            if is_text:
                size += _decoded(value) if decoded else _utf8(value)
        elif isinstance(value, str) and key in _DATA_URLS:
            size += _data_url(value)
        else:
            size += _one(value, api if key in _PLACES else own)
    return size


def _reasoning(node: dict[str, Json], own: list[Json]) -> int:
    """What is read of a ``ReasoningContentBlock``."""
    size = _names(node)
    for key, value in node.items():
        if key == "reasoningText" and isinstance(value, dict):
            size += _names(value)
            for name, part in value.items():
                size += 0 if name == "signature" and isinstance(part, str) else _one(part, own)
        elif key != "redactedContent" or not isinstance(value, str):
            size += _one(value, own)
    return size


def _one(value: Json, rest: list[Json]) -> int:
    """The bytes of one value; what is more than one goes to *rest*."""
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, _CONTAINERS):
        rest.append(value)
        return 0
    return _digits(value)


def _names(node: dict[str, Json]) -> int:
    """The bytes of the names of an object that an API defines."""
    names = "".join(node)
    return _utf8(names) if len(names) > _API_NAMES else 0


def _digits(value: Json) -> int:
    """About as many bytes as a number has; what is no number has none of its own."""
    if isinstance(value, int):
        return value.bit_length() // _BITS_A_DIGIT
    return _DOUBLE_BYTES if isinstance(value, float) else 0


def _data_url(value: str) -> int:
    """What is read of a URL: nothing of a medium's base64 (RFC 2397)."""
    head, mark, _ = value[:128].lower().partition(";base64,")
    if not mark or not head.startswith("data:"):
        return _utf8(value)
    if head.startswith(_BINARY_URLS) and not head.startswith(_TEXT_URLS):
        return 0
    return _decoded(value)


def _decoded(value: str) -> int:
    """The bytes that are in base64."""
    return len(value) * 3 // 4 if value.isascii() else _utf8(value)


def _images(body: dict[str, Json], own: list[Json]) -> int:
    """How many bare images a body holds at its top; what cannot be one goes to *own*."""
    found = 0
    for name in _IMAGE_LISTS:
        images = body.get(name)
        if isinstance(images, list):
            found += len(images)
            own += [image for image in images if isinstance(image, _CONTAINERS)]
        elif isinstance(images, str):
            found += 1
        elif isinstance(images, dict):
            own.append(images)
    return found


def _utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
