"""
Bedrock through a boto3 client, with the bytes left as they are at both ends.

botocore wants to build the request's body and to parse the response's. Its public event
hooks (boto3 guide, "Extensibility") let both be replaced: ``before-call`` runs before the
request is signed and puts our bytes and headers in; ``before-parse`` runs before the
response is read and takes status, headers and the undecoded body out. Whatever botocore
then makes of the call, an exception for an error status included, is not used.

One thread per call makes the call and reads the reply (:mod:`.pump`); closing the reply
frees it (:mod:`.connections`). Nothing is retried here.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from threading import Lock, Thread
from typing import Any, Final, Literal, Protocol, cast

from attrs import evolve, frozen

from bedrock_proxy.errors import Code, Unavailable
from bedrock_proxy.eventstream import encode
from bedrock_proxy.ports import (
    Operation,
    Trouble,
    UpstreamCall,
    UpstreamHead,
    UpstreamUnreachable,
)
from bedrock_proxy_adapters.upstream.connections import (
    HOLD,
    Hold,
    hold_connections,
    hold_response,
)
from bedrock_proxy_adapters.upstream.endpoint import region_of
from bedrock_proxy_adapters.upstream.failures import answer_of_error, trouble
from bedrock_proxy_adapters.upstream.pump import READ_SIZE, BlockingReply, NativeReply, Pipe

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to a connection, TLS included."""

READ_TIMEOUT: Final = 630.0
"""
Seconds without a byte after which the socket gives up. Above the flow's own bounds, which are
600 s for an answer that comes whole and end the call with a better one; raise it with them.
"""

MAX_STREAMS: Final = 200
"""Calls, and so threads and connections, that may be open at once."""

OUR_RETRIES: Final = 2
"""How often the flow calls again before the first byte (RELIABILITY.md, S04)."""


def bedrock_client(
    region: str | None = None,
    endpoint_url: str | None = None,
    *,
    connect_timeout: float = CONNECT_TIMEOUT,
    read_timeout: float = READ_TIMEOUT,
    max_connections: int = MAX_STREAMS,
    session: Any = None,
) -> Any:
    """
    A boto3 ``bedrock-runtime`` client fit for streaming: one attempt, a pool as large as
    the calls, timeouts that suit long answers.

    Args:
        region: Else ``AWS_REGION`` (which boto3 itself does not read), else
            ``AWS_DEFAULT_REGION``, else the region of the session's profile.
        endpoint_url: Else AWS's own variables and files say, as for any client.
        connect_timeout: Seconds.
        read_timeout: Seconds between bytes. See :data:`READ_TIMEOUT`.
        max_connections: Kept open for further calls.
        session: A ``boto3.Session``, for credentials of its own.

    Raises:
        ConfigurationError: No region is known.
    """
    import boto3
    from botocore.config import Config

    session = session if session is not None else boto3.Session()
    region = region or region_of(session.region_name)
    return session.client(
        "bedrock-runtime",
        region_name=region,
        endpoint_url=endpoint_url,
        config=Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=max_connections,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            tcp_keepalive=True,
        ),
    )


class Boto3Upstream:
    """
    The way to Bedrock through boto3, for hosts that give each request a thread.

    Args:
        client: A boto3 ``bedrock-runtime`` client; :func:`bedrock_client` makes one where
            none is given. A client handed in keeps its own retries, so there are none of
            ours.
        max_streams: Calls that may be open at once.
        retries: How often the flow may call again; 2, or 0 with a client handed in.
    """

    kind: Literal["blocking"] = "blocking"

    def __init__(
        self,
        client: Any = None,
        *,
        max_streams: int = MAX_STREAMS,
        retries: int | None = None,
    ) -> None:
        if retries is None:
            retries = OUR_RETRIES if client is None else 0
        self.max_streams = max_streams
        self.retries = retries
        self._client = client if client is not None else bedrock_client(max_connections=max_streams)
        self._lock = Lock()
        self._running = 0
        _listen(self._client)
        hold_connections(self._client)

    def open(self, call: UpstreamCall) -> BlockingReply:
        """
        Begin a call. Returns without waiting for the answer.

        Raises:
            Unavailable: ``overloaded``: too many calls that were closed have not ended yet.
        """
        pumped = self._start(call)
        return BlockingReply(pumped.pipe, pumped.close)

    def native(self) -> "NativeBoto3Upstream":
        """The same for event loops: coroutines that wait without a thread of the host."""
        return NativeBoto3Upstream(self)

    def _start(self, call: UpstreamCall) -> "PumpedCall":
        pumped = PumpedCall(self._client, call)
        with self._lock:
            # The flows' own bound is max_streams. A closed call may outlive its flow
            # where it cannot be cut; twice the bound is where that stops being harmless.
            if self._running >= 2 * self.max_streams:
                raise _overloaded()
            self._running += 1
        try:
            # A thread of its own: taking one from a cache would save a tenth of a
            # millisecond where the call costs several.
            Thread(target=self._run, args=(pumped,), name="bedrock-pump", daemon=True).start()
        except RuntimeError:
            self._ended()
            raise _overloaded() from None
        return pumped

    def _run(self, pumped: "PumpedCall") -> None:
        try:
            pumped.run()
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._running -= 1


class NativeBoto3Upstream:
    """A :class:`Boto3Upstream` whose methods are coroutines."""

    kind: Literal["native"] = "native"

    def __init__(self, upstream: Boto3Upstream) -> None:
        self._upstream = upstream

    @property
    def max_streams(self) -> int:
        """Calls that may be open at once."""
        return self._upstream.max_streams

    @property
    def retries(self) -> int:
        """How often the flow may call again before the first byte."""
        return self._upstream.retries

    async def open(self, call: UpstreamCall) -> NativeReply:
        """Begin a call; see :meth:`Boto3Upstream.open`."""
        pumped = self._upstream._start(call)  # pyright: ignore[reportPrivateUsage]
        return NativeReply(pumped.pipe, pumped.close)


def _overloaded() -> Unavailable:
    return Unavailable("The proxy has too many calls under way; try again.", Code.OVERLOADED)


# --- one call ------------------------------------------------------------------------------


class Source(Protocol):
    """A body to be read once, by one thread."""

    def read(self, amt: int, /) -> bytes: ...
    def close(self) -> object: ...


@frozen
class Arrived:
    """An answer as it came, its body still to be read."""

    head: UpstreamHead
    body: Source
    length: int | None = None
    """Bytes that the body must have, where it says."""


class PumpedCall:
    """One call of Bedrock: what is sent, what has come, and how to end it."""

    def __init__(self, client: Any, call: UpstreamCall) -> None:
        self.call = call
        self.pipe = Pipe()
        self.hold = Hold()
        self.arrived: Arrived | None = None
        self._client = client

    def close(self) -> None:
        """End it now; any thread, repeatable."""
        self.pipe.close()
        self.hold.cut()

    def run(self) -> None:
        """Make the call and read the reply to its end. The pump thread's whole life."""
        _CALL.set(self)
        HOLD.set(self.hold)
        try:
            if not self.pipe.closed:
                arrived = self._ask()
                self.call = evolve(self.call, body=b"")  # the answer may take far longer
                self._pump(arrived)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader must hear of it
            self.pipe.end(trouble(error))
        else:
            self.pipe.end()

    def _ask(self) -> Arrived:
        method = getattr(self._client, _METHODS[self.call.operation], None)
        if method is None:
            raise UpstreamUnreachable(
                Trouble.REJECTED,
                f"this client cannot {self.call.operation}: boto3 is too old",
            )
        try:
            parsed = method(**_parameters(self.call))
        except Exception as error:
            if self.arrived is not None:
                return self.arrived
            if (answer := answer_of_error(error, self.call.operation)) is not None:
                head, body = answer
                return Arrived(head, io.BytesIO(body))
            raise
        return self.arrived if self.arrived is not None else _from_parsed(self.call, parsed)

    def _pump(self, arrived: Arrived) -> None:
        # `read1` brings what has arrived, `read` waits for all it was asked for.
        read = cast("Callable[[int], bytes]", getattr(arrived.body, "read1", arrived.body.read))
        count = 0
        try:
            self.pipe.begin(arrived.head)
            while self.pipe.has_room():
                data = read(READ_SIZE)
                if not data:
                    break
                count += len(data)
                self.pipe.push(data)
            else:
                return
        finally:
            # A body read to its end has given its connection back; any other is closed.
            arrived.body.close()
        if arrived.length is not None and count < arrived.length:
            raise UpstreamUnreachable(
                Trouble.BROKEN, f"the body ended after {count} of {arrived.length} bytes"
            )


_METHODS: Final[Mapping[Operation, str]] = {
    Operation.INVOKE: "invoke_model",
    Operation.INVOKE_STREAM: "invoke_model_with_response_stream",
    Operation.CONVERSE: "converse",
    Operation.CONVERSE_STREAM: "converse_stream",
    Operation.COUNT_TOKENS: "count_tokens",
    Operation.APPLY_GUARDRAIL: "apply_guardrail",
}

_PLACEHOLDERS: Final[Mapping[Operation, Mapping[str, object]]] = {
    Operation.CONVERSE: {"messages": []},
    Operation.CONVERSE_STREAM: {"messages": []},
    Operation.COUNT_TOKENS: {"input": {"invokeModel": {"body": b"{}"}}},
    Operation.APPLY_GUARDRAIL: {"source": "INPUT", "content": []},
}
"""What satisfies botocore's validation where the body itself cannot: replaced by the hook."""


def _parameters(call: UpstreamCall) -> dict[str, object]:
    placeholder = _PLACEHOLDERS.get(call.operation, {"body": call.body})
    if call.operation is Operation.APPLY_GUARDRAIL:
        return {
            "guardrailIdentifier": call.model_id,
            "guardrailVersion": call.guardrail_version,
            **placeholder,
        }
    return {"modelId": call.model_id, **placeholder}


# --- botocore's hooks -----------------------------------------------------------------------

_CALL: Final[ContextVar[PumpedCall | None]] = ContextVar("bedrock_proxy_call", default=None)
"""The call that this thread is making: the hooks act in none but ours."""


def _listen(client: Any) -> None:
    events = getattr(getattr(client, "meta", None), "events", None)
    if events is None:
        return
    for event, hook in (
        ("before-call", _before_call),
        ("before-send", _before_send),
        ("before-parse", _before_parse),
    ):
        events.register(f"{event}.bedrock-runtime", hook, unique_id=f"bedrock-proxy-{event}")


def _before_call(params: dict[str, Any], **_: object) -> None:
    pumped = _CALL.get()
    if pumped is None:
        return
    params["body"] = pumped.call.body
    headers = params["headers"]
    ours = {"content-type": "application/json", **dict(pumped.call.headers)}
    for name in [name for name in headers if name.lower() in ours]:
        del headers[name]
    headers.update(ours)


def _before_send(**_: object) -> None:
    pumped = _CALL.get()
    if pumped is None:
        return
    # The user's client may send again: an earlier answer is not the answer then.
    pumped.arrived = None
    if pumped.pipe.closed:
        raise UpstreamUnreachable(Trouble.CLOSED)


def _before_parse(response_dict: dict[str, Any], **_: object) -> None:
    pumped = _CALL.get()
    if pumped is None:
        return
    head = UpstreamHead(
        status=response_dict["status_code"],
        headers=tuple((name.lower(), value) for name, value in response_dict["headers"].items()),
    )
    length = head.first("content-length")
    expected = int(length) if length is not None and length.isdecimal() else None
    body = response_dict["body"]
    if isinstance(body, bytes):
        # urllib3 was told not to check this.
        if expected is not None and len(body) < expected:
            raise UpstreamUnreachable(
                Trouble.BROKEN, f"the body ended after {len(body)} of {expected} bytes"
            )
        pumped.arrived = Arrived(head, io.BytesIO(body))
        # An error's body stays: the client may retry by what it says. Parsing any other
        # would cost time and be of no use.
        if head.status < 300:
            response_dict["body"] = b"{}"
        return
    if hasattr(body, "shutdown") and "release_conn" not in getattr(body, "__dict__", {}):
        hold_response(body, pumped.hold)
    pumped.arrived = Arrived(head, body, expected)
    # Nobody but the pump may read from this connection.
    response_dict["body"] = io.BytesIO()


# --- clients in which no hook fires ------------------------------------------------------------


def _from_parsed(call: UpstreamCall, parsed: Mapping[str, Any]) -> Arrived:
    """The answer of a Stubber or of a client made by hand, as Bedrock would have put it."""
    meta = parsed.get("ResponseMetadata", {})
    kind = "application/vnd.amazon.eventstream" if call.operation.streams else "application/json"
    headers = {"content-type": kind}
    headers |= {name.lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    head = UpstreamHead(meta.get("HTTPStatusCode", 200), tuple(headers.items()))
    if call.operation.streams:
        events = parsed["body" if call.operation is Operation.INVOKE_STREAM else "stream"]
        return Arrived(head, _Frames(events, call.operation))
    if call.operation is Operation.INVOKE:
        body = parsed["body"]
        return Arrived(head, body if hasattr(body, "read") else io.BytesIO(_as_bytes(body)))
    content = {name: value for name, value in parsed.items() if name != "ResponseMetadata"}
    return Arrived(head, io.BytesIO(_json(content)))


class _Frames:
    """boto3's event dictionaries, put back into event-stream messages."""

    def __init__(self, events: Any, operation: Operation) -> None:
        self._events = events
        self._messages = self._encoded(iter(events), operation)

    def read(self, amt: int, /) -> bytes:  # noqa: ARG002 - one message, whatever its size
        return next(self._messages, b"")

    def close(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()

    @staticmethod
    def _encoded(events: Iterator[Mapping[str, Any]], operation: Operation) -> Iterator[bytes]:
        try:
            for event in events:
                for name, value in event.items():
                    yield _message("event", name, _json(value))
        except Exception as error:
            if (answer := answer_of_error(error, operation)) is None:
                raise
            head, body = answer
            yield _message("exception", head.first("x-amzn-errortype") or "", body)


def _message(kind: str, name: str, payload: bytes) -> bytes:
    headers = {
        f":{kind}-type": name,
        ":content-type": "application/json",
        ":message-type": kind,
    }
    return encode(headers, payload)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=_unusual).encode()


def _unusual(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
