"""
HTTP as the core sees it: a request in, a head and bytes out, no host in between.

Hosts build a :class:`Request` from whatever they are given and send what the flow says;
they decide nothing.
"""

from collections.abc import Sequence
from typing import TypeAlias

from attrs import Factory, field

from bedrock_proxy.slotted import Slotted, lean

Headers: TypeAlias = tuple[tuple[str, str], ...]
"""Header fields in order, names in lower case, values decoded as latin-1."""


@lean
class Request:
    """
    One request as it arrived, without its body (the flow asks for that).

    Attributes:
        request_id: Made by the proxy, unique, the key of the ledger row.
        method: In upper case.
        path: The path below the host's prefix. Raw (still percent-encoded) where the host
            has it raw, else as the host decoded it.
        query: The raw query string, without the question mark.
        headers: See :data:`Headers`; repeated fields stay repeated.
        path_is_decoded: Whether the host decoded the path (WSGI's PATH_INFO).
        can_stream: Whether the host can deliver a reply piece by piece. Where it cannot,
            the simple dialect answers with one JSON array.
        peer_key: A header value that the front in front of us consumed itself (API
            Gateway's own API key); an equal ``x-api-key`` is not a credential of ours.
    """

    request_id: str
    method: str
    path: str
    headers: Headers
    query: str = ""
    path_is_decoded: bool = False
    can_stream: bool = True
    peer_key: str | None = None
    _fields: dict[str, list[str]] = field(
        init=False,
        repr=False,
        eq=False,
        default=Factory(lambda self: _by_name(self.headers), takes_self=True),
    )

    def all(self, name: str) -> Sequence[str]:
        """Every value of a header, in order; *name* in lower case."""
        return self._fields.get(name, ())

    def first(self, name: str) -> str | None:
        """The first value of a header, or None; *name* in lower case."""
        found = self._fields.get(name)
        return None if found is None else found[0]


def _by_name(headers: Headers) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        found = fields.get(name)
        if found is None:
            fields[name] = [value]
        else:
            found.append(value)
    return fields


class Head(Slotted):
    """
    The status and headers of a reply; bytes follow.

    Attributes:
        status: The HTTP status.
        headers: See :data:`Headers`. A reply whose length is known carries
            ``content-length``; the others are framed by the host.
    """

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
