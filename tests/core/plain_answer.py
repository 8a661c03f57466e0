"""
The same translations in the obvious way: every frame parsed by ``json.loads``, every part an
object, every object written by ``json.dumps``. What the fast way must equal, byte for byte.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

from bedrock_proxy import faults
from bedrock_proxy.answers import Meter
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.eventstream import Decoder, EventStreamError, Frame
from bedrock_proxy.models import ConverseReader, Reader, invocation_metrics
from bedrock_proxy.models.converse import EVENT_TYPES
from bedrock_proxy.parts import Other, Part, Stop, Text, Thinking, ToolUse


class PlainAnswer:
    """One streamed answer; *reader* is None for ConverseStream."""

    def __init__(self, reader: Reader | None) -> None:
        self.meter = Meter()
        self.frames = 0
        self.ended = False
        self.fault: ProxyError | None = None
        self.passed: list[bytes] = []
        self.reader = reader
        self.converse = ConverseReader()
        self.decoder = Decoder()

    def feed(self, chunk: bytes) -> list[Part]:
        parts: list[Part] = []
        if self.fault is not None:
            return parts
        for frame in self.decoder.feed(chunk):
            fresh = self.read(frame)
            if self.fault is not None:
                return parts
            self.frames += 1
            self.passed.append(frame.raw)
            parts.extend(fresh)
        if self.decoder.fault is not None:
            self.fault = faults.corrupt()
        return parts

    def finish(self) -> list[Part]:
        if self.fault is not None:
            return []
        try:
            self.decoder.close()
        except EventStreamError:
            self.fault = faults.torn()
            return []
        if not self.ended:
            self.fault = faults.torn()
            return []
        parts = list(self.reader.finish() if self.reader is not None else ())
        self.saw(parts)
        return parts

    def read(self, frame: Frame) -> Sequence[Part]:
        kind = frame.headers.get(":message-type")
        if kind in {"exception", "error"}:
            self.fault = faults.corrupt()  # which fault it is, is not compared
            return ()
        if kind != "event":
            return ()
        event = str(frame.headers.get(":event-type", ""))
        kinds = ("chunk",) if self.reader is not None else EVENT_TYPES
        try:
            payload: Any = json.loads(frame.payload) if frame.payload else None
            parts = self.parts(event, payload)
        except (ValueError, RecursionError):
            if event not in kinds:
                return ()
            self.fault = faults.corrupt()
            return ()
        self.saw(parts)
        return parts

    def parts(self, event: str, payload: Any) -> Sequence[Part]:
        if self.reader is None:
            return self.converse.read(event, payload)
        if event != "chunk":
            return ()
        if not isinstance(payload, dict) or not isinstance(payload.get("bytes"), str):
            raise ValueError
        inner = payload["bytes"]
        if len(inner) % 4 or not inner.isascii():
            raise ValueError
        said = json.loads(base64.b64decode(inner, validate=True))
        parts = self.reader.read(said)
        metrics = invocation_metrics(said)
        if metrics is None:
            return parts
        self.meter.metrics(metrics)
        stopped = self.ended or any(isinstance(p, Stop) for p in parts)
        return parts if stopped else (*parts, Stop(None))

    def saw(self, parts: Sequence[Part]) -> None:
        self.meter.saw(parts)
        self.ended = self.ended or any(isinstance(part, Stop) for part in parts)


def objects(parts: Sequence[Part], full: bool) -> list[dict[str, Any]]:
    """The simple dialect's objects of *parts*."""
    said: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text) and part.text:
            said.append({"content": part.text} | ({"index": part.index} if part.index else {}))
        elif isinstance(part, Other):
            said.append({"event": part.event})
        elif full and isinstance(part, Thinking):
            more = {"redacted" if part.redacted else "signature": part.signature}
            said.append({"thinking": part.text} | (more if part.signature is not None else {}))
        elif full and isinstance(part, ToolUse):
            tool: dict[str, Any] = {"index": part.index}
            tool |= {} if part.id is None else {"id": part.id}
            tool |= {} if part.name is None else {"name": part.name}
            said.append({"tool_use": tool | {"input_json": part.input_json}})
        elif full and isinstance(part, Stop) and part.reason is not None:
            index = {"index": part.index} if part.index else {}
            said.append({"stop_reason": part.reason} | index)
    return said


def sse(parts: Sequence[Part], full: bool) -> bytes:
    """The same as Server-Sent Events."""
    return b"".join(b"data: %b\n\n" % json.dumps(o).encode() for o in objects(parts, full))


def array(parts: Sequence[Part], full: bool, before: bool) -> bytes:
    """The same as elements of an array that has some already, or not."""
    said = ",\n".join(json.dumps(o) for o in objects(parts, full))
    return (b",\n" if before else b"[") + said.encode() if said else b""
