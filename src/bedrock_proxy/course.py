"""
What one admitted request remembers, from its lease to its ledger row.
"""

from collections.abc import Sequence
from typing import Final

from attrs import define, evolve, field

from bedrock_proxy import limits
from bedrock_proxy.admission import Lease, LimitState
from bedrock_proxy.customers import Key
from bedrock_proxy.dialects.dialect import Call, Translation
from bedrock_proxy.errors import Code, ProxyError
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.ports import Instant, UpstreamHead
from bedrock_proxy.rules import Rules
from bedrock_proxy.sent import SHORT, Sent
from bedrock_proxy.usage import NOTHING_SAID, Basis, Outcome, State, Usage, UsageRecord

_ENDED_BY_US: Final = frozenset({Outcome.CLIENT_GONE, Outcome.TIMEOUT, Outcome.SHUTDOWN})


@define
class Course:
    """
    Attributes:
        key: What the request came with.
        states: The customer's limits as they stood when it was admitted.
        call: What it asks for; see ``let_go``.
        sent: What an error may repeat of it.
        renew_at: When the lease is to be renewed, in seconds (monotonic).
        attempts: How often Bedrock was called.
        opened: When it was last, in seconds (monotonic).
        head_said: Whether the reply's status is out.
        first_byte: When it was, in seconds (monotonic).
        upstream: Bedrock's head, of the last call.
        lost: Whether the last call was not sent, or lost its connection.
        translation: The answer, of the last call.
        outcome, error_code: How it ended; the first reason counts.
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
    key: Key
    states: Sequence[LimitState]
    renew_at: float
    sent: Sent
    attempts: int = 0
    opened: float = 0.0
    head_said: bool = False
    first_byte: float | None = None
    upstream: UpstreamHead | None = None
    lost: bool = False
    translation: Translation | None = None
    outcome: Outcome = Outcome.OK
    error_code: str | None = None
    quiet_since: float | None = None
    all_said: bool = False
    read_out: bool = False
    held: list[bytes] = field(factory=list[bytes])
    held_size: int = 0

    def failed(self, error: ProxyError | None, outcome: Outcome = Outcome.ERROR) -> None:
        """Remember why it did not end well; the first reason counts."""
        if self.outcome is Outcome.OK:
            # Not the error itself: where it was raised, this is known too.
            self.error_code = None if error is None else str(error.code)
            self.outcome = outcome

    def let_go(self) -> None:
        """
        Bedrock will not be called again. A body that is long is not kept for the rest of what
        may be a long answer.
        """
        upstream = self.call.upstream
        if len(upstream.body) > SHORT:
            self.sent.let_go()
            self.call = evolve(self.call, upstream=evolve(upstream, body=b""))

    def own_headers(self) -> Headers:
        """The response headers that belong to the customer: limits, deprecation."""
        return (*limits.headers(self.states), *limits.deprecation(self.key))

    def record(self, now: float) -> UsageRecord:
        """The ledger row of a request that has ended *now* (seconds, monotonic)."""
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
            duration_ms=max(0, round((now - self.arrived.monotonic) * 1000)),
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
            error_code=self.error_code,
            price_version=wanted.price_version,
            aws_request_id=None if head is None else head.first("x-amzn-requestid"),
            client_request_id=wanted.client_request_id,
        )

    def _usage(self) -> tuple[Usage, Basis]:
        translation = self.translation
        if translation is None:
            return NOTHING_SAID, Basis.REPORTED
        usage = translation.usage
        if translation.ended and translation.fault is None:
            said_less_than_used = self.call.counts_tokens and (
                usage.input_tokens is None
                or (usage.output_tokens is None and translation.seen_output_tokens > 0)
            )
            if not said_less_than_used:
                return usage, Basis.REPORTED
            return usage.completed(self._guess(translation)), Basis.ESTIMATED
        refused = translation.fault is not None or (
            self.upstream is not None and self.upstream.status >= 300
        )
        ended_by_us = self.outcome in _ENDED_BY_US or self.error_code == Code.INTERNAL
        if not translation.heard and (refused or self.lost or not ended_by_us):
            # Bedrock said no, or nothing at all: nothing was spent.
            return NOTHING_SAID, Basis.REPORTED
        if (
            ended_by_us
            and not (refused or self.lost or self.call.stream)
            and self.call.counts_tokens
            and usage.output_tokens is None
        ):
            # Bedrock brings such a call to its end, and bills it, whoever has left; how long the
            # answer was stands at its end only. What was reserved is what it can have been.
            return usage.completed(self.call.estimate), Basis.ESTIMATED
        seen = max(usage.output_tokens or 0, translation.seen_output_tokens)
        counted = usage.completed(self._guess(translation)).updated(Usage(output_tokens=seen))
        return counted, Basis.PARTIAL

    def _guess(self, translation: Translation) -> Usage:
        """What was used as far as nobody says."""
        return Usage(self.call.estimate.input_tokens or 0, translation.seen_output_tokens)
