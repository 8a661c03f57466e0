"""
The strict front for request bodies: JSON as RFC 8259 means it, and no more.

``json.loads`` alone accepts duplicate keys, NaN, UTF-16 and lone surrogates; each of them
is a way to make two parsers see two different requests (RELIABILITY.md, M46 to M56).

A body of a few MiB may hold millions of values, and whoever reads them keeps everybody else
waiting. So they are counted first, and a body of very many is not read (M61).
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from math import isfinite
from typing import Any, Final, NoReturn, cast

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.parts import Json

MAX_DEPTH: Final = 64
"""Nested arrays and objects; model bodies need about ten."""

MAX_VALUES: Final = 100_000
"""
Values of a body; those of models have thousands at most. What counts are the commas and the opening
brackets outside of strings: one for each value, and one more for each array or object that is empty.
"""

_FEW: Final = MAX_VALUES // 2
"""
As many commas and brackets, within strings or not, are read without a look at where they are: that
look takes as long as reading a text does.
"""

MAX_MEMBERS: Final = 256
"""
Members of an object that are looked at one by one, which takes some seven times as long as within
the decoder; a model's body has about ten.
"""

MAX_DIGITS: Final = 100
"""
Digits of an integer; those of models have ten. What it takes to convert one grows with the square of
its digits: a body of the longest that Python reads would keep everybody else waiting for a second.
"""

_STRIDE: Final = 10
"""Of the bytes of a body, so many stand for one in the look for long integers."""
_RUN: Final = b"0" * (MAX_DIGITS // _STRIDE)
_ZEROS: Final = bytes(ord("0") if byte in b"0123456789" else 0 for byte in range(256))

# JSON's own white space (RFC 8259, section 2); ``\s`` would take more for it.
_BLANK: Final = " \t\n\r"
_OPENED: Final = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*")
_COLON: Final = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_COMMA: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_LETTER: Final = re.compile(r"\\u00[4-7]")
"""How an escape begins that may stand for a letter of ASCII."""
_SURROGATE: Final = re.compile(r"\\u[Dd][89A-Fa-f]")
"""How an escape begins that may stand for half of a surrogate pair."""


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
    outside = _outside_strings(body) if len(body) > _FEW and _marks(body) > _FEW else None
    if outside is not None:
        _check_size(outside)
    try:
        decoders = _STRICT if outside is None else _QUICK
        value = _decoded(text, decoders[_may_hold_long_integers(body)])
    except json.JSONDecodeError as error:
        raise ClientFault(
            f"The request body is not valid JSON: {error.msg} at line {error.lineno} "
            f"column {error.colno}."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise ClientFault("The request body must be a JSON object.")
    if outside is not None:
        _check_members(value, outside.count(b":"))
    elif text.count("{") + text.count("[") > MAX_DEPTH:  # else there is nothing to look for
        _check_depth(value)
    if "\\u" in text and _SURROGATE.search(text) is not None:
        # Only an escape can bring a lone surrogate into text that was valid UTF-8.
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ClientFault(
                "The request body holds half of a surrogate pair (\\ud800 to \\udfff alone)."
            ) from None
    return value


def without(text: str, names: Collection[str], rest: Mapping[str, Json]) -> str:
    """
    An object without some of its members: the others go on in the very words of their sender,
    whatever a number or a string of them may look like. Only where a name has to be looked for
    among more than :data:`MAX_MEMBERS` is the object written anew.

    Args:
        text: What :func:`parse_object` has read.
        names: Of members that it has; letters and underscores.
        rest: All the others, as they were read.
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
            return _compact(rest)
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


def _decoded(text: str, decoder: json.JSONDecoder) -> Json:
    # As the decoder's own `decode`, in half the time where no white space is around it.
    value: Json
    if text.startswith("{"):
        value, end = decoder.raw_decode(text)
        if end == len(text):
            return value
    value = decoder.decode(text)
    return value


def _may_hold_long_integers(body: bytes) -> bool:
    """
    Whether an integer may have more than :data:`MAX_DIGITS`: it would have a digit wherever one of
    its bytes is looked at. So may what is in a string; the decoder tells.
    """
    return _RUN in body[::_STRIDE].translate(_ZEROS)


def _marks(text: bytes) -> int:
    """The commas and opening brackets; quicker than to count each of the three."""
    return len(text) - len(text.translate(None, b",[{"))


def _outside_strings(body: bytes) -> bytes:
    """
    What of *body* is not within a string, as far as it is JSON; quotation marks stay.

    Raises:
        ClientFault: ``too_large``.
    """
    if b"\\" in body:
        # From left to right and in pairs, as they are read: then one that is left escapes.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two for each string, and no value has more than a name and itself. Without this bound the
    # pieces could be as many as the bytes.
    if body.count(b'"') > 4 * (MAX_VALUES + 1):
        raise _too_many()
    return b'"'.join(body.split(b'"')[::2])


def _check_size(outside: bytes) -> None:
    """
    Refuse what is nested too deep or has too many values, by what it has outside of its strings.
    """
    many = _marks(outside) > MAX_VALUES
    # What is too large is looked at no longer than what is not.
    brackets = (outside[: 8 * MAX_VALUES] if many else outside).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets[: 2 * MAX_VALUES])), default=0) > MAX_DEPTH:
        raise _too_deep()
    if many:
        raise _too_many()


_NO_BRACKETS: Final = bytes(set(range(256)).difference(b"[{]}"))
_STEPS: Final = {ord(b): step for brackets, step in (("[{", 1), ("]}", -1)) for b in brackets}


def _check_members(root: Json, colons: int) -> None:
    """
    What the decoder has let through: of two members with one name it keeps the last, and then there
    are fewer than *colons*; a number beyond the range of a double is infinite.
    """
    members = 0
    level: Sequence[Json] = [root]
    while level:
        # Exact types, as a decoder makes them; and most levels of a large body have but one.
        kinds = set(map(type, level))
        if float in kinds and not all(map(isfinite, _of(float, level, kinds))):
            raise _beyond_double()
        objects: Sequence[dict[str, Json]] = _of(dict, level, kinds)
        arrays: Sequence[list[Json]] = _of(list, level, kinds)
        members += sum(map(len, objects))
        level = [
            *chain.from_iterable(map(_values, filter(None, objects))),
            *chain.from_iterable(arrays),
        ]
    if members != colons:
        raise _twice()


_values: Final[Callable[[dict[str, Json]], Iterable[Json]]] = dict[str, Json].values


def _of(kind: type, level: Sequence[Json], kinds: set[type]) -> Sequence[Any]:
    """Those of *level* that are of *kind*."""
    if kind not in kinds:
        return ()
    return level if len(kinds) == 1 else [value for value in level if type(value) is kind]


def _too_many() -> ClientFault:
    return ClientFault(
        f"The request body holds more than {MAX_VALUES:,} JSON values; send fewer, or structured "
        "data as text.",
        Code.TOO_LARGE,
    )


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
        raise _beyond_double()
    return value


def _beyond_double() -> ClientFault:
    return ClientFault("The request body holds a number beyond the range of a double.")


def _integer(literal: str) -> int:
    if len(literal) - literal.startswith("-") > MAX_DIGITS:
        raise ClientFault(
            f"The request body holds an integer of more than {MAX_DIGITS} digits; send it as text."
        )
    return int(literal)


def _constant(literal: str) -> NoReturn:
    raise ClientFault(f"The request body holds {literal}, which is not JSON.")


# The second of each pair is for a body that may hold long integers, and looks at every one.
_STRICT: Final = tuple(
    json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_float=_finite,
        parse_int=parse_int,
        parse_constant=_constant,
    )
    for parse_int in (None, _integer)
)
_QUICK: Final = tuple(
    json.JSONDecoder(parse_int=parse_int, parse_constant=_constant)
    for parse_int in (None, _integer)
)
"""Call nothing for an object or a number; :func:`_check_members` makes up for it."""
_scan: Final[Callable[[str, int], tuple[Json, int]]] = _STRICT[0].scan_once  # type: ignore[attr-defined]
"""
The value that begins at a place of a text, and where it ends: ``raw_decode`` without the frame of
Python around it.
"""
