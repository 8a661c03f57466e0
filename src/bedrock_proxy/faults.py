"""
What Bedrock's errors mean to a client: one table, for errors before the stream (an HTTP
status and ``x-amzn-errortype``) and in it (an exception frame) alike.

Bedrock's own wording reaches the client only where the client is at fault (it matches on
it); an ARN the client did not send becomes ``<arn>``, an account id ``<account>``. Where the operator is at fault
(credentials, access), nothing of it does.

Sources: AWS, Amazon Bedrock API reference, "InvokeModel" and
"InvokeModelWithResponseStream", Errors; "Common Errors".
"""

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from bedrock_proxy.errors import ClientFault, Code, Original, ProxyError, UpstreamFault
from bedrock_proxy.ports import Loggable, Trouble, UpstreamHead
from bedrock_proxy.sent import NOTHING_SENT, Sent

# A full stop or colon that ends the sentence is not the ARN's; nor is the backslash of a quotation
# mark in JSON, which would not be JSON without it.
_ARN: Final = r"arn:aws[a-z0-9-]*:[^\s\"'<>,;()]*[^\s\"'<>,;().:\\]"
_ACCOUNT: Final = r"(?<![0-9A-Za-z])[0-9]{12}(?![0-9A-Za-z])"


_NOT_ALLOWED: Final = re.compile(r"not authorized to perform: (bedrock:[A-Za-z]{1,64})\b")


class _Meaning(NamedTuple):
    code: Code
    status: int
    message: str | None = None  # None: Bedrock's own wording
    retryable: bool | None = None
    retry_after: int | None = None


_THROTTLED = _Meaning(
    Code.UPSTREAM_THROTTLED, 429, "Bedrock is throttling this model; wait and send it again."
)
_OPERATOR = _Meaning(
    Code.UPSTREAM_CONFIG,
    502,
    "Bedrock refused the proxy's own access to this model; its operator must check the "
    "credentials and the model access.",
)
_FAILED = _Meaning(Code.UPSTREAM_ERROR, 502, "Bedrock failed while answering; send it again.")
_UNAVAILABLE = _Meaning(
    Code.UPSTREAM_ERROR, 503, "Bedrock is unavailable just now; send it again.", retry_after=1
)
_TIMED_OUT = _Meaning(
    Code.UPSTREAM_TIMEOUT, 504, "The model took too long to answer; ask for less, or send it again."
)

_MEANINGS: Final[Mapping[str, _Meaning]] = {
    "ThrottlingException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "ModelNotReadyException": _THROTTLED,
    "ServiceQuotaExceededException": _THROTTLED,
    "ServiceUnavailableException": _UNAVAILABLE,
    "ServiceUnavailable": _UNAVAILABLE,
    "ModelTimeoutException": _TIMED_OUT,
    "RequestTimeout": _TIMED_OUT,
    "RequestTimeoutException": _TIMED_OUT,
    "ModelErrorException": _FAILED,
    "ModelStreamErrorException": _FAILED,
    "InternalServerException": _FAILED,
    "InternalFailure": _FAILED,
    "InternalServerError": _FAILED,
    "ResourceNotFoundException": _Meaning(Code.MODEL_NOT_FOUND, 404),
    "ValidationException": _Meaning(Code.INVALID_REQUEST, 400),
    "ValidationError": _Meaning(Code.INVALID_REQUEST, 400),
    "AccessDeniedException": _OPERATOR,
    "AccessDenied": _OPERATOR,
    "UnrecognizedClientException": _OPERATOR,
    "InvalidSignatureException": _OPERATOR,
    "SignatureDoesNotMatch": _OPERATOR,
    "IncompleteSignature": _OPERATOR,
    "IncompleteSignatureException": _OPERATOR,
    "InvalidClientTokenId": _OPERATOR,
    "ExpiredToken": _OPERATOR,
    "ExpiredTokenException": _OPERATOR,
    "MissingAuthenticationToken": _OPERATOR,
    "MissingAuthenticationTokenException": _OPERATOR,
    "NotAuthorized": _OPERATOR,
    "OptInRequired": _OPERATOR,
    "RequestExpired": _OPERATOR,
}

RETRIED_STATUSES: Final = frozenset({429, 503})
"""A call that ended so before its first byte may be sent again by the proxy."""


def from_exception(name: str, message: str, sent: Sent) -> ProxyError:
    """
    An exception or error frame.

    Args:
        name: ``:exception-type`` or ``:error-code`` (``throttlingException``).
        message: Bedrock's own wording.
        sent: What the client sent, to tell its own ARNs from the operator's.
    """
    name = type_name(name)
    meaning = _MEANINGS.get(name, _FAILED)
    error = _error(name, meaning, message, sent)
    if meaning is _OPERATOR:
        error.cause = _cause(name, message)
    return error


def from_reply(head: UpstreamHead, body: bytes, sent: Sent) -> ProxyError:
    """An HTTP error, with Bedrock's head and body; *sent* as above."""
    name = type_name(head.first("x-amzn-errortype") or member(body, "__type", "code") or "")
    meaning = _MEANINGS.get(name)
    if meaning is None:
        meaning = _by_status(head.status)
    message = member(body, "message", "Message") or ""
    error = _error(name, meaning, message, sent)
    if meaning is _OPERATOR:
        error.cause = _cause(name if name in _MEANINGS else f"HTTP {head.status}", message)
    else:
        error.original = Original(head.status, head.headers, without_names(body, sent))
    return error


def _cause(name: str, message: str) -> str:
    """
    What of Bedrock's refusal a log may hold: its name, and what was not allowed. Not its words:
    they quote roles and resources, and of a signature the whole head, session token and all.
    """
    action = _NOT_ALLOWED.search(message)
    return name if action is None else f"{name}: {action[1]} is not allowed"


def without_names(body: bytes, sent: Sent) -> bytes:
    """*body* without the ARNs and account ids that are not in *sent*; else as it is."""
    text = body.decode("utf-8", "surrogateescape")
    safe = _without_names(text, sent)
    return body if safe == text else safe.encode("utf-8", "surrogateescape")


def _without_names(text: str, sent: Sent) -> str:
    text = re.sub(_ARN, lambda m: m[0] if m[0] in sent else "<arn>", text)
    return re.sub(_ACCOUNT, lambda m: m[0] if m[0] in sent else "<account>", text)


def from_trouble(trouble: Trouble, detail: str = "") -> ProxyError:
    """No answer at all; *detail* is told to the operator where it is :class:`Loggable`."""
    if trouble is Trouble.TIMEOUT:
        meaning = _TIMED_OUT
    elif trouble is Trouble.CREDENTIALS:
        meaning = _OPERATOR
    elif trouble is Trouble.UNREACHABLE:
        meaning = _Meaning(
            Code.UPSTREAM_ERROR, 502, "Bedrock could not be reached; send it again shortly."
        )
    elif trouble is Trouble.REJECTED:
        return ClientFault("The request could not be sent to Bedrock as it is; check the model id.")
    else:
        return torn()
    error = _error("", meaning, "", NOTHING_SENT)
    if meaning is not _TIMED_OUT:
        error.cause = detail if isinstance(detail, Loggable) else str(trouble)
    return error


def torn() -> ProxyError:
    """The stream broke off."""
    return UpstreamFault(
        "Bedrock's answer broke off before it was complete; send the request again.",
        Code.UPSTREAM_TORN,
    )


def corrupt() -> ProxyError:
    """The stream's bytes are not what Bedrock sent."""
    return UpstreamFault(
        "Bedrock's answer arrived damaged and was stopped; send the request again.",
        Code.UPSTREAM_TORN,
    )


def first_byte_late(seconds: float) -> ProxyError:
    """Nothing came within the time allowed for the first byte."""
    return UpstreamFault(
        f"The model did not begin to answer within {seconds:g} seconds.", Code.UPSTREAM_TIMEOUT
    )


def answer_late(seconds: float) -> ProxyError:
    """Nothing came within the time allowed for an answer that comes whole."""
    return UpstreamFault(
        f"The model did not answer within {seconds:g} seconds.", Code.UPSTREAM_TIMEOUT
    )


def stalled(seconds: float) -> ProxyError:
    """Nothing more came within the time allowed between events."""
    return UpstreamFault(
        f"The model stopped answering for {seconds:g} seconds.", Code.UPSTREAM_TIMEOUT
    )


def type_name(raw: str) -> str:
    """
    Bedrock's name for an error, however it was spelt: header values may carry a
    namespace before ``#`` and a URL after ``:``, exception frames begin in lower case.
    """
    name = raw.partition(":")[0].rpartition("#")[2].strip()
    return name[:1].upper() + name[1:]


def _by_status(status: int) -> _Meaning:
    if status in {401, 403, 407}:
        return _OPERATOR
    if status == 429:
        return _THROTTLED
    if status == 404:
        return _Meaning(Code.MODEL_NOT_FOUND, 404)
    if status in {408, 504}:
        return _TIMED_OUT
    if status == 503:
        return _UNAVAILABLE
    if 400 <= status < 500:
        return _Meaning(Code.INVALID_REQUEST, status, retryable=False)
    return _FAILED


def _error(name: str, meaning: _Meaning, message: str, sent: Sent) -> ProxyError:
    if meaning.message is not None:
        text = meaning.message
    else:
        text = _without_names(message, sent) or "Bedrock refused the request without saying why."
    kind = (
        ClientFault
        if meaning.status < 429 and meaning.code is not Code.UPSTREAM_CONFIG
        else UpstreamFault
    )
    return kind(
        text,
        meaning.code,
        status=meaning.status,
        retryable=meaning.retryable,
        retry_after=meaning.retry_after,
        upstream_type=name or None,
    )


def member(body: bytes, *names: str) -> str | None:
    """The first of *names* that is a string in the JSON object *body*; None for any other."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    for name in names:
        text = value.get(name)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(text, str):
            return text
    return None
