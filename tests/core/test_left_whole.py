"""
What is billed of an answer that comes whole, where it was ended before anything told its usage:
S01, S13, S18 and S20 of RELIABILITY.md, where nothing of a stream says how far it came.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.flows import (
    MODEL,
    OK_HEAD,
    Conversation,
    SlowHead,
    World,
    ask_claude,
    claude,
    converse,
    request,
    whole_claude,
)

from bedrock_proxy.drive import Deadline, Gone, Interruption, Shutdown
from bedrock_proxy.ports import Trouble, UpstreamHead, UpstreamUnreachable
from bedrock_proxy.usage import Basis, Outcome, State

ENDINGS: dict[str, Callable[[], Interruption]] = {
    "the client left, cancel": lambda: Gone(cuts=True),
    "the client left, drain": Gone,
    "deadline": Deadline,
    "shutdown": Shutdown,
}
BROKEN = UpstreamUnreachable(Trouble.BROKEN)
COUNTED = (
    ("x-amzn-bedrock-input-token-count", "12"),
    ("x-amzn-bedrock-output-token-count", "34"),
)
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": [{"text": "Say hello."}]}]


def ended(
    ending: Callable[[], Interruption],
    *before: Any,
    after: Any = (1_000.0,),
    head: UpstreamHead | BaseException = OK_HEAD,
    drains: bool = True,
    body: bytes | None = None,
    path: str = "/bedrock",
) -> World:
    """A call that was ended after what came *before*."""
    world = World(drains=drains)
    conversation = Conversation(world, request(path=path), body or ask_claude(False))
    world.answers([*before, lambda: conversation.interrupts.post(ending()), *after], head)
    conversation.run()
    return world


def is_what_was_reserved(world: World) -> bool:
    (asked,) = world.admitted
    assert asked.output_tokens == 100
    assert asked.input_tokens > 0
    row = world.row
    assert (row.basis, row.state) == (Basis.ESTIMATED, State.ESTIMATED)
    return (row.input_tokens, row.output_tokens) == (asked.input_tokens, asked.output_tokens)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_S01_S18_S20_a_whole_answer_that_was_ended_unheard_is_what_was_reserved(
    ending: Callable[[], Interruption],
) -> None:
    assert is_what_was_reserved(ended(ending))


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_S01_S18_S20_a_piece_of_a_body_tells_no_usage(ending: Callable[[], Interruption]) -> None:
    body = json.dumps(
        {"inferenceConfig": {"maxTokens": 100}, "messages": MESSAGES},
    ).encode()
    path = f"/model/{MODEL}/converse"
    assert is_what_was_reserved(ended(ending, b'{"output":{', body=body, path=path))


def test_S01_a_whole_answer_is_what_was_reserved_where_there_is_no_place_to_drain() -> None:
    assert is_what_was_reserved(ended(Gone, drains=False))


@pytest.mark.parametrize("length", [(), (("content-length", "5000"),)], ids=["chunked", "counted"])
@pytest.mark.parametrize("then", [Shutdown, lambda: Gone(cuts=True)], ids=["shutdown", "cancel"])
def test_S20_a_drain_that_is_cut_has_not_come_to_the_end(then: Any, length: Any) -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude(False))
    steps = [
        lambda: conversation.interrupts.post(Gone()),
        16.0,
        b'{"content": [',
        lambda: conversation.interrupts.post(then()),
        1_000.0,
    ]
    world.answers(steps, UpstreamHead(200, length))
    conversation.run()
    assert world.row.outcome == Outcome.CLIENT_GONE
    assert is_what_was_reserved(world)


def test_S13_a_whole_answer_that_never_began_in_time_is_what_was_reserved() -> None:
    world = World()
    world.replies.append(SlowHead(OK_HEAD, [], world.time, delay=1_000.0))
    converse(world, ask_claude(False))
    assert world.row.outcome == Outcome.TIMEOUT
    assert is_what_was_reserved(world)


def test_S13_a_socket_that_timed_out_had_sent_the_call() -> None:
    world = World().answers([], UpstreamUnreachable(Trouble.TIMEOUT))
    converse(world, ask_claude(False))
    assert is_what_was_reserved(world)


def test_a_defect_of_ours_is_billed_as_a_process_that_was_killed() -> None:
    world = World().answers([ZeroDivisionError()])
    converse(world, ask_claude(False))
    assert (world.row.outcome, world.row.error_code) == (Outcome.ERROR, "internal")
    assert is_what_was_reserved(world)


def test_what_the_head_has_told_is_not_estimated() -> None:
    row = ended(Deadline, head=UpstreamHead(200, COUNTED)).row
    assert (row.input_tokens, row.output_tokens, row.state) == (12, 34, State.FINAL)


def test_S01_a_drain_that_comes_to_the_end_tells_the_true_usage() -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude(False))
    leave = lambda: conversation.interrupts.post(Gone())  # noqa: E731
    world.answers([leave, 16.0, whole_claude("Hello", 5, 6)])
    conversation.run()
    row = world.row
    assert (row.basis, row.state, row.token_count) == (Basis.REPORTED, State.FINAL, 11)


@pytest.mark.parametrize(
    "trouble", [t for t in Trouble if t not in {Trouble.CLOSED, Trouble.TIMEOUT}]
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_was_not_sent_or_lost_its_connection_costs_nothing_whoever_has_left(
    trouble: Trouble, stream: bool
) -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude(stream))

    class Refused(SlowHead):
        def begin(self, within: float) -> Any:
            self.head = UpstreamUnreachable(trouble)
            conversation.interrupts.post(Gone())
            return super().begin(within)

    world.replies.append(Refused(OK_HEAD, [], world.time, delay=20.0))
    conversation.run()
    row = world.row
    assert row.outcome == Outcome.CLIENT_GONE
    assert (row.token_count, row.basis, row.state) == (0, Basis.REPORTED, State.FINAL)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_S04_a_refusal_costs_nothing_whoever_has_left(ending: Callable[[], Interruption]) -> None:
    refusal = UpstreamHead(400, (("x-amzn-errortype", "ValidationException"),))
    row = ended(ending, head=refusal).row
    assert (row.token_count, row.state) == (0, State.FINAL)


@pytest.mark.parametrize("steps", [[BROKEN], [b'{"con', BROKEN]], ids=["unheard", "torn"])
@pytest.mark.parametrize("left", [False, True])
def test_S07_an_answer_that_bedrock_broke_off_is_not_charged_at_its_largest(
    steps: Any, left: bool
) -> None:
    world = World()
    conversation = Conversation(world, request(), ask_claude(False))
    leave = lambda: conversation.interrupts.post(Gone()) if left else None  # noqa: E731
    world.answers([leave, 16.0, *steps])
    conversation.run()
    assert (world.row.output_tokens, world.row.state) == (0, State.FINAL)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_S01_S18_S20_a_stream_that_was_ended_is_what_was_seen_of_it(
    ending: Callable[[], Interruption],
) -> None:
    for before in ((), claude()[:3]):
        row = ended(ending, *before, body=ask_claude(True)).row
        assert (row.basis, row.state) == (Basis.PARTIAL, State.FINAL)
        assert row.input_tokens > 0
        assert row.output_tokens < 5


def test_counting_tokens_reserves_and_costs_nothing() -> None:
    body = json.dumps({"input": {"converse": {"messages": MESSAGES}}}).encode()
    row = ended(Deadline, body=body, path=f"/model/{MODEL}/count-tokens").row
    assert (row.token_count, row.state) == (0, State.FINAL)
