"""
Pieces of a stream that are passed on without the flow (``Follow``) give what the flow itself
gives: the same bytes at the same times, the same renewals, the same row.
"""

from collections.abc import Generator
from typing import Any, cast

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import flows
from tests.flows import Conversation, World, chunk, claude, exception, request

from bedrock_proxy import drive as drivers
from bedrock_proxy.drive import Gone, Shutdown
from bedrock_proxy.effects import Fed, Follow, Read
from bedrock_proxy.ports import SILENCE, Trouble, UpstreamUnreachable
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Outcome


@define(eq=False)
class Passing:
    """A host that passes pieces on; *lucky* says of each whether it could be said at once."""

    conversation: Conversation
    lucky: list[bool]
    passed: int = 0

    def run(self) -> None:
        """The conversation, its flow wrapped in :meth:`around`."""
        exchange = flows.exchange
        try:
            flows.exchange = cast("Any", lambda *given: self.around(exchange(*given)))
            self.conversation.run()
        finally:
            flows.exchange = exchange

    def around(self, flow: Any) -> Generator[Any, Any, Any]:
        """*flow*, with its Follows answered here."""
        said = next(flow)
        while True:
            try:
                answer = self.answer(said) if isinstance(said, Follow) else (yield said)
            except BaseException as error:
                step, heard = flow.throw, error
            else:
                step, heard = flow.send, answer
            try:
                said = step(heard)
            except StopIteration as end:
                return end.value

    def answer(self, follow: Follow) -> Any:
        conversation = self.conversation
        while True:
            got = follow.reply.read(follow.within)
            if not isinstance(got, bytes):
                return got
            out = follow.turn(got, conversation.world.time.monotonic)
            if not isinstance(out, bytes):
                return out
            lucky = self.lucky.pop() if self.lucky else True
            if conversation.interrupts.reasons or not lucky:
                return Fed(out)
            self.passed += 1
            conversation.pieces.append(out)
            conversation.on_say(conversation, out)


def converse(
    steps: list[flows.Step], rules: Rules, lucky: list[bool] | None, body: bytes, **options: Any
) -> tuple[Conversation, list[tuple[float, bytes]], int]:
    """One request; what was said, and when; how many pieces passed without the flow."""
    world = World().answers(list(steps)).answers(list(SOUND)).answers(list(SOUND))
    conversation = Conversation(world, request(**options), body, rules)
    times: list[tuple[float, bytes]] = []
    conversation.on_say = lambda _, said: times.append(
        (world.time.monotonic, said if isinstance(said, bytes) else b"head")
    )
    if lucky is None:
        conversation.run()
        return conversation, times, 0
    passing = Passing(conversation, list(lucky))
    passing.run()
    return conversation, times, passing.passed


SOUND = claude([f"word {n} " for n in range(12)])
BAD: list[flows.Step] = [
    exception("throttlingException"),
    chunk({"type": "error"})[:-1] + b"x",
    UpstreamUnreachable(Trouble.BROKEN, "ConnectionResetError"),
]


@st.composite
def scripts(draw: st.DrawFn) -> list[flows.Step]:
    """A stream in any pieces, with silences, and sometimes with something wrong in it."""
    whole = b"".join(SOUND[: draw(st.integers(3, len(SOUND)))])
    cuts = sorted(draw(st.sets(st.integers(1, len(whole) - 1), max_size=20)))
    if draw(st.booleans()):
        lengths = [len(frame) for frame in SOUND]
        cuts = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    steps: list[flows.Step] = []
    begin = 0
    for end in [*cuts, len(whole)]:
        if end > begin and begin < len(whole):
            steps.append(whole[begin:end])
            begin = end
        if draw(st.integers(0, 4)) == 0:
            steps.append(draw(st.sampled_from([0.3, 4.0, 16.0, 31.0, 100.0])))
    if draw(st.integers(0, 3)) == 0:
        steps.insert(draw(st.integers(0, len(steps))), draw(st.sampled_from(BAD)))
    return steps


RULES = [
    Rules(),
    Rules(lease_ms=20_000),
    Rules(max_duration=40.0),
    Rules(idle_timeout=10.0, ping_every=3.0),
]
BODIES = [
    flows.ask_claude(),
    flows.ask_claude(stream_events="full"),
]


@settings(max_examples=300)
@given(
    script=scripts(),
    rules=st.sampled_from(RULES),
    body=st.sampled_from(BODIES),
    lucky=st.lists(st.booleans(), max_size=12),
)
def test_S23_pieces_that_pass_without_the_flow_are_the_flows_own(
    script: list[flows.Step], rules: Rules, body: bytes, lucky: list[bool]
) -> None:
    plain, said, _ = converse(script, rules, None, body)
    passed, also_said, _ = converse(script, rules, lucky, body)
    assert also_said == said
    assert passed.error == plain.error or str(passed.error) == str(plain.error)
    assert passed.head == plain.head
    assert passed.world.renewed == plain.world.renewed
    assert passed.world.rows == plain.world.rows
    assert not passed.world.faults


def test_S23_most_pieces_of_a_plain_stream_pass_without_the_flow() -> None:
    conversation, _, passed = converse(list(SOUND), Rules(), [], flows.ask_claude())
    assert conversation.world.row.outcome is Outcome.OK
    # The first event says the head, and the second meets a look at what is due.
    assert passed >= 10


def test_S13_a_ping_is_due_after_the_last_piece_that_passed() -> None:
    rules = Rules(ping_every=5.0)
    steps: list[flows.Step] = [*SOUND[:6], 2.0, SOUND[6], 6.0, *SOUND[7:]]
    conversation, said, passed = converse(steps, rules, [], flows.ask_claude())
    assert passed > 4
    pings = [at for at, piece in said if piece.startswith(b":")]
    assert pings == [1_000.0 + 2.0 + 5.0]
    assert conversation.world.row.outcome is Outcome.OK


def test_a_lease_is_renewed_while_pieces_never_stop() -> None:
    rules = Rules(lease_ms=20_000)
    steps: list[flows.Step] = []
    for number in range(60):
        steps += [claude([f"word {number}"])[2], 1.0]
    steps = [*SOUND[:2], *steps, *SOUND[-3:]]
    conversation, _, passed = converse(steps, rules, [], flows.ask_claude())
    assert passed > 40
    assert len(conversation.world.renewed) == 6
    plain, _, _ = converse(steps, rules, None, flows.ask_claude())
    assert conversation.world.renewed == plain.world.renewed


@pytest.mark.parametrize("reason", [Gone(), Gone(cuts=True), Shutdown()], ids=lambda r: repr(r))
@pytest.mark.parametrize("at", range(3, 12))
def test_S01_an_interruption_between_pieces_that_pass_is_heard_at_the_next(
    reason: drivers.Interruption, at: int
) -> None:
    world = World().answers(list(SOUND))
    conversation = Conversation(world, request(), flows.ask_claude(), Rules())
    passing = Passing(conversation, [])
    count = 0

    def on_say(_: Conversation, said: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            conversation.interrupts.post(reason)

    conversation.on_say = on_say
    passing.run()
    assert passing.passed > 0
    row = conversation.world.row
    if isinstance(reason, Shutdown):
        assert conversation.said.count(b"event: error") == 1
        assert row.outcome is Outcome.SHUTDOWN
    else:
        # At most the piece that was on its way is said after it.
        assert count <= at + 1
        assert row.outcome is Outcome.CLIENT_GONE
    if reason.cuts:
        assert world.used[0].closed


def test_a_follow_answered_as_a_read_is_one() -> None:
    """Drivers that know nothing of it answer with what the reply gives."""
    conversation, _, _ = converse(list(SOUND), Rules(), None, flows.ask_claude())
    assert conversation.world.row.outcome is Outcome.OK
    assert issubclass(Follow, Read)
    reply = World().answers([0.5]).replies[0]
    assert Follow(cast("Any", reply), 0.25).run(cast("Any", None)) is SILENCE
