"""
Objects in S3 that a request names in place of bytes.

Bedrock reads them with the rights of whoever signed the call, and that is the operator. So a
customer could have every object summarised that the proxy's role may read: none is let through
unless the operator names it.

Sources: the service model of Bedrock Runtime (``S3Location`` in the sources of images, documents,
videos and audio, ``S3Uri``); the bodies of Amazon Nova and of TwelveLabs' models, which have the
same member.
"""

import re
from binascii import a2b_base64
from collections.abc import Collection, Mapping
from typing import Final

from bedrock_proxy.errors import ClientFault
from bedrock_proxy.parts import Json
from bedrock_proxy.strict_json import parse_object

ANY: Final = "any"
"""Every object that the proxy's role may read."""

_MEMBER: Final = "s3Location"
_QUOTED: Final = b'"s3Location"'
_LETTER: Final = re.compile(rb"\\u00[3-7]")
"""How an escape begins that may stand for a letter or digit of the member's name."""

_FREE: Final = frozenset({"json", "toolSpec", "toolUse"})
"""Members that hold a tool's own data, whatever the names in it (``Document``); nothing is read."""

_DOTS: Final = frozenset({".", ".."})
_PREFIX: Final = r"s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](?:/.*)?"
_CONTAINERS: Final = (dict, list)


def check_prefix(value: str) -> str:
    """
    What the URIs of allowed objects begin with, from how an operator names it; or ``any``.

    Raises:
        ValueError: No object's URI begins like this.
    """
    if value != ANY and not re.fullmatch(_PREFIX, value):
        raise ValueError(
            f"names {value!r}; a place in S3 is a bucket and perhaps a folder, like "
            "s3://bucket/folder/, or any for every object that the proxy's role may read"
        )
    # A bucket is not what other buckets' names begin with.
    return value + "/" if value.count("/") == 2 else value


def locations(body: bytes, read: Json) -> tuple[str, ...]:
    """The URIs in *body*, which was read as *read*; as they are spelled."""
    if _QUOTED not in body and (b"\\u00" not in body or _LETTER.search(body) is None):
        return ()  # as nearly always
    found: list[str] = []
    waiting: list[Json] = [read]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += [member for member in each if isinstance(member, _CONTAINERS)]
        elif isinstance(each, dict):
            for name, member in each.items():
                uri = member
                if name == _MEMBER and isinstance(member, dict) and "uri" in member:
                    uri = member["uri"]
                if name == _MEMBER and isinstance(uri, str):
                    found.append(uri)
                elif name not in _FREE and isinstance(member, _CONTAINERS):
                    waiting.append(member)
    return tuple(found)


def locations_counted(body: bytes, read: Mapping[str, Json]) -> tuple[str, ...]:
    """
    The same for CountTokens, whose body may hold that of an InvokeModel in base64.

    Raises:
        ClientFault: That one cannot be read.
    """
    found = locations(body, dict(read))
    inner: Json = dict(read)
    for name in ("input", "invokeModel", "body"):
        inner = inner.get(name) if isinstance(inner, dict) else None
    if not isinstance(inner, str):
        return found
    try:
        invoked = a2b_base64(inner, strict_mode=True)
    except ValueError:
        raise ClientFault("input.invokeModel.body is not base64.") from None
    return found + locations(invoked, parse_object(invoked))


def check(named: Collection[str], allowed: tuple[str, ...]) -> None:
    """
    Refuse what the operator did not allow.

    Raises:
        ClientFault: ``invalid_request``.
    """
    if ANY in allowed:
        return
    for uri in named:
        # What reads the object might take "..", which S3 does not, for the folder above.
        if not uri.startswith(allowed) or not _DOTS.isdisjoint(uri.split("/")):
            raise ClientFault(
                "The request names an object in S3 (s3Location) that this proxy does not let "
                "Bedrock read; send its bytes in the request instead."
            )
