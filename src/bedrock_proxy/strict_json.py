"""
The strict front for request bodies: JSON as RFC 8259 means it, and no more.

``json.loads`` alone accepts duplicate keys, NaN, UTF-16 and lone surrogates; each of them
is a way to make two parsers see two different requests (RELIABILITY.md, M46 to M56).
"""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NoReturn, cast

from bedrock_proxy.errors import ClientFault
from bedrock_proxy.parts import Json

MAX_DEPTH: Final = 64
"""Nested arrays and objects; model bodies need about ten."""

MAX_MEMBERS: Final = 256
"""
Members of an object that are read one by one, which takes some seven times as long as within the
decoder; a model's body has about ten.
"""

# JSON's own white space (RFC 8259, section 2); ``\s`` would take more for it.
_OPENED: Final = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*(?=\")")
_COLON: Final = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_AFTER: Final = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")


def parse_object(body: bytes) -> dict[str, Json]:
    """
    The JSON object in *body*.

    Raises:
        ClientFault: ``invalid_request``, with a sentence that says what is wrong.
    """
    return _parsed(body, _decoded)


class Source:
    """
    A JSON object that knows how it was written: what is passed on of it is passed on in the very
    words of its sender, whatever a number or a string of it may look like. One of more than
    :data:`MAX_MEMBERS` is written anew.

    Attributes:
        members: The object.

    Raises:
        ClientFault: As :func:`parse_object`.
    """

    __slots__ = ("_places", "_text", "members")

    def __init__(self, body: bytes) -> None:
        self._text = ""
        self._places: dict[str, tuple[int, int]] | None = {}
        self.members = _parsed(body, self._read)

    def only(self, names: Iterable[str]) -> bytes:
        """The object with those of its members alone, each as it was written."""
        text, places = self._text, self._places
        if places is None:
            return _compact({name: self.members[name] for name in names}).encode()
        return f"{{{','.join([text[slice(*places[name])] for name in names])}}}".encode()

    def _read(self, text: str) -> Json:
        self._text = text
        opened = _OPENED.match(text)
        if opened is not None:
            with suppress(StopIteration):  # which is how the scanner says that there is no value
                members = self._read_members(text, opened.end())
                if members is not None:
                    return members
        self._places = None
        return _decoded(text)  # no or many members, no object, or no JSON: it says which

    def _read_members(self, text: str, at: int) -> dict[str, Json] | None:
        """Those that begin *at* a place; None where they are too many, or anything else is met."""
        members: dict[str, Json] = {}
        self._places = places = {}
        seen = 0
        while seen < MAX_MEMBERS and text.startswith('"', at):
            begin = at
            name, at = cast("tuple[str, int]", _scan(text, at))
            colon = _COLON.match(text, at)
            if colon is None:
                return None
            members[name], at = _scan(text, colon.end())
            places[name] = (begin, at)
            seen += 1
            after = _AFTER.match(text, at)
            if after is None:
                return None
            at = after.end()
            if after[1] == "}":
                if at < len(text):
                    return None
                if len(members) < seen:
                    raise _twice()
                return members
        return None


def _parsed(body: bytes, read: Callable[[str], Json]) -> dict[str, Json]:
    if not body:
        raise ClientFault("The request has no body; send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise ClientFault("The request body begins with a byte order mark; send plain UTF-8.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ClientFault(f"The request body is not valid UTF-8 at byte {error.start}.") from None
    try:
        value = read(text)
    except json.JSONDecodeError as error:
        raise ClientFault(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno} "
            f"column {error.colno}."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # an integer beyond the interpreter's limit on digits
        raise ClientFault("The request body holds a number with too many digits.") from None
    if not isinstance(value, dict):
        raise ClientFault("The request body must be a JSON object.")
    if text.count("{") + text.count("[") > MAX_DEPTH:  # else there is nothing to look for
        _check_depth(value)
    if "\\u" in text:
        # Only an escape can bring a lone surrogate into text that was valid UTF-8.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ClientFault(
                "The request body holds half of a surrogate pair (\\ud800 to \\udfff alone)."
            ) from None
    return value


_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _decoded(text: str) -> Json:
    # As the decoder's own `decode`, in half the time where no white space is around it.
    value: Json
    if text.startswith("{"):
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    value = _DECODER.decode(text)
    return value


def _check_depth(root: Json) -> None:
    level: list[Json] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Json] = []
        for container in level:
            members = (
                container.values() if isinstance(container, dict) else cast("list[Json]", container)
            )
            below += [member for member in members if isinstance(member, dict | list)]
        if not below:
            return
        level = below
    raise _too_deep()


def _too_deep() -> ClientFault:
    return ClientFault(f"The request body is nested more than {MAX_DEPTH} levels deep.")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _twice()
    return members


def _twice() -> ClientFault:
    return ClientFault("The request body has an object with the same key twice.")


def _finite(literal: str) -> float:
    value = float(literal)
    if value in {float("inf"), float("-inf")}:
        raise ClientFault("The request body holds a number beyond the range of a double.")
    return value


def _constant(literal: str) -> NoReturn:
    raise ClientFault(f"The request body holds {literal}, which is not JSON.")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant
)
_scan: Final[Callable[[str, int], tuple[Json, int]]] = _DECODER.scan_once  # type: ignore[attr-defined]
"""
The value that begins at a place of a text, and where it ends: ``raw_decode`` without the frame of
Python around it.
"""
