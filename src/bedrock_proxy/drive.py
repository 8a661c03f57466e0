"""
The two drivers, side by side: ``drive`` runs a flow on the calling thread, ``adrive`` on
any event loop. Both keep three rules.

- A pending ask is never abandoned: its reply, or its error, always reaches the flow.
- An interruption is delivered only where the flow *says* something (saying ``b""`` is
  how a flow offers a place for one without sending anything).
- Nobody closes a flow: it ends by itself, after its ledger row.

An interruption that must not wait for the model (``cuts``) closes the call under way,
which makes the pending read return; the flow then says ``b""`` and hears why.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, ClassVar, Final

from bedrock_proxy.effects import SECONDS, Effect, Flow, Open
from bedrock_proxy.errors import BedrockProxyError, ClientFault, Code, ProxyError, Unavailable
from bedrock_proxy.http import Head
from bedrock_proxy.ports import Answer, Ports, UpstreamReply


class Interruption(BedrockProxyError):
    """
    Why a reply should end before the model has ended.

    Attributes:
        cuts: Whether the call under way is closed at once.
        unsaid: Whether it came before the bytes that were being said went out.
    """

    cuts: bool = True
    unsaid: bool = False


class Gone(Interruption):
    """
    The client left: say nothing more.

    Args:
        cuts: True under the policy ``cancel``; False under ``drain``, where the rest is
            read for the sake of the bill.
    """

    def __init__(self, *, cuts: bool = False) -> None:
        super().__init__()
        self.cuts = cuts


class Ending(Interruption):
    """The reply must end now, with one terminal error."""

    code: ClassVar[Code]

    @property
    def error(self) -> ProxyError:
        """What to tell the client."""
        raise NotImplementedError


class Deadline(Ending):
    """The host's own time is almost up (a Lambda's deadline, a gateway's limit)."""

    @property
    def error(self) -> ProxyError:
        return ClientFault(
            "The answer took longer than this endpoint may run; ask for fewer tokens, or use "
            "an endpoint that streams.",
            Code.TIMEOUT,
            status=504,
        )


class Shutdown(Ending):
    """The server is stopping."""

    @property
    def error(self) -> ProxyError:
        return Unavailable(
            "The server is shutting down; send the request again.", Code.SERVER_SHUTDOWN
        )


class Interrupts:
    """
    Where a host leaves the reason why one reply should end early. Any thread may post;
    only the flow's driver takes.

    Attributes:
        reasons: What has not been delivered, the oldest first.
    """

    __slots__ = ("_cut", "_reply", "reasons")

    def __init__(self) -> None:
        self.reasons: deque[Interruption] = deque()
        self._reply: UpstreamReply | None = None
        self._cut = False

    def post(self, reason: Interruption) -> None:
        """Deliver *reason* the next time the flow says something."""
        self.reasons.append(reason)
        if reason.cuts:
            # Order matters: `opened` sets the reply, then looks at `_cut`; here it is the
            # other way round, so that one of the two always closes.
            self._cut = True
            reply = self._reply
            if reply is not None:
                reply.close()

    def opened(self, reply: UpstreamReply) -> None:
        """Remember the call under way (drivers call this)."""
        self._reply = reply
        if self._cut:
            reply.close()

    def take(self) -> Interruption | None:
        """The oldest reason not yet delivered, or None."""
        return self.reasons.popleft() if self.reasons else None


def insist(said: Head | bytes) -> Flow[Ending | None]:
    """
    Say *said* although the reply is to end: an ending that comes before it went out waits
    until it has.

    Returns:
        The first ending that came meanwhile, or None.

    Raises:
        Gone: Nobody is there to be told.
    """
    first: Ending | None = None
    while True:
        try:
            yield said
        except Ending as ending:
            first = first or ending
            if ending.unsaid:
                continue
        return first


_NOTHING: Final = b""


def perform(effect: Effect[Any], ports: Ports) -> Any:
    """Answer *effect* on the calling thread. Only for instant and blocking ports."""
    return effect.run(ports)


def drive(
    flow: Flow[ProxyError | None], ports: Ports, interrupts: Interrupts
) -> Generator[Head | bytes, None, ProxyError | None]:
    """
    Run *flow* on the calling thread; iterates over what it says.

    The host may stop iterating only by posting :class:`Gone` and iterating on: what is
    left is silent, but it is the part that settles the bill.

    Returns:
        (as the iterator's value) The terminal error the reply ended in, or None.
    """
    reason: Interruption | None = None
    try:
        said = next(flow)
        while True:
            if isinstance(said, Effect):
                try:
                    answer = perform(said, ports)
                except BaseException as error:  # noqa: BLE001 -- whatever it is, the flow hears it
                    said = flow.throw(error)
                else:
                    if isinstance(said, Open):
                        interrupts.opened(answer)
                    said = flow.send(answer)
                continue
            reason = interrupts.take()
            if reason is None:
                if said != _NOTHING:
                    yield said
                    reason = interrupts.take()
                if reason is None:
                    said = next(flow)
                    continue
            elif said != _NOTHING:
                reason.unsaid = True
            said = flow.throw(reason)
            reason = None
    except StopIteration as end:
        value: ProxyError | None = end.value
        return value
    finally:
        # Its traceback knows the frames it went through, and they, from Python 3.12 on, this one.
        del reason


async def adrive(
    flow: Flow[ProxyError | None],
    perform: Callable[[Effect[Any]], Answer[Any]],
    emit: Callable[[Head | bytes], Awaitable[None] | None],
    interrupts: Interrupts,
    seconds: Callable[[], float],
) -> ProxyError | None:
    """
    Run *flow* on any event loop. What cannot be had or done at once is awaited; what is at hand
    costs no turn of the loop.

    Args:
        perform: Answers what the flow asks: with the reply itself, or with what is to be awaited
            for it.
        emit: Says what it says; gives what is still to be awaited of that, or None. One that
            raises means that the client cannot be reached: the flow hears :class:`Gone`.
        seconds: The monotonic clock, which is asked most of all.

    Returns:
        The terminal error the reply ended in, or None.
    """
    reason: Interruption | None = None
    try:
        said = next(flow)
        while True:
            if said is SECONDS:
                said = flow.send(seconds())
                continue
            if isinstance(said, Effect):
                try:
                    answer: Any = perform(said)
                    if hasattr(answer, "__await__"):
                        answer = await answer
                except BaseException as error:  # noqa: BLE001 -- whatever it is, the flow hears it
                    said = flow.throw(error)
                else:
                    if isinstance(said, Open):
                        interrupts.opened(answer)
                    said = flow.send(answer)
                continue
            reason = interrupts.take()
            if reason is None:
                if said != _NOTHING:
                    try:
                        sending = emit(said)
                        if sending is not None:
                            await sending
                    except Exception:  # noqa: BLE001 -- whatever went wrong, nobody is there to be told
                        reason = interrupts.take() or Gone()
                        reason.unsaid = True
                    except BaseException as error:  # noqa: BLE001 -- the task is torn down: the flow settles first
                        said = flow.throw(error)
                        continue
                    else:
                        reason = interrupts.take()
                if reason is None:
                    said = next(flow)
                    continue
            elif said != _NOTHING:
                reason.unsaid = True
            said = flow.throw(reason)
            reason = None
    except StopIteration as end:
        value: ProxyError | None = end.value
        return value
    finally:
        # Its traceback knows the frames it went through, and they, from Python 3.12 on, this one.
        del reason
