"""
Bedrock's answer on its way to the client: read, translated and said, with pings, renewals and
timeouts while nothing comes.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, TypeVar, cast

from bedrock_proxy import cors, faults
from bedrock_proxy.answers import MAX_WHOLE
from bedrock_proxy.course import Course
from bedrock_proxy.dialects.dialect import Translation
from bedrock_proxy.drive import Ending, insist
from bedrock_proxy.effects import (
    SECONDS,
    Begin,
    Effect,
    Fed,
    Flow,
    Follow,
    Now,
    Read,
    Renew,
    ask,
)
from bedrock_proxy.errors import ClientFault, Code, ProxyError, StoreUnavailable
from bedrock_proxy.http import Head, Headers
from bedrock_proxy.ports import (
    END,
    LOST,
    SILENCE,
    Last,
    Signal,
    Trouble,
    UpstreamReply,
    UpstreamUnreachable,
)
from bedrock_proxy.usage import Outcome

T = TypeVar("T")

_MAX_ERROR_BODY: Final = 64 * 1024

_RETRY_RENEWAL: Final = 1 / 20
"""
Of a lease's time: after it a renewal that failed is tried again, and no wait between two pieces
goes on longer past the moment at which one is due. From half the lease on, that makes a handful
of tries before a reaper may take it.
"""


def relay(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[None]:
    """
    The answer to one call, from Bedrock's head to its end.

    Raises:
        ProxyError: It is an error, or ended in one.
    """
    head = yield from _heard(course, translation, partial(Begin, reply))
    course.upstream = head
    if head.status >= 300:
        body = yield from _error_body(course, reply, translation)
        error = faults.from_reply(head, body, course.sent)
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
    and one thing said, or no turn of the flow at all (:class:`~bedrock_proxy.effects.Follow`);
    all that takes time, or is due, is left to ``_heard`` and ``_say``.
    """
    steady = _Steady(course, reply, translation)
    while True:
        now: float = yield SECONDS
        got: bytes | Signal | Fed
        if course.quiet_since is None and translation.heard and now < steady.until:
            course.quiet_since = now
            steady.since = now
            try:
                got = yield steady
            except UpstreamUnreachable as failure:
                yield from _unreachable(course, failure)
                raise
            if got is SILENCE:
                yield b""
                got = yield from _piece(course, translation, reply, steady.since)
                steady.look_ahead()
        else:
            got = yield from _piece(course, translation, reply, now)
            steady.look_ahead()
        if isinstance(got, bytes):
            out = translation.feed(got)
            if type(got) is Last:
                out += _finished(course, translation)
                got = END
        elif isinstance(got, Fed):
            out = got.out
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


def _piece(
    course: Course, translation: Translation, reply: UpstreamReply, begun: float
) -> Flow[bytes | Signal]:
    """The next piece, or END, however long that takes."""
    got = yield from _heard(course, translation, partial(Read, reply), begun)
    return cast("bytes | Signal", got)


class _Steady(Follow):
    """
    The next read of a stream under way, made once for all of them: it waits as long as nothing
    else can be due.

    Attributes:
        until: From when on (monotonic) something may be: a renewal, or the longest duration.
        since: Since when (monotonic) the piece that is waited for has been.
    """

    __slots__ = ("_course", "_feed", "_translation", "since", "until")

    def __init__(self, course: Course, reply: UpstreamReply, translation: Translation) -> None:
        rules = course.rules
        late = rules.lease_ms / 1000 * _RETRY_RENEWAL
        super().__init__(reply, min(rules.ping_every, rules.idle_timeout, late))
        self._course = course
        self._translation = translation
        self._feed = translation.feed
        self.until = 0.0
        self.since = course.arrived.monotonic

    def look_ahead(self) -> None:
        """Find out anew when something is due."""
        course = self._course
        rules = course.rules
        last = course.arrived.monotonic + rules.max_duration - self.within
        self.until = min(course.renew_at, last)

    def turn(self, piece: bytes, at: float) -> bytes | Fed:
        """
        What a turn of the flow does with a piece, where that is to say what has come of it and
        to read on; see :class:`~bedrock_proxy.effects.Follow`.
        """
        out = self._feed(piece)
        translation = self._translation
        if not out or at >= self.until or translation.ended or translation.fault is not None:
            return Fed(out)
        self._course.quiet_since = self.since = at
        return out


def _relay_whole(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[None]:
    """Nothing before all of it is there."""
    read = partial(Read, reply)
    while True:
        got = yield from _heard(course, translation, read)
        if isinstance(got, bytes):
            out = translation.feed(got)
            if type(got) is Last:
                out += _finished(course, translation)
                got = END
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
    return _finished(course, translation)


def _finished(course: Course, translation: Translation) -> bytes:
    """The last bytes of the answer, once all of it has been read."""
    course.read_out = True
    return translation.finish()


def _unreachable(course: Course, failure: UpstreamUnreachable) -> Flow[None]:
    course.lost = failure.trouble in LOST
    yield b""  # if we closed it ourselves, this is where the flow hears why
    error = faults.from_trouble(failure.trouble, failure.detail)
    if failure.trouble is Trouble.TIMEOUT:
        course.failed(error, Outcome.TIMEOUT)
    raise error from None


def _heard(
    course: Course,
    translation: Translation,
    effect: Callable[[float], Effect[T | Literal[Signal.SILENCE]]],
    begun: float | None = None,
) -> Flow[T]:
    """
    What comes next from upstream; pings, renewals and timeouts while it does not come.

    Args:
        begun: Since when it has been waited for (monotonic); from now on, where None. Until
            anything was heard of the answer, that is since the call was opened: head, first
            event and whatever is a part of it have one time together.
    """
    rules = course.rules
    now: float = yield SECONDS
    if not translation.heard:
        begun = course.opened
        patience = rules.first_byte_timeout if course.call.stream else rules.whole_timeout
    else:
        patience = rules.idle_timeout
        if begun is None:
            begun = now
    while True:
        if now >= course.renew_at:
            yield from renew(course, now)
            now = yield SECONDS
        if course.quiet_since is None:
            course.quiet_since = now
        if now - begun >= patience:
            if translation.heard:
                late = faults.stalled
            else:
                late = faults.first_byte_late if course.call.stream else faults.answer_late
            course.failed(error := late(patience), Outcome.TIMEOUT)
            raise error
        if now - course.arrived.monotonic >= rules.max_duration:
            course.failed(error := _too_long(rules.max_duration), Outcome.TIMEOUT)
            raise error
        if now - course.quiet_since >= rules.ping_every:
            # Also where the model is busy with what this client does not see.
            course.quiet_since = now
            ping = b"" if course.call.hold else translation.ping()
            if ping:
                yield from _say(course, translation, ping)
                course.quiet_since = now
            else:
                yield b""
        within = min(
            rules.ping_every - (now - course.quiet_since),
            patience - (now - begun),
            rules.max_duration - (now - course.arrived.monotonic),
            max(0.0, course.renew_at - now),
        )
        try:
            got = yield from ask(effect(within))
        except UpstreamUnreachable as failure:
            yield from _unreachable(course, failure)
            raise
        if got is not SILENCE:
            return got
        yield b""
        now = yield SECONDS


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


def say_held(course: Course) -> Flow[None]:
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
    now: float = yield SECONDS
    course.let_go()
    course.head_said = True
    course.first_byte = now
    request = course.request
    shared = cors.headers(request, course.rules.cors_origins)
    return Head(
        200, (*headers, ("x-request-id", request.request_id), *course.own_headers(), *shared)
    )


def _error_body(course: Course, reply: UpstreamReply, translation: Translation) -> Flow[bytes]:
    body = b""
    while len(body) < _MAX_ERROR_BODY:
        got = yield from _heard(course, translation, partial(Read, reply))
        if not isinstance(got, bytes):
            break
        body += got
        if type(got) is Last:
            break
    return body[:_MAX_ERROR_BODY]


def renew(course: Course, now: float) -> Flow[None]:
    """
    Keep the lease, if that is due: once half its time is over, and soon again where the store
    could not be asked. *now* in seconds (monotonic).
    """
    if now < course.renew_at:
        return
    lasts = course.rules.lease_ms / 1000
    instant = yield from ask(Now())
    try:
        course.lease = yield from ask(Renew(course.lease, instant.epoch_ms))
    except StoreUnavailable:
        # Counted from here: the store may have taken its time, and pieces wait meanwhile.
        failed: float = yield SECONDS
        course.renew_at = failed + lasts * _RETRY_RENEWAL
    else:
        course.renew_at = now + lasts / 2


def _too_long(seconds: float) -> ProxyError:
    return ClientFault(
        f"The answer took longer than {seconds:g} seconds, the most one call may take.",
        Code.TIMEOUT,
    )
