"""
What a flow may ask. Each effect carries its reply's type, so that ``ask`` is fully typed,
and says which port answers it and how.
"""

from collections.abc import Generator
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar, cast

from attrs import frozen

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import TokenOwner
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
from bedrock_proxy.standing import Standing
from bedrock_proxy.usage import UsageRecord

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class HasKind(Protocol):
    """Anything that says how it is called."""

    @property
    def kind(self) -> PortKind: ...


class Effect(Generic[R_co]):
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
    reply = yield effect
    return cast("R", reply)


@frozen
class Now(Effect[Instant]):
    """What time is it?"""

    def run(self, ports: Ports) -> Instant:
        return ports.clock.now()


NOW: Final = Now()
"""The one there is: it is asked at every turn of a stream (``instant = yield NOW``)."""


@frozen
class Wait(Effect[None]):
    """Let a random time up to *at_most* seconds pass."""

    at_most: float

    def on(self, ports: Ports) -> HasKind:
        return ports.pause

    def run(self, ports: Ports) -> Answer[None]:
        return ports.pause.pause(self.at_most)


@frozen
class ReceiveBody(Effect[bytes]):
    """The request's body; see :meth:`bedrock_proxy.ports.Body.receive`."""

    limit: int
    within: float

    def on(self, ports: Ports) -> HasKind:
        return ports.body

    def run(self, ports: Ports) -> Answer[bytes]:
        return ports.body.receive(self.limit, self.within)


@frozen
class FindToken(Effect["TokenOwner | None"]):
    """Whose token has this digest?"""

    digest: bytes
    at: int

    def on(self, ports: Ports) -> HasKind:
        return ports.tokens

    def run(self, ports: Ports) -> Answer[TokenOwner | None]:
        return ports.tokens.find_token(self.digest, self.at)


@frozen
class FindStanding(Effect[Standing]):
    """What has a customer used, and what remains?"""

    customer_id: str
    at: int

    def on(self, ports: Ports) -> HasKind:
        return ports.tokens

    def run(self, ports: Ports) -> Answer[Standing]:
        return ports.tokens.standing(self.customer_id, self.at)


@frozen
class TakeStream(Effect[bool]):
    """May this process open another call?"""

    def run(self, ports: Ports) -> bool:
        return ports.slots.take_stream()


@frozen
class TakeDrain(Effect[bool]):
    """May the rest be read for a client that left?"""

    def run(self, ports: Ports) -> bool:
        return ports.slots.take_drain()


@frozen
class Ready(Effect[bool]):
    """Does this process take new work?"""

    def run(self, ports: Ports) -> bool:
        return ports.slots.ready()


@frozen
class Admit(Effect["Grant | Refusal"]):
    """May this request go to Bedrock?"""

    request: AdmissionRequest

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[Grant | Refusal]:
        return ports.gate.admit(self.request)


@frozen
class Renew(Effect[Lease]):
    """Keep the lease: the call is still under way."""

    lease: Lease
    at: int

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[Lease]:
        return ports.gate.renew(self.lease, self.at)


@frozen
class Release(Effect[None]):
    """The admitted request never called Bedrock: give everything back."""

    request: AdmissionRequest

    def on(self, ports: Ports) -> HasKind:
        return ports.gate

    def run(self, ports: Ports) -> Answer[None]:
        return ports.gate.release(self.request)


@frozen
class Finish(Effect[None]):
    """Write the row and settle the lease."""

    record: UsageRecord
    lease: Lease

    def on(self, ports: Ports) -> HasKind:
        return ports.ledger

    def run(self, ports: Ports) -> Answer[None]:
        return ports.ledger.finish(self.record, self.lease)


@frozen
class Spool(Effect[None]):
    """The store could not take the row: keep it until it can."""

    record: UsageRecord
    lease: Lease

    def run(self, ports: Ports) -> None:
        ports.telemetry.spooled(self.record, self.lease)


@frozen
class Report(Effect[None]):
    """Tell whoever watches that a request has ended."""

    record: UsageRecord

    def run(self, ports: Ports) -> None:
        ports.telemetry.finished(self.record)


@frozen
class ReportFault(Effect[None]):
    """Tell the operator of a defect of ours."""

    request_id: str
    error: BaseException

    def run(self, ports: Ports) -> None:
        ports.telemetry.fault(self.request_id, self.error)


@frozen
class Open(Effect[UpstreamReply]):
    """Begin a call of Bedrock."""

    call: UpstreamCall

    def on(self, ports: Ports) -> HasKind:
        return ports.upstream

    def run(self, ports: Ports) -> Answer[UpstreamReply]:
        return ports.upstream.open(self.call)


@frozen
class Begin(Effect["UpstreamHead | Literal[Signal.SILENCE]"]):
    """Bedrock's head, or SILENCE after *within* seconds."""

    reply: UpstreamReply
    within: float

    def on(self, ports: Ports) -> HasKind:  # noqa: ARG002
        return self.reply

    def run(self, ports: Ports) -> Answer[UpstreamHead | Literal[Signal.SILENCE]]:  # noqa: ARG002
        return self.reply.begin(self.within)


@frozen
class Read(Effect["bytes | Signal"]):
    """What has arrived, SILENCE after *within* seconds, or END."""

    reply: UpstreamReply
    within: float

    def on(self, ports: Ports) -> HasKind:  # noqa: ARG002
        return self.reply

    def run(self, ports: Ports) -> Answer[bytes | Signal]:  # noqa: ARG002
        return self.reply.read(self.within)


@frozen
class Close(Effect[None]):
    """End the call now."""

    reply: UpstreamReply

    def run(self, ports: Ports) -> None:  # noqa: ARG002
        self.reply.close()
