"""
A piece that is known to be the last (``Last``) gives what the same piece and END after it give.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import flows
from tests.core.test_follow import BODIES, RULES, scripts
from tests.flows import Conversation, World, chunk, claude, exception, request

from bedrock_proxy.drive import Gone, Interruption, Shutdown
from bedrock_proxy.http import Head
from bedrock_proxy.ports import Last, UpstreamHead
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Outcome

ANSWER = flows.whole_claude()


def asked(
    steps: list[flows.Step],
    *,
    last: bool,
    body: bytes | None = None,
    rules: Rules | None = None,
    head: UpstreamHead = flows.OK_HEAD,
) -> Conversation:
    """One request; where *last*, its last piece says that it is."""
    steps = list(steps)
    while steps and not isinstance(steps[-1], bytes):
        steps.pop()
    if last and steps:
        final = steps[-1]
        assert isinstance(final, bytes)
        steps[-1] = Last(final)
    world = World().answers(steps, head).answers(claude(), flows.OK_HEAD)
    world.answers(claude(), flows.OK_HEAD)
    given = flows.ask_claude() if body is None else body
    return Conversation(world, request(), given, rules or Rules()).run()


def same(one: Conversation, other: Conversation) -> None:
    assert one.head == other.head
    assert one.said == other.said
    assert str(one.error) == str(other.error)
    assert one.world.rows == other.world.rows
    assert not one.world.faults


@settings(max_examples=300)
@given(script=scripts(), rules=st.sampled_from(RULES), body=st.sampled_from(BODIES))
def test_S23_a_streams_last_piece_says_the_same(
    script: list[flows.Step], rules: Rules, body: bytes
) -> None:
    same(
        asked(script, last=True, body=body, rules=rules),
        asked(script, last=False, body=body, rules=rules),
    )


@pytest.mark.parametrize(
    "pieces",
    [[ANSWER], [ANSWER[:9], ANSWER[9:]], [ANSWER[:30]], [b"no JSON"]],
    ids=["one", "two", "torn", "junk"],
)
@pytest.mark.parametrize("length", [None, len(ANSWER)])
def test_S06_a_whole_answers_last_piece_says_the_same(
    pieces: list[bytes], length: int | None
) -> None:
    headers = () if length is None else (("content-length", str(length)),)
    head = UpstreamHead(200, (("content-type", "application/json"), *headers))
    body = flows.ask_claude(stream=False)
    steps: list[flows.Step] = list(pieces)
    one = asked(steps, last=True, body=body, head=head)
    same(one, asked(steps, last=False, body=body, head=head))
    assert one.world.used[0].reads == len(pieces)


@pytest.mark.parametrize("status", [400, 429, 503])
def test_an_errors_last_piece_says_the_same(status: int) -> None:
    head = UpstreamHead(status, (("x-amzn-errortype", "ValidationException"),))
    steps: list[flows.Step] = [b'{"message": ', b'"too long"}']
    one = asked(steps, last=True, head=head)
    same(one, asked(steps, last=False, head=head))
    assert one.world.used[0].reads == 2


@pytest.mark.parametrize("bad", [exception("throttlingException"), b"no frame at all" * 9])
def test_S08_a_fault_in_the_last_piece_is_the_one_terminal_error(bad: bytes) -> None:
    steps: list[flows.Step] = [*claude()[:4], bad]
    one = asked(steps, last=True)
    same(one, asked(steps, last=False))
    assert one.said.count(b"event: error") == 1


def test_a_stream_that_ends_too_early_is_torn_and_nothing_is_read_after_it() -> None:
    one = asked([*claude()[:4]], last=True)
    same(one, asked([*claude()[:4]], last=False))
    assert one.said.count(b"event: error") == 1
    assert one.world.used[0].reads == 4


@pytest.mark.parametrize("reason", [Gone(), Gone(cuts=True), Shutdown()], ids=repr)
def test_S02_what_comes_while_the_last_piece_goes_out_ends_nothing(reason: Interruption) -> None:
    """All of it is out: there is nothing left to end, and nobody to be told."""
    steps: list[flows.Step] = list(claude())
    whole = asked(steps, last=True).said
    final = steps[-1]
    assert isinstance(final, bytes)
    steps[-1] = Last(final)
    world = World().answers(steps)
    conversation = Conversation(world, request(), flows.ask_claude(), Rules())

    def on_say(_: Conversation, said: Head | bytes) -> None:
        if isinstance(said, bytes) and b"[DONE]" in said:
            conversation.interrupts.post(reason)

    conversation.on_say = on_say
    conversation.run()
    assert conversation.said == whole
    assert world.row.outcome is Outcome.OK


def test_S15_a_late_count_in_the_last_piece_is_charged() -> None:
    """Some models tell their usage after they have stopped."""
    late = chunk(
        {"amazon-bedrock-invocationMetrics": {"inputTokenCount": 7, "outputTokenCount": 5}}
    )
    plain = claude()
    one = asked([b"".join(plain) + late], last=True)
    same(one, asked([b"".join(plain) + late], last=False))
    assert one.world.used[0].reads == 1
