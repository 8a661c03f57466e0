"""
What is checked of a request before its body is read: framing, sizes, media type and the
credential. (RELIABILITY.md section 4; servers let some of these through.)
"""

import re
from itertools import chain
from typing import Final

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.http import Request

MAX_HEADER_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 64
MAX_URI: Final = 8 * 1024

_CLOSE: Final = (("connection", "close"),)
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")
_BLANK: Final = " \t"
"""Optional whitespace (RFC 9110, section 5.6.3); ``str.strip`` alone would take more away."""
_CHALLENGE: Final = (("www-authenticate", "Bearer"),)


def check_head(request: Request) -> None:
    """
    Refuse a request whose head is ambiguous or too large.

    Raises:
        ClientFault: ``invalid_request`` or ``too_large``.
    """
    if len(request.headers) > MAX_HEADERS:
        raise ClientFault(
            f"The request has more than {MAX_HEADERS} headers.",
            Code.TOO_LARGE,
            status=431,
            headers=_CLOSE,
        )
    octets = len("".join(chain.from_iterable(request.headers))) + 4 * len(request.headers)
    if octets > MAX_HEADER_BYTES:
        raise headers_too_large()
    if len(request.path) + len(request.query) + 1 > MAX_URI:
        raise url_too_long()
    lengths = request.all("content-length")
    if lengths and request.all("transfer-encoding"):
        raise ClientFault(
            "The request has both Content-Length and Transfer-Encoding.", headers=_CLOSE
        )
    if lengths and (len(set(lengths)) > 1 or not _LENGTH.fullmatch(lengths[0])):
        raise ClientFault("The request's Content-Length is not one whole number.", headers=_CLOSE)
    hosts = request.all("host")
    # WSGI servers fold repeated fields into one, with commas (RFC 9110, section 5.3).
    if len(hosts) != 1 or "," in hosts[0]:
        raise ClientFault("The request needs exactly one Host header.", headers=_CLOSE)


def headers_too_large() -> ClientFault:
    """More bytes of headers than :data:`MAX_HEADER_BYTES`."""
    return ClientFault(
        f"The request's headers are larger than {MAX_HEADER_BYTES // 1024} KiB.",
        Code.TOO_LARGE,
        status=431,
        headers=_CLOSE,
    )


def url_too_long() -> ClientFault:
    """A URL longer than :data:`MAX_URI`."""
    return ClientFault(
        f"The request's URL is longer than {MAX_URI // 1024} KiB.",
        Code.TOO_LARGE,
        status=414,
        headers=_CLOSE,
    )


def declared_length(request: Request) -> int | None:
    """What ``Content-Length`` says, in bytes, once :func:`check_head` has passed it."""
    value = request.first("content-length")
    return None if value is None else int(value)


def check_media(request: Request, limit: int) -> None:
    """
    Refuse a body that we would not read, before reading it.

    Args:
        limit: The largest body, in bytes.

    Raises:
        ClientFault: ``too_large`` or ``unsupported_media_type``.
    """
    length = declared_length(request)
    if length is not None and length > limit:
        raise too_large(limit)
    for coding in request.all("content-encoding"):
        if coding.strip().lower() not in {"", "identity"}:
            raise ClientFault(
                f"Content-Encoding {_quoted(coding)} is not supported; send the body as it is.",
                Code.UNSUPPORTED_MEDIA_TYPE,
            )
    kinds = request.all("content-type")
    if len(kinds) > 1:
        raise ClientFault("The request has two Content-Type headers.")
    if not kinds or not kinds[0].strip():
        return
    kind, *parameters = (piece.strip().lower() for piece in kinds[0].split(";"))
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise ClientFault(
            f"Content-Type {_quoted(kind)} is not supported; send application/json.",
            Code.UNSUPPORTED_MEDIA_TYPE,
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in {"utf-8", "utf8"}:
            raise ClientFault(
                "Only UTF-8 is supported; send application/json without a charset.",
                Code.UNSUPPORTED_MEDIA_TYPE,
            )


def too_large(limit: int) -> ClientFault:
    """The body is larger than *limit* bytes."""
    size = f"{limit // (1024 * 1024)} MiB" if limit >= 1024 * 1024 else f"{limit} bytes"
    return ClientFault(f"The request body is larger than {size}.", Code.TOO_LARGE, headers=_CLOSE)


def body_late(seconds: float) -> ClientFault:
    """The body did not arrive within *seconds*."""
    return ClientFault(
        f"The request body did not arrive within {seconds:g} seconds.", Code.TIMEOUT, headers=_CLOSE
    )


def body_torn() -> ClientFault:
    """The connection, or the body's framing, ended before the body did."""
    return ClientFault("The request body ended before it was complete.", headers=_CLOSE)


def check_whole(request: Request) -> None:
    """
    Say why a body is not there that was declared: uvicorn's faster parser drops that of a request
    which asks for another protocol, as clients do that would speak HTTP/2 over plain TCP.

    Raises:
        ClientFault: ``invalid_request``.
    """
    if declared_length(request) and request.first("upgrade") is not None:
        raise ClientFault(
            "The request asks to upgrade the connection, and its body was lost on the way: send "
            "it as HTTP/1.1, without an Upgrade header.",
            headers=_CLOSE,
        )


def credential(request: Request) -> str:
    """
    The bearer token, checked for its grammar but not yet known to anyone.

    Raises:
        ClientFault: ``unauthorized``; ``invalid_request`` where two are given.
    """
    authorizations = request.all("authorization")
    keys = [key.strip(_BLANK) for key in request.all("x-api-key")]
    if request.peer_key is not None:
        keys = [key for key in keys if key != request.peer_key]
    if len(authorizations) > 1:
        raise ClientFault("The request has two Authorization headers.")
    if len(set(keys)) > 1:
        raise ClientFault("The request has two different x-api-key headers.")
    if authorizations and authorizations[0].startswith("AWS4-HMAC-"):
        # An AWS_IAM Function URL's own signature, or an SDK's that has AWS keys: the caller of
        # something before us, or of nothing; never our customer.
        if not keys:
            raise unauthorized(
                "Requests that are signed with AWS keys are not accepted as such; send your token, too, "
                "as `x-api-key`."
            )
        authorizations = ()
    bearer: str | None = None
    if authorizations:
        scheme, _, rest = authorizations[0].strip(_BLANK).partition(" ")
        bearer = rest.strip(_BLANK)
        if scheme.lower() != "bearer" or not bearer:
            raise unauthorized()
    if bearer is not None and keys and bearer != keys[0]:
        raise ClientFault("Authorization and x-api-key hold different credentials; send one.")
    found = bearer if bearer is not None else (keys[0] if keys else None)
    if found is None:
        raise unauthorized("Send your token as `Authorization: Bearer <token>`.")
    if not _TOKEN.fullmatch(found):
        raise unauthorized()
    return found


def unauthorized(hint: str = "") -> ClientFault:
    """401, in the same words whether a token is unknown, revoked, expired or junk."""
    return ClientFault(hint or "The token is not valid.", Code.UNAUTHORIZED, headers=_CHALLENGE)


def client_request_id(request: Request) -> str | None:
    """The client's own id for the request, if it has one that is fit to be recorded."""
    for name in ("x-client-request-id", "x-request-id", "amz-sdk-invocation-id"):
        value = request.first(name)
        if value is not None and _CLIENT_ID.fullmatch(value):
            return value
    return None


def _quoted(value: str) -> str:
    """A client's own value, fit to be said back to it."""
    shown = "".join(c for c in value[:60] if c.isprintable() and c not in '"\\')
    return f'"{shown}"'
