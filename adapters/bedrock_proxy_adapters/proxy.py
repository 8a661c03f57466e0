"""
The proxy of one process: its ports, its rules, and every flow that is under way.

Hosts ask it for a :class:`Passage` per request and drive that; it bounds how much goes on
at once, and it can bring everything to an end.
"""

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, cast
from weakref import WeakSet

from attrs import evolve, frozen

from bedrock_proxy.admission import Lease
from bedrock_proxy.dialects.dialect import Dialect
from bedrock_proxy.drive import Gone, Interrupts, Shutdown
from bedrock_proxy.effects import Flow
from bedrock_proxy.errors import ConfigurationError, ProxyError
from bedrock_proxy.exchange import exchange
from bedrock_proxy.http import Request
from bedrock_proxy.ports import (
    Body,
    Gate,
    Instant,
    Ledger,
    Pause,
    PortKind,
    Ports,
    Telemetry,
    TokenDirectory,
    Upstream,
)
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.unsettled import unsettled_line
from bedrock_proxy_adapters.upkeep import Upkeep

if TYPE_CHECKING:
    from bedrock_proxy_adapters.operator_log import OperatorLog

Disconnect: TypeAlias = Literal["drain", "cancel"]

MAX_DRAINS: Final = 32
"""Answers read on at once for clients that left."""

_log = logging.getLogger("bedrock_proxy")

_proxies: "WeakSet[Proxy]" = WeakSet()
# What is under way in a parent is for the parent to end.
_crossed_a_fork: list[object] = []


class Store(TokenDirectory, Gate, Ledger, Protocol):
    """The three ports that every store of ours is."""


@frozen(kw_only=True)
class Faces:
    """The ports as one kind of host sees them."""

    store: Store
    upstream: Upstream
    pause: Pause
    gate: Gate
    ledger: Ledger


class SystemClock:
    """The machine's clocks."""

    def now(self) -> Instant:
        return Instant(time.time_ns() // 1_000_000, time.monotonic())

    def seconds(self) -> float:
        return time.monotonic()


class SleepingPause:
    """Waits on the calling thread."""

    kind: PortKind = "blocking"

    def pause(self, at_most: float) -> None:
        time.sleep(random.uniform(0, at_most))  # noqa: S311 -- jitter, not a secret


class LoggingTelemetry:
    """
    Tells the logger ``bedrock_proxy`` of defects and of what cannot be used, and *finished* of
    requests.

    Args:
        finished: Called with every row; must not raise or block.
        spool: Keeps the rows that the store could not take. Without one, and where it fails,
            each is one log line (:func:`~bedrock_proxy_adapters.unsettled.unsettled_line`).
        region: Where Bedrock is called, for the operator.
    """

    def __init__(
        self,
        finished: Callable[[UsageRecord], None] | None = None,
        spool: Callable[[UsageRecord, Lease], None] | None = None,
        region: str | None = None,
    ) -> None:
        self._finished = finished
        self._spool = spool
        self._region = region

    @cached_property
    def _operator(self) -> "OperatorLog":
        # Nothing that serves while all is well need wait for it to be loaded.
        from bedrock_proxy_adapters.operator_log import OperatorLog

        return OperatorLog(self._region, spools=self._spool is not None)

    def finished(self, record: UsageRecord) -> None:
        if self._finished is not None:
            with suppress(Exception):
                self._finished(record)

    def spooled(self, record: UsageRecord, lease: Lease) -> None:
        try:
            if self._spool is not None:
                self._spool(record, lease)
                return
        except Exception as error:  # noqa: BLE001 -- the row must be somewhere
            _log.error("The spool could not take a usage row (%s).", type(error).__name__)
        _log.critical("%s", unsettled_line(record, lease))

    def failing(self, request_id: str, error: ProxyError, model: str, settling: bool) -> None:
        with suppress(Exception):
            self._operator.failing(request_id, error, model, settling)

    def fault(self, request_id: str, error: BaseException) -> None:
        # The type and the place, never the words: they may quote a body.
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "?" if place is None else f"{place.tb_frame.f_code.co_qualname}:{place.tb_lineno}"
        _log.error("request %s met %s at %s", request_id, type(error).__name__, where)


class Proxy:
    """
    Everything one process needs to serve.

    Args:
        store: Customers, limits and the ledger.
        upstream: The way to Bedrock.
        rules: See :class:`bedrock_proxy.rules.Rules`.
        telemetry: Who hears of ended requests.
        disconnect: ``drain`` reads on for the true usage when a client leaves (at most
            :data:`MAX_DRAINS` at once, ``rules.drain`` seconds each); ``cancel`` closes.
        max_streams: How many calls at once; where None, the bound of the upstream as the host
            calls it.
        base_path: A prefix that is stripped from every path.
        write_timeout: Seconds a client may leave a write waiting, where the host can tell.
        guard: Put before the store's gate, on every kind of host (a spool that is full
            closes admission).
        upkeep: What goes on beside the requests, from the first of them on.

    Attributes:
        interrupts_at: When :meth:`shutdown` interrupts what is under way then, in seconds
            (monotonic); None where nobody has called it.
    """

    def __init__(
        self,
        *,
        store: Store,
        upstream: Upstream,
        rules: Rules | None = None,
        telemetry: Telemetry | None = None,
        disconnect: Disconnect = "drain",
        max_streams: int | None = None,
        base_path: str = "",
        write_timeout: float = 120.0,
        guard: Callable[[Gate], Gate] = lambda gate: gate,
        upkeep: Upkeep | None = None,
    ) -> None:
        self.store = store
        self.upstream = upstream
        rules = rules if rules is not None else Rules()
        self.rules = evolve(rules, retries=min(rules.retries, upstream.retries))
        if telemetry is None:
            telemetry = LoggingTelemetry(region=rules.region)
        self.telemetry: Telemetry = telemetry
        self.disconnect: Disconnect = disconnect
        self.max_streams = max_streams
        self.base_path = base_path.rstrip("/")
        self.write_timeout = write_timeout
        self.guard = guard
        self.clock = SystemClock()
        self.interrupts_at: float | None = None
        self._upkeep = upkeep
        self._stopping = False
        self._ending = False
        self._nothing_under_way()
        _proxies.add(self)

    def _nothing_under_way(self) -> None:
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._passages: set[Passage] = set()
        self._streams = 0
        self._drains = 0

    def begin_anew(self) -> None:
        """In the child of a fork: what is under way is the parent's, and its lock may be held."""
        for passage in self._passages:
            passage.leave_to_parent()
        _crossed_a_fork.append(self._passages)
        self._nothing_under_way()

    # --- one request ----------------------------------------------------------------

    def passage(
        self, request: Request, body: Body, faces: Faces, spoken: Dialect | None = None
    ) -> "Passage":
        """
        A request on its way; the host drives it and says when it has ended.

        Args:
            spoken: See :func:`bedrock_proxy.exchange.exchange`.
        """
        self.begin()
        passage = Passage(self, request, body, faces, spoken)
        with self._lock:
            self._passages.add(passage)
            if self._ending:
                passage.interrupts.post(Shutdown())
        return passage

    def gone(self) -> Gone:
        """The interruption for a client that left, under this proxy's policy."""
        return Gone(cuts=self.disconnect == "cancel")

    def sync_faces(self) -> Faces:
        """
        The ports as a host without an event loop calls them.

        Raises:
            ConfigurationError: One of them is native, or the upstream is not configured.
        """
        for name, port in (("store", self.store), ("upstream", self.upstream)):
            if port.kind == "native":
                raise ConfigurationError(
                    f"This host has no event loop, and the {name} {type(port).__name__} needs one; "
                    "use a blocking one, or mount the proxy with asgi_app."
                )
        prepare = getattr(self.upstream, "prepare", None)
        if callable(prepare):
            prepare()
        return self.faces(self.store, self.upstream, SleepingPause())

    def faces(self, store: Store, upstream: Upstream, pause: Pause) -> Faces:
        """The ports as a host calls them; *store* and *upstream* are faces of this proxy's own."""
        return Faces(
            store=store, upstream=upstream, pause=pause, gate=self.guard(store), ledger=store
        )

    # --- the whole ------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether new work is welcome."""
        return not self._stopping

    @property
    def under_way(self) -> int:
        """How many requests have not ended yet, drains included."""
        return len(self._passages)

    def begin(self) -> None:
        """Begin the upkeep, once in each process; servers call it when they start."""
        if self._upkeep is not None:
            self._upkeep.begin()

    def stop_accepting(self) -> None:
        """Turn ``/readyz`` to 503, so that fronts send new work elsewhere."""
        self._stopping = True

    def interrupt_all(self) -> None:
        """
        Tell every flow that the server is stopping: each says one terminal error. So does
        every request that comes later.
        """
        with self._lock:
            self._ending = True
            passages = list(self._passages)
        for passage in passages:
            passage.interrupts.post(Shutdown())

    def shutdown(self, deadline: float = 30.0, grace: float = 10.0) -> int:
        """
        End everything: wait up to *deadline* seconds for what is under way, then
        interrupt it and wait up to *grace* seconds for its settlement. Blocks.

        Returns:
            How many requests had still not ended.
        """
        self.stop_accepting()
        self.interrupts_at = time.monotonic() + deadline
        if not self._wait(deadline):
            self.interrupt_all()
            self._wait(grace)
        return self.under_way

    def close(self) -> None:
        """End the upkeep; close the store and the upstream, where they can be closed."""
        if self._upkeep is not None:
            self._upkeep.end()
        for port in (self.upstream, self.store):
            close = getattr(port, "close", None)
            if callable(close):
                cast("Callable[[], None]", close)()

    def _wait(self, seconds: float) -> bool:
        with self._quiet:
            return self._quiet.wait_for(lambda: not self._passages, seconds)

    # --- bounds (called by passages) --------------------------------------------------

    def take_stream(self, upstream: Upstream) -> bool:
        bound = upstream.max_streams if self.max_streams is None else self.max_streams
        with self._lock:
            if self._streams >= bound:
                return False
            self._streams += 1
            return True

    def take_drain(self) -> bool:
        with self._lock:
            if self._drains >= MAX_DRAINS or self.disconnect == "cancel":
                return False
            self._drains += 1
            return True

    def leave(self, passage: "Passage", *, stream: bool, drain: bool) -> None:
        with self._lock:
            self._passages.discard(passage)
            self._streams -= stream
            self._drains -= drain
            # Only who stops waits for it.
            if self._stopping and not self._passages:
                self._quiet.notify_all()


class Share:
    """
    What one request has taken of the process's bounds: its :class:`~bedrock_proxy.ports.Slots`.

    Apart from its :class:`Passage`, whose ports know it: what knows itself is garbage that only
    the collector finds, and a process has it in its memory until then.
    """

    def __init__(self, proxy: Proxy, upstream: Upstream) -> None:
        self._proxy = proxy
        self._upstream = upstream
        self.stream = False
        self.drain = False

    def ready(self) -> bool:
        return self._proxy.ready

    def take_stream(self) -> bool:
        self.stream = self.stream or self._proxy.take_stream(self._upstream)
        return self.stream

    def take_drain(self) -> bool:
        self.drain = self.drain or self._proxy.take_drain()
        return self.drain


class Passage:
    """
    One request on its way through the proxy.

    Attributes:
        flow: To be driven, to its end.
        ports: What it may reach.
        interrupts: Where the host leaves word.
        proxy: Whose request it is.
        has_left: Whether the client is known to have left.
    """

    def __init__(
        self,
        proxy: Proxy,
        request: Request,
        body: Body,
        faces: Faces,
        spoken: Dialect | None = None,
    ) -> None:
        self.interrupts = Interrupts()
        self._share = Share(proxy, faces.upstream)
        self.ports = Ports(
            proxy.clock,
            faces.pause,
            body,
            faces.store,
            faces.gate,
            faces.ledger,
            faces.upstream,
            self._share,
            proxy.telemetry,
        )
        self.flow: Flow[ProxyError | None] = exchange(request, proxy.rules, spoken)
        self.proxy = proxy
        self._ended = False
        self.has_left = False

    def leave(self) -> None:
        """The client left. Harmless when repeated."""
        if not self.has_left:
            self.has_left = True
            self.interrupts.post(self.proxy.gone())

    def ended(self) -> None:
        """The flow has ended: free what it took. Harmless when repeated."""
        if not self._ended:
            self._ended = True
            share = self._share
            self.proxy.leave(self, stream=share.stream, drain=share.drain)

    def leave_to_parent(self) -> None:
        """In the child of a fork, which has taken nothing for it and may not touch it."""
        self._ended = self.has_left = True


def _after_fork() -> None:
    for proxy in list(_proxies):
        proxy.begin_anew()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): unique, and sorted by time of arrival."""
    stamp = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    value = (stamp & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (noise >> 68) << 64
    value |= 0b10 << 62 | (noise & 0x3FFF_FFFF_FFFF_FFFF)
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
