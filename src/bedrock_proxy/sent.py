"""
What a client sent, for as long as its request lasts: which ARNs and account ids are its own.

An error of Bedrock may repeat those to it, and no others (:mod:`bedrock_proxy.faults`). They
are looked for only when an error names any, once, and in time that the request's length
bounds, whatever the two hold. And a stream does not keep a request of megabytes for an error
that hardly ever comes: once Bedrock is not called again, its names are enough.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from bedrock_proxy.ports import Operation, UpstreamCall

SHORT: Final = 16 * 1024
"""Bytes of a body up to which it is kept as it is: what it names could be as long."""

KEPT: Final = 8 * 1024
"""
Bytes of ARNs, and of account ids, that are kept of a request that is let go of; the first ones
count. A stream may hold 64 KiB in all (RELIABILITY.md, L3).
"""

_MAX_NAMES: Final = 64 * 1024
"""Bytes of either that are told apart at all: as much as is read of an error."""

_MAX_ARN: Final = 2_048
"""The longest ARN (AWS, Bedrock API reference, ``InvokeModelIdentifier``)."""

_MAX_FOUND: Final = 50_000
"""Names that are looked at in one request, the same ones again included: some 50 ms."""

_ARN: Final = b"arn:aws"
# What ends an ARN in an error, as far as it is ASCII: an ARN of the error is never in two of these.
# Compiled when first met (`re` keeps them): most requests are short and meet no error.
_STRETCH: Final = rb"[^\s\"'<>,;()]{,%d}" % _MAX_NAMES

_ACCOUNT: Final = 12
# A search for one thing skips most of a text, a regular expression looks at every byte of it.
_SHAPES: Final = bytes(ord("0" if byte in b"0123456789" else ".") for byte in range(256))
_ACCOUNT_SHAPE: Final = b"0" * _ACCOUNT
_DIGITS: Final = rb"[0-9]*"
_PIECE: Final = 16 * 1024  # within the processor's nearest cache


class Sent:
    """
    What a client sent with one request: the model's name, headers, and the body.

    ``name in sent`` asks whether an ARN, or an account id, is one of it. An ARN is if it stands
    there anywhere, an account id if the twelve digits are a number of their own.
    """

    __slots__ = ("_accounts", "_arns", "_call", "_names")
    _accounts: frozenset[bytes]
    _names: bytes

    def __init__(self, call: UpstreamCall) -> None:
        """*call*: what was made of the request."""
        self._call: UpstreamCall | None = call
        self._arns: list[bytes] | None = None

    def let_go(self) -> None:
        """Keep the names alone."""
        self._names = b"\n".join((*self._found(_arns, KEPT), *self._found(_accounts, KEPT)))
        self._call = self._arns = None

    def __contains__(self, name: str) -> bool:
        from bisect import bisect_left  # most processes never need it

        if self._arns is None:
            self._accounts = frozenset(self._found(_accounts, _MAX_NAMES))
            # Whatever begins with an ARN; of a sorted list, what begins with a name follows it.
            self._arns = sorted(
                {
                    stretch[found.start() : found.start() + _MAX_ARN]
                    for stretch in self._found(_arns, _MAX_NAMES)
                    for found in re.finditer(_ARN, stretch)
                }
            )
        # A lone surrogate is in no body: it makes octets that are not UTF-8.
        octets = name.encode("utf-8", "surrogatepass")
        if octets in self._accounts:
            return True
        at = bisect_left(self._arns, octets)
        return at < len(self._arns) and self._arns[at].startswith(octets)

    def _found(self, search: Callable[[bytes], Iterator[bytes]], room: int) -> Iterable[bytes]:
        """The names that *search* brings, each once, as far as there is *room* for their bytes."""
        found: dict[bytes, None] = {}
        for text in self._texts():
            for count, name in enumerate(search(text)):
                if name not in found:
                    found[name[:room]] = None
                    room -= len(name)
                if room <= 0 or count == _MAX_FOUND:
                    break
        return found

    def _texts(self) -> tuple[bytes, ...]:
        call = self._call
        if call is None:
            return (self._names,)
        head = " ".join((call.model_id, *(value for _, value in call.headers)))
        return head.encode("utf-8", "surrogatepass"), call.body


NOTHING_SENT: Final = Sent(UpstreamCall(Operation.INVOKE, "", b""))
"""Where nobody sent anything that an error could be about."""


def _arns(text: bytes) -> Iterator[bytes]:
    """What begins as an ARN does, up to where none goes on."""
    stretch_at = re.compile(_STRETCH).match
    at = text.find(_ARN)
    while at >= 0:
        stretch = stretch_at(text, at)
        assert stretch is not None, "it may be empty"
        yield stretch[0]
        at = text.find(_ARN, stretch.end())


def _accounts(text: bytes) -> Iterator[bytes]:
    """Numbers of twelve digits."""
    digits_at = re.compile(_DIGITS).match
    at = 0
    while at < len(text):
        # A little of the next piece too: a number may lie across.
        shape = text[at : at + _PIECE + _ACCOUNT - 1].translate(_SHAPES)
        end = at
        found = shape.find(_ACCOUNT_SHAPE)
        while found >= 0:
            begin = at + found
            digits = digits_at(text, begin)
            assert digits is not None, "it may be empty"
            end = digits.end()
            length = end - begin
            # In JSON the digits of an escaped character may stand before a number.
            escaped = (
                length <= _ACCOUNT + 4 and text[max(end - _ACCOUNT - 6, 0) : begin][:2] == b"\\u"
            )
            # Of any other number there is nothing to tell, but that it was looked at.
            yield text[end - _ACCOUNT : end] if length == _ACCOUNT or escaped else b""
            found = shape.find(_ACCOUNT_SHAPE, end - at)
        at = max(at + _PIECE, end)
