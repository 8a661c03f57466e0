"""
A request's course, faults included: rows S01 to S24 of RELIABILITY.md, in process and
with time that the test moves. Every row also leaves exactly one ledger row behind.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from tests.flows import (
    OK_HEAD,
    Conversation,
    Reply,
    SlowHead,
    World,
    ask_claude,
    chunk,
    claude,
    converse,
    events,
    exception,
    frame,
    request,
    text_of,
    whole_claude,
)

from bedrock_proxy.drive import Deadline, Gone, Shutdown
from bedrock_proxy.errors import StoreUnavailable, store_unavailable
from bedrock_proxy.eventstream import encode
from bedrock_proxy.http import Head
from bedrock_proxy.ports import Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Basis, Outcome, State

ARRAY = ("accept", "application/json")
EXCEPTIONS = {
    "internalServerException": (502, "upstream_error"),
    "modelStreamErrorException": (502, "upstream_error"),
    "validationException": (400, "invalid_request"),
    "throttlingException": (429, "upstream_throttled"),
    "modelTimeoutException": (504, "upstream_timeout"),
    "serviceUnavailableException": (503, "upstream_error"),
}


def terminal(conversation: Conversation) -> dict[str, Any]:
    """The one terminal error of a reply whose head is out; there is no success terminator."""
    said = conversation.said
    if conversation.header("content-type") == "text/event-stream":
        assert b"[DONE]" not in said
        assert said.count(b"event: error\n") == 1
        assert said.endswith(b"\n\n")
        return json.loads(events(said)[-1])
    elements = json.loads(said)
    assert {"done": True} not in elements
    assert sum("error" in element for element in elements) == 1
    return elements[-1]


def body(conversation: Conversation) -> dict[str, Any]:
    """The plain error body of a reply that never began."""
    assert str(len(conversation.said)) == conversation.header("content-length")
    return json.loads(conversation.said)


def leave_at(position: int, cuts: bool = False) -> Callable[[Conversation, Head | bytes], None]:
    """The client leaves once *position* bytes of the reply's body were sent."""
    left: list[int] = []

    def on_say(conversation: Conversation, said: Head | bytes) -> None:
        if not left and len(conversation.said) >= position:
            left.append(position)
            conversation.interrupts.post(Gone(cuts=cuts))

    return on_say


# --- the client leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("headers", [(), (ARRAY,)], ids=["sse", "array"])
@pytest.mark.parametrize("cuts", [False, True], ids=["drain", "cancel"])
def test_S01_a_client_that_leaves_anywhere_leaves_one_row(headers: Any, cuts: bool) -> None:
    pieces = [f"piece {n} " for n in range(40)]
    stream = claude(pieces, output_tokens=77)
    whole = converse(World().answers(stream), None, *headers).said
    last = whole.index(b"piece 39") + 1
    for position in range(len(whole)):
        world = World().answers(stream)
        left = converse(world, None, *headers, on_say=leave_at(position, cuts))
        assert whole.startswith(left.said)
        row = world.row
        had_everything = len(left.said) >= last
        assert (Outcome.OK if had_everything else Outcome.CLIENT_GONE) == row.outcome or (
            cuts and row.outcome is Outcome.CLIENT_GONE
        )
        if cuts and row.basis is Basis.PARTIAL:
            assert row.input_tokens == 11
            assert row.output_tokens <= 77 * 3
        else:
            assert (row.basis, row.input_tokens, row.output_tokens) == (Basis.REPORTED, 11, 77)
        assert world.used[0].closed
        assert [row] == world.reported


def test_S01_without_a_place_to_drain_the_call_is_closed_and_partial() -> None:
    world = World(drains=False).answers(claude(["a" * 30, "b" * 30]))
    converse(world, on_say=leave_at(1))
    assert (
        world.row.outcome,
        world.row.basis,
        world.row.input_tokens,
        world.row.output_tokens,
    ) == (Outcome.CLIENT_GONE, Basis.PARTIAL, 11, 10)
    assert world.used[0].closed


def test_S01_a_drain_ends_after_its_time() -> None:
    stream = claude(["a"] * 8)
    steps: list[Any] = [stream[0], stream[1], stream[2]]
    for piece in stream[3:]:
        steps += [10.0, piece]
    world = World().answers(steps)
    started = world.time.monotonic
    converse(world, on_say=leave_at(1))
    assert (world.row.outcome, world.row.basis) == (Outcome.CLIENT_GONE, Basis.PARTIAL)
    assert pytest.approx(world.time.monotonic - started) == 30


def test_S02_a_client_that_left_in_silence_is_noticed_at_the_next_read() -> None:
    world = World()
    interrupts: list[Conversation] = []
    world.answers(
        [*claude()[:3], lambda: interrupts[0].interrupts.post(Gone()), 40.0, *claude()[3:]]
    )
    conversation = Conversation(world, request(), ask_claude())
    interrupts.append(conversation)
    conversation.run()
    assert b"ping" not in conversation.said
    assert world.row.outcome == Outcome.CLIENT_GONE


def test_S03_a_client_that_closes_after_the_last_event_was_served() -> None:
    world = World().answers([b"".join(claude())])
    conversation = converse(
        world,
        on_say=lambda c, said: (
            said.endswith(b"[DONE]\n\n") and c.interrupts.post(Gone())
            if isinstance(said, bytes)
            else None
        ),
    )
    assert conversation.said.endswith(b"[DONE]\n\n")
    assert world.row.outcome == Outcome.OK


def test_S03_a_client_that_has_all_the_text_and_skips_the_rest_was_served() -> None:
    world = World().answers(claude(["only"]))
    converse(world, on_say=leave_at(len(b'data: {"content": "only"}')))
    assert (world.row.outcome, world.row.basis) == (Outcome.OK, Basis.REPORTED)


@pytest.mark.parametrize("cuts", [False, True])
def test_S01_a_plain_call_whose_client_left_is_billed_for_what_it_used(cuts: bool) -> None:
    answer = whole_claude("Hello", 5, 6)
    world = World()
    conversation = Conversation(world, request(), ask_claude(False))
    world.answers([lambda: conversation.interrupts.post(Gone(cuts=cuts)), 16.0, answer])
    conversation.run()
    assert world.row.outcome == Outcome.CLIENT_GONE
    assert (Basis.ESTIMATED if cuts else Basis.REPORTED) == world.row.basis
    assert conversation.head is None


# --- faults before the head -------------------------------------------------------------------


def refused(status: int, kind: str) -> UpstreamHead:
    return UpstreamHead(status, (("x-amzn-errortype", kind),))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"), [(429, "ThrottlingException"), (503, "ServiceUnavailableException")]
)
def test_S04_a_throttled_call_is_tried_three_times_and_then_is_a_real_status(
    stream: bool, status: int, kind: str
) -> None:
    world = World()
    for _ in range(3):
        world.answers([b'{"message":"Too many requests"}'], refused(status, kind))
    conversation = converse(world, ask_claude(stream))
    assert status == conversation.status
    assert conversation.header("retry-after") == "1"
    assert 3 == len(world.calls) == world.row.attempts
    assert len(world.time.paused) == 2
    assert all(reply.closed for reply in world.used)
    assert (
        world.row.token_count,
        world.row.output_tokens,
        world.row.outcome,
        world.row.basis,
        world.row.state,
    ) == (0, 0, Outcome.ERROR, Basis.REPORTED, State.FINAL)
    assert body(conversation)["code"] == world.row.error_code


def test_S04_a_second_try_that_works_is_an_ordinary_answer() -> None:
    world = World().answers([b"{}"], refused(429, "ThrottlingException")).answers(claude())
    conversation = converse(world)
    assert text_of(conversation.said) == "Hello"
    assert (world.row.attempts, world.row.outcome, world.row.token_count) == (2, Outcome.OK, 18)


def test_S04_with_a_client_of_the_users_own_there_are_no_retries_of_ours() -> None:
    world = World().answers([b"{}"], refused(429, "ThrottlingException"))
    converse(world, rules=Rules(retries=0))
    assert world.row.attempts == 1


def test_S04_no_new_call_is_made_for_a_client_that_left() -> None:
    world = World().answers([b"{}"], refused(429, "ThrottlingException"))
    conversation = Conversation(world, request(), ask_claude())
    world.time.pause = lambda at_most: conversation.interrupts.post(Gone())  # type: ignore[method-assign]
    conversation.run()
    assert (
        world.row.attempts,
        world.row.outcome,
        world.row.token_count,
    ) == (1, Outcome.CLIENT_GONE, 0)


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("headers", [(), (ARRAY,)], ids=["sse", "array"])
def test_S05_an_exception_as_first_event_is_a_real_status(kind: str, headers: Any) -> None:
    world = World()
    for _ in range(3):
        world.answers([exception(kind)])
    conversation = converse(world, None, *headers)
    status, code = EXCEPTIONS[kind]
    assert (status, code) == (conversation.status, body(conversation)["code"])
    assert conversation.header("content-type") == "application/json"
    assert (3 if status in {429, 503} else 1) == world.row.attempts
    assert (world.row.token_count, world.row.outcome) == (0, Outcome.ERROR)


@pytest.mark.parametrize("trouble", [t for t in Trouble if t is not Trouble.CLOSED])
def test_no_answer_at_all_is_a_real_status_and_costs_nothing(trouble: Trouble) -> None:
    world = World().answers([], UpstreamUnreachable(trouble, "10.0.0.7 refused"))
    conversation = converse(world)
    assert conversation.status in {400, 502, 504}
    assert "10.0.0.7" not in conversation.said.decode()
    assert world.row.outcome in {Outcome.ERROR, Outcome.TIMEOUT}
    if trouble is not Trouble.TIMEOUT:
        assert world.row.token_count == 0


# --- faults in the stream ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXCEPTIONS)
@pytest.mark.parametrize("position", [3, 4, 6])
@pytest.mark.parametrize("headers", [(), (ARRAY,)], ids=["sse", "array"])
@pytest.mark.parametrize("at_once", [False, True], ids=["apart", "in one read"])
def test_S06_an_exception_in_the_stream_is_its_one_terminal_error(
    kind: str, position: int, headers: Any, at_once: bool
) -> None:
    frames = [*claude(["Hel", "lo"])[:position], exception(kind)]
    world = World().answers([b"".join(frames)] if at_once else frames)
    conversation = converse(world, None, *headers)
    assert conversation.status == 200
    error = terminal(conversation)
    assert EXCEPTIONS[kind][1] == error["code"] == world.row.error_code
    assert (
        world.row.basis,
        world.row.input_tokens,
        world.row.outcome,
    ) == (Basis.PARTIAL, 11, Outcome.ERROR)
    assert world.row.attempts == 1, "S24: nothing is retried after the first byte"
    assert conversation.error is not None


def test_S06_an_array_without_content_is_still_a_real_status() -> None:
    world = World().answers([claude()[0], exception("modelStreamErrorException")])
    conversation = converse(world, None, ARRAY)
    assert (conversation.status, body(conversation)["code"]) == (502, "upstream_error")
    assert (world.row.basis, world.row.input_tokens) == (Basis.PARTIAL, 11)


def test_a_host_that_cannot_stream_gets_one_whole_array() -> None:
    conversation = converse(World().answers(claude()), can_stream=False)
    assert json.loads(conversation.said) == [{"content": "Hel"}, {"content": "lo"}, {"done": True}]
    assert str(len(conversation.said)) == conversation.header("content-length")


def test_a_host_that_cannot_stream_gets_the_error_as_last_element() -> None:
    conversation = converse(
        World().answers([*claude()[:3], exception("throttlingException")]), can_stream=False
    )
    assert conversation.status == 200
    assert terminal(conversation)["code"] == "upstream_throttled"


@pytest.mark.parametrize("end", ["reset", "stall", "deadline"])
def test_a_host_that_cannot_stream_keeps_what_there_was_however_it_ended(end: str) -> None:
    world = World()
    conversation = Conversation(world, request(can_stream=False), ask_claude())
    last: dict[str, list[Any]] = {
        "reset": [UpstreamUnreachable(Trouble.BROKEN)],
        "stall": [1_000.0],
        "deadline": [lambda: conversation.interrupts.post(Deadline()), 1_000.0],
    }
    world.answers([*claude()[:3], *last[end]])
    conversation.run()
    assert json.loads(conversation.said)[0] == {"content": "Hel"}
    assert terminal(conversation)["code"] == world.row.error_code
    assert (world.row.attempts, world.row.basis) == (1, Basis.PARTIAL)


def test_S07_a_reset_anywhere_in_a_frame_is_a_terminal_error() -> None:
    stream = claude(["Hel", "lo"])
    for offset in range(len(stream[3])):
        world = World().answers(
            [*stream[:3], stream[3][:offset], UpstreamUnreachable(Trouble.BROKEN)]
        )
        conversation = converse(world)
        assert text_of(conversation.said) == "Hel"
        assert terminal(conversation)["code"] == "upstream_torn"
        assert world.row.basis == Basis.PARTIAL


def test_S08_an_end_anywhere_before_the_stop_marker_is_a_terminal_error() -> None:
    stream = b"".join(claude(["Hel", "lo"]))
    frames = [len(b"".join(claude(["Hel", "lo"])[:n])) for n in range(8)]
    whole = set(frames[-2:])  # after message_delta with its reason, and after message_stop
    for offset in range(1, len(stream)):
        world = World().answers([stream[:offset]])
        conversation = converse(world)
        if offset in whole:
            assert world.row.outcome == Outcome.OK
        elif offset < frames[1]:
            assert conversation.status == 502
            assert world.row.token_count == 0
        else:
            assert terminal(conversation)["code"] == "upstream_torn", offset
            assert world.row.basis == Basis.PARTIAL


def test_S09_no_flipped_bit_reaches_the_client() -> None:
    stream = claude(["Hel", "lo"])
    for bit in range(len(stream[3]) * 8):
        flipped = bytearray(stream[3])
        flipped[bit // 8] ^= 1 << (bit % 8)
        world = World().answers([*stream[:3], bytes(flipped), *stream[4:]])
        conversation = converse(world)
        assert text_of(conversation.said) == "Hel"
        assert terminal(conversation)["code"] == "upstream_torn"
        assert world.row.basis == Basis.PARTIAL


@pytest.mark.parametrize("total", [0, 15, 2**31, 25 * 1024 * 1024])
def test_S10_a_hostile_length_is_a_terminal_error(total: int) -> None:
    import struct
    import zlib

    prelude = struct.pack(">II", total, 0)
    hostile = prelude + struct.pack(">I", zlib.crc32(prelude))
    world = World().answers([*claude()[:3], hostile, b"x" * 1000])
    assert terminal(converse(world))["code"] == "upstream_torn"
    assert world.row.basis == Basis.PARTIAL


def test_S11_events_and_headers_of_a_later_day_are_ignored() -> None:
    stream = claude()
    later = frame("inventedEvent", {"x": 1})
    odd = encode(
        {":message-type": "event", ":event-type": "chunk", "new": True}, b'{"bytes":"e30="}'
    )
    world = World().answers([later, *stream[:3], later, *stream[3:], later])
    conversation = converse(world)
    assert text_of(conversation.said) == "Hello"
    assert (world.row.outcome, world.row.token_count) == (Outcome.OK, 18)
    assert text_of(converse(World().answers([*stream[:4], odd, *stream[4:]])).said) == "Hello"


@pytest.mark.parametrize(
    "payload", [b"{", b'{"bytes": 5}', b'{"bytes": "***"}', b'{"bytes": "eyI="}', b"[]"]
)
def test_S12_bad_json_or_base64_is_a_terminal_error(payload: bytes) -> None:
    bad = encode({":message-type": "event", ":event-type": "chunk"}, payload)
    world = World().answers([*claude()[:3], bad, *claude()[3:]])
    assert terminal(converse(world))["code"] == "upstream_torn"
    assert world.row.basis == Basis.PARTIAL


def test_S13_silence_brings_a_ping_every_15_seconds_and_an_error_at_120() -> None:
    world = World().answers([*claude()[:3], 1_000.0])
    conversation = converse(world)
    assert conversation.said.count(b": ping\n\n") == 7
    assert terminal(conversation)["code"] == "upstream_timeout"
    assert (
        world.row.outcome,
        world.row.basis,
        world.row.duration_ms,
    ) == (Outcome.TIMEOUT, Basis.PARTIAL, 120_000)


def test_S13_a_model_that_thinks_unseen_is_pinged_for_too() -> None:
    thinking = chunk(
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "hm"},
        }
    )
    steps: list[Any] = [claude()[0]]
    for _ in range(10):
        steps += [5.0, thinking]
    conversation = converse(World().answers([*steps, *claude()[1:]]))
    assert conversation.said.count(b": ping\n\n") == 3
    assert text_of(conversation.said) == "Hello"


def test_S13_a_silent_array_gets_spaces_and_stays_json() -> None:
    conversation = converse(World().answers([*claude()[:3], 50.0, *claude()[3:]]), None, ARRAY)
    assert b'"Hel"}   ,' in conversation.said
    assert json.loads(conversation.said)[-1] == {"done": True}
    late = World()
    late.replies.append(SlowHead(OK_HEAD, list(claude()), late.time, delay=40.0))
    conversation = converse(late, None, ARRAY)
    assert conversation.said.startswith(b'[ {"content"')
    assert json.loads(conversation.said)[-1] == {"done": True}


def test_S13_the_head_waits_15_seconds_for_the_first_event_and_then_goes_with_a_ping() -> None:
    world = World()
    world.replies.append(SlowHead(OK_HEAD, list(claude()), world.time, delay=14.0))
    assert b"ping" not in converse(world).said
    assert world.row.first_byte_ms == 14_000
    world = World()
    world.replies.append(SlowHead(OK_HEAD, list(claude()), world.time, delay=40.0))
    assert converse(world).said.startswith(b": ping\n\n: ping\n\ndata:")
    assert world.row.first_byte_ms == 15_000


def test_S13_no_first_byte_of_a_stream_within_120_seconds_is_a_timeout() -> None:
    world = World()
    world.replies.append(SlowHead(OK_HEAD, [], world.time, delay=1_000.0))
    assert terminal(converse(world))["code"] == "upstream_timeout"
    assert (world.row.outcome, world.row.duration_ms) == (Outcome.TIMEOUT, 120_000)


def test_a_call_ends_at_its_hard_cap() -> None:
    steps: list[Any] = [claude()[0], claude()[1]]
    for _ in range(100):
        steps += [10.0, claude()[2]]
    world = World().answers(steps)
    conversation = converse(world, rules=Rules(max_duration=300.0))
    assert terminal(conversation)["code"] == "timeout"
    assert world.row.outcome == Outcome.TIMEOUT
    assert 300_000 <= world.row.duration_ms <= 310_000


def test_the_lease_of_a_long_stream_is_renewed_at_half_its_time() -> None:
    steps: list[Any] = [claude()[0], claude()[1]]
    for _ in range(40):
        steps += [10.0, claude()[2]]
    world = World().answers([*steps, *claude()[3:]])
    converse(world)
    assert len(world.renewed) == 2


def test_S15_a_whole_stream_without_usage_is_estimated_and_marked() -> None:
    world = World().answers(claude(["Hel", "lo!!"], usage=False))
    conversation = converse(world)
    assert conversation.said.endswith(b"data: [DONE]\n\n")
    assert (
        world.row.basis,
        world.row.state,
        world.row.outcome,
    ) == (Basis.ESTIMATED, State.ESTIMATED, Outcome.OK)
    assert world.row.output_tokens == 3  # seven bytes of text, three to a token
    assert world.admitted[0].input_tokens == world.row.input_tokens > 0


def test_S16_usage_that_is_explicitly_zero_is_zero() -> None:
    zero = {"inputTokenCount": 0, "outputTokenCount": 0}
    stream = [
        chunk(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "Hello"},
            }
        ),
        chunk(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
        ),
        chunk({"type": "message_stop", "amazon-bedrock-invocationMetrics": zero}),
    ]
    world = World().answers(stream)
    converse(world)
    assert (
        world.row.input_tokens,
        world.row.output_tokens,
        world.row.token_count,
        world.row.basis,
        world.row.state,
    ) == (0, 0, 0, Basis.REPORTED, State.FINAL)


def test_S17_usage_reported_twice_is_not_added_up() -> None:
    stream = claude(output_tokens=5)
    again = chunk(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 9},
        }
    )
    world = World().answers([*stream[:-1], again, stream[-1]])
    converse(world)
    assert (world.row.input_tokens, world.row.output_tokens, world.row.token_count) == (11, 9, 20)


@pytest.mark.parametrize(
    ("reason", "code", "status", "outcome"),
    [
        (Deadline(), "timeout", 504, Outcome.TIMEOUT),
        (Shutdown(), "server_shutdown", 503, Outcome.SHUTDOWN),
    ],
    ids=["S18", "S20"],
)
@pytest.mark.parametrize("when", ["in the stream", "before the head"])
def test_S18_S20_an_ending_is_one_terminal_error_and_is_settled(
    reason: Any, code: str, status: int, outcome: Outcome, when: str
) -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude())

    def end() -> None:
        conversation.interrupts.post(type(reason)())

    world.answers([end, 1_000.0] if when == "before the head" else [*claude()[:3], end, 1_000.0])
    conversation.run()
    if when == "before the head":
        assert (status, code) == (conversation.status, body(conversation)["code"])
    else:
        assert code == terminal(conversation)["code"]
    assert (outcome, Basis.PARTIAL, code) == (
        world.row.outcome,
        world.row.basis,
        world.row.error_code,
    )
    assert world.time.monotonic == 1_000.0, "the pending read was cut short"


def test_S20_a_drain_is_cut_to_partial_by_a_shutdown() -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude())
    world.answers(
        [
            *claude()[:3],
            lambda: conversation.interrupts.post(Gone()),
            claude()[3],
            lambda: conversation.interrupts.post(Shutdown()),
            20.0,
        ]
    )
    conversation.run()
    assert (world.row.outcome, world.row.basis) == (Outcome.CLIENT_GONE, Basis.PARTIAL)
    assert world.time.monotonic == 1_000.0


@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\u0085", "\v", "\f", "\x1c", "\x1d", "\x1e", "\r\n"]
)
def test_S22_no_line_separator_ends_a_line_of_the_stream(separator: str) -> None:
    text = f"a{separator}b"
    said = converse(World().answers(claude([text]))).said
    assert said.isascii()
    assert text == text_of(said)
    assert (
        len(said.decode().strip().splitlines()) - said.decode().strip().splitlines().count("") == 2
    )


def test_S23_every_split_of_the_upstream_gives_the_same_bytes() -> None:
    stream = b"".join(claude(["Hé", "l😀lo"]))
    whole = converse(World().answers([stream])).said
    for split in range(1, len(stream)):
        assert whole == converse(World().answers([stream[:split], stream[split:]])).said


# --- the store ---------------------------------------------------------------------------------


def test_a_row_that_the_store_cannot_take_is_spooled_and_the_reply_completes() -> None:
    world = World(finish_error=store_unavailable()).answers(claude())
    assert converse(world).said.endswith(b"[DONE]\n\n")
    assert [row.token_count for row in world.spool] == [18]
    assert world.faults == []


def test_an_admission_whose_answer_was_lost_is_taken_back() -> None:
    world = World(admit_error=store_unavailable()).answers(claude())
    conversation = converse(world)
    assert (conversation.status, body(conversation)["code"]) == (503, "store_unavailable")
    assert conversation.header("retry-after") == "5"
    assert (world.rows, world.calls) == ([], [])


def test_a_store_that_is_down_is_never_an_open_door() -> None:
    class Down(World):
        def find_token(self, digest: bytes, at: int) -> Any:
            raise StoreUnavailable("down")

    conversation = converse(Down())
    assert conversation.status == 503


def test_a_defect_of_ours_is_an_answer_a_report_and_a_row() -> None:
    world = World().answers([*claude()[:3], ZeroDivisionError("secret words")])
    conversation = converse(world)
    assert terminal(conversation)["code"] == "internal"
    assert b"secret" not in conversation.said
    assert [ZeroDivisionError] == [type(fault) for fault in world.faults]
    assert (world.row.outcome, world.row.basis) == (Outcome.ERROR, Basis.PARTIAL)


def test_a_thread_that_is_torn_down_settles_first() -> None:
    world = World().answers([*claude()[:3], SystemExit(1)])
    with pytest.raises(SystemExit):
        converse(world)
    assert (world.row.outcome, world.row.basis) == (Outcome.SHUTDOWN, Basis.PARTIAL)


def test_beyond_max_streams_nothing_is_admitted() -> None:
    world = World(streams=False)
    conversation = converse(world)
    assert (conversation.status, body(conversation)["code"]) == (503, "overloaded")
    assert (world.admitted, world.calls) == ([], [])


def test_what_goes_upstream_is_the_models_own_body() -> None:
    world = World().answers(claude())
    converse(world)
    sent = json.loads(world.calls[0].body)
    assert list(sent) == ["max_tokens", "messages"]


def test_the_upstream_reply_is_always_closed() -> None:
    replies = [
        World().answers(claude()),
        World().answers([b"{}"], refused(400, "ValidationException")),
        World().answers([exception("validationException")]),
    ]
    for world in replies:
        converse(world)
        assert all(reply.closed for reply in world.used)
        assert isinstance(world.used[0], Reply)


def test_a_row_can_be_read_back_as_plain_values() -> None:
    world = World().answers(claude())
    converse(world)
    row = json.loads(json.dumps(world.row.as_dict()))
    assert row["basis"] == "reported"
    assert evolve(world.row).as_dict() == world.row.as_dict()
