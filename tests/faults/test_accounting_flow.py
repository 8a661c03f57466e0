"""
The flow on a real store whose k-th call fails, for all k: whatever it was and however it
failed, one row for each call of Bedrock and nothing held afterwards.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from tests import flows
from tests.contracts.factories import MEMORY, SQLITE, StoreFactory
from tests.contracts.stories import ask, rows

from bedrock_proxy import tokens
from bedrock_proxy.admission import Lease, Limit, Refusal
from bedrock_proxy.customers import Customer, Key, Limits
from bedrock_proxy.errors import store_unavailable
from bedrock_proxy.rules import Rules
from bedrock_proxy.usage import UsageRecord

RULES = Rules(lease_ms=60_000)
NAMES = ("find_token", "admit", "renew", "release", "finish")


@define(eq=False, slots=False)
class Faulty(flows.World):
    """The scripted world, with a real store whose call number *at* fails in the way *how*."""

    store: Any = None
    at: int = -1
    how: str = "refused"
    asked: list[str] = field(factory=list)
    kept: list[tuple[UsageRecord, Lease]] = field(factory=list)

    def call(self, name: str, *args: Any) -> Any:
        fails = len(self.asked) == self.at
        self.asked.append(name)
        if fails and self.how == "timed out":
            self.time.monotonic += 10
        if fails and self.how != "lost":
            raise store_unavailable()
        reply = getattr(self.store, name)(*args)
        if fails:
            raise store_unavailable()
        return reply

    def find_token(self, digest: bytes, at: int) -> Any:
        return self.call("find_token", digest, at)

    def admit(self, request: Any) -> Any:
        return self.call("admit", request)

    def renew(self, lease: Lease, at: int) -> Any:
        return self.call("renew", lease, at)

    def release(self, request: Any) -> None:
        self.call("release", request)

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        self.call("finish", record, lease)

    def spooled(self, record: UsageRecord, lease: Lease) -> None:
        self.kept.append((record, lease))


def add(store: Any, limits: Limits) -> None:
    store.create_customer(
        Customer(id="ann", name="A", email="a", limits=limits, created_at=flows.START),
        Key(key_id="k", digest=tokens.digest(flows.TOKEN, None), created_at=flows.START),
    )


LIMITS = Limits(requests_per_minute=60, tokens_per_minute=100_000, tokens_per_day=10**6)


def one_request(store: Any, at: int, how: str) -> Faulty:
    """A stream that lasts longer than its lease would without renewal."""
    world = Faulty(store=store, at=at, how=how)
    frames = flows.claude()
    world.answers([frames[0], 14.0, frames[1], 14.0, frames[2], 14.0, *frames[3:]])
    flows.converse(world, rules=RULES)
    return world


@pytest.mark.parametrize("factory", [MEMORY, SQLITE], ids=lambda factory: factory.name)
@pytest.mark.parametrize("how", ["refused", "timed out", "lost"])
def test_A03_whichever_store_call_fails_nothing_is_lost_doubled_or_held(
    factory: StoreFactory, how: str, tmp_path: Path
) -> None:
    failed: list[str] = []
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        store = factory.make(folder)
        add(store, LIMITS)
        world = one_request(store, at, how)
        for record, lease in world.kept:  # the store is back
            store.finish(record, lease)
        later = flows.START + 10 * RULES.lease_ms
        store.reap(later)
        found = rows(store)
        called = len(world.calls)
        assert len(found) == called
        assert store.open_leases() == ()
        state = store.gate_state("ann")
        assert state.day_requests == len(found)
        assert state.day_tokens == sum(row.token_count for row in found)
        if called:
            assert (found[0].input_tokens, found[0].output_tokens) == (11, 7)
            assert found[0].state == "final"
        store.close()
        if at >= len(world.asked):
            break
        failed.append(world.asked[at])
        at += 1
    assert set(failed) >= {"find_token", "admit", "renew", "finish"}
    print(f"A03 {factory.name}, {how}: {failed}")


@pytest.mark.parametrize("factory", [MEMORY, SQLITE], ids=lambda factory: factory.name)
def test_T03_after_one_failed_renewal_a_stream_still_holds_its_place_beyond_the_first_deadline(
    factory: StoreFactory, tmp_path: Path
) -> None:
    store = factory.make(tmp_path)
    add(store, Limits(concurrency=1))
    world = Faulty(store=store, at=2)
    seconds: list[Any] = []

    def ask_for_a_second() -> None:
        at = world.time.now().epoch_ms
        assert at > flows.START + RULES.lease_ms
        store.reap(at)
        seconds.append(store.admit(ask("r-2", at, key_id="k")))

    frames = flows.claude()
    world.answers([*frames[:2], 20.0, 25.0, 20.0, ask_for_a_second, *frames[2:]])
    flows.converse(world, rules=RULES)
    assert world.asked[2] == "renew"
    (second,) = seconds
    assert isinstance(second, Refusal)
    assert second.reason is Limit.CONCURRENCY
    (row,) = rows(store)
    assert (row.outcome, row.state) == ("ok", "final")
    store.close()


def test_a_money_budget_and_no_price_is_a_403_that_says_so() -> None:
    store = MEMORY.make(Path())
    add(store, Limits(cost_per_day=10**9))
    world = Faulty(store=store)
    conversation = flows.converse(world, rules=RULES)
    assert conversation.status == 403
    told = json.loads(conversation.said)
    assert (told["code"], told["retryable"]) == ("price_unknown", False)
    assert world.calls == []
    assert store.open_leases() == ()
