"""
The dialect of a program in this process: the simple dialect's request in, parts out.

The flow says bytes, and parts are no bytes: they go into an :class:`Inbox`, and what is
said is a mark that something lies there. All else of the flow stays as it is: the same
authentication, admission, metering and ledger.
"""

from collections.abc import Sequence
from typing import Final

from attrs import evolve

from bedrock_proxy.answers import InvokeFrames, StreamedAnswer, whole_answer
from bedrock_proxy.dialects.dialect import Call, ErrorReply, Translation
from bedrock_proxy.dialects.simple import SIMPLE, Streamed
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.models import Family
from bedrock_proxy.parts import Part, UsageReport
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.sent import Sent
from bedrock_proxy.usage import Usage

_MARK: Final = b"."


class Inbox:
    """
    Where one answer's parts wait for the program that asked.

    Attributes:
        error: What ended the answer, or refused the request, once something has.
    """

    content_headers: Headers = ()
    wrote = False

    def __init__(self) -> None:
        self.error: ProxyError | None = None
        self._parts: list[Part] = []

    def take(self) -> list[Part]:
        """What has come since the last time."""
        taken, self._parts = self._parts, []
        return taken

    def write(self, parts: Sequence[Part]) -> bytes:
        """Leave *parts*, but for the counts: they come once, at the end."""
        before = len(self._parts)
        self._parts += (part for part in parts if not isinstance(part, UsageReport))
        return _MARK if len(self._parts) > before else b""

    def end(self, usage: Usage) -> bytes:
        """The answer is whole: leave its final counts."""
        self._parts.append(UsageReport(usage))
        return _MARK

    def fail(self, error: ProxyError) -> bytes:
        """The answer ends here."""
        self.error = error
        return _MARK

    def ping(self) -> bytes:
        """Nobody needs to be kept awake."""
        return b""


class InParts:
    """
    The dialect of one request; see :class:`bedrock_proxy.dialects.dialect.Dialect`.

    The ledger knows it as ``simple``, for that is what the request is.
    """

    name = SIMPLE.name

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def call(self, request: Request, body: bytes, operation: str, model: str | None) -> Call:
        call = SIMPLE.call(request, body, operation, model)
        family, simple = call.family, call.translation

        def streamed(sent: Sent) -> Translation:
            frames = InvokeFrames(family.reader())
            return Streamed(StreamedAnswer(frames, sent), self._inbox)

        def whole(sent: Sent) -> Translation:
            return _Whole(simple(sent), family, self._inbox)

        return evolve(call, translation=streamed if call.stream else whole)

    def refusal(self, error: ProxyError, request_id: str) -> ErrorReply:  # noqa: ARG002
        return ErrorReply(error.status, (), self._inbox.fail(error))


class _Whole:
    """A whole body, as the simple dialect receives it; its parts in place of its bytes."""

    def __init__(self, whole: Translation, family: Family, inbox: Inbox) -> None:
        self._whole = whole
        self._family = family
        self._inbox = inbox

    @property
    def started(self) -> bool:
        return self._whole.started

    @property
    def heard(self) -> bool:
        return self._whole.heard

    @property
    def ended(self) -> bool:
        return self._whole.ended

    @property
    def fault(self) -> ProxyError | None:
        return self._whole.fault

    @property
    def usage(self) -> Usage:
        return self._whole.usage

    @property
    def seen_output_tokens(self) -> int:
        return self._whole.seen_output_tokens

    def begin(self, head: UpstreamHead) -> None:
        self._whole.begin(head)

    def headers(self) -> Headers:
        return ()

    def feed(self, chunk: bytes) -> bytes:
        return self._whole.feed(chunk)

    def finish(self) -> bytes:
        body = self._whole.finish()
        if self._whole.fault is not None:
            return b""
        said = self._inbox.write(whole_answer(self._family, body))
        return said + self._inbox.end(self._whole.usage)

    def fail(self, error: ProxyError) -> bytes:
        return self._inbox.fail(error)

    def ping(self) -> bytes:
        return self._inbox.ping()
