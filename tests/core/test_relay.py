"""
What a stream's own clock decides: when its lease is renewed, and how long it is waited for. In
process, with time that the test moves.
"""

from typing import Any

import pytest
from attrs import define, field
from tests.flows import (
    OK_HEAD,
    SlowHead,
    World,
    ask_claude,
    claude,
    converse,
    whole_claude,
)

from bedrock_proxy.admission import Lease
from bedrock_proxy.drive import Gone
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import Outcome

LEASE = 60.0
RULES = Rules(lease_ms=round(LEASE * 1000))
SOUND = claude([f"word {n} " for n in range(12)])


@define(eq=False)
class Forgetful(World):
    """Its store fails the first *failures* renewals, each after *taking* seconds."""

    failures: int = 0
    taking: float = 0.0
    tried: list[float] = field(factory=list)

    def renew(self, lease: Lease, at: int) -> Lease:
        self.tried.append(self.time.monotonic - 1_000.0)
        if len(self.tried) <= self.failures:
            self.time.monotonic += self.taking
            raise store_unavailable()
        return super().renew(lease, at)


def silent(seconds: float) -> list[Any]:
    """A stream that says nothing for so long, in the middle."""
    return [*SOUND[:3], seconds, *SOUND[3:]]


def busy(seconds: int) -> list[Any]:
    """A stream that says something every second, for so long."""
    steps: list[Any] = [*SOUND[:3]]
    for _ in range(seconds):
        steps += [SOUND[2], 1.0]
    return [*steps, *SOUND[-3:]]


@pytest.mark.parametrize("steps", [silent(55.0), busy(55)], ids=["silent", "busy"])
def test_T03_a_renewal_that_failed_is_tried_again_long_before_the_lease_ends(
    steps: list[Any],
) -> None:
    world = Forgetful(failures=1).answers(steps)
    converse(world, rules=RULES)
    first, second = world.tried
    assert LEASE / 2 <= first <= LEASE * 0.55
    assert first + LEASE / 20 <= second <= first + LEASE / 10
    assert world.row.outcome is Outcome.OK


@pytest.mark.parametrize("steps", [silent(59.0), busy(59)], ids=["silent", "busy"])
def test_T03_a_store_that_stays_away_is_asked_again_every_twentieth_of_the_lease(
    steps: list[Any],
) -> None:
    world = Forgetful(failures=100).answers(steps)
    converse(world, rules=RULES)
    assert 5 <= len(world.tried) <= 10
    assert world.row.outcome is Outcome.OK


def test_T03_a_store_that_takes_its_time_to_fail_does_not_hold_up_every_piece() -> None:
    world = Forgetful(failures=100, taking=5.0).answers(busy(25))
    world.replies[0].steps[3:3] = [25.0]
    converse(world, rules=RULES)
    gaps = [later - earlier for earlier, later in zip(world.tried, world.tried[1:], strict=False)]
    assert min(gaps) >= 5.0 + LEASE / 20


def test_T03_a_renewal_that_is_due_in_a_silence_is_not_put_off_until_it_ends() -> None:
    """The silence begins just before half the lease; the longest wait would end at its end."""
    world = Forgetful().answers([*SOUND[:3], 2.9, SOUND[3], 2.9, *SOUND[4:]])
    converse(world, rules=Rules(lease_ms=6_000, ping_every=60.0))
    assert len(world.tried) == 1
    assert 3.0 <= world.tried[0] <= 3.3


def test_T03_the_rest_of_a_stream_that_is_read_for_a_client_who_left_keeps_its_lease() -> None:
    world = Forgetful(failures=1).answers([*SOUND[:3], 20.0, *SOUND[3:]])
    left: list[bool] = []

    def leave(conversation: Any, said: object) -> None:
        if not left and conversation.pieces:
            left.append(True)
            conversation.interrupts.post(Gone())

    converse(world, rules=Rules(lease_ms=6_000), on_say=leave)
    assert left
    first, second, *_ = world.tried
    assert first == pytest.approx(3.0)
    assert second == pytest.approx(3.3)


# --- how long the first event may take --------------------------------------------------------


def test_S13_the_head_and_the_first_event_share_one_time() -> None:
    world = World()
    world.replies.append(SlowHead(OK_HEAD, [100.0, *SOUND], world.time, delay=100.0))
    conversation = converse(world)
    assert b'"code": "upstream_timeout"' in conversation.said
    assert (world.row.outcome, world.row.duration_ms) == (Outcome.TIMEOUT, 120_000)


def test_S13_pieces_that_complete_no_event_do_not_prolong_the_time_to_the_first() -> None:
    steps: list[Any] = []
    for at in range(len(SOUND[0])):
        steps += [50.0, SOUND[0][at : at + 1]]
    world = World().answers([*steps, *SOUND[1:]])
    conversation = converse(world)
    assert b'"code": "upstream_timeout"' in conversation.said
    assert (world.row.outcome, world.row.duration_ms) == (Outcome.TIMEOUT, 120_000)


def test_S13_the_time_to_the_first_event_begins_with_each_call() -> None:
    world = World()
    refused = UpstreamHead(503, ())
    world.replies.append(SlowHead(refused, [], world.time, delay=14.0))
    world.replies.append(SlowHead(OK_HEAD, [9.0, *SOUND], world.time, delay=10.0))
    rules = Rules(first_byte_timeout=20.0)
    converse(world, rules=rules)
    assert (world.row.outcome, world.row.attempts) == (Outcome.OK, 2)


def test_S13_an_answer_that_comes_whole_may_take_longer_than_a_first_event() -> None:
    """Its first byte comes when all of it is ready: minutes, where much is written."""
    world = World()
    world.replies.append(SlowHead(OK_HEAD, [whole_claude()], world.time, delay=590.0))
    conversation = converse(world, ask_claude(stream=False))
    assert (conversation.status, world.row.outcome) == (200, Outcome.OK)

    world = World()
    world.replies.append(SlowHead(OK_HEAD, [whole_claude()], world.time, delay=610.0))
    conversation = converse(world, ask_claude(stream=False))
    assert (conversation.status, world.row.outcome) == (504, Outcome.TIMEOUT)
    assert world.row.duration_ms == 600_000
    assert b"The model did not answer within 600 seconds." in conversation.said


def test_S13_between_events_the_time_begins_with_the_last() -> None:
    world = World()
    steps = [100.0, SOUND[0], 119.0, SOUND[1], 119.0, *SOUND[2:]]
    world.replies.append(SlowHead(OK_HEAD, steps, world.time, delay=19.0))
    converse(world)
    assert world.row.outcome is Outcome.OK


def test_S13_the_body_of_a_refusal_is_not_waited_for_longer_than_a_first_event() -> None:
    world = World()
    refused = UpstreamHead(400, ())
    world.replies.append(SlowHead(refused, [100.0, b"{", 100.0, b"}"], world.time, delay=10.0))
    converse(world)
    assert (world.row.outcome, world.row.duration_ms) == (Outcome.TIMEOUT, 120_000)
