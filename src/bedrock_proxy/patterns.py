"""
What the events of a stream have in common, so that most of them need not be parsed.

A model says nearly every event in the same words, with another piece of text in the same
place. A :class:`Pattern` is what stands before and after that place. It is learned from an
event that was parsed and turned out to be one piece of text and nothing else; an event that
fits it differs in the characters of one JSON string alone, so its parts are known.
"""

import json
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from bedrock_proxy.eventstream import CHECKSUM, MAX_FRAME, PRELUDE, HeaderValue

WRAPPER: Final = b'{"bytes":"'
"""What stands before the document of a chunk (AWS, Bedrock API reference, ``PayloadPart``)."""

_PADDING: Final = b',"p":"'
"""What may stand between a document and its closing brace begins so, and ends with a quote."""

_checksum_at: Final = CHECKSUM.unpack_from
_MOST_PRELUDES: Final = 1_024
"""Lengths of frames whose prelude is remembered; the padding makes some of them."""

_JSON: Final = json.JSONDecoder()


class Pattern:
    """
    Args:
        headers: The frame's headers: those very ones, as the decoder gives them.
        block: The same as they are on the wire.
        head, tail: The document up to the text, and from its end on.
        index: The generation that the text belongs to.
        wrapped: Whether a payload holds the document in base64 or is the document.
    """

    __slots__ = (
        "_around", "_begin", "_end", "_frame", "_head", "_header_size", "_preludes", "_tail",
        "headers", "index",
    )  # fmt: skip

    def __init__(
        self,
        headers: Mapping[str, HeaderValue],
        block: bytes,
        head: bytes,
        tail: bytes,
        index: int,
        *,
        wrapped: bool,
    ) -> None:
        self.headers = headers
        self.index = index
        self._head = head
        self._tail = tail
        self._begin = len(head)
        self._end = -len(tail)
        self._around = len(head) + len(tail)
        # What of the head stands in every payload as it is: base64 turns three octets into four.
        plain = len(head) // 3 * 3 if wrapped else len(head)
        wire = WRAPPER + b2a_base64(head[:plain], newline=False) if wrapped else head
        known = block + wire
        rest = PRELUDE.size + len(known)
        cut = len(head) - plain
        self._frame = (
            known, rest, head[plain:], cut, tail, -len(tail), cut + len(tail) + 1, plain, wrapped,
        )  # fmt: skip
        self._header_size = len(block)
        self._preludes: dict[bytes, int] = {}

    def texts(self, octets: bytes) -> tuple[list[str], int]:
        """
        What the frames at the beginning of *octets* say, as long as they are whole and sound and
        fit; and where the first one begins that does not. It takes half of what the decoder
        takes, which need not know how the next frame looks.
        """
        found: list[str] = []
        at = 0
        left = len(octets)
        preludes = self._preludes
        known, begin, prefix, cut, tail, tail_begin, least, plain, wrapped = self._frame
        while left > begin:
            prelude = octets[at : at + 12]
            total = preludes.get(prelude) or self._length(prelude)
            if not begin < total <= left:
                break
            frame = octets[at : at + total]
            if frame[12:begin] != known or crc32(frame[:-4]) != _checksum_at(frame, total - 4)[0]:
                break
            if wrapped:
                encoded, _, after = frame[begin:-4].partition(b'"')
                # As `end_of` tells it, written out: calling it costs three per cent of an event.
                if after != b"}" and not (
                    after[:6] == _PADDING and after[-2:] == b'"}' and after[6:-2].isalnum()
                ):
                    break
                try:
                    rest = a2b_base64(encoded, strict_mode=True)
                except ValueError:
                    break
            else:
                payload = frame[begin - plain : -4]
                rest = payload[plain : max(end_of(payload), 0)]
            if len(rest) < least or not rest.startswith(prefix) or not rest.endswith(tail):
                break
            text = _text(rest[cut:tail_begin])
            if text is None:
                break
            found.append(text)
            at += total
            left -= total
        return found, at

    def _length(self, prelude: bytes) -> int:
        """The length of a frame that begins so; 0 unless it is sound and its headers may fit."""
        total, size, checksum = PRELUDE.unpack(prelude)
        if size != self._header_size or total > MAX_FRAME or crc32(prelude[:8]) != checksum:
            return 0
        if len(self._preludes) < _MOST_PRELUDES:
            self._preludes[prelude] = total
        return int(total)

    def text(self, document: bytes) -> str | None:
        """The text in *document*; None unless it fits."""
        if (
            len(document) > self._around
            and document.startswith(self._head)
            and document.endswith(self._tail)
        ):
            return _text(document[self._begin : self._end])
        return None


def _text(inside: bytes) -> str | None:
    """The string that *inside* is between its quotation marks; None unless it is one."""
    try:
        piece = inside.decode()
        if piece.isprintable() and '"' not in piece and "\\" not in piece:
            return piece  # it is spelled as it is (RFC 8259, section 7)
        text, end = _JSON.raw_decode(f'"{piece}"')
    except ValueError:
        return None
    return text if end == len(piece) + 2 and text else None


def end_of(payload: bytes) -> int:
    """
    Where the end of an object begins: its closing brace, or the member ``p`` before it, by which
    Bedrock makes the lengths of events tell nothing of their text. -1 for any other end.
    """
    if payload[-2:] == b'"}':
        at = payload.rfind(_PADDING)
        if at >= 0 and payload[at + len(_PADDING) : -2].isalnum():
            return at
    return len(payload) - 1 if payload[-1:] == b"}" else -1


def learned(
    headers: Mapping[str, HeaderValue],
    block: bytes,
    document: bytes,
    text: str,
    index: int,
    *,
    wrapped: bool,
) -> Pattern | None:
    """
    The pattern of *document*, whose one part is *text*; None where the place of the text is
    not beyond doubt.

    A text of letters and spaces that stands between quotation marks once is a string or a key:
    what lies between two strings has a colon, a comma or a bracket in it. A key has a colon
    after it.
    """
    if not text.replace(" ", "").isalpha():
        return None
    quoted = b'"%b"' % text.encode()
    if document.count(quoted) != 1:
        return None
    at = document.index(quoted) + 1
    end = at + len(quoted) - 2
    if document[end + 1 :].lstrip().startswith(b":"):
        return None
    return Pattern(headers, block, document[:at], document[end:], index, wrapped=wrapped)
