"""
Bedrock's own wire, as the AWS SDKs speak it: pass-through (DESIGN.md section 3).

Bodies go both ways as they are. Frames are checked (both checksums), metered and passed on
as they came; the head goes with Bedrock's own. Bedrock's errors keep their status, body and
wording, but for the operator's faults; ours look like Bedrock's, so that an SDK raises the
class its user expects.

Sources: AWS, Amazon Bedrock API reference, "InvokeModel", "InvokeModelWithResponseStream",
"Converse", "ConverseStream", "CountTokens", "ApplyGuardrail" (headers, errors, the events
of both streams); Smithy, "AWS restJson1 protocol" (``x-amzn-errortype``).
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from bedrock_proxy import faults, s3
from bedrock_proxy.answers import ConverseFrames, InvokeFrames, StreamedAnswer, WholeAnswer
from bedrock_proxy.dialects.dialect import Call, ErrorReply, Translation
from bedrock_proxy.errors import ClientFault, Code, ProxyError
from bedrock_proxy.eventstream import Frame, HeaderValue, encode
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.models import (
    Family,
    converse_answer,
    estimate,
    estimate_converse,
    family_of,
)
from bedrock_proxy.models.names import ModelName, parse_model_id
from bedrock_proxy.parts import Json
from bedrock_proxy.ports import Operation, UpstreamCall, UpstreamHead
from bedrock_proxy.sent import Sent
from bedrock_proxy.strict_json import parse_object
from bedrock_proxy.usage import Usage

_OPERATIONS: Final[Mapping[str, Operation]] = {
    "invoke": Operation.INVOKE,
    "invoke-with-response-stream": Operation.INVOKE_STREAM,
    "converse": Operation.CONVERSE,
    "converse-stream": Operation.CONVERSE_STREAM,
    "count-tokens": Operation.COUNT_TOKENS,
    "apply": Operation.APPLY_GUARDRAIL,
}
"""The last segment of a path, and what it asks for."""

_TOKENLESS: Final = frozenset({Operation.COUNT_TOKENS, Operation.APPLY_GUARDRAIL})
_CONVERSES: Final = frozenset({Operation.CONVERSE, Operation.CONVERSE_STREAM})

_GUARDRAIL_HEADER: Final = "x-amzn-bedrock-guardrailidentifier"
_SENT_ON: Final = (
    "x-amzn-bedrock-accept",
    _GUARDRAIL_HEADER,
    "x-amzn-bedrock-guardrailversion",
    "x-amzn-bedrock-performanceconfig-latency",
    "x-amzn-bedrock-request-metadata",
    "x-amzn-bedrock-service-tier",
    "x-amzn-bedrock-trace",
)
"""The request headers that the operations model; nothing else goes upstream."""

_PASSED_BACK: Final = frozenset({"content-type", "x-amzn-errortype", "x-amzn-requestid"})
_PASSED_BACK_PREFIX: Final = "x-amzn-bedrock-"

_PRINTABLE: Final = r"[\x20-\x7e]*"
_GUARDRAIL: Final = r"[a-z0-9]{1,64}"
_GUARDRAIL_VERSION: Final = r"[1-9][0-9]{0,7}|DRAFT"

_TYPES: Final[Mapping[int, str]] = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
"""How an error of ours is called, by its status; any other is of the sender or the server."""

_EVENT_TYPES: Final[Mapping[int, str]] = {
    408: "modelTimeoutException",
    429: "throttlingException",
    500: "internalServerException",
    502: "modelStreamErrorException",
    503: "serviceUnavailableException",
    504: "modelTimeoutException",
}
"""The same within a stream, where fewer names are modelled."""


class Bedrock:
    """The dialect; see :class:`bedrock_proxy.dialects.dialect.Dialect`."""

    name = "bedrock"

    def call(self, request: Request, body: bytes, operation: str, model: str | None) -> Call:
        asked = _OPERATIONS[operation]
        sent = parse_object(body)
        version = ""
        if asked is Operation.APPLY_GUARDRAIL:
            name, version = _guardrail(model or "")
        else:
            name = parse_model_id(model)
        family = family_of(name.canonical)
        headers = _sent_on(request, asked)
        request_id = request.request_id

        def streamed(sent: Sent) -> Translation:
            frames = ConverseFrames() if asked in _CONVERSES else InvokeFrames(family.reader())
            answer = StreamedAnswer(frames, sent, keep_frames=True)
            return _Streamed(answer, asked, sent, request_id)

        def whole(_: Sent) -> Translation:
            read = None if asked in _TOKENLESS else family.answer
            read = converse_answer if asked is Operation.CONVERSE else read
            return _Whole(WholeAnswer(read), request_id)

        return Call(
            upstream=UpstreamCall(asked, name.raw, body, headers, version),
            model=name,
            family=family,
            estimate=_estimate(asked, family, sent),
            stream=asked.streams,
            hold=not asked.streams,
            head_first=asked.streams,
            counts_tokens=asked not in _TOKENLESS,
            guardrails=_guardrails(asked, headers, sent),
            s3_locations=(
                s3.locations_counted(body, sent)
                if asked is Operation.COUNT_TOKENS
                else s3.locations(body, sent)
            ),
            translation=streamed if asked.streams else whole,
        )

    def refusal(self, error: ProxyError, request_id: str) -> ErrorReply:
        original = error.original
        if original is not None:
            return ErrorReply(
                original.status,
                _passed_back(original.headers, "application/json", request_id),
                original.body,
            )
        headers = (
            ("content-type", "application/json"),
            ("x-amzn-errortype", _type_of(error)),
            ("x-amzn-requestid", error.aws_request_id or request_id),
        )
        return ErrorReply(error.status, headers, _message(error))


BEDROCK: Final = Bedrock()


# --- the request ----------------------------------------------------------------------------


def _guardrail(named: str) -> tuple[ModelName, str]:
    """A guardrail and its version, as the path names them with a colon between."""
    guardrail, _, version = named.rpartition(":")
    if re.fullmatch(_GUARDRAIL_VERSION, version) is None:
        raise ClientFault("A guardrail's version is a number or DRAFT.")
    return _guardrail_name(guardrail), version


def _guardrail_name(guardrail: Json) -> ModelName:
    if not isinstance(guardrail, str):
        raise ClientFault("The guardrail must be named by a string.")
    if guardrail.startswith("arn:"):
        name = parse_model_id(guardrail)
        own = (name.service, name.kind) == ("bedrock", "guardrail")
        if own and re.fullmatch(_GUARDRAIL, guardrail.rpartition("/")[2]):
            return name
    elif re.fullmatch(_GUARDRAIL, guardrail):
        # An allow-list of models allows no guardrail that it does not name so.
        return ModelName(guardrail, f"guardrail/{guardrail}", opaque=True)
    raise ClientFault("The guardrail is not spelled as guardrail ids and ARNs are.")


def _guardrails(
    operation: Operation, headers: Headers, body: Mapping[str, Json]
) -> tuple[ModelName, ...]:
    """
    What a call names to be applied to it: InvokeModel's in a header, which is checked wherever it
    goes upstream, Converse's in the body. An empty name is none (``GuardrailIdentifier``).
    """
    named: list[Json] = [value for name, value in headers if name == _GUARDRAIL_HEADER]
    if operation in _CONVERSES and (own := body.get("guardrailConfig")) is not None:
        if not isinstance(own, dict):
            raise ClientFault("guardrailConfig must be an object.")
        named.append(own.get("guardrailIdentifier"))
    return tuple([_guardrail_name(each) for each in named if each is not None and each != ""])


def _sent_on(request: Request, operation: Operation) -> Headers:
    headers = [("content-type", request.first("content-type") or "application/json")]
    # Everywhere else Accept speaks of the wire and not of the model's answer.
    names = ("accept", *_SENT_ON) if operation is Operation.INVOKE else _SENT_ON
    for name in names:
        values = set(request.all(name))
        if len(values) > 1 or not all(re.fullmatch(_PRINTABLE, value) for value in values):
            raise ClientFault(f"The header {name} must be sent once, in printable ASCII.")
        headers += [(name, value) for value in values]
    return tuple(headers)


def _estimate(operation: Operation, family: Family, body: Json) -> Usage:
    if operation in _TOKENLESS:
        return Usage(input_tokens=0, output_tokens=0)
    if operation in _CONVERSES:
        return estimate_converse(family, body)
    return estimate(family, body)


# --- the answer -----------------------------------------------------------------------------


def _passed_back(headers: Headers, content_type: str, request_id: str) -> Headers:
    """Bedrock's headers that matter to a client, and what no answer is without."""
    kept = [
        (name, value)
        for name, value in headers
        if name in _PASSED_BACK or name.startswith(_PASSED_BACK_PREFIX)
    ]
    said = {name for name, _ in kept}
    if "content-type" not in said:
        kept.append(("content-type", content_type))
    if "x-amzn-requestid" not in said:
        kept.append(("x-amzn-requestid", request_id))
    return tuple(kept)


def _type_of(error: ProxyError) -> str:
    if error.code is Code.NOT_FOUND:
        return "UnknownOperationException"  # as AWS's own services say of a path
    server = "InternalServerException" if error.status >= 500 else "ValidationException"
    return _TYPES.get(error.status, server)


def _message(error: ProxyError) -> bytes:
    return json.dumps({"message": error.message}).encode()


class _Streamed:
    """An event stream, passed on frame by frame."""

    def __init__(
        self, answer: StreamedAnswer, operation: Operation, sent: Sent, request_id: str
    ) -> None:
        self._answer = answer
        self._operation = operation
        self._sent = sent
        self._request_id = request_id
        self._head: Headers = ()
        self._told = False
        self.started = False

    @property
    def heard(self) -> bool:
        return self._answer.frames > 0

    @property
    def ended(self) -> bool:
        return self._answer.ended

    @property
    def fault(self) -> ProxyError | None:
        return self._answer.fault

    @property
    def usage(self) -> Usage:
        return self._answer.meter.usage

    @property
    def seen_output_tokens(self) -> int:
        return self._answer.meter.seen_output_tokens

    def begin(self, head: UpstreamHead) -> None:
        self._answer.meter.headers(head.headers)
        self._head = head.headers
        self.started = True

    def headers(self) -> Headers:
        return _passed_back(self._head, "application/vnd.amazon.eventstream", self._request_id)

    def feed(self, chunk: bytes) -> bytes:
        self._answer.feed(chunk)
        return self._take()

    def finish(self) -> bytes:
        self._answer.finish()
        return self._take()

    def fail(self, error: ProxyError) -> bytes:
        if self._told:
            return b""
        self._told = True
        kind = _EVENT_TYPES.get(error.status, "validationException")
        if error.code is Code.UPSTREAM_CONFIG:
            kind = "internalServerException"
        elif kind == "modelTimeoutException" and self._operation is Operation.CONVERSE_STREAM:
            kind = "modelStreamErrorException"  # ConverseStreamOutput has no other for it
        headers: dict[str, HeaderValue] = {
            ":exception-type": kind,
            ":content-type": "application/json",
            ":message-type": "exception",
        }
        return encode(headers, _message(error))

    def ping(self) -> bytes:
        return b""

    def _take(self) -> bytes:
        answer = self._answer
        passed = answer.passed
        assert passed is not None, "frames are kept"
        fault = answer.fault
        if (
            answer.exception is not None
            and fault is not None
            and fault.code is not Code.UPSTREAM_CONFIG
            and not self._told
        ):
            self._told = True
            passed.append(self._safe(answer.exception))
        out = b"".join(passed)
        passed.clear()
        return out

    def _safe(self, frame: Frame) -> bytes:
        """Bedrock's exception as it came, unless it names what the client must not see."""
        payload = faults.without_names(frame.payload, self._sent)
        headers = {
            name: faults.without_names(value.encode(), self._sent).decode()
            if isinstance(value, str)
            else value
            for name, value in frame.headers.items()
        }
        if payload == frame.payload and headers == dict(frame.headers):
            return frame.raw
        return encode(headers, payload)


class _Whole:
    """A body, passed on once it is whole."""

    started = False

    def __init__(self, answer: WholeAnswer, request_id: str) -> None:
        self._answer = answer
        self._request_id = request_id
        self._head: Headers = ()

    @property
    def heard(self) -> bool:
        return self._answer.size > 0

    @property
    def ended(self) -> bool:
        return self._answer.ended

    @property
    def fault(self) -> ProxyError | None:
        return self._answer.fault

    @property
    def usage(self) -> Usage:
        return self._answer.meter.usage

    @property
    def seen_output_tokens(self) -> int:
        return self._answer.meter.seen_output_tokens

    def begin(self, head: UpstreamHead) -> None:
        self._answer.begin(head)
        self._head = head.headers

    def headers(self) -> Headers:
        return _passed_back(self._head, "application/json", self._request_id)

    def feed(self, chunk: bytes) -> bytes:
        self._answer.feed(chunk)
        return b""

    def finish(self) -> bytes:
        return self._answer.finish()

    def fail(self, error: ProxyError) -> bytes:  # noqa: ARG002
        return b""  # after the head there is room for nothing but the body it announced

    def ping(self) -> bytes:
        return b""
