"""
Interruptions that come at the worst moment: right after any one ask was answered, so
before whatever the flow says next. An ending is still an answer, framed as it should be;
a client that left before the model was called costs nothing.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.flows import (
    MODEL,
    OK_HEAD,
    Conversation,
    World,
    ask_claude,
    chunk,
    claude,
    converse,
    events,
    exception,
    request,
)

from bedrock_proxy import drive
from bedrock_proxy.drive import Deadline, Gone, Interruption, Shutdown
from bedrock_proxy.effects import Admit, Effect, FindToken, Open, Wait
from bedrock_proxy.eventstream import Decoder
from bedrock_proxy.ports import UpstreamHead
from bedrock_proxy.usage import Basis, Outcome, State

ARRAY = ("accept", "application/json")
WHOLE = UpstreamHead(200, (("content-type", "application/json"),))
PLAIN = json.dumps(
    {
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 11, "output_tokens": 7},
    }
).encode()
THOUGHT = chunk(
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "Hm, what could it be?"},
    }
)
NATIVE = json.dumps({"max_tokens": 100, "messages": []}).encode()

Scene = Callable[[], Conversation]


def stream() -> Conversation:
    return Conversation(World().answers(claude()), request(), ask_claude())


def broken_stream() -> Conversation:
    steps = [*claude()[:3], exception("modelStreamErrorException")]
    return Conversation(World().answers(steps), request(), ask_claude())


def array() -> Conversation:
    return Conversation(World().answers(claude()), request(ARRAY), ask_claude())


def held_array() -> Conversation:
    return Conversation(World().answers(claude()), request(can_stream=False), ask_claude())


def broken_held_array() -> Conversation:
    steps = [*claude()[:3], exception("modelStreamErrorException")]
    return Conversation(World().answers(steps), request(can_stream=False), ask_claude())


def whole() -> Conversation:
    return Conversation(World().answers([PLAIN], WHOLE), request(), ask_claude(stream=False))


def native() -> Conversation:
    path = f"/model/{MODEL}/invoke-with-response-stream"
    return Conversation(World().answers(claude()), request(path=path), NATIVE)


def throttled() -> Conversation:
    world = World().answers([exception("throttlingException")]).answers(claude())
    return Conversation(world, request(), ask_claude())


def unknown_token() -> Conversation:
    return Conversation(World(owner=None), request(), ask_claude())


def bad_body() -> Conversation:
    return Conversation(World(), request(), b"{}")


def usage() -> Conversation:
    return Conversation(World(), request(method="GET", path="/v1/usage"), b"")


def ready() -> Conversation:
    return Conversation(World(), request(method="GET", path="/readyz", token=None), b"")


SCENES = [
    stream,
    broken_stream,
    array,
    held_array,
    broken_held_array,
    whole,
    native,
    throttled,
    unknown_token,
    bad_body,
    usage,
    ready,
]


class Asks:
    """Does something right after the k-th ask of a conversation was answered."""

    def __init__(self, k: int, then: Callable[[], None]) -> None:
        self.left = k
        self._then = then
        self._perform = drive.perform

    def __call__(self, effect: Effect[Any], ports: Any) -> Any:
        try:
            return self._perform(effect, ports)
        finally:
            self.left -= 1
            if self.left == 0:
                self._then()


def run(scene: Scene, k: int, monkeypatch: pytest.MonkeyPatch, *reasons: Interruption) -> Any:
    """*scene* with *reasons* posted after its k-th ask; None where it asks less often."""
    conversation = scene()

    def post() -> None:
        for reason in reasons:
            conversation.interrupts.post(reason)

    asks = Asks(k, post)
    with monkeypatch.context() as patch:
        patch.setattr(drive, "perform", asks)
        conversation.run()
    return None if asks.left > 0 else conversation


def settled(conversation: Conversation) -> None:
    """One row where Bedrock was called; nothing and a release where it was not."""
    world = conversation.world
    assert len(world.rows) == (1 if world.calls else 0)
    assert len(world.released) == (1 if world.admitted and not world.calls else 0)
    assert all(reply.closed for reply in world.used)


def well_formed(conversation: Conversation) -> None:
    """The answer is framed as its head says, and ends either well or in one error."""
    said = conversation.said
    length = conversation.header("content-length")
    assert length is None or int(length) == len(said)
    kind = conversation.header("content-type")
    if kind == "text/event-stream":
        assert said.count(b"event: error\n") + events(said).count("[DONE]") == 1
    elif kind == "application/vnd.amazon.eventstream":
        decoder = Decoder()
        frames = list(decoder.feed(said))
        decoder.close()
        kinds = [frame.headers[":message-type"] for frame in frames]
        if "exception" in kinds:
            assert kinds.index("exception") == len(kinds) - 1
        else:
            # Whole: its stop marker came, though perhaps not what follows it.
            assert b"".join(claude()).startswith(said)
            assert len(frames) >= len(claude()) - 1
    else:
        found = json.loads(said)
        if isinstance(found, list):
            assert sum("error" in each for each in found) + ({"done": True} in found) == 1


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kinds", [(Shutdown,), (Deadline,), (Deadline, Shutdown)])
def test_S18_S20_an_ending_after_any_ask_is_still_a_well_formed_answer(
    scene: Scene, kinds: tuple[type[Interruption], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    k = 1
    while (it := run(scene, k, monkeypatch, *(kind() for kind in kinds))) is not None:
        assert it.head is not None, f"nothing was answered (ask {k})"
        well_formed(it)
        settled(it)
        k += 1
    assert k > 1


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("cuts", [False, True])
def test_S01_a_client_that_leaves_after_any_ask_is_settled(
    scene: Scene, cuts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = 1
    while (it := run(scene, k, monkeypatch, Gone(cuts=cuts))) is not None:
        settled(it)
        k += 1
    assert k > 1


def after(kind: type[Effect[Any]], scene: Scene, reason: Interruption, patch: Any) -> Conversation:
    """*scene*, with *reason* posted right after its first ask of *kind*."""
    conversation = scene()
    perform = drive.perform
    done: list[bool] = []

    def performing(effect: Effect[Any], ports: Any) -> Any:
        answer = perform(effect, ports)
        if isinstance(effect, kind) and not done:
            done.append(True)
            conversation.interrupts.post(reason)
        return answer

    patch.setattr(drive, "perform", performing)
    return conversation.run()


@pytest.mark.parametrize("end", ["drain", "cancel", "shutdown"])
@pytest.mark.parametrize("asked", [FindToken, Admit])
def test_S01_nobody_is_called_for_a_client_that_left_before_the_call(
    asked: type[Effect[Any]], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = Shutdown() if end == "shutdown" else Gone(cuts=end == "cancel")
    it = after(asked, stream, reason, monkeypatch)
    assert not it.world.calls
    assert not it.world.rows
    assert it.world.released == it.world.admitted != []


@pytest.mark.parametrize("asked", [Open, Wait])
def test_a_refused_call_costs_nothing_whoever_ends_the_wait_for_another(
    asked: type[Effect[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event said that nothing was begun; leaving afterwards changes nothing of it."""
    for reason in (Gone(), Shutdown()):
        with monkeypatch.context() as patch:
            it = after(asked, throttled, reason, patch)
        if asked is Wait:
            assert it.world.row.token_count == 0
            assert it.world.row.outcome in {Outcome.CLIENT_GONE, Outcome.SHUTDOWN}
        assert len(it.world.rows) == 1


def test_S24_a_model_that_began_is_not_called_again_though_nothing_was_shown() -> None:
    """An array shows no thinking; it was generated, and it is billed, all the same."""
    steps = [*claude()[:2], THOUGHT, exception("throttlingException")]
    world = World().answers(steps).answers(claude())
    it = converse(world, None, ARRAY)
    assert it.status == 429
    assert len(world.calls) == 1
    assert world.row.basis is Basis.PARTIAL
    assert world.row.input_tokens == 11


def test_a_held_answer_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedrock_proxy.relay.MAX_WHOLE", 1_000)
    pieces = ["x" * 100] * 20
    it = converse(World().answers(claude(pieces), OK_HEAD), can_stream=False)
    found = json.loads(it.said)
    assert found[-1]["code"] == "upstream_torn"
    assert len(it.said) < 3_000
    assert it.world.row.basis is Basis.PARTIAL


def test_S15_a_stream_that_reports_only_its_output_is_not_free_of_input() -> None:
    steps = claude(usage=False)
    steps[-2] = chunk(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 7},
        }
    )
    row = converse(World().answers(steps)).world.row
    assert row.output_tokens == 7
    assert row.input_tokens > 0
    assert (row.basis, row.state) == (Basis.ESTIMATED, State.ESTIMATED)
