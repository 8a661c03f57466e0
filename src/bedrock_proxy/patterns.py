"""
What the events of a stream have in common, so that most of them need not be parsed.

A model says nearly every event in the same words, with another piece of text in the same
place. A :class:`Pattern` is what stands before and after that place. It is learned from an
event that was parsed and turned out to be one piece of text and nothing else; an event that
fits it differs in the characters of one JSON string alone, so its parts are known.
"""

import json
from collections.abc import Mapping
from typing import Final

from bedrock_proxy.eventstream import HeaderValue

_JSON: Final = json.JSONDecoder()


class Pattern:
    """
    Args:
        headers: The frame's headers: those very ones, as the decoder gives them.
        head, tail: The document up to the text, and from its end on.
        index: The generation that the text belongs to.
    """

    __slots__ = ("_around", "_begin", "_end", "_head", "_tail", "headers", "index")

    def __init__(
        self, headers: Mapping[str, HeaderValue], head: bytes, tail: bytes, index: int
    ) -> None:
        self.headers = headers
        self.index = index
        self._head = head
        self._tail = tail
        self._begin = len(head)
        self._end = -len(tail)
        self._around = len(head) + len(tail)

    def text(self, document: bytes) -> str | None:
        """The text in *document*; None unless it fits."""
        if not (
            len(document) > self._around
            and document.startswith(self._head)
            and document.endswith(self._tail)
        ):
            return None
        try:
            piece = document[self._begin : self._end].decode()
            if piece.isprintable() and '"' not in piece and "\\" not in piece:
                return piece  # it is spelled as it is (RFC 8259, section 7)
            text, end = _JSON.raw_decode(f'"{piece}"')
        except ValueError:
            return None
        return text if end == len(piece) + 2 and text else None


def learned(
    headers: Mapping[str, HeaderValue], document: bytes, text: str, index: int
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
    return Pattern(headers, document[:at], document[end:], index)
