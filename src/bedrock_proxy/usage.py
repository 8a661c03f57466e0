"""
Token counts: what a model reported, what was estimated, and the ledger row.

Counts are kept apart by kind because they are priced apart. ``None`` means "not said";
zero is a figure like any other (never test counts by truthiness).
"""

from enum import StrEnum, unique
from typing import Any, Final

from attrs import asdict, evolve, fields

from bedrock_proxy.slotted import lean


@lean
class Usage:
    """
    Token counts of one answer, in tokens; None where nothing was said.

    ``input_tokens`` excludes cache reads and writes, as Bedrock counts
    (AWS, Bedrock API reference, ``TokenUsage``).
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None

    def updated(self, later: "Usage") -> "Usage":
        """These counts with every count that *later* states put in their place."""
        if self is NOTHING_SAID:  # as it mostly is, and then there is nothing to make
            return later
        # Written out: this runs for every part of an answer that states counts.
        return Usage(
            self.input_tokens if later.input_tokens is None else later.input_tokens,
            self.output_tokens if later.output_tokens is None else later.output_tokens,
            self.cache_read_tokens if later.cache_read_tokens is None else later.cache_read_tokens,
            self.cache_write_5m_tokens
            if later.cache_write_5m_tokens is None
            else later.cache_write_5m_tokens,
            self.cache_write_1h_tokens
            if later.cache_write_1h_tokens is None
            else later.cache_write_1h_tokens,
        )

    def completed(self, fallback: "Usage") -> "Usage":
        """These counts, with *fallback*'s wherever nothing was said here."""
        return fallback.updated(self)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was said."""
        return (
            self.input_tokens is None
            and self.output_tokens is None
            and self.cache_read_tokens is None
            and self.cache_write_5m_tokens is None
            and self.cache_write_1h_tokens is None
        )

    @property
    def token_count(self) -> int:
        """Input + output + cache read + cache write, in tokens."""
        return (
            (self.input_tokens or 0)
            + (self.output_tokens or 0)
            + (self.cache_read_tokens or 0)
            + (self.cache_write_5m_tokens or 0)
            + (self.cache_write_1h_tokens or 0)
        )


NOTHING_SAID: Final = Usage()
"""No counts at all."""


@unique
class Basis(StrEnum):
    """How a row's token counts were come by."""

    REPORTED = "reported"
    """The model's own final figures, or Bedrock's."""
    PARTIAL = "partial"
    """The stream did not end; what had been counted or seen until then."""
    ESTIMATED = "estimated"
    """Nobody reported anything; our estimate, marked for reconciliation."""


@unique
class State(StrEnum):
    """Whether a row may still be corrected."""

    FINAL = "final"
    ESTIMATED = "estimated"


@unique
class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    ERROR = "error"
    CLIENT_GONE = "client_gone"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"


FAILED: Final = (Outcome.ERROR, Outcome.TIMEOUT, Outcome.SHUTDOWN)
"""Outcomes with an error code: the client was told of one, or nobody was left to tell it."""


@lean(kw_only=True)
class UsageRecord:
    """
    One ledger row: one admitted request that called Bedrock. Field for field DESIGN.md section 4.

    Attributes:
        request_id: The key, made by the proxy.
        model_id: As the client named it.
        model: Canonical: region prefix and ARN resolved.
        operation: Bedrock's name (``InvokeModelWithResponseStream``).
        dialect: ``simple``, ``bedrock``, ``anthropic`` or ``openai``.
        admitted_at: Epoch milliseconds; its UTC day and month are the row's periods.
        duration_ms: From arrival to settlement.
        first_byte_ms: From arrival to the first byte said to the client; None if none was.
        attempts: How often Bedrock was called.
        cost_nanousd: Integer nano-US-dollars; None where no price is known.
        corrected_at: Epoch milliseconds of the one correction, or None.
        error_code: Our code; never Bedrock's text.
    """

    request_id: str
    customer_id: str
    key_id: str
    model_id: str
    model: str
    dialect: str
    operation: str
    stream: bool
    admitted_at: int
    duration_ms: int
    first_byte_ms: int | None
    attempts: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    token_count: int
    basis: Basis
    state: State
    corrected_at: int | None = None
    outcome: Outcome
    error_code: str | None = None
    cost_nanousd: int | None = None
    price_version: str | None = None
    aws_request_id: str | None = None
    client_request_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values, in the order of the fields."""
        row = asdict(self)
        for name in ("basis", "state", "outcome"):
            row[name] = str(row[name])
        return row

    def corrected(self, usage: Usage, at: int, cost_nanousd: int | None = None) -> "UsageRecord":
        """This row with the true figures in place of the estimate; *at* in epoch ms."""
        return evolve(
            self,
            input_tokens=usage.input_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            cache_read_tokens=usage.cache_read_tokens or 0,
            cache_write_5m_tokens=usage.cache_write_5m_tokens or 0,
            cache_write_1h_tokens=usage.cache_write_1h_tokens or 0,
            token_count=usage.token_count,
            basis=Basis.REPORTED,
            state=State.FINAL,
            corrected_at=at,
            cost_nanousd=cost_nanousd,
        )


LEDGER_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(UsageRecord))
"""The names of a ledger row's fields, in order."""
