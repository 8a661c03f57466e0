"""
A native stream's course, faults included: the S rows of RELIABILITY.md on Bedrock's own
wire. Whatever happens, the client gets whole sound frames and at most one terminal one.
"""

import json
import struct
import zlib
from typing import Any

import pytest
from tests.core.test_course import EXCEPTIONS, leave_at
from tests.flows import (
    MODEL,
    OK_HEAD,
    Conversation,
    World,
    chunk,
    claude,
    converse,
    exception,
    frame,
    request,
)

from bedrock_proxy.drive import Deadline, Gone, Shutdown
from bedrock_proxy.eventstream import Decoder, Frame, encode
from bedrock_proxy.ports import Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.usage import Basis, Outcome, State

BODY = json.dumps(
    {"max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
).encode()
INVOKE = "invoke-with-response-stream"
CONVERSE = "converse-stream"


def native(world: World, operation: str = INVOKE, **options: Any) -> Conversation:
    """One request on the native wire, driven to its end."""
    return converse(world, BODY, path=f"/model/{MODEL}/{operation}", **options)


def conversation_on(world: World, operation: str = INVOKE) -> Conversation:
    return Conversation(world, request(path=f"/model/{MODEL}/{operation}"), BODY)


def conversing(pieces: tuple[str, ...] = ("Hel", "lo"), usage: bool = True) -> list[bytes]:
    """A ConverseStream, a frame for each element; its usage comes after its stop."""
    deltas = [
        frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}, "p": "ab"})
        for piece in pieces
    ]
    counts = {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}
    return [
        frame("messageStart", {"role": "assistant", "p": "abc"}),
        *deltas,
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame("metadata", {"usage": counts if usage else None, "metrics": {"latencyMs": 5}}),
    ]


def frames_of(said: bytes) -> list[Frame]:
    """The frames of a reply: whole and sound, all of them."""
    decoder = Decoder()
    frames = decoder.feed(said)
    decoder.close()
    return frames


def terminal(conversation: Conversation, sound: list[bytes]) -> tuple[str, str]:
    """The type and message of the one exception frame that follows exactly *sound*."""
    assert conversation.status == 200
    frames = frames_of(conversation.said)
    assert [f.raw for f in frames[:-1]] == sound
    last = frames[-1]
    assert last.text(":message-type") == "exception"
    assert last.text(":content-type") == "application/json"
    said = json.loads(last.payload)
    assert list(said) == ["message"]
    return str(last.text(":exception-type")), said["message"]


@pytest.mark.parametrize("cuts", [False, True], ids=["drain", "cancel"])
@pytest.mark.parametrize("operation", [INVOKE, CONVERSE])
def test_S01_a_client_that_leaves_anywhere_leaves_one_row(operation: str, cuts: bool) -> None:
    pieces = tuple(f"{n}" for n in range(34))
    stream = claude(pieces) if operation == INVOKE else conversing(pieces)
    ends = [len(b"".join(stream[:n])) for n in range(len(stream) + 1)]
    stopped = ends[-2]
    # The flow says whole frames: between two of their ends every offset is the same.
    for position in sorted({end + step for end in ends for step in (-1, 0, 1)}):
        world = World().answers(stream)
        left = native(world, operation, on_say=leave_at(position, cuts))
        frames_of(left.said)  # whole frames only
        row = world.row
        complete = len(left.said) >= stopped
        assert (Outcome.OK if complete else Outcome.CLIENT_GONE) == row.outcome
        if not cuts:
            # Also where the usage comes after the stop that the client waited for.
            assert (row.basis, row.input_tokens, row.output_tokens) == (Basis.REPORTED, 11, 7)
        assert world.used[0].closed
        assert [row] == world.reported


def test_S03_a_client_that_closes_after_the_last_frame_was_served() -> None:
    stream = conversing()
    world = World().answers([b"".join(stream)])
    native(world, CONVERSE, on_say=leave_at(len(b"".join(stream))))
    assert (world.row.outcome, world.row.token_count) == (Outcome.OK, 18)
    assert world.used[0].reads == 2, "nothing is read twice"


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_S05_an_exception_as_first_event_is_passed_on_after_bedrocks_head(kind: str) -> None:
    world = World().answers([exception(kind, "Bedrock's own words.")])
    conversation = native(world)
    assert (conversation.status, conversation.said) == (
        200,
        exception(kind, "Bedrock's own words."),
    )
    assert conversation.header("x-amzn-requestid") == "aws-1"
    assert (world.row.attempts, world.row.token_count, world.row.outcome) == (1, 0, Outcome.ERROR)
    assert EXCEPTIONS[kind][1] == world.row.error_code


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("position", [2, 3, 4])
@pytest.mark.parametrize("at_once", [False, True], ids=["apart", "in one read"])
@pytest.mark.parametrize("operation", [INVOKE, CONVERSE])
def test_S06_S24_an_exception_in_the_stream_is_passed_on_as_it_came(
    kind: str, position: int, at_once: bool, operation: str
) -> None:
    stream = claude() if operation == INVOKE else conversing()
    frames = [*stream[:position], exception(kind, "As it came.")]
    after = stream[position]  # what follows an exception is never passed on
    steps = [b"".join((*frames, after))] if at_once else [*frames, after]
    world = World().answers(steps)
    conversation = native(world, operation)
    assert conversation.said == b"".join(frames)
    assert (world.row.basis, world.row.outcome, world.row.attempts) == (
        Basis.PARTIAL,
        Outcome.ERROR,
        1,
    )
    assert EXCEPTIONS[kind][1] == world.row.error_code


def test_S06_an_error_frame_passes_too() -> None:
    error = encode({":message-type": "error", ":error-code": "500", ":error-message": "Oops."})
    assert native(World().answers([error])).said == error


def test_S06_the_operators_fault_is_told_in_our_words() -> None:
    secret = exception("accessDeniedException", "arn:aws:iam::123456789012:role/x may not")
    world = World().answers([*claude()[:3], secret])
    kind, message = terminal(native(world), claude()[:3])
    assert kind == "internalServerException"
    assert "operator" in message
    assert world.row.error_code == "upstream_config"


def test_S06_an_exception_that_names_a_foreign_arn_is_passed_on_without_it() -> None:
    foreign = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/secret"
    conversation = native(World().answers([exception("validationException", f"no {foreign}")]))
    assert conversation.said == exception("validationException", "no <arn>")
    error = encode({":message-type": "error", ":error-code": "E", ":error-message": foreign})
    said = frames_of(native(World().answers([error])).said)[0]
    assert said.text(":error-message") == "<arn>"


def test_S07_a_reset_anywhere_in_a_frame_is_one_exception_frame() -> None:
    stream = claude()
    for offset in range(len(stream[3])):
        broken = UpstreamUnreachable(Trouble.BROKEN)
        world = World().answers([*stream[:3], stream[3][:offset], broken])
        assert terminal(native(world), stream[:3])[0] == "modelStreamErrorException"
        assert world.row.basis == Basis.PARTIAL


@pytest.mark.parametrize("operation", [INVOKE, CONVERSE])
def test_S08_an_end_anywhere_before_the_stop_is_one_exception_frame(operation: str) -> None:
    frames = claude() if operation == INVOKE else conversing()
    stream = b"".join(frames)
    ends = [len(b"".join(frames[:n])) for n in range(len(frames) + 1)]
    whole = set(ends[-2:])  # after the frame with the stop, and after the last
    for offset in range(len(stream)):
        world = World().answers([stream[:offset]] if offset else [])
        conversation = native(world, operation)
        if offset in whole:
            assert conversation.said == stream[:offset]
            assert world.row.outcome == Outcome.OK
        else:
            sound = [f for f, end in zip(frames, ends[1:], strict=True) if end <= offset]
            assert terminal(conversation, sound)[0] == "modelStreamErrorException"
            assert world.row.error_code == "upstream_torn"
            assert sound == [] or world.row.basis == Basis.PARTIAL


def test_S09_no_flipped_bit_reaches_the_client() -> None:
    stream = claude()
    for bit in range(len(stream[3]) * 8):
        flipped = bytearray(stream[3])
        flipped[bit // 8] ^= 1 << (bit % 8)
        world = World().answers([b"".join((*stream[:3], flipped, *stream[4:]))])
        assert terminal(native(world), stream[:3])[0] == "modelStreamErrorException"
        assert (world.row.basis, world.row.error_code) == (Basis.PARTIAL, "upstream_torn")


@pytest.mark.parametrize("total", [0, 15, 2**31, 25 * 1024 * 1024])
def test_S10_a_hostile_length_is_one_exception_frame(total: int) -> None:
    prelude = struct.pack(">II", total, 0)
    hostile = prelude + struct.pack(">I", zlib.crc32(prelude))
    world = World().answers([*claude()[:3], hostile, b"x" * 1000])
    assert terminal(native(world), claude()[:3])[0] == "modelStreamErrorException"


def test_S11_events_and_headers_of_a_later_day_pass() -> None:
    later = frame("inventedEvent", {"x": 1})
    odd = encode(
        {":message-type": "event", ":event-type": "chunk", "new": True}, b'{"bytes":"e30="}'
    )
    binary = encode({":message-type": "event", ":event-type": "sound"}, b"\x00\xff{")
    silent = encode({":message-type": "notice"}, b"?")
    for operation, stream in ((INVOKE, claude()), (CONVERSE, conversing())):
        more = [later, *stream[:3], silent, binary, *stream[3:], later]
        more = [*more[:2], odd, *more[2:]] if operation == INVOKE else more
        world = World().answers(more)
        assert native(world, operation).said == b"".join(more)
        assert (world.row.outcome, world.row.token_count) == (Outcome.OK, 18)


@pytest.mark.parametrize("payload", [b"{", b'{"bytes": 5}', b'{"bytes": "***"}', b"[]"])
def test_S12_a_frame_that_cannot_be_read_is_not_passed_on(payload: bytes) -> None:
    bad = encode({":message-type": "event", ":event-type": "chunk"}, payload)
    world = World().answers([*claude()[:3], bad, *claude()[3:]])
    assert terminal(native(world), claude()[:3])[0] == "modelStreamErrorException"
    assert world.row.basis == Basis.PARTIAL


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(INVOKE, "modelTimeoutException"), (CONVERSE, "modelStreamErrorException")],
)
def test_S13_silence_brings_nothing_and_an_error_at_120_seconds(operation: str, kind: str) -> None:
    stream = claude() if operation == INVOKE else conversing()
    world = World().answers([*stream[:3], 1_000.0])
    assert terminal(native(world, operation), stream[:3])[0] == kind
    assert (world.row.outcome, world.row.duration_ms) == (Outcome.TIMEOUT, 120_000)


@pytest.mark.parametrize("operation", [INVOKE, CONVERSE])
def test_S15_a_whole_stream_without_usage_is_estimated_and_marked(operation: str) -> None:
    stream = claude(usage=False) if operation == INVOKE else conversing(usage=False)
    world = World().answers(stream)
    assert native(world, operation).said == b"".join(stream)
    assert (world.row.basis, world.row.state, world.row.output_tokens) == (
        Basis.ESTIMATED,
        State.ESTIMATED,
        2,
    )


def test_S16_S17_usage_is_what_was_said_last_zero_included() -> None:
    def counted(*reports: tuple[int, int]) -> tuple[int, int, Basis]:
        metadata = [
            frame("metadata", {"usage": {"inputTokens": i, "outputTokens": o}}) for i, o in reports
        ]
        world = World().answers([*conversing()[:-1], *metadata])
        native(world, CONVERSE)
        return world.row.input_tokens, world.row.output_tokens, world.row.basis

    assert counted((0, 0)) == (0, 0, Basis.REPORTED)
    assert counted((11, 5), (11, 9)) == (11, 9, Basis.REPORTED)


@pytest.mark.parametrize(
    ("reason", "kind", "status", "outcome"),
    [
        (Deadline, "modelTimeoutException", 504, Outcome.TIMEOUT),
        (Shutdown, "serviceUnavailableException", 503, Outcome.SHUTDOWN),
    ],
    ids=["S18", "S20"],
)
@pytest.mark.parametrize("operation", [INVOKE, "invoke"])
def test_S18_S20_an_ending_is_one_terminal_error_and_is_settled(
    reason: Any, kind: str, status: int, outcome: Outcome, operation: str
) -> None:
    world = World()
    conversation = conversation_on(world, operation)
    steps = [lambda: conversation.interrupts.post(reason()), 1_000.0]
    world.answers([*claude()[:3], *steps] if operation == INVOKE else steps)
    conversation.run()
    if operation == INVOKE:
        assert terminal(conversation, claude()[:3])[0] == kind
    else:
        assert conversation.status == status
        assert conversation.header("x-amzn-errortype") == kind[:1].upper() + kind[1:]
    basis = Basis.PARTIAL if operation == INVOKE else Basis.ESTIMATED
    assert (outcome, basis) == (world.row.outcome, world.row.basis)
    assert world.time.monotonic == 1_000.0, "the pending read was cut short"


@pytest.mark.parametrize("when", ["at the head", "at the body"])
def test_S18_an_ending_never_spoils_a_body_whose_head_is_out(when: str) -> None:
    body = b'{"content": [], "stop_reason": "end_turn"}'

    def end(conversation: Conversation, said: object) -> None:
        if isinstance(said, bytes) == (when == "at the body"):
            conversation.interrupts.post(Deadline())

    world = World().answers([body])
    conversation = native(world, "invoke", on_say=end)
    assert (conversation.status, conversation.said) == (200, body)
    assert str(len(body)) == conversation.header("content-length")
    assert world.row.outcome == Outcome.OK


def test_a_client_that_leaves_while_a_refusal_is_read_owes_nothing() -> None:
    world = World()
    conversation = conversation_on(world, "invoke")
    world.answers(
        [b'{"mess', lambda: conversation.interrupts.post(Gone()), 20.0, b'age": "no"}'],
        UpstreamHead(400, (("x-amzn-errortype", "ValidationException"),)),
    )
    conversation.run()
    assert (world.row.outcome, world.row.token_count) == (Outcome.CLIENT_GONE, 0)


def test_S22_S23_every_split_of_the_upstream_gives_the_same_bytes() -> None:
    stream = b"".join(claude(["a\u2028b\u2029\u0085\v\f\x1c", "Hé😀\r\n"]))
    for split in range(1, len(stream)):
        world = World().answers([stream[:split], stream[split:]])
        assert native(world).said == stream
    tiny = World().answers([stream[at : at + 1] for at in range(len(stream))], OK_HEAD)
    assert native(tiny).said == stream
    assert tiny.row.token_count == 18


def test_a_host_that_cannot_stream_gets_the_same_bytes() -> None:
    world = World().answers(claude())
    conversation = native(world, can_stream=False)
    assert conversation.said == b"".join(claude())
    broken = native(World().answers([*claude()[:3], chunk({"x": 1})[:-1]]), can_stream=False)
    assert terminal(broken, claude()[:3])[0] == "modelStreamErrorException"
