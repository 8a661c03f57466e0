"""
RELIABILITY.md section 5: a marked token, prompt and ARN are driven through every error
path; no log, no row and no answer may hold them.
"""

import json
import logging
import sqlite3
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import pytest
import redis
from attrs import define, evolve, field
from tests.faults.malformed import OWNERS, ROWS, RULES, VALID, Row, owner
from tests.flows import (
    MODEL,
    OK_HEAD,
    TOKEN,
    Conversation,
    Reply,
    SlowHead,
    World,
    ask_claude,
    claude,
    exception,
    frame,
)

from bedrock_proxy.drive import Deadline, Gone, Interrupts, Shutdown
from bedrock_proxy.errors import ProxyError, store_unavailable
from bedrock_proxy.ports import Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.proxy import LoggingTelemetry
from bedrock_proxy_adapters.telemetry.usage_log import log_usage

CANARY = "canary-token.0123456789-abcdef"
PROMPT = "canary-prompt"
COMPLETION = "canary-completion"
ACCOUNT = "210987654321"
ARN = f"arn:aws:iam::{ACCOUNT}:role/canary-role"
WORDS = f"User {ARN} of account {ACCOUNT} said {PROMPT}: {COMPLETION} ({CANARY})"
"""What an error's text might hold, whoever raises it."""

BODY = ask_claude(messages=[{"role": "user", "content": PROMPT}])
HELLO = claude([COMPLETION])


@define(eq=False)
class Watched(World):
    """The scripted ports, with the real telemetry."""

    telemetry: LoggingTelemetry = field(factory=lambda: LoggingTelemetry(log_usage))
    find_error: BaseException | None = None
    open_error: BaseException | None = None

    def find_token(self, digest: bytes, at: int) -> Any:
        if self.find_error is not None:
            raise self.find_error
        return next((o for o in (*OWNERS, owner("c1", CANARY)) if o.key.digest == digest), None)

    def open(self, call: Any) -> Reply:
        if self.open_error is not None:
            self.calls.append(call)
            raise self.open_error
        return World.open(self, call)

    def finished(self, record: UsageRecord) -> None:
        World.finished(self, record)
        self.telemetry.finished(record)

    def spooled(self, record: UsageRecord, lease: Any) -> None:
        World.spooled(self, record, lease)
        self.telemetry.spooled(record, lease)

    def fault(self, request_id: str, error: BaseException) -> None:
        World.fault(self, request_id, error)
        self.telemetry.fault(request_id, error)

    def failing(self, request_id: str, error: ProxyError, model: str, settling: bool) -> None:
        World.failing(self, request_id, error, model, settling)
        self.telemetry.failing(request_id, error, model, settling)


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Everything logged, as a formatter with tracebacks would write it."""
    caplog.set_level(logging.DEBUG)
    formatter = logging.Formatter("%(name)s %(levelname)s %(message)s")
    return lambda: "\n".join(formatter.format(record) for record in caplog.records)


def sent(world: World, row: Row, **options: Any) -> Conversation:
    request = evolve(row.request, can_stream=options.pop("can_stream", True))
    return Conversation(world, request, row.body, RULES, **options).run()


def kept(world: World) -> str:
    rows = [*world.rows, *world.spool, *world.reported]
    return json.dumps([record.as_dict() for record in rows])


GOOD = Row("good", 200, body=BODY, token=CANARY)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_refusal_holds_no_token_and_no_prompt(row: Row, logs: Callable[[], str]) -> None:
    own = row.token == TOKEN
    row = evolve(row, body=row.body.replace(b"Say hello.", PROMPT.encode()))
    row = evolve(row, token=CANARY) if own else row
    talk = sent(Watched(), row)
    assert 400 <= talk.status < 500
    everything = talk.said.decode() + repr(talk.head) + logs()
    for secret in (CANARY, PROMPT, TOKEN, row.token or CANARY):
        assert secret not in everything
        assert secret[4:20] not in everything


NAMES = ["throttlingException", "modelNotReadyException", "serviceQuotaExceededException",
         "serviceUnavailableException", "modelTimeoutException", "modelErrorException",
         "modelStreamErrorException", "internalServerException", "resourceNotFoundException",
         "validationException", "accessDeniedException", "unrecognizedClientException",
         "invalidSignatureException", "expiredTokenException", "aNewException", ""]  # fmt: skip


def _replied(status: int, name: str) -> Callable[[Watched], None]:
    def script(world: Watched) -> None:
        for _ in range(3):
            head = UpstreamHead(status, (("x-amzn-errortype", name),))
            world.answers([json.dumps({"message": WORDS}).encode()], head)

    return script


def _streamed(*steps: Any) -> Callable[[Watched], None]:
    def script(world: Watched) -> None:
        for _ in range(3):
            world.answers(steps)

    return script


def _raised(**errors: BaseException) -> Callable[[Watched], None]:
    def script(world: Watched) -> None:
        for name, error in errors.items():
            setattr(world, name, error)
        world.answers(HELLO)

    return script


def _unreachable(trouble: Trouble) -> Callable[[Watched], None]:
    def script(world: Watched) -> None:
        for _ in range(3):
            world.answers([], UpstreamUnreachable(trouble, WORDS))

    return script


def _slow(world: Watched) -> None:
    world.replies.append(SlowHead(OK_HEAD, list(HELLO), world.time, delay=1_000.0))


def _down(kind: type[BaseException], *words: Any) -> ProxyError:
    """The store is down, and what it was raised from says far too much."""
    error = store_unavailable()
    error.__cause__ = kind(*(words or (WORDS,)))
    return error


STORES = {
    "redis": _down(redis.exceptions.ConnectionError, f"redis://u:{CANARY}@h:6379 {WORDS}"),
    "redis refuses": _down(redis.exceptions.ResponseError, f"MISCONF {WORDS}"),
    "sqlite": _down(sqlite3.OperationalError),
    "the disk": _down(OSError, 5, WORDS, CANARY),
    "dynamodb": _down(
        botocore.exceptions.ClientError,
        {"Error": {"Code": "AccessDeniedException", "Message": WORDS}},
        "GetItem",
    ),
    "something else": _down(RuntimeError),
}

BAD_FRAME = frame("chunk", {"bytes": WORDS})
FLIPPED = bytes([*HELLO[2][:-9], HELLO[2][-9] ^ 1, *HELLO[2][-8:]])

SCRIPTS: dict[str, Callable[[Watched], None]] = {
    **{
        f"reply {status} {name}": _replied(status, name)
        for name in NAMES
        for status in (400, 403, 503)
    },
    **{f"first frame {name}": _streamed(exception(name, WORDS)) for name in NAMES},
    **{f"frame {name}": _streamed(*HELLO[:3], exception(name, WORDS)) for name in NAMES},
    **{f"unreachable {trouble}": _unreachable(trouble) for trouble in Trouble},
    **{
        f"broken {trouble}": _streamed(*HELLO[:3], UpstreamUnreachable(trouble, WORDS))
        for trouble in Trouble
    },
    "torn": _streamed(*HELLO[:3]),
    "torn in a frame": _streamed(*HELLO[:3], HELLO[3][:20]),
    "flipped": _streamed(*HELLO[:2], FLIPPED, *HELLO[3:]),
    "bad frame": _streamed(*HELLO[:3], BAD_FRAME),
    "bad event": _streamed(*HELLO[:3], frame("chunk", [WORDS])),
    "silence": _streamed(*HELLO[:3], 1_000.0),
    "no head": _slow,
    "store down at the token": _raised(find_error=store_unavailable()),
    "store defect at the token": _raised(find_error=KeyError(WORDS)),
    "store down at admission": _raised(admit_error=store_unavailable()),
    "store defect at admission": _raised(admit_error=RuntimeError(WORDS)),
    "store down at settlement": _raised(finish_error=store_unavailable()),
    "store defect at settlement": _raised(finish_error=ValueError(WORDS)),
    **{
        f"{name} at {where}": _raised(**{f"{member}_error": error})
        for name, error in STORES.items()
        for where, member in (("the token", "find"), ("admission", "admit"), ("the end", "finish"))
    },
    "upstream defect": _raised(open_error=TypeError(WORDS)),
    "upstream defect while reading": _streamed(*HELLO[:3], RuntimeError(WORDS)),
}
CLIENTS_OWN = {name for name in SCRIPTS if "validation" in name or "resourceNotFound" in name} | {
    "reply 400 aNewException",
    "reply 400 ",
}
"""Faults of the client's, told in Bedrock's own words: what it sent may come back to it."""


NATIVE = evolve(GOOD, path=f"/model/{MODEL}/invoke-with-response-stream")


@pytest.mark.parametrize("wire", ["streams", "buffers", "native"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_no_error_path_tells_a_secret(name: str, wire: str, logs: Callable[[], str]) -> None:
    world = Watched()
    SCRIPTS[name](world)
    row = NATIVE if wire == "native" else GOOD
    talk = sent(world, row, can_stream=wire != "buffers")
    told = talk.said.decode("latin-1") + repr(talk.head)
    for secret in (ARN, ACCOUNT, "canary-role"):
        assert secret not in told
    # On its own wire Bedrock's words are passed on, but for the operator's faults.
    bedrocks = name.startswith(("reply", "first frame", "frame"))
    passed_on = wire == "native" and bedrocks and "upstream_config" not in kept(world)
    open_words = name in CLIENTS_OWN or passed_on
    for secret in () if open_words else (PROMPT, CANARY):
        assert secret not in told
    unseen = logs() + kept(world)
    for secret in (ARN, ACCOUNT, "canary-role", PROMPT, COMPLETION, CANARY):
        assert secret not in unseen


@pytest.mark.parametrize("reason", [Gone(), Gone(cuts=True), Deadline(), Shutdown()], ids=repr)
@pytest.mark.parametrize("after", range(4))
def test_no_interruption_tells_a_secret(reason: Any, after: int, logs: Callable[[], str]) -> None:
    world = Watched()
    world.answers(HELLO)
    interrupts = Interrupts()
    count = 0

    def on_say(talk: Conversation, said: Any) -> None:
        nonlocal count
        if count == after:
            interrupts.post(reason)
        count += 1

    if after == 3:
        interrupts.post(reason)
    Conversation(world, GOOD.request, GOOD.body, RULES, interrupts, on_say=on_say).run()
    unseen = logs() + kept(world)
    for secret in (PROMPT, COMPLETION, CANARY):
        assert secret not in unseen


def test_the_canary_would_be_found(logs: Callable[[], str]) -> None:
    """The sinks are read where things are written."""
    world = Watched(finish_error=ValueError(WORDS))
    world.answers(HELLO)
    sent(world, evolve(GOOD, headers=(("x-request-id", "canary-found"),)))
    assert "bedrock_stream" in logs()
    assert "ValueError" in logs()
    assert "unsettled usage row" in logs()
    assert "canary-found" not in logs(), "the client's own words are for the ledger alone"
    assert "canary-found" in kept(world)
    assert PROMPT.encode() in world.calls[0].body
    assert VALID != BODY
