"""
What the outside must provide, as small as the core can live with.

Every port says once, in ``kind``, how it is called: ``instant`` ports are called inline,
``blocking`` ports run on a thread of a pool where the host has an event loop, and
``native`` ports are awaited, which only hosts with an event loop can do.

The protocols are written without ``async``; a native port has the same methods as
coroutines, and may give the answer itself where it is at hand (:data:`Answer` says so once,
for all of them).

A port that cannot be reached raises :class:`~bedrock_proxy.errors.StoreUnavailable` or,
upstream, :class:`UpstreamUnreachable`; it may raise any
:class:`~bedrock_proxy.errors.ProxyError`.
"""

from collections.abc import Awaitable
from enum import Enum, StrEnum, unique
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import TokenOwner
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.http import Headers
from bedrock_proxy.slotted import Slotted, lean
from bedrock_proxy.standing import Standing
from bedrock_proxy.usage import UsageRecord

R = TypeVar("R")
Answer: TypeAlias = R | Awaitable[R]
"""What a port's method returns: the value, or (native ports) an awaitable of it."""

PortKind: TypeAlias = Literal["instant", "blocking", "native"]


# --- time -------------------------------------------------------------------------------


class Instant(Slotted):
    """
    One reading of the clock.

    Attributes:
        epoch_ms: Wall time; may jump.
        monotonic: Seconds from an arbitrary start; never goes back. For durations.
    """

    __slots__ = ("epoch_ms", "monotonic")

    def __init__(self, epoch_ms: int, monotonic: float) -> None:
        self.epoch_ms = epoch_ms
        self.monotonic = monotonic


class Clock(Protocol):
    """Tells the time. Always instant."""

    def now(self) -> Instant:
        """The time, now."""
        ...

    def seconds(self) -> float:
        """``now().monotonic`` alone: seconds from an arbitrary start."""
        ...


class Pause(Protocol):
    """Waits."""

    @property
    def kind(self) -> PortKind: ...

    def pause(self, at_most: float) -> Answer[None]:
        """Wait a random time up to *at_most* seconds (full jitter, so that retries spread)."""
        ...


# --- the request's own body ---------------------------------------------------------------


class Body(Protocol):
    """The request body, read from the host when the flow asks."""

    @property
    def kind(self) -> PortKind: ...

    def receive(self, limit: int, within: float) -> Answer[bytes]:
        """
        The whole body.

        Raises:
            ClientFault: ``too_large`` beyond *limit* bytes (never holding more than
                64 KiB above it), ``timeout`` after *within* seconds, ``invalid_request``
                where the body ended early or its framing is broken.
        """
        ...


# --- the store ----------------------------------------------------------------------------


class TokenDirectory(Protocol):
    """Knows whose token it is, and how its owner stands."""

    @property
    def kind(self) -> PortKind: ...

    def find_token(self, digest: bytes, at: int) -> Answer[TokenOwner | None]:
        """The owner of an unexpired, unrevoked token (*at*: epoch ms); None for any other."""
        ...

    def standing(self, customer_id: str, at: int) -> Answer[Standing]:
        """
        What the customer has used and what remains at *at* (epoch ms), from counters:
        never a scan of the ledger; and from the store itself, never from memory, whether the
        customer is active and which of its keys are valid.
        """
        ...


class Gate(Protocol):
    """Decides on admission, atomically."""

    @property
    def kind(self) -> PortKind: ...

    def admit(self, request: AdmissionRequest) -> Answer[Grant | Refusal]:
        """Check and reserve against every limit at once: all or nothing."""
        ...

    def renew(self, lease: Lease, at: int) -> Answer[Lease]:
        """The lease with its deadline moved to *at* (epoch ms) + its ``lease_ms``."""
        ...

    def release(self, request: AdmissionRequest) -> Answer[None]:
        """
        Give back everything reserved for a request that never called Bedrock, as if it
        had not been admitted. Harmless where there is no such lease.
        """
        ...


class Ledger(Protocol):
    """Keeps the usage rows, exactly one for each admitted request that called Bedrock."""

    @property
    def kind(self) -> PortKind: ...

    def finish(self, record: UsageRecord, lease: Lease) -> Answer[None]:
        """
        Write the row if it is absent, then settle: replace the reservation by the true
        usage and remove the lease. Repeating it changes nothing. Where a reaper wrote an
        estimated row first, a ``reported`` record corrects that row in place, once.
        """
        ...


# --- upstream -----------------------------------------------------------------------------


@unique
class Operation(StrEnum):
    """Bedrock's own names of the operations that are called."""

    INVOKE = "InvokeModel"
    INVOKE_STREAM = "InvokeModelWithResponseStream"
    CONVERSE = "Converse"
    CONVERSE_STREAM = "ConverseStream"
    COUNT_TOKENS = "CountTokens"
    APPLY_GUARDRAIL = "ApplyGuardrail"

    @property
    def streams(self) -> bool:
        """Whether the answer is an event stream."""
        return self in {Operation.INVOKE_STREAM, Operation.CONVERSE_STREAM}


@lean
class UpstreamCall:
    """
    One call of Bedrock.

    Attributes:
        model_id: As the client named it (decoded), validated. For ApplyGuardrail, which
            calls no model, the guardrail.
        body: The request body, sent as it is, byte for byte.
        headers: What goes upstream beside what signing adds; built by us from an
            allow-list, names in lower case.
        guardrail_version: For ApplyGuardrail only.
    """

    operation: Operation
    model_id: str
    body: bytes
    headers: Headers = ()
    guardrail_version: str = ""


@lean
class UpstreamHead:
    """Bedrock's own status and headers (:data:`~bedrock_proxy.http.Headers`)."""

    status: int
    headers: Headers

    def first(self, name: str) -> str | None:
        """The first value of a header, or None; *name* in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Signal(Enum):
    """What a read brings when it does not bring bytes."""

    SILENCE = "nothing came within the time asked for; the stream goes on"
    END = "the upstream ended the body, or we closed it"


SILENCE: Final = Signal.SILENCE
END: Final = Signal.END


class Last(bytes):
    """The last piece of a reply's body: END is all that comes after it, and need not be asked for."""

    __slots__ = ()


class UpstreamReply(Protocol):
    """
    One call under way. It has begun when ``open`` returns; the head comes when it comes.

    One thread (or task) reads; any thread may close.
    """

    @property
    def kind(self) -> PortKind: ...

    def begin(self, within: float) -> Answer[UpstreamHead | Literal[Signal.SILENCE]]:
        """
        Bedrock's head, or SILENCE after *within* seconds; ask again then.

        Raises:
            UpstreamUnreachable: No answer came, or the call was closed before one did.
        """
        ...

    def read(self, within: float) -> Answer[bytes | Signal]:
        """
        What has arrived of the body (never empty), SILENCE after *within* seconds, or END. A
        piece that is known to be the last may be a :class:`Last`.

        Raises:
            UpstreamUnreachable: The connection broke.
        """
        ...

    def close(self) -> None:
        """
        End the call now: returns at once, may be called from any thread and repeatedly,
        and makes a pending ``begin`` or ``read`` return.
        """
        ...


class Upstream(Protocol):
    """
    The way to Bedrock.

    Attributes:
        max_streams: How many calls it can hold open at once.
        retries: How often the flow may call again before the first byte; 0 where the
            client behind it does that itself.
    """

    @property
    def kind(self) -> PortKind: ...
    @property
    def max_streams(self) -> int: ...
    @property
    def retries(self) -> int: ...

    def open(self, call: UpstreamCall) -> Answer[UpstreamReply]:
        """
        Begin a call. Returns without waiting for the answer. The reply is called as the upstream
        is (``kind``).
        """
        ...


@unique
class Trouble(StrEnum):
    """What kept Bedrock's answer away, where Bedrock itself said nothing."""

    UNREACHABLE = "unreachable"
    """No connection: refused, no route, DNS, TLS."""
    TIMEOUT = "timeout"
    """The socket timed out."""
    BROKEN = "broken"
    """The connection was reset, or the body's framing broke off."""
    CREDENTIALS = "credentials"
    """No credentials, or ones that could not be refreshed."""
    REJECTED = "rejected"
    """The client library refused to send the call."""
    CLOSED = "closed"
    """We closed it."""


LOST: Final = frozenset(
    {Trouble.UNREACHABLE, Trouble.BROKEN, Trouble.CREDENTIALS, Trouble.REJECTED}
)
"""Troubles that end a call without us: it was not sent, or Bedrock's side broke it off."""


class Loggable(str):
    """
    Words that a log may hold: what errors and hosts are called, and nothing that a request, a
    model or a credential said.
    """

    __slots__ = ()


class UpstreamUnreachable(Exception):
    """
    Bedrock's answer did not come.

    Attributes:
        trouble: Why.
        detail: For the operator only: it may name hosts. One that is :class:`Loggable` is told.
    """

    def __init__(self, trouble: Trouble, detail: str = "") -> None:
        super().__init__(f"{trouble}: {detail}" if detail else str(trouble))
        self.trouble = trouble
        self.detail = detail


# --- the process ----------------------------------------------------------------------------


class Slots(Protocol):
    """The process's own bounds. Always instant; what a flow took is freed when it ends."""

    def ready(self) -> bool:
        """Whether new work is taken: False once the server is stopping."""
        ...

    def take_stream(self) -> bool:
        """Whether another call may be opened (``max_streams``)."""
        ...

    def take_drain(self) -> bool:
        """Whether the rest may be read for a client that left (policy and bound)."""
        ...


class Telemetry(Protocol):
    """Hears of every request that reached Bedrock or failed there. Always instant; never raises."""

    def finished(self, record: UsageRecord) -> None:
        """A ledger row was made (whether or not the store could take it yet)."""
        ...

    def spooled(self, record: UsageRecord, lease: Lease) -> None:
        """The store could not take *record*: keep it until it can."""
        ...

    def fault(self, request_id: str, error: BaseException) -> None:
        """A defect of ours was met; the client got ``internal``."""
        ...

    def failing(self, request_id: str, error: ProxyError, model: str, settling: bool) -> None:
        """
        Bedrock or the store cannot be used, and the operator can do something about it; of
        *error* only words may be kept.

        Args:
            error: Its ``cause`` says why; of a store's, also what it was raised from.
            model: What was asked for; empty where nothing was yet.
            settling: The store did not take the row of a request that has ended.
        """
        ...


@lean
class Ports:
    """Everything one flow may reach."""

    clock: Clock
    pause: Pause
    body: Body
    tokens: TokenDirectory
    gate: Gate
    ledger: Ledger
    upstream: Upstream
    slots: Slots
    telemetry: Telemetry
