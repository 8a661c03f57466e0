"""
What a dialect is: an HTTP request to a call, and a translation back.
"""

from collections.abc import Callable
from typing import Protocol

from bedrock_proxy.errors import ProxyError
from bedrock_proxy.http import Headers, Request
from bedrock_proxy.models import Family
from bedrock_proxy.models.names import ModelName
from bedrock_proxy.ports import UpstreamCall, UpstreamHead
from bedrock_proxy.sent import Sent
from bedrock_proxy.slotted import lean
from bedrock_proxy.usage import Usage


class Translation(Protocol):
    """
    One answer on its way to the client: upstream bytes in, client bytes out. Made for one
    attempt, fed until the end, thrown away. Nothing here raises for what upstream sends:
    it sets ``fault``.
    """

    @property
    def started(self) -> bool:
        """Whether the answer has begun: from here on a fault is a terminal error in the stream."""
        ...

    @property
    def heard(self) -> bool:
        """Whether any event, or any byte of a whole body, has come."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the answer is whole, though the upstream may not have closed yet."""
        ...

    @property
    def fault(self) -> ProxyError | None:
        """What stopped the answer, once something has."""
        ...

    @property
    def usage(self) -> Usage:
        """The best token counts so far; None for what nobody has reported."""
        ...

    @property
    def seen_output_tokens(self) -> int:
        """An estimate of the output seen so far, in tokens."""
        ...

    def begin(self, head: UpstreamHead) -> None:
        """Bedrock's head came, with a status below 300."""
        ...

    def headers(self) -> Headers:
        """The reply's own headers, asked once, when the head goes out."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for *chunk*; may be empty."""
        ...

    def finish(self) -> bytes:
        """The upstream has ended: the last bytes, or a ``fault``. After one there are none."""
        ...

    def fail(self, error: ProxyError) -> bytes:
        """The one terminal error, in place of a success terminator."""
        ...

    def ping(self) -> bytes:
        """Something harmless, in silence; may be empty."""
        ...


@lean(kw_only=True)
class Call:
    """
    What a request asks for, once it is understood.

    Attributes:
        model: The model's name, parsed.
        family: Its family.
        estimate: What is reserved for it: input and output, in tokens.
        stream: Whether the answer is streamed from Bedrock.
        counts_tokens: Whether it uses any (CountTokens does not).
        hold: Whether nothing is said before the answer is complete (its length is then
            known, and a fault is always a real status while there is no content).
        head_first: Whether the reply's head goes out with Bedrock's own, before any event.
        guardrails: Those that it names beside its model; who may not call one may not have it
            applied either.
        s3_locations: The URIs of objects in S3 that Bedrock is to read for it.
        translation: Makes a fresh translation, one for each attempt; an error may repeat what
            was sent.
    """

    upstream: UpstreamCall
    model: ModelName
    family: Family
    estimate: Usage
    stream: bool
    hold: bool
    head_first: bool = False
    counts_tokens: bool = True
    guardrails: tuple[ModelName, ...] = ()
    s3_locations: tuple[str, ...] = ()
    translation: Callable[[Sent], Translation]


@lean
class ErrorReply:
    """What tells a client of an error before the head; the flow adds what is common to all."""

    status: int
    headers: Headers
    body: bytes


class Dialect(Protocol):
    """One client protocol."""

    @property
    def name(self) -> str:
        """As the ledger records it."""
        ...

    def call(self, request: Request, body: bytes, operation: str, model: str | None) -> Call:
        """
        Understand a request.

        Args:
            operation: What the route says of it.
            model: The model id in the path, decoded, where the route has one (for a
                guardrail: its id, a colon, and its version).

        Raises:
            ClientFault: The request cannot be served as it is.
        """
        ...

    def refusal(self, error: ProxyError, request_id: str) -> ErrorReply:
        """What tells the client of *error* before the head."""
        ...
