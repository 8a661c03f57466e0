"""
The simple dialect: ``{"modelId": …, "stream": …, …the model's own body…}`` in; Bedrock's
own body, or a stream of ``{"content": "…"}``, out (DESIGN.md section 3).

A stream is Server-Sent Events (WHATWG HTML, section 9.2) or, where the host cannot stream
or the client asked for ``application/json``, one JSON array written as it comes.
JSON in both is ASCII-escaped, so that no line separator of Unicode can end an SSE line.
"""

import json
from collections.abc import Sequence
from typing import Final, Protocol

from bedrock_proxy import s3
from bedrock_proxy.answers import InvokeFrames, StreamedAnswer, WholeAnswer
from bedrock_proxy.dialects.dialect import Call, ErrorReply, Translation
from bedrock_proxy.errors import ClientFault, ProxyError
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.models import Family, estimate, family_of
from bedrock_proxy.models.names import parse_model_id
from bedrock_proxy.parts import Json, Other, Part, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.ports import Operation, UpstreamCall, UpstreamHead
from bedrock_proxy.sent import Sent
from bedrock_proxy.strict_json import parse_object, without
from bedrock_proxy.usage import Usage

_OURS: Final = ("modelId", "model", "stream", "stream_events")
"""What a body says to this dialect; not all of it is taken out on the way to Bedrock."""

_escaped: Final = json.encoder.encode_basestring_ascii
"""A string as ``json.dumps`` writes it."""

_JSON: Final = (("content-type", "application/json"),)
_SSE: Final = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)


def error_object(error: ProxyError, request_id: str) -> dict[str, Json]:
    """The one error object of this dialect: body, SSE event and array element alike."""
    said: dict[str, Json] = {
        "error": error.message,
        "code": str(error.code),
        "request_id": request_id,
        "retryable": error.retryable,
    }
    if error.limit is not None:
        said["limit"] = error.limit
    if error.retry_after is not None:
        said["retry_after"] = error.retry_after
    return said


class Simple:
    """The dialect; see :class:`bedrock_proxy.dialects.dialect.Dialect`."""

    name = "simple"

    def call(self, request: Request, body: bytes, operation: str, model: str | None) -> Call:  # noqa: ARG002
        sent = parse_object(body)
        ours = [name for name in _OURS if name in sent]
        name = parse_model_id(_take_model(sent))
        stream = _flag(sent, "stream")
        full = _take_choice(sent, "stream_events")
        family = family_of(name.canonical)
        if not family.body_has_stream:
            sent.pop("stream", None)
        upstream = UpstreamCall(
            Operation.INVOKE_STREAM if stream else Operation.INVOKE,
            name.raw,
            without(body.decode(), [name for name in ours if name not in sent], sent).encode(),
            _JSON if stream else (*_JSON, ("accept", "application/json")),
        )
        request_id = request.request_id

        def streamed(sent: Sent) -> Translation:
            writer = (
                _Array(full, request_id)
                if not request.can_stream or _wants_array(request)
                else _Events(full, request_id)
            )
            return Streamed(StreamedAnswer(InvokeFrames(family.reader()), sent), writer)

        def whole(_: Sent) -> Translation:
            return _Whole(family, request_id)

        return Call(
            upstream=upstream,
            model=name,
            family=family,
            estimate=estimate(family, sent),
            stream=stream,
            hold=not stream or not request.can_stream,
            s3_locations=s3.locations(body, sent),
            translation=streamed if stream else whole,
        )

    def refusal(self, error: ProxyError, request_id: str) -> ErrorReply:
        return ErrorReply(error.status, _JSON, _dumps(error_object(error, request_id)) + b"\n")


SIMPLE: Final = Simple()


class Writer(Protocol):
    """Parts to what the client gets, in one of the dialect's formats."""

    @property
    def content_headers(self) -> Headers: ...
    @property
    def wrote(self) -> bool: ...

    def write(self, parts: Sequence[Part]) -> bytes: ...
    def end(self, usage: Usage) -> bytes: ...
    def fail(self, error: ProxyError) -> bytes: ...
    def ping(self) -> bytes: ...


class _Events:
    """Server-Sent Events."""

    content_headers: Headers = _SSE

    def __init__(self, full: bool, request_id: str) -> None:
        self.wrote = False
        self._full = full
        self._request_id = request_id

    def write(self, parts: Sequence[Part]) -> bytes:
        if len(parts) == 1:
            part = parts[0]
            if type(part) is Text and part.text and not part.index:
                return f'data: {{"content": {_escaped(part.text)}}}\n\n'.encode("ascii")
        texts = [_escaped(p.text) for p in parts if type(p) is Text and p.text and not p.index]
        if texts and len(texts) == len(parts):
            # As nearly always; it takes half of the time.
            said = '}\n\ndata: {"content": '.join(texts)
            return f'data: {{"content": {said}}}\n\n'.encode("ascii")
        return "".join([f"data: {said}\n\n" for said in _said(parts, self._full)]).encode("ascii")

    def end(self, usage: Usage) -> bytes:
        last = b"data: %b\n\n" % _usage_object(usage) if self._full else b""
        return last + b"data: [DONE]\n\n"

    def fail(self, error: ProxyError) -> bytes:
        return b"event: error\ndata: %b\n\n" % _dumps(error_object(error, self._request_id))

    def ping(self) -> bytes:
        return b": ping\n\n"


class _Array:
    """One JSON array, an element at a time."""

    content_headers: Headers = _JSON

    def __init__(self, full: bool, request_id: str) -> None:
        self.wrote = False
        self._full = full
        self._request_id = request_id
        self._opened = False

    def write(self, parts: Sequence[Part]) -> bytes:
        said = _said(parts, self._full)
        return self._element(",\n".join(said).encode("ascii")) if said else b""

    def end(self, usage: Usage) -> bytes:
        last = self._element(_usage_object(usage)) if self._full else b""
        return last + self._element(b'{"done": true}') + b"]\n"

    def fail(self, error: ProxyError) -> bytes:
        return self._element(_dumps(error_object(error, self._request_id))) + b"]\n"

    def ping(self) -> bytes:
        if self._opened:
            return b" "
        self._opened = True
        return b"["

    def _element(self, said: bytes) -> bytes:
        if self.wrote:
            return b",\n" + said
        self.wrote = True
        if self._opened:
            return said
        self._opened = True
        return b"[" + said


class Streamed:
    """A reader and a writer, one after the other."""

    def __init__(self, answer: StreamedAnswer, writer: Writer) -> None:
        self._answer = answer
        self._writer = writer
        # Asked for after every piece: looked up here once.
        self.ended = False
        self.fault: ProxyError | None = None

    @property
    def started(self) -> bool:
        # An array can still become a plain error body until it holds something.
        return self._writer.wrote if isinstance(self._writer, _Array) else self._answer.frames > 0

    @property
    def heard(self) -> bool:
        return self._answer.frames > 0

    @property
    def usage(self) -> Usage:
        return self._answer.meter.usage

    @property
    def seen_output_tokens(self) -> int:
        return self._answer.meter.seen_output_tokens

    def begin(self, head: UpstreamHead) -> None:
        self._answer.meter.headers(head.headers)

    def headers(self) -> Headers:
        return self._writer.content_headers

    def feed(self, chunk: bytes) -> bytes:
        answer = self._answer
        said = self._writer.write(answer.feed(chunk))
        self.ended = answer.ended
        self.fault = answer.fault
        return said

    def finish(self) -> bytes:
        said = self._writer.write(self._answer.finish())
        self.ended = self._answer.ended
        self.fault = self._answer.fault
        if self._answer.fault is not None:
            return said
        return said + self._writer.end(self._answer.meter.usage)

    def fail(self, error: ProxyError) -> bytes:
        return self._writer.fail(error)

    def ping(self) -> bytes:
        return self._writer.ping()


class _Whole:
    """Bedrock's own body, byte for byte; read only for its usage."""

    started = False

    def __init__(self, family: Family, request_id: str) -> None:
        self._answer = WholeAnswer(family.answer)
        self._request_id = request_id
        self._content_type = "application/json"

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
        self._content_type = head.first("content-type") or self._content_type

    def headers(self) -> Headers:
        return (("content-type", self._content_type),)

    def feed(self, chunk: bytes) -> bytes:
        self._answer.feed(chunk)
        return b""

    def finish(self) -> bytes:
        return self._answer.finish()

    def fail(self, error: ProxyError) -> bytes:
        return _dumps(error_object(error, self._request_id)) + b"\n"

    def ping(self) -> bytes:
        return b""


def _take_model(sent: dict[str, Json]) -> str:
    name = "modelId" if "modelId" in sent else "model"
    model = sent.pop(name, None)
    if not isinstance(model, str) or not model:
        raise ClientFault('The request names no model; send "modelId": "<model id>".')
    return model


def _flag(sent: dict[str, Json], name: str) -> bool:
    value = sent.get(name, False)
    if not isinstance(value, bool):
        raise ClientFault(f'"{name}" must be true or false.')
    return value


def _take_choice(sent: dict[str, Json], name: str) -> bool:
    value = sent.pop(name, "text")
    if not isinstance(value, str) or value not in {"text", "full"}:
        raise ClientFault(f'"{name}" must be "text" or "full".')
    return value == "full"


def _wants_array(request: Request) -> bool:
    """RFC 9110, section 12.5.1, as far as this choice needs it."""
    kinds = {
        piece.partition(";")[0].strip().lower()
        for value in request.all("accept")
        for piece in value.split(",")
    }
    return "application/json" in kinds and not kinds & {"text/event-stream", "*/*"}


def _said(parts: Sequence[Part], full: bool) -> list[str]:
    """The objects that *parts* are to this dialect, in ASCII."""
    said: list[str] = []
    for part in parts:
        if isinstance(part, Text):
            if part.text:
                index = f', "index": {part.index}' if part.index else ""
                said.append(f'{{"content": {_escaped(part.text)}{index}}}')
        elif isinstance(part, Other):
            said.append(json.dumps({"event": part.event}))
        elif full:
            richer = _richer(part)
            if richer is not None:
                said.append(json.dumps(richer))
    return said


def _richer(part: Thinking | ToolUse | Stop | UsageReport) -> dict[str, Json] | None:
    """What ``"stream_events": "full"`` adds; the usage comes once, at the end."""
    match part:
        case Thinking():
            piece: dict[str, Json] = {"thinking": part.text}
            if part.signature is not None:
                piece["redacted" if part.redacted else "signature"] = part.signature
            return piece
        case ToolUse():
            tool: dict[str, Json] = {"index": part.index}
            if part.id is not None:
                tool["id"] = part.id
            if part.name is not None:
                tool["name"] = part.name
            tool["input_json"] = part.input_json
            return {"tool_use": tool}
        case Stop(reason=str(reason)):
            stop: dict[str, Json] = {"stop_reason": reason}
            if part.index:
                stop["index"] = part.index
            return stop
        case _:
            return None


def _usage_object(usage: Usage) -> bytes:
    counts: dict[str, Json] = {
        name: count
        for name, count in (
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
            ("cache_read_tokens", usage.cache_read_tokens),
            ("cache_write_5m_tokens", usage.cache_write_5m_tokens),
            ("cache_write_1h_tokens", usage.cache_write_1h_tokens),
        )
        if count is not None
    }
    counts["token_count"] = usage.token_count
    return _dumps({"usage": counts})


def _dumps(value: Json) -> bytes:
    return json.dumps(value).encode("ascii")
