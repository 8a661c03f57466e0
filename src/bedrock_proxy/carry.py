"""
One admitted request under way: call Bedrock, again where that may help, relay its answer, and
see to the rest where the client has left.
"""

from contextlib import suppress
from typing import Final

from bedrock_proxy import faults
from bedrock_proxy.course import Course
from bedrock_proxy.dialects.dialect import Translation
from bedrock_proxy.drive import Deadline, Ending, Gone, insist
from bedrock_proxy.effects import (
    SECONDS,
    Begin,
    Close,
    Flow,
    Open,
    Read,
    TakeDrain,
    Wait,
    ask,
)
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.ports import (
    END,
    LOST,
    Last,
    Signal,
    UpstreamHead,
    UpstreamReply,
    UpstreamUnreachable,
)
from bedrock_proxy.relay import relay, renew, say_held
from bedrock_proxy.usage import Outcome

RETRY_PAUSES: Final = (0.25, 0.75)
"""The most to wait before the second and the third call; the pause is drawn below it."""


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
            course.translation = course.upstream = None
            course.lost = False
            course.read_out = False
            course.held.clear()
            course.held_size = 0
            course.attempts += 1
            course.opened = yield SECONDS
            reply = yield from ask(Open(course.call.upstream))
            # Bedrock is at work now: what can be made ready meanwhile costs no time.
            translation = course.translation = course.call.translation(course.sent)
            try:
                yield from relay(course, reply, translation)
            except ProxyError as fault:
                yield from say_held(course)
                retried = course.attempts - 1
                begun = course.head_said or translation.heard
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
            yield from say_held(course)
        raise ending.error from None
    finally:
        if reply is not None:
            yield from ask(Close(reply))


def say_terminal(course: Course, error: ProxyError) -> Flow[None]:
    """End a reply whose head is out with its one terminal error."""
    assert course.translation is not None
    with suppress(Gone):
        yield from insist(course.translation.fail(error))


# --- when the client has left ---------------------------------------------------------------


def _left(course: Course, reply: UpstreamReply | None, gone: Gone) -> Flow[None]:
    """Nobody listens any more. Read on for the true usage, if we may; then settle."""
    course.let_go()
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
    begun: float = yield SECONDS
    now = begun
    got: UpstreamHead | bytes | Signal
    while translation.fault is None:
        left = course.rules.drain - (now - begun)
        if left <= 0:
            return True
        yield from renew(course, now)
        within = min(left, course.rules.ping_every, max(0.0, course.renew_at - now))
        try:
            if course.upstream is None:
                got = yield from ask(Begin(reply, within))
                if isinstance(got, UpstreamHead):
                    course.upstream = got
                    if got.status >= 300:
                        return True
                    translation.begin(got)
            else:
                got = yield from ask(Read(reply, within))
                if isinstance(got, bytes):
                    missed |= bool(translation.feed(got))
                if type(got) is Last:
                    translation.finish()
                    return missed
        except UpstreamUnreachable as failure:
            course.lost = failure.trouble in LOST
            return True
        try:
            yield b""
        except Gone as again:
            if again.cuts:
                return True
        except Ending:
            return True  # the server is stopping, or the host's time is up
        if got is END:  # and not because we closed it: that would have been heard just now
            translation.finish()
            return missed
        now = yield SECONDS
    return True
