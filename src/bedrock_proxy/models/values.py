"""
JSON from outside, taken apart without trust: what is not of the expected type is absent.
"""

import json
from typing import Final

from bedrock_proxy.parts import Json

_LARGEST: Final = 2**53
"""Beyond this JSON numbers stop being exact (RFC 8259, section 6), and no count gets there."""

_LARGEST_INDEX: Final = 2**16
_NUMBERS: Final = (int, float)


def mapping(value: Json) -> dict[str, Json]:
    """*value* if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Json) -> list[Json]:
    """*value* if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def string(value: Json) -> str:
    """*value* if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def named(value: Json) -> str | None:
    """*value* if it is a string that says something, else None."""
    return value if isinstance(value, str) and value else None


def count(value: Json) -> int | None:
    """
    A number of tokens; None where nothing (or nothing believable) was said. Whole floats
    are taken too: Titan counts in floats once a guardrail is attached.
    """
    if type(value) is int:  # as nearly always
        return value if 0 <= value <= _LARGEST else None
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    # NaN fails both comparisons.
    return int(value) if 0 <= value <= _LARGEST else None


def position(value: Json, otherwise: int = 0) -> int:
    """An index into a list of generations or blocks; *otherwise* where none was said."""
    number = count(value)
    return number if number is not None and number < _LARGEST_INDEX else otherwise


def tool_input(value: Json) -> str:
    """A tool call's whole input as JSON text; empty for no input at all."""
    if value is None or value == {}:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
