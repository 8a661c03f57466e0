"""
Requests from pages of other origins (Fetch standard, "CORS protocol"): off until origins are
named.

Tokens travel in headers, never in cookies, so ``Access-Control-Allow-Credentials`` is never
said, and ``*`` may stand for every origin.
"""

import re
from collections.abc import Collection
from typing import Final

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Head, Headers, Request

ANY: Final = "*"
"""Every origin."""

MAX_AGE: Final = 600
"""Seconds that a browser may remember a preflight's answer."""

_ORIGIN: Final = r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
_NAMES: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*"
_ALLOWED_METHODS: Final = "GET, HEAD, POST"
_VARY: Final = ("vary", "origin")


def check_origin(value: str) -> str:
    """
    *value*, if it is an origin as browsers say it: ``https://app.example.com``, or ``*``.

    Raises:
        ValueError: It is none; it would never match.
    """
    if value != ANY and not re.fullmatch(_ORIGIN, value):
        raise ValueError(
            f"names {value!r}; an origin is a scheme, a host in lower case and perhaps a port, "
            "like https://app.example.com, or * for every origin"
        )
    return value


def preflight(request: Request, origins: Collection[str]) -> Head:
    """
    The answer to a browser that asks before it sends.

    Raises:
        ClientFault: ``origin_not_allowed``, also where no origins are named.
    """
    origin = _allowed(request, origins)
    if origin is None or request.first("access-control-request-method") is None:
        raise ClientFault("Requests from other origins are not allowed.", Code.ORIGIN_NOT_ALLOWED)
    said = [
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", _ALLOWED_METHODS),
        ("access-control-max-age", str(MAX_AGE)),
        ("vary", "origin, access-control-request-method, access-control-request-headers"),
        # No Content-Length: a 204 must not have one (RFC 9110, section 8.6).
        ("x-request-id", request.request_id),
    ]
    wanted = request.first("access-control-request-headers")
    # SDKs add headers of their own, which change with their versions; what they may do is
    # for the routes to say, not for a list of names.
    if wanted is not None and re.fullmatch(_NAMES, wanted):
        said.insert(2, ("access-control-allow-headers", wanted))
    return Head(204, tuple(said))


def headers(request: Request, origins: Collection[str]) -> Headers:
    """What an answer to *request* carries; nothing while no origins are named."""
    if not origins:
        return ()
    origin = _allowed(request, origins)
    if origin is None:
        return (_VARY,)
    return (
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", "*"),
        _VARY,
    )


def _allowed(request: Request, origins: Collection[str]) -> str | None:
    """What to say of the request's origin; None where it has none, or one that is not named."""
    found = request.all("origin")
    if len(found) != 1:
        return None
    if ANY in origins:
        return ANY
    return found[0] if found[0] in origins else None
