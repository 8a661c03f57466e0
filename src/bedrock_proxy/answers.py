"""
A model's answer on its way through: upstream bytes in, parts out, tokens metered.

This is the reading half of every translation, and all that a program needs that wants a
model's parts without HTTP in between.
"""

import binascii
import json
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, cast

from bedrock_proxy import faults
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.eventstream import Decoder, EventStreamError, Frame
from bedrock_proxy.http import Headers
from bedrock_proxy.models import ConverseReader, Family, Reader, header_usage, invocation_metrics
from bedrock_proxy.models.converse import EVENT_TYPES
from bedrock_proxy.parts import Json, Part, Stop, Text, Thinking, ToolUse, UsageReport
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.usage import Usage

MAX_WHOLE: Final = 64 * 1024 * 1024
"""Bedrock's own bodies end at 25 MB (AWS, Bedrock API reference, InvokeModel)."""

BYTES_PER_TOKEN: Final = 3
"""The estimate's rule (DESIGN.md section 4), for input not sent and output not reported."""


class Meter:
    """
    Whose figures count: the model's own, then Bedrock's metrics, then the HTTP headers.
    Within each source the last word wins; nothing is ever added up.
    """

    __slots__ = ("_headers", "_metrics", "_reported", "output_bytes")

    def __init__(self) -> None:
        self._reported = self._metrics = self._headers = Usage()
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
            if isinstance(part, Text | Thinking):
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
    """

    @property
    def kinds(self) -> Collection[str]: ...

    def read(self, kind: str, payload: Json, meter: Meter) -> Sequence[Part]:
        """The parts of one event; raises ``ValueError`` where the payload is not as agreed."""
        ...

    def finish(self) -> Sequence[Part]:
        """Whatever was held back."""
        ...


class InvokeFrames:
    """``InvokeModelWithResponseStream``: ``chunk`` events that wrap the model's own JSON."""

    __slots__ = ("_reader",)

    kinds = ("chunk",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, kind: str, payload: Json, meter: Meter) -> Sequence[Part]:
        if kind != "chunk":
            return ()  # an event type of a later day: not ours to judge (S11)
        inner = payload.get("bytes") if isinstance(payload, dict) else None
        if not isinstance(inner, str):
            raise ValueError("a chunk without bytes")  # noqa: TRY004 -- one kind for all bad payloads
        event = cast("Json", json.loads(binascii.a2b_base64(inner, strict_mode=True)))
        parts = self._reader.read(event)
        metrics = invocation_metrics(event)
        if metrics is None:
            return parts
        meter.metrics(metrics)
        # The final metrics are a stop marker too: some families name no reason.
        if any(isinstance(part, Stop) for part in parts):
            return parts
        return (*parts, Stop(None))

    def finish(self) -> Sequence[Part]:
        return self._reader.finish()


class ConverseFrames:
    """``ConverseStream``: one event type for each kind of step."""

    __slots__ = ("_reader",)

    kinds = EVENT_TYPES

    def __init__(self) -> None:
        self._reader = ConverseReader()

    def read(self, kind: str, payload: Json, meter: Meter) -> Sequence[Part]:  # noqa: ARG002
        return self._reader.read(kind, payload)

    def finish(self) -> Sequence[Part]:
        return ()


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

    def __init__(self, frames: Frames, sent: str = "", *, keep_frames: bool = False) -> None:
        """*sent*: what the client sent, to tell its own ARNs from the operator's."""
        self.meter = Meter()
        self.frames = 0
        self.ended = False
        self.fault: ProxyError | None = None
        self.exception: Frame | None = None
        self.passed: list[bytes] | None = [] if keep_frames else None
        self._frames = frames
        self._decoder = Decoder()
        self._sent = sent

    def feed(self, chunk: bytes) -> list[Part]:
        """The parts that *chunk* completes."""
        parts: list[Part] = []
        if self.fault is not None:
            return parts
        for frame in self._decoder.feed(chunk):
            fresh = self._read(frame)
            if self.fault is not None:
                return parts
            self.frames += 1
            if self.passed is not None:
                self.passed.append(frame.raw)
            if fresh:
                parts += fresh
        if self._decoder.fault is not None:
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

    def _read(self, frame: Frame) -> Sequence[Part]:
        headers = frame.headers
        kind = headers.get(":message-type")
        if kind != "event":
            if kind in {"exception", "error"}:
                self.exception = frame
                self.fault = self._exception(frame)
            return ()
        event = str(headers.get(":event-type", ""))
        try:
            payload = cast("Json", json.loads(frame.payload)) if frame.payload else None
            parts = self._frames.read(event, payload, self.meter)
        except (ValueError, RecursionError):
            if event not in self._frames.kinds:
                return ()  # of a later day, and not ours to judge (S11)
            self.fault = faults.corrupt()
            return ()
        self._saw(parts)
        return parts

    def _saw(self, parts: Sequence[Part]) -> None:
        self.meter.saw(parts)
        if not self.ended and any(isinstance(part, Stop) for part in parts):
            self.ended = True

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
        return read(cast("Json", json.loads(body)))
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
