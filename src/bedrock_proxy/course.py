"""
One admitted request under way: from its lease to its ledger row.

``carry`` calls Bedrock and relays the answer; :class:`Course` remembers what the row needs.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, TypeVar

from attrs import define, field

from bedrock_proxy import cors, faults
from bedrock_proxy.admission import Lease
from bedrock_proxy.answers import MAX_WHOLE
from bedrock_proxy.dialects.dialect import Call, Translation
from bedrock_proxy.drive import Deadline, Ending, Gone, insist
from bedrock_proxy.effects import (
    NOW,
    Begin,
    Close,
    Effect,
    Flow,
    Now,
    Open,
    Read,
    Renew,
    TakeDrain,
    Wait,
    ask,
)
from bedrock_proxy.errors import ClientFault, Code, ProxyError, StoreUnavailable
from bedrock_proxy.http import Head, Headers, Request
from bedrock_proxy.ports import (
    END,
    SILENCE,
    Instant,
    Signal,
    Trouble,
    UpstreamHead,
    UpstreamReply,
    UpstreamUnreachable,
)
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Basis, Outcome, State, Usage, UsageRecord

T = TypeVar("T")

RETRY_PAUSES: Final = (0.25, 0.75)
"""The most to wait before the second and the third call; the pause is drawn below it."""

_MAX_ERROR_BODY: Final = 64 * 1024


@define
class Course:
    """
    Attributes:
        extra: Response headers that belong to the customer (limits, deprecation).
        attempts: How often Bedrock was called.
        head_said: Whether the reply's status is out.
        first_byte: When it was, in seconds (monotonic).
        upstream: Bedrock's head, of the last call.
        translation: The answer, of the last call.
        outcome, error: How it ended; the first reason counts.
        renewed_at: When the lease was last made or renewed, in seconds (monotonic).
        quiet_since: Since when nothing was said; None right after something was.
        all_said: Whether everything of a whole answer is out.
        read_out: Whether the upstream has been read to its end.
        held, held_size: What is kept back until the answer is complete (``Call.hold``), and
            how many bytes it is.
    """

    request: Request
    rules: Rules
    call: Call
    arrived: Instant
    lease: Lease
    extra: Headers
    attempts: int = 0
    head_said: bool = False
    first_byte: float | None = None
    upstream: UpstreamHead | None = None
    translation: Translation | None = None
    outcome: Outcome = Outcome.OK
    error: ProxyError | None = None
    renewed_at: float | None = None
    quiet_since: float | None = None
    all_said: bool = False
    read_out: bool = False
    held: list[bytes] = field(factory=list[bytes])
    held_size: int = 0

    def failed(self, error: ProxyError | None, outcome: Outcome = Outcome.ERROR) -> None:
        """Remember why it did not end well; the first reason counts."""
        if self.outcome is Outcome.OK:
            self.error, self.outcome = error, outcome

    def record(self, now: Instant) -> UsageRecord:
        """The ledger row."""
        usage, basis = self._usage()
        call = self.call
        wanted = self.lease.request
        first = None if self.first_byte is None else self.first_byte - self.arrived.monotonic
        head = self.upstream
        return UsageRecord(
            request_id=self.request.request_id,
            customer_id=wanted.customer_id,
            key_id=wanted.key_id,
            model_id=wanted.model_id,
            model=wanted.model,
            dialect=wanted.dialect,
            operation=wanted.operation,
            stream=call.stream,
            admitted_at=wanted.at,
            duration_ms=max(0, round((now.monotonic - self.arrived.monotonic) * 1000)),
            first_byte_ms=None if first is None else max(0, round(first * 1000)),
            attempts=self.attempts,
            input_tokens=usage.input_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            cache_read_tokens=usage.cache_read_tokens or 0,
            cache_write_5m_tokens=usage.cache_write_5m_tokens or 0,
            cache_write_1h_tokens=usage.cache_write_1h_tokens or 0,
            token_count=usage.token_count,
            basis=basis,
            state=State.ESTIMATED if basis is Basis.ESTIMATED else State.FINAL,
            outcome=self.outcome,
            error_code=None if self.error is None else str(self.error.code),
            price_version=wanted.price_version,
            aws_request_id=None if head is None else head.first("x-amzn-requestid"),
            client_request_id=wanted.client_request_id,
        )

    def _usage(self) -> tuple[Usage, Basis]:
        translation = self.translation
        if translation is None:
            return Usage(), Basis.REPORTED
        usage = translation.usage
        guess = Usage(self.call.estimate.input_tokens or 0, translation.seen_output_tokens)
        if translation.ended and translation.fault is None:
            if not self.call.counts_tokens:
                return usage, Basis.REPORTED
            if usage.input_tokens is None:
                return usage.completed(guess), Basis.ESTIMATED
            if usage.output_tokens is None and translation.seen_output_tokens:
                return usage.completed(guess), Basis.ESTIMATED
            return usage, Basis.REPORTED
        refused = translation.fault is not None or (
            self.upstream is not None and self.upstream.status >= 300
        )
        stopped_by_us = self.outcome in {Outcome.CLIENT_GONE, Outcome.TIMEOUT, Outcome.SHUTDOWN}
        if not translation.heard and (refused or not stopped_by_us):
            # Bedrock said no, or nothing at all: nothing was spent.
            return Usage(), Basis.REPORTED
        seen = max(usage.output_tokens or 0, translation.seen_output_tokens)
        return usage.completed(guess).updated(Usage(output_tokens=seen)), Basis.PARTIAL


def carry(course: Course) -> Flow[None]:
    """
    Call Bedrock, again where that may help, and relay its answer.

    Raises:
        ProxyError: The answer could not be given, or not wholly; where the head is out,
            one terminal error is still to be said.
    """
    reply: UpstreamReply | None = None
    try:
        while True:
            yield b""  # if the client left or we are stopping, do not call
            course.translation = course.call.translation()
            course.upstream = None
            course.read_out = False
            course.held.clear()
            course.held_size = 0
            course.attempts += 1
            reply = yield from ask(Open(course.call.upstream))
            try:
                yield from _relay(course, reply, course.translation)
            except ProxyError as fault:
                yield from _say_held(course)
                retried = course.attempts - 1
                begun = course.head_said or course.translation.heard
                if begun or fault.status not in faults.RETRIED_STATUSES:
                    raise
                if retried >= min(course.rules.retries, len(RETRY_PAUSES)):
                    raise
                yield from ask(Close(reply))
                yield from ask(Wait(RETRY_PAUSES[retried]))
            else:
                return
    except Gone as gone:
        yield from _left(course, reply, gone)
    except Ending as ending:
        outcome = Outcome.TIMEOUT if isinstance(ending, Deadline) else Outcome.SHUTDOWN
        course.failed(ending.error, outcome)
        with suppress(Gone):
            yield from _say_held(course)
        raise ending.error from None
    finally:
        if reply is not None:
            yield from ask(Close(reply))


def say_terminal(course: Course, error: ProxyError) -> Flow[None]:
    """End a reply whose head is out with its one terminal error."""
    assert course.translation is not None
    with suppress(Gone):
        yield from insist(course.translation.fail(error))


# --- relaying -------------------------------------------------------------------------------


def _relay(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[None]:
    head = yield from _heard(course, translation, lambda within: Begin(reply, within))
    course.upstream = head
    if head.status >= 300:
        body = yield from _error_body(course, reply, translation)
        error = faults.from_reply(head, body, _sent(course))
        if len(body) == _MAX_ERROR_BODY:
            error.original = None  # it may have been cut
        raise error
    translation.begin(head)
    if course.call.head_first:
        yield from _say(course, translation, b"")
    if course.call.hold:
        yield from _relay_whole(course, reply, translation)
    else:
        yield from _relay_pieces(course, reply, translation)


def _relay_pieces(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[None]:
    """
    Each piece as it comes. While pieces come and go, a turn is one look at the clock, one read
    and one thing said; all that takes time, or is due, is left to ``_heard`` and ``_say``.
    """
    steady = _Steady(course, reply)
    while True:
        now: Instant = yield NOW
        if course.quiet_since is None and translation.heard and now.monotonic < steady.until:
            course.quiet_since = now.monotonic
            try:
                got = yield steady.read
            except UpstreamUnreachable as failure:
                yield from _unreachable(course, failure)
                raise
            if got is SILENCE:
                yield b""
                got = yield from _heard(
                    course, translation, lambda within: Read(reply, within), now
                )
                steady.look_ahead()
        else:
            got = yield from _heard(course, translation, lambda within: Read(reply, within), now)
            steady.look_ahead()
        if isinstance(got, bytes):
            out = translation.feed(got)
        else:
            out = yield from _ended(course, translation)
        fault = translation.fault
        if out or translation.started:
            if course.head_said and out:
                try:
                    yield out
                except Ending as ending:
                    if ending.unsaid:
                        yield from insist(out)
                    reason: Ending | None = ending
                else:
                    reason = None
                course.quiet_since = None
                course.all_said = translation.ended
                if reason is not None and (got is not END or fault is not None):
                    raise reason  # else all of it is out: there is nothing left to end
            else:
                try:
                    yield from _say(course, translation, out)
                except Ending:
                    if got is not END or fault is not None or not course.head_said:
                        raise
        if fault is not None:
            raise fault
        if got is END:
            return


class _Steady:
    """
    What a turn of a stream under way needs, made once for many.

    Attributes:
        read: The next read, waiting as long as nothing else can be due.
        until: From when on (monotonic) something may be: a renewal, or the longest duration.
    """

    __slots__ = ("_course", "read", "until")

    def __init__(self, course: Course, reply: UpstreamReply) -> None:
        rules = course.rules
        self._course = course
        within = min(rules.ping_every, rules.idle_timeout, rules.lease_ms / 2000)
        self.read = Read(reply, within)
        self.until = 0.0

    def look_ahead(self) -> None:
        """Find out anew when something is due."""
        course = self._course
        rules = course.rules
        renewed = course.renewed_at or course.arrived.monotonic
        last = course.arrived.monotonic + rules.max_duration - self.read.within
        self.until = min(renewed + rules.lease_ms / 2000, last)


def _relay_whole(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[None]:
    """Nothing before all of it is there."""
    while True:
        got = yield from _heard(course, translation, lambda within: Read(reply, within))
        if isinstance(got, bytes):
            out = translation.feed(got)
        else:
            out = yield from _ended(course, translation)
        fault = translation.fault
        if out:
            course.held.append(out)
            course.held_size += len(out)
        if fault is None and course.held_size > MAX_WHOLE:
            fault = faults.corrupt()
        if fault is not None:
            raise fault
        if got is END:
            break
    yield from _say_whole(course, translation, b"".join(course.held))


def _ended(course: Course, translation: Translation) -> Flow[bytes]:
    """The upstream has ended: the last bytes of the answer."""
    if not translation.ended:
        yield b""  # if we closed it ourselves, this is where the flow hears why
    course.read_out = True
    return translation.finish()


def _unreachable(course: Course, failure: UpstreamUnreachable) -> Flow[None]:
    yield b""  # if we closed it ourselves, this is where the flow hears why
    error = faults.from_trouble(failure.trouble)
    if failure.trouble is Trouble.TIMEOUT:
        course.failed(error, Outcome.TIMEOUT)
    raise error from None


def _heard(
    course: Course,
    translation: Translation,
    effect: Callable[[float], Effect[T | Literal[Signal.SILENCE]]],
    begun: Instant | None = None,
) -> Flow[T]:
    """
    What comes next from upstream; pings, renewals and timeouts while it does not come.

    Args:
        begun: Since when it has been waited for; from now on, where None.
    """
    rules = course.rules
    now: Instant = yield NOW
    if begun is None:
        begun = now
    patience = rules.first_byte_timeout if not translation.heard else rules.idle_timeout
    while True:
        at = now.monotonic
        yield from _renew(course, now)
        if course.quiet_since is None:
            course.quiet_since = at
        if at - begun.monotonic >= patience:
            late = faults.stalled if translation.heard else faults.first_byte_late
            course.failed(error := late(patience), Outcome.TIMEOUT)
            raise error
        if at - course.arrived.monotonic >= rules.max_duration:
            course.failed(error := _too_long(rules.max_duration), Outcome.TIMEOUT)
            raise error
        if at - course.quiet_since >= rules.ping_every:
            # Also where the model is busy with what this client does not see.
            course.quiet_since = at
            ping = b"" if course.call.hold else translation.ping()
            if ping:
                yield from _say(course, translation, ping)
                course.quiet_since = at
            else:
                yield b""
        within = min(
            rules.ping_every - (at - course.quiet_since),
            patience - (at - begun.monotonic),
            rules.max_duration - (at - course.arrived.monotonic),
            rules.lease_ms / 2000,
        )
        try:
            got = yield from ask(effect(within))
        except UpstreamUnreachable as failure:
            yield from _unreachable(course, failure)
            raise
        if got is not SILENCE:
            return got
        yield b""
        now = yield from ask(Now())


def _say(course: Course, translation: Translation, out: bytes) -> Flow[None]:
    """
    Say *out*, after the head if that is not out yet. Once the head is out, *out* goes too
    before the reply may end: what follows builds on it.
    """
    ending: Ending | None = None
    if not course.head_said:
        head = yield from _head(course, translation.headers())
        try:
            yield head
        except Ending as early:
            if early.unsaid:
                course.head_said, course.first_byte = False, None
                raise
            ending = early
    if out:
        whole = translation.ended
        later = yield from insist(out)
        ending = ending or later
        course.quiet_since = None
        course.all_said = whole
    if ending is not None:
        raise ending


def _say_held(course: Course) -> Flow[None]:
    """The answer will not be complete: what there is of it goes out, before its terminal error."""
    translation = course.translation
    if course.head_said or not course.call.hold or translation is None or not translation.started:
        return
    head = yield from _head(course, translation.headers())
    yield from insist(head)
    yield from insist(b"".join(course.held))


def _say_whole(course: Course, translation: Translation, out: bytes) -> Flow[None]:
    length = ("content-length", str(len(out)))
    # The whole answer is at hand: saying it is the quickest way to end, and an error after
    # its head would be taken for a part of it.
    head = yield from _head(course, (*translation.headers(), length))
    yield from insist(head)
    if course.request.method != "HEAD":
        yield from insist(out)
    course.all_said = True


def _head(course: Course, headers: Headers) -> Flow[Head]:
    """The reply's head, to be said at once."""
    now = yield from ask(Now())
    course.head_said = True
    course.first_byte = now.monotonic
    request = course.request
    shared = cors.headers(request, course.rules.cors_origins)
    return Head(200, (*headers, ("x-request-id", request.request_id), *course.extra, *shared))


def _error_body(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[bytes]:
    body = b""
    while len(body) < _MAX_ERROR_BODY:
        got = yield from _heard(course, translation, lambda within: Read(reply, within))
        if not isinstance(got, bytes):
            break
        body += got
    return body[:_MAX_ERROR_BODY]


def _renew(course: Course, now: Instant) -> Flow[None]:
    """Keep the lease, once half its time is over."""
    if course.renewed_at is None:
        course.renewed_at = course.arrived.monotonic
    if (now.monotonic - course.renewed_at) * 2000 < course.rules.lease_ms:
        return
    course.renewed_at = now.monotonic
    try:
        course.lease = yield from ask(Renew(course.lease, now.epoch_ms))
    except StoreUnavailable:
        return  # tried again at the next half; a reaper's estimate is corrected at the end


# --- when the client has left ---------------------------------------------------------------


def _left(course: Course, reply: UpstreamReply | None, gone: Gone) -> Flow[None]:
    """Nobody listens any more. Read on for the true usage, if we may; then settle."""
    translation = course.translation
    if translation is None or reply is None:
        course.failed(None, Outcome.CLIENT_GONE)
        return
    refused = course.upstream is not None and course.upstream.status >= 300
    # Some models tell their usage after they have stopped; the client need not wait for it.
    complete = course.all_said or (translation.ended and course.head_said and not gone.unsaid)
    missed = gone.unsaid or not course.head_said
    if not (gone.cuts or refused or course.read_out) and (yield from ask(TakeDrain())):
        missed |= yield from _drain(course, reply, translation)
    if complete:
        return
    if missed or not translation.ended or translation.fault is not None:
        course.failed(None, Outcome.CLIENT_GONE)


def _drain(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[bool]:
    """
    Read the rest, in silence, for a limited time.

    Returns:
        Whether the client missed anything of it.
    """
    missed = False
    begun = yield from ask(Now())
    now = begun
    while translation.fault is None:
        left = course.rules.drain - (now.monotonic - begun.monotonic)
        if left <= 0:
            return True
        yield from _renew(course, now)
        within = min(left, course.rules.ping_every)
        try:
            if course.upstream is None:
                head = yield from ask(Begin(reply, within))
                if isinstance(head, UpstreamHead):
                    course.upstream = head
                    if head.status >= 300:
                        return True
                    translation.begin(head)
            else:
                got = yield from ask(Read(reply, within))
                if isinstance(got, bytes):
                    missed |= bool(translation.feed(got))
                elif got is END:
                    translation.finish()
                    return missed
        except UpstreamUnreachable:
            return True
        try:
            yield b""
        except Gone as again:
            if again.cuts:
                return True
        except Ending:
            return True  # the server is stopping, or the host's time is up
        now = yield from ask(Now())
    return True


def _sent(course: Course) -> str:
    call = course.call.upstream
    headers = (value for _, value in call.headers)
    return " ".join((call.model_id, *headers, call.body.decode("utf-8", "replace")))


def _too_long(seconds: float) -> ProxyError:
    return ClientFault(
        f"The answer took longer than {seconds:g} seconds, the most one call may take.",
        Code.TIMEOUT,
    )
