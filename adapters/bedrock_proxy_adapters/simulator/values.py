"""
JSON as the simulator reads and writes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, cast

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""Any value that JSON can say."""

Body: TypeAlias = Mapping[str, Json]
"""A JSON object: a request's body, a reply, one chunk of a stream."""


class InvalidBody(ValueError):
    """A request body that Bedrock would refuse; the message is the refusal's wording."""


def parse_body(raw: bytes) -> Body:
    """
    Read a request body.

    Raises:
        InvalidBody: It is not a JSON object.
    """
    try:
        value: object = json.loads(raw)
    except ValueError:
        raise InvalidBody(
            "Malformed input request, please reformat your input and try again."
        ) from None
    if not isinstance(value, dict):
        raise InvalidBody("Malformed input request: expected type: JSONObject")
    return cast("Body", value)


def dump(value: Json) -> bytes:
    """Compact JSON, UTF-8, nothing escaped that need not be."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def as_object(value: Json) -> Body:
    """*value* where it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Json) -> Sequence[Json]:
    """*value* where it is a JSON array, else an empty one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def as_text(value: Json) -> str:
    """*value* where it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def as_count(value: Json) -> int | None:
    """*value* where it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_TEXT_MEMBERS = ("text", "content", "toolResult", "guardContent", "system", "message")


def texts(value: Json) -> Iterator[str]:
    """
    Every text in a message's content, in order: strings, text blocks, tool results.
    Images, documents and tool inputs are not text.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in _TEXT_MEMBERS:
            if member in value:
                yield from texts(value[member])
    elif isinstance(value, Sequence):
        for item in value:
            yield from texts(item)
