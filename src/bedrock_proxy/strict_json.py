"""
The strict front for request bodies: JSON as RFC 8259 means it, and no more.

``json.loads`` alone accepts duplicate keys, NaN, UTF-16 and lone surrogates; each of them
is a way to make two parsers see two different requests (RELIABILITY.md, M46 to M56).
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Final, NoReturn, cast

from bedrock_proxy.errors import ClientFault
from bedrock_proxy.parts import Json

MAX_DEPTH: Final = 64
"""Nested arrays and objects; model bodies need about ten."""

MAX_MEMBERS: Final = 256
"""
Members of an object that are looked at one by one, which takes some seven times as long as within
the decoder; a model's body has about ten.
"""

# JSON's own white space (RFC 8259, section 2); ``\s`` would take more for it.
_BLANK: Final = " \t\n\r"
_OPENED: Final = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*")
_COLON: Final = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_COMMA: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_LETTER: Final = re.compile(r"\\u00[4-7]")
"""How an escape begins that may stand for a letter of ASCII."""


def parse_object(body: bytes) -> dict[str, Json]:
    """
    The JSON object in *body*.

    Raises:
        ClientFault: ``invalid_request``, with a sentence that says what is wrong.
    """
    if not body:
        raise ClientFault("The request has no body; send a JSON object.")
    if body.startswith(b"\xef\xbb\xbf"):
        raise ClientFault("The request body begins with a byte order mark; send plain UTF-8.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ClientFault(f"The request body is not valid UTF-8 at byte {error.start}.") from None
    try:
        value = _decoded(text)
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


def without(text: str, names: Collection[str]) -> str:
    """
    An object without some of its members: the others go on in the very words of their sender,
    whatever a number or a string of them may look like. Only where a name has to be looked for
    among more than :data:`MAX_MEMBERS` is the object written anew.

    Args:
        text: What :func:`parse_object` has read.
        names: Of members that it has; letters and underscores.
    """
    literal = "\\u" not in text or _LETTER.search(text) is None
    begins: list[int] = []
    hidden: set[str] = set()
    for name in names:
        # Within a string a quotation mark is escaped. So the name of a member that is not spelled
        # with escapes stands there like this, and what stands there but once is that name.
        quoted = f'"{name}"'
        if literal and text.count(quoted) == 1:
            begins.append(text.index(quoted))
        else:
            hidden.add(name)
    if hidden:
        found = _find(text, hidden)
        if found is None:
            members: dict[str, Json] = json.loads(text)
            return _compact({key: members[key] for key in members if key not in names})
        begins += found
    # From the last to the first: what lies before one that is cut out stays where it is.
    for begin in sorted(begins, reverse=True):
        _, end = _scan(text, begin)
        _, end = _scan(text, _past(_COLON, text, end))
        comma = _COMMA.match(text, end)
        if comma is not None:
            text = text[:begin] + text[comma.end() :]
        else:
            text = text[:begin].rstrip(_BLANK).removesuffix(",") + text[end:]
    return text


def _find(text: str, names: set[str]) -> list[int] | None:
    """Where members' names begin that are there; None where too many members are before them."""
    begins: list[int] = []
    at = _past(_OPENED, text, 0)
    for _ in range(MAX_MEMBERS):
        name, end = _scan(text, at)
        if name in names:
            begins.append(at)
            if len(begins) == len(names):
                return begins
        _, end = _scan(text, _past(_COLON, text, end))
        at = _past(_COMMA, text, end)
    return None


def _past(pattern: "re.Pattern[str]", text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


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
