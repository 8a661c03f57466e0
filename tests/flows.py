"""
Dialogues with the flow: scripted ports, and a driver that keeps what was said.

Nothing here does I/O; time is a number that the test moves.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from attrs import define, field

from bedrock_proxy import tokens
from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.customers import CustomerStatus, Key, TokenOwner
from bedrock_proxy.drive import Interrupts, drive
from bedrock_proxy.errors import ProxyError
from bedrock_proxy.eventstream import encode
from bedrock_proxy.exchange import exchange
from bedrock_proxy.http import Head, Request
from bedrock_proxy.ports import (
    END,
    SILENCE,
    Instant,
    Ports,
    Signal,
    Trouble,
    UpstreamCall,
    UpstreamHead,
    UpstreamUnreachable,
)
from bedrock_proxy.rules import Rules
from bedrock_proxy.standing import Spent, Standing
from bedrock_proxy.usage import UsageRecord

TOKEN = tokens.mint(bytes(range(32)))
MODEL = "anthropic.claude-3-haiku-20240307-v1:0"
START = 1_700_000_000_000

OK_HEAD = UpstreamHead(
    200,
    (("content-type", "application/vnd.amazon.eventstream"), ("x-amzn-requestid", "aws-1")),
)


# --- what a model sends -----------------------------------------------------------------------


def frame(kind: str, payload: object, message_type: str = "event") -> bytes:
    """One frame as Bedrock sends it."""
    name = ":event-type" if message_type == "event" else ":exception-type"
    return encode(
        {name: kind, ":content-type": "application/json", ":message-type": message_type},
        json.dumps(payload, separators=(",", ":")).encode(),
    )


def chunk(event: object) -> bytes:
    """One event of InvokeModelWithResponseStream, padded as the real ones are."""
    inner = base64.b64encode(json.dumps(event).encode()).decode()
    return frame("chunk", {"bytes": inner, "p": "abcdefgh"})


def exception(kind: str, message: str = "Bedrock said so.") -> bytes:
    return frame(kind, {"message": message}, "exception")


def claude(
    pieces: Sequence[str] = ("Hel", "lo"), usage: bool = True, output_tokens: int = 7
) -> list[bytes]:
    """A Claude stream, a frame for each element."""
    start: dict[str, Any] = {"type": "message_start", "message": {"role": "assistant"}}
    delta: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    stop: dict[str, Any] = {"type": "message_stop"}
    if usage:
        start["message"]["usage"] = {"input_tokens": 11, "output_tokens": 1}
        delta["usage"] = {"output_tokens": output_tokens}
        stop["amazon-bedrock-invocationMetrics"] = {
            "inputTokenCount": 11,
            "outputTokenCount": output_tokens,
        }
    return [
        chunk(start),
        chunk(
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            }
        ),
        *(
            chunk(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": piece},
                }
            )
            for piece in pieces
        ),
        chunk({"type": "content_block_stop", "index": 0}),
        chunk(delta),
        chunk(stop),
    ]


# --- ports ------------------------------------------------------------------------------------


@define(eq=False, slots=False)
class Time:
    """The clock; also the pause, which moves it."""

    monotonic: float = 1_000.0
    paused: list[float] = field(factory=list)
    kind = "instant"

    def now(self) -> Instant:
        return Instant(START + round((self.monotonic - 1_000.0) * 1000), self.monotonic)

    def seconds(self) -> float:
        return self.monotonic

    def pause(self, at_most: float) -> None:
        self.paused.append(at_most)
        self.monotonic += at_most


@define(eq=False)
class GivenBody:
    body: bytes
    asked: int = 0
    kind = "instant"

    def receive(self, limit: int, within: float) -> bytes:
        self.asked += 1
        return self.body


Step = bytes | float | BaseException | Callable[[], object]
"""Of a script: bytes arrive, seconds of silence pass, an error is met, the test does something."""


@define(eq=False)
class Reply:
    """One scripted call. A second reader while one reads would be caught."""

    head: UpstreamHead | BaseException
    steps: list[Step]
    time: Time
    closed: int = 0
    reads: int = 0
    _silence: float = 0.0
    kind = "instant"

    def begin(self, within: float) -> Any:
        if self.closed:
            raise UpstreamUnreachable(Trouble.CLOSED)
        if isinstance(self.head, BaseException):
            raise self.head
        return self.head

    def read(self, within: float) -> bytes | Signal:
        self.reads += 1
        while True:
            if self.closed:
                return END
            if not self.steps:
                return END
            step = self.steps[0]
            if isinstance(step, float):
                if step > within:
                    self.steps[0] = step - within
                    self.time.monotonic += within
                    return SILENCE
                self.time.monotonic += step
                self.steps.pop(0)
                continue
            self.steps.pop(0)
            if isinstance(step, bytes):
                return step
            if isinstance(step, BaseException):
                raise step
            step()

    def close(self) -> None:
        self.closed += 1


@define(eq=False)
class SlowHead(Reply):
    """A call whose head takes *delay* seconds."""

    delay: float = 0.0

    def begin(self, within: float) -> Any:
        if self.closed:
            raise UpstreamUnreachable(Trouble.CLOSED)
        if self.delay > within:
            self.delay -= within
            self.time.monotonic += within
            return SILENCE
        self.time.monotonic += self.delay
        self.delay = 0.0
        return Reply.begin(self, within)


@define(eq=False)
class World:
    """Every port of one flow, scripted and recorded."""

    replies: list[Reply] = field(factory=list)
    time: Time = field(factory=Time)
    owner: TokenOwner | None = field(
        factory=lambda: TokenOwner(
            customer_id="c1",
            key=Key(key_id="k1", digest=tokens.digest(TOKEN, None), created_at=0),
            status=CustomerStatus.ACTIVE,
            models=None,
        )
    )
    status: CustomerStatus = CustomerStatus.ACTIVE
    keys: frozenset[str] = frozenset({"k1"})
    refusal: Refusal | None = None
    streams: bool = True
    drains: bool = True
    accepting: bool = True
    retries = 2
    max_streams = 10
    kind = "instant"
    store_calls: int = 0
    finish_error: BaseException | None = None
    admit_error: BaseException | None = None
    calls: list[UpstreamCall] = field(factory=list)
    used: list[Reply] = field(factory=list)
    admitted: list[AdmissionRequest] = field(factory=list)
    released: list[AdmissionRequest] = field(factory=list)
    renewed: list[int] = field(factory=list)
    rows: list[UsageRecord] = field(factory=list)
    spool: list[UsageRecord] = field(factory=list)
    reported: list[UsageRecord] = field(factory=list)
    faults: list[BaseException] = field(factory=list)
    failings: list[tuple[str, str, bool]] = field(factory=list)

    # tokens, gate, ledger

    def find_token(self, digest: bytes, at: int) -> TokenOwner | None:
        self.store_calls += 1
        owner = self.owner
        return owner if owner is not None and owner.key.digest == digest else None

    def standing(self, customer_id: str, at: int) -> Standing:
        self.store_calls += 1
        nothing = Spent(requests=0, tokens=0, cost_nanousd=0)
        return Standing(
            customer_id=customer_id,
            status=self.status,
            keys=self.keys,
            limits=(),
            in_flight=0,
            today=nothing,
            month=nothing,
        )

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        self.store_calls += 1
        if self.admit_error is not None:
            raise self.admit_error
        if self.refusal is not None:
            return self.refusal
        self.admitted.append(request)
        return Grant(lease=Lease(request=request, deadline=request.at + request.lease_ms))

    def renew(self, lease: Lease, at: int) -> Lease:
        self.renewed.append(at)
        return Lease(request=lease.request, deadline=at + lease.request.lease_ms)

    def release(self, request: AdmissionRequest) -> None:
        self.released.append(request)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        self.store_calls += 1
        if self.finish_error is not None:
            raise self.finish_error
        self.rows.append(record)

    # upstream

    def open(self, call: UpstreamCall) -> Reply:
        self.calls.append(call)
        reply = self.replies.pop(0)
        self.used.append(reply)
        return reply

    # slots

    def ready(self) -> bool:
        return self.accepting

    def take_stream(self) -> bool:
        return self.streams

    def take_drain(self) -> bool:
        return self.drains

    # telemetry

    def finished(self, record: UsageRecord) -> None:
        self.reported.append(record)

    def spooled(self, record: UsageRecord, lease: Lease) -> None:
        self.spool.append(record)

    def fault(self, request_id: str, error: BaseException) -> None:
        self.faults.append(error)

    def failing(self, request_id: str, error: ProxyError, model: str, settling: bool) -> None:
        self.failings.append((str(error.code), error.cause, settling))

    # scripts

    def answers(
        self, steps: Iterable[Step], head: UpstreamHead | BaseException = OK_HEAD
    ) -> "World":
        """Script the next call."""
        self.replies.append(Reply(head, list(steps), self.time))
        return self

    @property
    def row(self) -> UsageRecord:
        """The one row there must be."""
        assert len(self.rows) == 1, f"{len(self.rows)} rows"
        return self.rows[0]


@define(eq=False)
class Conversation:
    """One request driven to its end, and what was said in it."""

    world: World
    request: Request
    body: bytes
    rules: Rules = field(factory=Rules)
    interrupts: Interrupts = field(factory=Interrupts)
    head: Head | None = None
    pieces: list[bytes] = field(factory=list)
    error: ProxyError | None = None
    on_say: Callable[["Conversation", Head | bytes], None] = lambda conversation, said: None

    def run(self) -> "Conversation":
        world = cast("Any", self.world)
        given = GivenBody(self.body)
        ports = Ports(
            clock=self.world.time,
            pause=cast("Any", self.world.time),
            body=cast("Any", given),
            tokens=world,
            gate=world,
            ledger=world,
            upstream=world,
            slots=world,
            telemetry=world,
        )
        saying = drive(exchange(self.request, self.rules), ports, self.interrupts)
        while True:
            try:
                said = next(saying)
            except StopIteration as end:
                self.error = end.value
                return self
            if isinstance(said, Head):
                assert self.head is None, "a flow says one head"
                self.head = said
            else:
                assert self.head is not None, "a flow says its head first"
                self.pieces.append(said)
            self.on_say(self, said)

    @property
    def status(self) -> int:
        assert self.head is not None
        return self.head.status

    @property
    def said(self) -> bytes:
        return b"".join(self.pieces)

    def header(self, name: str) -> str | None:
        assert self.head is not None
        return dict(self.head.headers).get(name)


def request(
    *headers: tuple[str, str],
    method: str = "POST",
    path: str = "/bedrock",
    token: str | None = TOKEN,
    can_stream: bool = True,
    query: str = "",
) -> Request:
    """A request as a host would hand it over."""
    own: list[tuple[str, str]] = [("host", "proxy.test"), *headers]
    if token is not None:
        own.append(("authorization", f"Bearer {token}"))
    return Request(
        request_id="r-1",
        method=method,
        path=path,
        headers=tuple(own),
        can_stream=can_stream,
        query=query,
    )


def ask_claude(stream: bool = True, **more: object) -> bytes:
    """The body of a request in the simple dialect."""
    return json.dumps(
        {
            "modelId": MODEL,
            "stream": stream,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Say hello."}],
            **more,
        }
    ).encode()


def whole_claude(text: str = "Hello.", input_tokens: int = 10, output_tokens: int = 2) -> bytes:
    """The body of an answer that is no stream."""
    return json.dumps(
        {
            "type": "message",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
        }
    ).encode()


def converse(
    world: World, body: bytes | None = None, *headers: tuple[str, str], **options: Any
) -> Conversation:
    """Drive one request to its end."""
    rules = options.pop("rules", Rules())
    on_say = options.pop("on_say", None)
    conversation = Conversation(
        world, request(*headers, **options), ask_claude() if body is None else body, rules
    )
    if on_say is not None:
        conversation.on_say = on_say
    return conversation.run()


def events(said: bytes) -> list[str]:
    """The data of each Server-Sent Event, comments left out (WHATWG HTML, 9.2.6)."""
    found: list[str] = []
    for block in said.decode("ascii").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data:")]
        if data:
            found.append("\n".join(data))
    return found


def text_of(said: bytes) -> str:
    """The visible text of a stream of Server-Sent Events."""
    return "".join(json.loads(data).get("content", "") for data in events(said) if data != "[DONE]")
