"""
A model's answer on its way through: upstream bytes in, parts out, tokens metered.

This is the reading half of every translation, and all that a program needs that wants a
model's parts without HTTP in between.
"""

import json
from binascii import a2b_base64
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

from bedrock_proxy import faults
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.eventstream import (
    CHECKSUM,
    PRELUDE,
    Decoder,
    EventStreamError,
    Frame,
    HeaderValue,
)
from bedrock_proxy.http import Headers
from bedrock_proxy.models import ConverseReader, Family, Reader, header_usage, invocation_metrics
from bedrock_proxy.models.converse import EVENT_TYPES
from bedrock_proxy.parts import Json, Part, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.patterns import WRAPPER, Pattern, end_of, learned
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.sent import NOTHING_SENT, Sent
from bedrock_proxy.usage import NOTHING_SAID, Usage

MAX_WHOLE: Final = 64 * 1024 * 1024
"""Bedrock's own bodies end at 25 MB (AWS, Bedrock API reference, InvokeModel)."""

BYTES_PER_TOKEN: Final = 3
"""The estimate's rule (DESIGN.md section 4), for input not sent and output not reported."""


_SAID: Final = (Text, Thinking)


class Meter:
    """
    Whose figures count: the model's own, then Bedrock's metrics, then the HTTP headers.
    Within each source the last word wins; nothing is ever added up.
    """

    __slots__ = ("_headers", "_metrics", "_reported", "output_bytes")

    def __init__(self) -> None:
        self._reported = self._metrics = self._headers = NOTHING_SAID
        self.output_bytes = 0
        """UTF-8 bytes of text, thinking and tool input seen so far."""

    def reported(self, usage: Usage) -> None:
        """The model's own figures."""
        self._reported = self._reported.updated(usage)

    def metrics(self, usage: Usage) -> None:
        """``amazon-bedrock-invocationMetrics``."""
        self._metrics = self._metrics.updated(usage)

    def headers(self, headers: Headers) -> None:
        """``X-Amzn-Bedrock-*-Token-Count``."""
        usage = header_usage(headers)
        if usage is not None:
            self._headers = usage

    def saw(self, parts: Sequence[Part]) -> None:
        """Count what *parts* hold and take in what they report."""
        for part in parts:
            if isinstance(part, _SAID):
                self.output_bytes += len(part.text.encode("utf-8", "surrogatepass"))
            elif isinstance(part, ToolUse):
                self.output_bytes += len(part.input_json.encode("utf-8", "surrogatepass"))
            elif isinstance(part, UsageReport):
                self.reported(part.usage)

    @property
    def usage(self) -> Usage:
        """The best figures there are so far."""
        return self._reported.completed(self._metrics).completed(self._headers)

    @property
    def seen_output_tokens(self) -> int:
        """An estimate of the output seen so far, in tokens."""
        return -(-self.output_bytes // BYTES_PER_TOKEN)


class Frames(Protocol):
    """
    Turns the event frames of one operation into parts.

    Attributes:
        kinds: The event types whose payload is known to be JSON.
        steady: Whether a piece of text that follows another alike changes nothing but the text:
            see :attr:`bedrock_proxy.models.reader.Reader.steady`.
        wrapped: Whether a payload holds the event's JSON in base64 or is that JSON.
        stopped: Whether a stop came among the parts; set by whoever reads them.
    """

    stopped: bool

    @property
    def kinds(self) -> Collection[str]: ...
    @property
    def steady(self) -> bool: ...
    @property
    def wrapped(self) -> bool: ...

    def document(self, payload: bytes) -> bytes | None:
        """
        The JSON of one event without what wraps it and without padding, where the payload is
        written as Bedrock writes it; None for any other, which says nothing about it.
        """
        ...

    def read(
        self, kind: str, payload: bytes, document: bytes | None, meter: Meter
    ) -> Sequence[Part]:
        """
        The parts of one event; *document* as above. Raises ``ValueError`` where the payload is
        not as agreed.
        """
        ...

    def finish(self) -> Sequence[Part]:
        """Whatever was held back."""
        ...


class InvokeFrames:
    """``InvokeModelWithResponseStream``: ``chunk`` events that wrap the model's own JSON."""

    __slots__ = ("_reader", "steady", "stopped")

    kinds = ("chunk",)
    wrapped = True

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.steady = reader.steady
        self.stopped = False

    def document(self, payload: bytes) -> bytes | None:
        begin = len(WRAPPER)
        end = payload.find(b'"', begin)
        if payload[:begin] != WRAPPER or end_of(payload) != end + 1:
            return None
        try:
            return a2b_base64(payload[begin:end], strict_mode=True)
        except ValueError:
            return None

    def read(
        self, kind: str, payload: bytes, document: bytes | None, meter: Meter
    ) -> Sequence[Part]:
        if document is None or kind != "chunk":
            wrapped = _loads(payload) if payload else None
            if kind != "chunk":
                return ()  # an event type of a later day: not ours to judge (S11)
            inner = wrapped.get("bytes") if isinstance(wrapped, dict) else None
            if not isinstance(inner, str):
                raise ValueError("a chunk without bytes")
            document = a2b_base64(inner, strict_mode=True)
        event = _loads(document)
        parts = self._reader.read(event)
        metrics = invocation_metrics(event)
        if metrics is None:
            return parts
        meter.metrics(metrics)
        # The final metrics are a stop marker too, where none came: some families name no reason.
        if self.stopped or any(isinstance(part, Stop) for part in parts):
            return parts
        return (*parts, Stop(None))

    def finish(self) -> Sequence[Part]:
        return self._reader.finish()


class ConverseFrames:
    """``ConverseStream``: one event type for each kind of step."""

    __slots__ = ("_reader", "stopped")

    kinds = EVENT_TYPES
    steady = True
    wrapped = False

    def __init__(self) -> None:
        self._reader = ConverseReader()
        self.stopped = False

    def document(self, payload: bytes) -> bytes | None:
        return payload[: max(end_of(payload), 0)] or None

    def read(
        self, kind: str, payload: bytes, document: bytes | None, meter: Meter
    ) -> Sequence[Part]:
        del document, meter
        return self._reader.read(kind, _loads(payload) if payload else None)

    def finish(self) -> Sequence[Part]:
        return ()


_JSON: Final = json.JSONDecoder()


def _loads(document: bytes) -> Json:
    """``json.loads``, without its ways to find out which encoding an object is in."""
    value: Json
    if document.startswith(b'{"'):
        try:
            text = document.decode()
        except UnicodeDecodeError:
            pass
        else:
            value, end = _JSON.raw_decode(text)
            if end == len(text):
                return value
    value = json.loads(document)
    return value


class StreamedAnswer:
    """
    One streamed answer. Fed until the end, then thrown away.

    Attributes:
        meter: The tokens so far.
        frames: How many frames have been read.
        ended: Whether a stop marker was seen: the stream is whole.
        fault: Why nothing more will come, once something is wrong. Parts that came before
            the fault are returned all the same.
        exception: The frame that said so, where Bedrock itself did.
        passed: The sound frames as they came, for whoever takes them out; None unless kept.
    """

    def __init__(
        self, frames: Frames, sent: Sent = NOTHING_SENT, *, keep_frames: bool = False
    ) -> None:
        """
        Args:
            sent: What the client sent, to tell its own ARNs from the operator's.
            keep_frames: Whether the frames are wanted rather than the parts.
        """
        self.meter = Meter()
        self.frames = 0
        self.ended = False
        self.fault: ProxyError | None = None
        self.exception: Frame | None = None
        self.passed: list[bytes] | None = [] if keep_frames else None
        self._frames = frames
        self._decoder = Decoder()
        self._pattern: Pattern | None = None
        self._sent = sent

    def feed(self, chunk: bytes) -> list[Part]:
        """The parts that *chunk* completes; none but the unusual ones where frames are kept."""
        parts: list[Part] = []
        if self.fault is not None:
            return parts
        pattern = self._pattern
        passed = self.passed
        if pattern is not None and not self._decoder.pending:
            texts, stop = pattern.texts(chunk)
            if texts:
                size = 0
                for said in texts:
                    size += len(said) if said.isascii() else len(said.encode())
                    if passed is None:
                        parts.append(Text(said, pattern.index))
                self.meter.output_bytes += size
                self.frames += len(texts)
                whole = stop == len(chunk)
                if passed is not None:
                    passed.append(chunk if whole else chunk[:stop])
                if whole:
                    return parts
                chunk = chunk[stop:]
        found = self._decoder.scan(chunk)
        document_of = self._frames.document
        known = None if pattern is None else pattern.headers
        size = begin = stop = 0
        for headers, payload, at, end in found:
            document = document_of(payload)
            text = None
            if headers is known and pattern is not None and document is not None:
                text = pattern.text(document)
            if text is not None and pattern is not None:
                size += len(text) if text.isascii() else len(text.encode())
                if passed is None:
                    parts.append(Text(text, pattern.index))
            else:
                parts += self._read(headers, payload, document, at, end)
                if self.fault is not None:
                    break
                pattern = self._pattern
                known = None if pattern is None else pattern.headers
            self.frames += 1
            if stop == 0:
                begin = at
            stop = end
        self.meter.output_bytes += size
        if passed is not None and stop:
            passed.append(self._decoder.octets[begin:stop])
        if self.fault is None and self._decoder.fault is not None:
            self.fault = faults.corrupt()
        return parts

    def finish(self) -> list[Part]:
        """What was held back, once the upstream has ended; may set ``fault``."""
        if self.fault is not None:
            return []
        try:
            self._decoder.close()
        except EventStreamError:
            self.fault = faults.torn()
            return []
        if not self.ended:
            self.fault = faults.torn()
            return []
        parts = list(self._frames.finish())
        self._saw(parts)
        return parts

    def _read(
        self,
        headers: Mapping[str, HeaderValue],
        payload: bytes,
        document: bytes | None,
        at: int,
        end: int,
    ) -> Sequence[Part]:
        kind = headers.get(":message-type")
        if kind != "event":
            if kind in {"exception", "error"}:
                frame = Frame(headers, payload, self._decoder.octets[at:end])
                self.exception = frame
                self.fault = self._exception(frame)
            return ()
        event = str(headers.get(":event-type", ""))
        try:
            parts = self._frames.read(event, payload, document, self.meter)
        except (ValueError, RecursionError):
            if event not in self._frames.kinds:
                return ()  # of a later day, and not ours to judge (S11)
            self.fault = faults.corrupt()
            return ()
        self._saw(parts)
        part = parts[0] if len(parts) == 1 else None
        if not isinstance(part, Text):
            self._pattern = None  # the reader may have changed its mind about what follows
        elif document is not None and self._frames.steady:
            octets = self._decoder.octets
            block = octets[at + PRELUDE.size : end - CHECKSUM.size - len(payload)]
            pattern = learned(
                headers, block, document, part.text, part.index, wrapped=self._frames.wrapped
            )
            if pattern is not None:
                self._pattern = pattern
        return parts

    def _saw(self, parts: Sequence[Part]) -> None:
        self.meter.saw(parts)
        if not self.ended and any(isinstance(part, Stop) for part in parts):
            self.ended = self._frames.stopped = True

    def _exception(self, frame: Frame) -> ProxyError:
        headers = frame.headers
        name = headers.get(":exception-type", headers.get(":error-code", ""))
        message = headers.get(":error-message", "")
        said = faults.member(frame.payload, "message", "Message")
        if said is not None:
            message = said
        return faults.from_exception(str(name), str(message), self._sent)


def whole_answer(family: Family, body: bytes) -> Sequence[Part]:
    """The parts of a non-streaming InvokeModel body; none where it is not JSON."""
    return _parts(family.answer, body)


def _parts(read: Callable[[Json], Sequence[Part]], body: bytes) -> Sequence[Part]:
    try:
        return read(_loads(body))
    except (ValueError, RecursionError):
        return ()


class WholeAnswer:
    """
    One answer that comes whole: its body, byte for byte, read only for its usage.

    Attributes:
        meter: The tokens it says it used.
        size: How many bytes have come.
        ended: Whether all of it has.
        fault: Why it will not, once something is wrong.
    """

    def __init__(self, read: Callable[[Json], Sequence[Part]] | None) -> None:
        """*read*: finds the parts in a body; None where an answer counts no tokens."""
        self.meter = Meter()
        self.size = 0
        self.ended = False
        self.fault: ProxyError | None = None
        self._read = read
        self._pieces: list[bytes] = []
        self._expected: int | None = None

    def begin(self, head: UpstreamHead) -> None:
        """Bedrock's head."""
        if self._read is not None:
            self.meter.headers(head.headers)
        length = head.first("content-length")
        if length is not None and length.isdecimal():
            self._expected = int(length)

    def feed(self, chunk: bytes) -> None:
        """A piece of it; may set ``fault``."""
        self._pieces.append(chunk)
        self.size += len(chunk)
        if self.size > MAX_WHOLE:
            self.fault = faults.corrupt()
            self._pieces.clear()

    def finish(self) -> bytes:
        """The body, once the upstream has ended; may set ``fault``."""
        if self.fault is None and self._expected is not None and self.size < self._expected:
            self.fault = faults.torn()
        if self.fault is not None:
            return b""
        body = b"".join(self._pieces)
        if self._read is not None:
            self.meter.saw(_parts(self._read, body))
        self.ended = True
        return body
