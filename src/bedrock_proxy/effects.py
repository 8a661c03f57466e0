"""
What a flow may ask. Each effect carries its reply's type, so that ``ask`` is fully typed,
and says which port answers it and how.
"""

from collections.abc import Generator
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.http import Head
from bedrock_proxy.ports import (
    Answer,
    Instant,
    PortKind,
    Ports,
    Signal,
    UpstreamCall,
    UpstreamHead,
    UpstreamReply,
)
from bedrock_proxy.slotted import Slotted
from bedrock_proxy.standing import Standing
from bedrock_proxy.usage import UsageRecord

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class HasKind(Protocol):
    """Anything that says how it is called."""

    @property
    def kind(self) -> PortKind: ...


class Effect(Slotted, Generic[R_co]):
    """Something a flow asks for. *R_co* is what it gets."""

    __slots__ = ()

    def on(self, ports: Ports) -> HasKind | None:  # noqa: ARG002
        """The port that answers, or None where the answer is always instant."""
        return None

    def run(self, ports: Ports) -> Answer[R_co]:
        """Do it. Only a driver's ``perform`` calls this."""
        raise NotImplementedError(type(self).__name__)


Said: TypeAlias = "Head | bytes | Effect[Any]"
Flow: TypeAlias = Generator[Said, Any, R]
"""Yields a :class:`Head`, then bytes (both: saying) and effects (asking); returns R."""


def ask(effect: Effect[R]) -> Flow[R]:
    """Ask for *effect* and return its reply, or raise its error."""
    reply: R = yield effect
    return reply


class Now(Effect[Instant]):
    """What time is it?"""

    __slots__ = ()

    def run(self, ports: Ports) -> Instant:
        return ports.clock.now()


class Seconds(Effect[float]):
    """What does the monotonic clock say?"""

    __slots__ = ()

    def run(self, ports: Ports) -> float:
        return ports.clock.seconds()


SECONDS: Final = Seconds()
"""The one there is: it is asked at every turn of a stream (``now: float = yield SECONDS``)."""


class Wait(Effect[None]):
    """Let a random time up to *at_most* seconds pass."""

    __slots__ = ("at_most",)

    def __init__(self, at_most: float) -> None:
        self.at_most = at_most

    def on(self, ports: Ports) -> HasKind:
        return ports.pause

    def run(self, ports: Ports) -> Answer[None]:
        return ports.pause.pause(self.at_most)


class ReceiveBody(Effect[bytes]):
    """The request's body; see :meth:`bedrock_proxy.ports.Body.receive`."""

    __slots__ = ("limit", "within")

    def __init__(self, limit: int, within: float) -> None:
        self.limit = limit
        self.within = within

    def on(self, ports: Ports) -> HasKind:
        return ports.body

    def run(self, ports: Ports) -> Answer[bytes]:
        return ports.body.receive(self.limit, self.within)


class FindToken(Effect["TokenOwner | None"]):
    """Whose token has this digest?"""

    __slots__ = ("at", "digest")

    def __init__(self, digest: bytes, at: int) -> None:
        self.digest = digest
        self.at = at

    def on(self, ports: Ports) -> HasKind:
        return ports.tokens

    def run(self, ports: Ports) -> Answer[TokenOwner | None]:
        return ports.tokens.find_token(self.digest, self.at)


class FindStanding(Effect[Standing]):
    """What has a customer used, and what remains?"""

    __slots__ = ("at", "customer_id")

    def __init__(self, customer_id: str, at: int) -> None:
        self.customer_id = customer_id
        self.at = at

    def on(self, ports: Ports) -> HasKind:
        return ports.tokens

    def run(self, ports: Ports) -> Answer[Standing]:
        return ports.tokens.standing(self.customer_id, self.at)


class TakeStream(Effect[bool]):
    """May this process open another call?"""

    __slots__ = ()

    def run(self, ports: Ports) -> bool:
        return ports.slots.take_stream()


class TakeDrain(Effect[bool]):
    """May the rest be read for a client that left?"""

    __slots__ = ()

    def run(self, ports: Ports) -> bool:
        return ports.slots.take_drain()


class Ready(Effect[bool]):
    """Does this process take new work?"""

    __slots__ = ()

    def run(self, ports: Ports) -> bool:
        return ports.slots.ready()


class Admit(Effect["Grant | Refusal"]):
    """May this request go to Bedrock?"""

    __slots__ = ("request",)

    def __init__(self, request: AdmissionRequest) -> None:
        self.request = request

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[Grant | Refusal]:
        return ports.gate.admit(self.request)


class Renew(Effect[Lease]):
    """Keep the lease: the call is still under way."""

    __slots__ = ("at", "lease")

    def __init__(self, lease: Lease, at: int) -> None:
        self.lease = lease
        self.at = at

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[Lease]:
        return ports.gate.renew(self.lease, self.at)


class Release(Effect[None]):
    """The admitted request never called Bedrock: give everything back."""

    __slots__ = ("request",)

    def __init__(self, request: AdmissionRequest) -> None:
        self.request = request

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[None]:
        return ports.gate.release(self.request)


class Finish(Effect[None]):
    """Write the row and settle the lease."""

    __slots__ = ("lease", "record")

    def __init__(self, record: UsageRecord, lease: Lease) -> None:
        self.record = record
        self.lease = lease

    def on(self, ports: Ports) -> HasKind:
        return ports.ledger

    def run(self, ports: Ports) -> Answer[None]:
        return ports.ledger.finish(self.record, self.lease)


class Spool(Effect[None]):
    """The store could not take the row: keep it until it can."""

    __slots__ = ("lease", "record")

    def __init__(self, record: UsageRecord, lease: Lease) -> None:
        self.record = record
        self.lease = lease

    def run(self, ports: Ports) -> None:
        ports.telemetry.spooled(self.record, self.lease)


class Report(Effect[None]):
    """Tell whoever watches that a request has ended."""

    __slots__ = ("record",)

    def __init__(self, record: UsageRecord) -> None:
        self.record = record

    def run(self, ports: Ports) -> None:
        ports.telemetry.finished(self.record)


class ReportFault(Effect[None]):
    """Tell the operator of a defect of ours."""

    __slots__ = ("error", "request_id")

    def __init__(self, request_id: str, error: BaseException) -> None:
        self.request_id = request_id
        self.error = error

    def run(self, ports: Ports) -> None:
        ports.telemetry.fault(self.request_id, self.error)


class ReportFailing(Effect[None]):
    """Tell the operator that Bedrock or the store cannot be used."""

    __slots__ = ("error", "model", "request_id", "settling")

    def __init__(
        self, request_id: str, error: ProxyError, model: str = "", settling: bool = False
    ) -> None:
        self.request_id = request_id
        self.error = error
        self.model = model
        self.settling = settling

    def run(self, ports: Ports) -> None:
        ports.telemetry.failing(self.request_id, self.error, self.model, self.settling)


class Open(Effect[UpstreamReply]):
    """Begin a call of Bedrock."""

    __slots__ = ("call",)

    def __init__(self, call: UpstreamCall) -> None:
        self.call = call

    def on(self, ports: Ports) -> HasKind:
        return ports.upstream

    def run(self, ports: Ports) -> Answer[UpstreamReply]:
        return ports.upstream.open(self.call)


class Begin(Effect["UpstreamHead | Literal[Signal.SILENCE]"]):
    """Bedrock's head, or SILENCE after *within* seconds."""

    __slots__ = ("reply", "within")

    def __init__(self, reply: UpstreamReply, within: float) -> None:
        self.reply = reply
        self.within = within

    def on(self, ports: Ports) -> HasKind:  # noqa: ARG002
        return self.reply

    def run(self, ports: Ports) -> Answer[UpstreamHead | Literal[Signal.SILENCE]]:  # noqa: ARG002
        return self.reply.begin(self.within)


class Read(Effect["bytes | Signal"]):
    """What has arrived, SILENCE after *within* seconds, or END."""

    __slots__ = ("reply", "within")

    def __init__(self, reply: UpstreamReply, within: float) -> None:
        self.reply = reply
        self.within = within

    def on(self, ports: Ports) -> HasKind:  # noqa: ARG002
        return self.reply

    def run(self, ports: Ports) -> Answer[bytes | Signal]:  # noqa: ARG002
        return self.reply.read(self.within)


class Fed(Slotted):
    """
    In place of a piece that was read: what has come of it, translated.

    Attributes:
        out: What is to be said; may be empty.
    """

    __slots__ = ("out",)

    def __init__(self, out: bytes) -> None:
        self.out = out


class Follow(Read):
    """
    A :class:`Read` in the middle of a stream. Whoever answers it may pass pieces on without
    the flow, for as long as *turn* gives plain bytes: each piece to *turn*, what it gives to the
    client, and the next is waited for as long as the first. Whatever else *turn* gives is the
    answer; so are the bytes that it gave where they could not be said at once, as :class:`Fed`.
    """

    __slots__ = ()

    def turn(self, piece: bytes, at: float) -> bytes | Fed:
        """
        What to say to *piece*, which came *at* (seconds, of the monotonic clock): from then on
        the next is waited for.
        """
        raise NotImplementedError(type(self).__name__)


class Close(Effect[None]):
    """End the call now."""

    __slots__ = ("reply",)

    def __init__(self, reply: UpstreamReply) -> None:
        self.reply = reply

    def run(self, ports: Ports) -> None:  # noqa: ARG002
        self.reply.close()
