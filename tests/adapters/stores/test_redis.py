"""What is Redis' own: scripts that decide as Python does, round trips, and a server that fails."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from redis import ConnectionPool, Redis, exceptions
from redis.connection import Connection
from tests.contracts.factories import REDIS
from tests.contracts.stories import (
    LEASE_MS,
    MINUTE,
    NOON,
    add,
    admitted,
    ask,
    key,
    refused,
    rows,
    used,
)
from tests.servers.redis import Server, serving, shared

from bedrock_proxy.admission import (
    FRESH,
    GateState,
    Grant,
    decide,
)
from bedrock_proxy.buckets import Bucket
from bedrock_proxy.customers import AlreadyTaken, CustomerStatus, Limits, TooManyKeys
from bedrock_proxy.errors import ConfigurationError, StoreUnavailable, Unavailable
from bedrock_proxy.periods import DAY_MS, day_of, month_of, start_of_month
from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.config import open_store
from bedrock_proxy_adapters.stores import redis as redis_package
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.redis import RedisStore, connection, directory
from bedrock_proxy_adapters.stores.redis.connection import Script, check_durability, place_of
from bedrock_proxy_adapters.stores.rows import dump_state

_prefixes = iter(range(1_000_000))


def made(server: Server | None = None, client: Any = None, **more: Any) -> RedisStore:
    """A store with a prefix of its own."""
    server = shared() if server is None else server
    values = {"clock": "caller", "reap_at_admission": False, "prefix": f"own-{next(_prefixes)}"}
    client = server.client() if client is None else client
    return RedisStore(client, **(values | {"owns": True} | more))


@pytest.fixture
def store() -> Iterator[RedisStore]:
    one = made()
    yield one
    one.close()


# --- the decision -----------------------------------------------------------------------------


def some_limits(random: Random) -> Limits:
    def maybe(*values: int) -> int | None:
        return random.choice(values) if random.random() < 0.25 else None

    return Limits(
        requests_per_minute=maybe(0, 3, 7, 60, 60, 1_000),
        burst=maybe(0, 1, 2, 10),
        tokens_per_minute=maybe(100, 333, 1_000, 1_000, 250_000),
        concurrency=maybe(0, 2, 5, 9),
        requests_per_day=maybe(0, 5, 20),
        tokens_per_day=maybe(500, 5_000, 10**7),
        tokens_per_month=maybe(700, 50_000, 10**7),
        cost_per_day=maybe(1_000, 10**12),
        cost_per_month=maybe(0, 10_000, 10**17),
    )


def live_through(seed: int, steps: int, redis: Any, memory: Any) -> int:
    """The same random story on both; how many of its requests were admitted."""
    random = Random(seed)
    for each in (redis, memory):
        add(each, limits=some_limits(Random(seed)))
    now, leases, finished, granted = NOON, [], [], 0
    for step in range(steps):
        now += random.choice([0, 0, 1, 7, 999, 5_000, 20_000, MINUTE, 11 * MINUTE])
        now += random.choice([0] * 30 + [-MINUTE, -3_600_000, DAY_MS, 20 * DAY_MS])
        what = random.random()
        if what < 0.55:
            request = ask(
                f"r{step}",
                now,
                input_tokens=random.choice([0, 1, 50, 100, 333, 10**6]),
                output_tokens=random.choice([0, 1, 50, 99]),
                cost_nanousd=random.choice([None, 0, 1, 500, 10**9]),
            )
            one, other = redis.admit(request), memory.admit(request)
            assert one == other
            if isinstance(one, Grant):
                leases.append(one.lease)
                granted += 1
        elif what < 0.8 and leases:
            lease = leases.pop(random.randrange(len(leases)))
            record = used(
                lease,
                random.choice([0, 10, 100, 500, 10**6]),
                random.choice([None, 0, 700, 10**9]),
                duration_ms=random.choice([0, 100, 30_000, MINUTE, DAY_MS]),
                state=random.choice([State.FINAL, State.ESTIMATED]),
                basis=random.choice(list(Basis)),
            )
            finished.append((record, lease))
            for each in (redis, memory):
                each.finish(record, lease)
        elif what < 0.85 and finished:
            record, lease = random.choice(finished)
            again = evolve(record, state=State.FINAL, token_count=random.choice([0, 42, 900]))
            for each in (redis, memory):
                each.finish(again, lease)
        elif what < 0.9 and leases:
            lease = leases.pop()
            request = evolve(lease.request, at=now)
            for each in (redis, memory):
                each.release(request)
        elif what < 0.93 and leases:
            index = random.randrange(len(leases))
            renewed = redis.renew(leases[index], now)
            assert renewed == memory.renew(leases[index], now)
            leases[index] = renewed
        elif what < 0.95:
            assert redis.reap(now) == memory.reap(now)
        elif what < 0.98:
            limits = some_limits(random)
            for each in (redis, memory):
                each.update_customer("ann", lambda c, limits=limits: evolve(c, limits=limits))
        else:
            for each in (redis, memory):
                each.rebuild(now)
        assert redis.gate_state("ann") == memory.gate_state("ann")
    assert rows(redis) == rows(memory)
    by_id = {lease.request.request_id: lease for lease in memory.open_leases()}
    assert {lease.request.request_id: lease for lease in redis.open_leases()} == by_id
    return granted


def agree(seeds: range, steps: int = 60) -> int:
    granted = 0
    for seed in seeds:
        redis = made()
        granted += live_through(seed, steps, redis, MemoryStore(reap_at_admission=False))
        redis.close()
    return granted


def test_T11_the_scripts_decide_and_account_as_python_does() -> None:
    granted = agree(range(40))
    assert granted > 400


@pytest.mark.slow
def test_T11_the_scripts_decide_and_account_as_python_does_in_100_000_steps() -> None:
    print(f"T11: {agree(range(1_000, 2_000), 100)} of 100,000 steps admitted, no difference")


def some_state(random: Random, now: int) -> GateState:
    """Any state, whether or not a story leads to it."""

    def bucket(size: int) -> Bucket:
        marks = sorted(random.sample(range(1, 60), random.choice([0, 1, 5, 15, 16])))
        levels = sorted(random.sample(range(size + 60), len(marks)))
        return Bucket(
            random.choice([1, 3, 60, 333, 10**9]),
            now - random.choice([0, 1, 59_999, 60_000, 3_600_000, 400 * DAY_MS]),
            random.choice([0, 1, size, 10**9]),
            random.randint(max(marks, default=0), 70),
            tuple(zip(marks, levels, strict=True)),
        )

    clock = now - random.choice([0, 0, 1, 5_000, DAY_MS, 40 * DAY_MS])
    counts = [random.choice([0, 1, 499, 10**6, 10**15]) for _ in range(6)]
    return GateState(
        clock,
        bucket(100),
        bucket(1_000),
        day_of(clock),
        *counts[:3],
        month_of(clock),
        *counts[3:],
    )


def agree_on_states(count: int) -> int:
    """The next state of so many; how many of them admitted the request."""
    random = Random(5)
    store = made()
    add(store)
    client: Any = store._line._client
    granted = 0
    limits = Limits()
    for number in range(count):
        # Every month, leap days and year ends among them.
        now = start_of_month(2024 * 12 + number % 60) + random.choice([0, 1, DAY_MS, 27 * DAY_MS])
        state = some_state(random, now)
        if number % 10 == 0:
            limits = some_limits(random)
            store.update_customer("ann", lambda c, limits=limits: evolve(c, limits=limits))
        client.set(store._gate._names.of("ann").gate, dump_state(state))
        request = ask(f"r{number}", now, input_tokens=random.choice([0, 7, 100, 10**6]))
        expected, after = decide(state, limits, request, 0)
        assert store.admit(request) == expected
        assert store.gate_state("ann") == after
        if isinstance(expected, Grant):
            granted += 1
            store.release(request)
    store.close()
    return granted


def test_T11_any_state_leads_to_the_same_next_one() -> None:
    assert 200 < agree_on_states(2_000) < 1_800


MUTANTS = [
    ("admit", "used + asked <= cap", "used + asked < cap"),
    ("admit", "live >= limits.concurrency", "live > limits.concurrency"),
    ("admit", "expires_at <= at", "false"),
    ("admit", "status ~= 'active'", "false"),
    ("admit", "limits.burst or limits.requests_per_minute", "limits.requests_per_minute"),
    ("rules", "if rate == 0 or units > burst then return nil end", ""),
    ("rules", "* rate > 0 then return nil end", "* rate > 60000 then return nil end"),
    ("rules", "units = math.min(units, mark[2])", "units = units"),
    ("rules", "if bucket.seq > 0 then", "if false then"),
    ("rules", "over_up(left, MINUTE)", "over(left, MINUTE)"),
    ("rules", "now.month = month_of_day(now.day)", ""),
    ("rules", "string.format('%.0f', n + 0)", "string.format('%.6g', n + 0)"),
    ("finish", "if more <= 0 then", "if more < 0 then"),
    ("finish", "take(drained(bucket, rate, now), more, now)", "take(bucket, more, now)"),
    ("finish", "old.state == 'estimated' and row.state == 'final'", "old.state == 'estimated'"),
    ("release", "recount(state, lease.at, -1,", "recount(state, lease.at, 0,"),
    ("rebuild", "recount(state, lease.at, 1, lease.tokens, lease.cost)", "local _ = lease"),
]


@pytest.mark.parametrize(
    ("name", "old", "new"), MUTANTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(MUTANTS)]
)
def test_T12_a_script_with_a_defect_is_found_out(
    name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = connection.script
    touched = set()

    def changed(wanted: str) -> Script:
        text = original(wanted).text
        if old in text:
            touched.add(wanted)
        return Script(text.replace(old, new))

    monkeypatch.setattr(connection, "script", changed)
    with pytest.raises((AssertionError, StoreUnavailable, Unavailable, ValueError)):
        agree(range(15))
        any_expired()
        agree_on_states(600)
        agree(range(15, 60))
        agree_on_states(3_000)
    assert touched


def any_expired() -> None:
    """What the stories do not tell: keys that run out, customers who are disabled."""
    store = made()
    add(store)
    store.add_key("ann", key("brief", expires_at=NOON + 5), NOON)
    refused(store, ask("r1", NOON + 5, key_id="brief"))
    store.update_customer("ann", lambda c: evolve(c, status=CustomerStatus.DISABLED))
    refused(store, ask("r2"))
    store.close()


def test_figures_are_exact_up_to_two_to_the_53(store: RedisStore) -> None:
    top = 2**53
    add(store, limits=Limits(cost_per_month=top - 1))
    lease = admitted(store, ask("r1", cost_nanousd=top - 2))
    assert store.gate_state("ann").month_cost == top - 2
    admitted(store, ask("r2", cost_nanousd=1))
    assert store.gate_state("ann").month_cost == top - 1
    refused(store, ask("r3", cost_nanousd=1))
    store.finish(used(lease, cost_nanousd=top - 3), lease)
    assert store.gate_state("ann").month_cost == top - 2
    assert rows(store)[0].cost_nanousd == top - 3
    add(store, "bob")
    for number in range(2):
        admitted(store, ask(f"b{number}", customer_id="bob", cost_nanousd=top - 1))
    assert store.gate_state("bob").month_cost == top, "a counter stops there"


def test_a_limit_of_a_later_version_admits_nothing(store: RedisStore) -> None:
    add(store)
    names = store._gate._names.of("ann")
    client: Any = store._line._client
    client.hset(names.customer, "limits", '{"requests_per_fortnight":1}')
    with pytest.raises(ValueError, match="requests_per_fortnight"):
        store.admit(ask("r1"))
    assert store.gate_state("ann") == FRESH


# --- whose clock ------------------------------------------------------------------------------


def test_A08_the_servers_clock_counts_whatever_the_machines_say() -> None:
    store = made(clock="server", reap_at_admission=True)
    add(store, limits=Limits(requests_per_minute=2))
    before = time.time_ns() // 1_000_000
    first = admitted(store, ask("ahead", before + 3_600_000, lease_ms=60_000))
    second = admitted(store, ask("behind", before - 3_600_000, lease_ms=60_000))
    after = time.time_ns() // 1_000_000
    for lease in (first, second):
        assert before - 1_000 <= lease.request.at <= after + 1_000
        assert lease.deadline == lease.request.at + 60_000
    assert (refused(store, ask("no", before - 3_600_000)).retry_after or 0) <= 30
    assert store.reap(after + DAY_MS) == 0, "a machine whose clock is ahead settled live leases"
    assert store.renew(first, before + DAY_MS).deadline <= after + 61_000
    store.finish(used(first, 500, admitted_at=before + DAY_MS), first)
    assert store.gate_state("ann").clock <= after + 1_000
    assert store.rebuild(after + 40 * DAY_MS) == 1
    assert store.gate_state("ann").clock <= after + 1_000
    store.close()


def test_admission_settles_what_is_overdue_and_answers_all_the_same() -> None:
    store = made(reap_at_admission=True)
    add(store, limits=Limits(concurrency=1))
    admitted(store, ask("forgotten"))
    admitted(store, ask("next", NOON + LEASE_MS))
    assert [row.request_id for row in rows(store)] == ["forgotten"]
    assert [each.request.request_id for each in store.open_leases()] == ["next"]
    store.close()


def test_a_lease_that_was_renewed_meanwhile_is_not_settled(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    original = store._gate.overdue

    def then_renewed(*args: Any) -> Any:
        found = original(*args)
        store.renew(lease, NOON + LEASE_MS)
        return found

    monkeypatch.setattr(store._gate, "overdue", then_renewed)
    assert store.reap(NOON + LEASE_MS) == 0
    assert len(store.open_leases()) == 1
    assert rows(store) == []


# --- failing over -----------------------------------------------------------------------------


def test_a_primary_that_lives_on_as_a_replica_is_left_for_the_new_one() -> None:
    """Managed failovers move a name; a demoted server closes nobody's connections."""
    with serving() as old, serving() as new:
        name = old.folder / "name.sock"
        name.symlink_to(old.socket)
        store = made(client=Redis(unix_socket_path=str(name)))
        first = add(store, limits=Limits(requests_per_day=5))
        lease = admitted(store, ask("r1"))
        replica: Any = new.client()
        replica.replicaof("127.0.0.1", old.port)
        until = time.monotonic() + 30
        while replica.exists(store._gate._names.of("ann").leases) == 0:
            assert time.monotonic() < until
            time.sleep(0.05)
        replica.replicaof("NO", "ONE")
        demoted: Any = old.client()
        demoted.replicaof("127.0.0.1", new.port)
        with pytest.raises(StoreUnavailable):
            admitted(store, ask("nowhere to go"))
        name.unlink()
        name.symlink_to(new.socket)
        store.finish(used(lease), lease)
        assert store.find_token(first.digest, NOON) is not None
        admitted(store, ask("r2"))
        assert [row.request_id for row in rows(store)] == ["r1"]
        store.close()


# --- round trips ------------------------------------------------------------------------------


class Counted(Connection):
    """Counts what is sent; each sending waits for its answers."""

    sent = 0

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        type(self).sent += 1
        super().send_packed_command(*args, **kwargs)


def test_T10_each_operation_is_one_round_trip() -> None:
    client: Any = Redis(
        connection_pool=ConnectionPool(connection_class=Counted, port=shared().port)
    )
    store = made(client=client)
    first = add(store, limits=Limits(requests_per_minute=3))

    def cost(work: Callable[[], Any]) -> int:
        before = Counted.sent
        work()
        return Counted.sent - before

    for number in range(2):  # the first of each kind teaches the server the script
        told = {
            "admit": cost(lambda n=number: store.admit(ask(f"r{n}"))),
            "renew": cost(lambda n=number: store.renew(lease_of(store, f"r{n}"), NOON)) - 1,
            "finish": cost(
                lambda n=number: store.finish(
                    used(lease_of(store, f"r{n}")), lease_of(store, f"r{n}")
                )
            )
            - 2,
            "released": cost(lambda n=number: store.release(ask(f"x{n}"))),
            "standing": cost(lambda: store.standing("ann", NOON)),
        }
    assert told == {"admit": 1, "renew": 1, "finish": 1, "released": 1, "standing": 1}
    admitted(store, ask("r9"))
    assert cost(lambda: refused(store, ask("no"))) == 1
    assert cost(lambda: store.find_token(first.digest, NOON)) == 2, (
        "who claims it, who bears it out"
    )
    assert cost(lambda: store.find_token(first.digest, NOON + 1)) == 0
    store.close()


def lease_of(store: RedisStore, request_id: str) -> Any:
    return next(x for x in store.open_leases("ann") if x.request.request_id == request_id)


def test_a_server_that_forgot_the_scripts_is_told_them_again(store: RedisStore) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    client: Any = store._line._client
    client.script_flush()
    store.finish(used(lease), lease)
    client.script_flush()
    admitted(store, ask("r2"))
    assert len(rows(store)) == 1


def test_replies_as_text_are_understood_too() -> None:
    store = made(client=Redis(port=shared().port, decode_responses=True))
    first = add(store)
    lease = admitted(store, ask("r1"))
    store.renew(lease, NOON + 5)
    store.finish(used(lease), lease)
    owner = store.find_token(first.digest, NOON)
    assert owner is not None
    assert owner.customer_id == "ann"
    assert len(rows(store)) == 1
    store.close()


# --- customers and claims ---------------------------------------------------------------------


def test_a_claim_that_a_crash_left_behind_is_taken_over_after_a_minute(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._directory, "_change", cut_off)
    with pytest.raises(KeyboardInterrupt):
        add(store)
    monkeypatch.undo()
    assert store.list_customers().items == ()
    assert store.find_token(key("key-ann").digest, NOON) is None
    time.sleep(0.005)  # the same claim in the same millisecond would be a lost reply asked again
    with pytest.raises(AlreadyTaken):
        add(store)
    monkeypatch.setattr(directory, "CLAIM_MS", -1)
    first = add(store)
    assert store.find_token(first.digest, NOON + MINUTE) is not None
    with pytest.raises(AlreadyTaken):
        add(store, "bob", models=None) and store.add_key("bob", first, NOON)


def cut_off(*args: Any) -> bool:
    raise KeyboardInterrupt


def test_a_token_that_was_revoked_can_be_given_out_again(store: RedisStore) -> None:
    first = add(store)
    add(store, "bob")
    store.revoke_key("ann", first.key_id)
    store.add_key("bob", first, NOON)
    owner = store.find_token(first.digest, NOON)
    assert owner is not None
    assert owner.customer_id == "bob"


def test_a_failed_addition_leaves_no_claim(store: RedisStore) -> None:
    add(store)
    for number in range(3):
        store.add_key("ann", key(f"k{number}"), NOON)
    with pytest.raises(TooManyKeys):
        store.add_key("ann", key("fifth"), NOON)
    add(store, "bob")
    store.add_key("bob", key("fifth"), NOON)


def test_changes_of_one_customer_from_many_threads_are_all_made(store: RedisStore) -> None:
    add(store, limits=Limits(requests_per_day=0))

    def more(customer: Any) -> Any:
        return evolve(
            customer, limits=Limits(requests_per_day=customer.limits.requests_per_day + 1)
        )

    def work() -> None:
        for _ in range(5):
            store.update_customer("ann", more)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get_customer("ann").limits.requests_per_day == 20


def test_two_stores_on_one_server_share_limits_and_revocations() -> None:
    here = made(prefix="shared")
    there = made(prefix="shared")
    first = add(here, limits=Limits(requests_per_minute=2))
    assert there.find_token(first.digest, NOON)
    admitted(here, ask("r1"))
    admitted(there, ask("r2"))
    refused(here, ask("r3"))
    here.revoke_key("ann", first.key_id)
    assert there.find_token(first.digest, NOON + 1), "remembered, and yet:"
    assert refused(there, ask("r4", NOON + DAY_MS)).reason == "key_gone"
    here.close()
    there.close()


def test_prefixes_and_names_are_kept_apart() -> None:
    one, other = made(), made()
    for name in ("a}b", "{a", "}", "", "a:b", "%7B"):
        add(one, name)
    assert {each.id for each in one.list_customers().items} == {"a}b", "{a", "}", "", "a:b", "%7B"}
    for name in ("a}b", "{a", "}", "", "a:b", "%7B"):
        admitted(one, ask(f"r-{name}", customer_id=name))
    assert len(one.open_leases()) == 6
    assert len(one.open_leases("}")) == 1
    assert other.list_customers().items == ()
    one.close()
    other.close()


# --- a server that fails ----------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as own:
        yield own


def test_while_the_server_is_down_nothing_is_admitted_and_then_everything_goes_on(
    server: Server,
) -> None:
    store = RedisStore.from_url(server.url, clock="caller")
    first = add(store)
    lease = admitted(store, ask("r1"))
    assert store.find_token(first.digest, NOON)
    server.stop(signal.SIGTERM)
    with pytest.raises(StoreUnavailable) as caught:
        store.admit(ask("r2"))
    assert caught.value.retry_after == 5
    for call in (
        lambda: store.finish(used(lease), lease),
        lambda: store.release(ask("r2")),
        lambda: store.find_token(b"other", NOON),
        lambda: store.list_rows(),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert store.find_token(first.digest, NOON + 59_000), "known tokens, for a minute"
    with pytest.raises(StoreUnavailable):
        store.find_token(first.digest, NOON + 60_000)
    server.start()
    store.finish(used(lease), lease)
    admitted(store, ask("r2"))
    assert [row.request_id for row in rows(store)] == ["r1"]
    store.close()


def test_every_connection_survives_a_restart_of_the_server(server: Server) -> None:
    store = RedisStore.from_url(server.url, clock="caller")
    add(store)
    for turn in range(2):
        threads = [
            threading.Thread(target=admitted, args=(store, ask(f"{turn}-{n}"))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.open_leases()) == 8 * (turn + 1)
        server.stop(signal.SIGTERM)
        server.start()
    store.close()


def test_a_slow_server_is_given_up_and_what_it_did_late_counts_once(server: Server) -> None:
    store = RedisStore.from_url(server.url + "?timeout=0.3", clock="caller")
    add(store, limits=Limits(requests_per_day=5))
    lease = admitted(store, ask("r1"))
    server.pause()
    began = time.monotonic()
    for call in (lambda: store.admit(ask("r2")), lambda: store.finish(used(lease), lease)):
        with pytest.raises(StoreUnavailable):
            call()
    assert time.monotonic() - began < 20, "bounded, and not asked for again and again"
    server.resume()
    store.finish(used(lease), lease)
    admitted(store, ask("r2"))
    assert store.gate_state("ann").day_requests == 2
    assert [row.request_id for row in rows(store)] == ["r1"]
    store.release(ask("r2"))
    assert store.gate_state("ann").day_requests == 1
    store.close()


def test_a_server_that_refuses_to_write_is_an_unreachable_store(server: Server) -> None:
    store = RedisStore.from_url(server.url, clock="caller")
    add(store)
    lease = admitted(store, ask("r1"))
    with server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable):
            store.admit(ask("r2"))
        client.config_set("maxmemory", 0)
    store.finish(used(lease), lease)
    assert len(rows(store)) == 1
    store.close()


def test_what_was_told_survives_a_killed_server(server: Server) -> None:
    store = RedisStore.from_url(server.url, clock="caller")
    with server.client() as client:
        client.config_set("appendfsync", "always")
    add(store)
    lease = admitted(store, ask("r1"))
    store.finish(used(lease), lease)
    admitted(store, ask("r2"))
    before = rows(store), store.open_leases(), store.gate_state("ann")
    server.stop(signal.SIGKILL)
    server.start()
    assert (rows(store), store.open_leases(), store.gate_state("ann")) == before
    store.close()


def test_a_server_that_is_down_at_first_is_checked_when_it_is_up() -> None:
    with serving("--appendonly", "no") as server:
        server.stop()
        store = RedisStore.from_url(server.url)
        with pytest.raises(StoreUnavailable):
            store.list_customers()
        server.start()
        with pytest.raises(StoreUnavailable) as caught:
            store.list_customers()
        assert isinstance(caught.value.__cause__, ConfigurationError)
        store.close()


class Failing:
    """A client whose k-th script fails: before the server knows of it, or after."""

    def __init__(self, client: Any, kth: int, how: str) -> None:
        self._client = client
        self._left = kth
        self._how = how
        self.failed = False

    def evalsha(self, *args: Any) -> Any:
        self._left -= 1
        if self._left:
            return self._client.evalsha(*args)
        self.failed = True
        if self._how == "lost":
            try:
                self._client.evalsha(*args)
            except exceptions.NoScriptError:
                self._client.eval(connection.script("admit").text, *args[1:])
        raise exceptions.TimeoutError if self._how == "timeout" else exceptions.ConnectionError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("how", ["refused", "timeout", "lost"])
def test_A03_whichever_call_fails_each_request_has_its_row_and_nothing_leaks(how: str) -> None:
    kth, failed = 0, True
    while failed:
        kth += 1
        prefix = f"a03-{next(_prefixes)}"
        good = made(prefix=prefix)
        add(good, limits=Limits(requests_per_day=4, tokens_per_minute=1_000))
        client = Failing(shared().client(), kth, how)
        store = made(client=client, prefix=prefix)
        called = []
        for number in range(4):
            request = ask(f"r{number}")
            try:
                lease = admitted(store, request)
            except StoreUnavailable:
                good.release(request)  # as the flow does: whether it was admitted is unknown
                continue
            called.append(request.request_id)
            with contextlib.suppress(StoreUnavailable):
                lease = store.renew(lease, NOON + 1)
            try:
                store.finish(used(lease, 10), lease)
            except StoreUnavailable:
                good.finish(used(lease, 10), lease)  # the spool's replay
        failed = client.failed
        good.reap(NOON + 10 * LEASE_MS)
        assert [row.request_id for row in rows(good)] == called
        assert good.open_leases() == ()
        state = good.gate_state("ann")
        assert (state.day_requests, state.day_tokens) == (len(called), 10 * len(called))
        assert state.tokens.units == 10 * len(called)
        good.close()
        store.close()
    assert kth == 13


# --- where it is, and whether it keeps what it is told ----------------------------------------


@pytest.mark.parametrize(
    ("url", "theirs"),
    [
        ("redis://localhost:6379/3", "redis://localhost:6379/3"),
        ("rediss://u:p@h/0?ssl_ca_certs=%2Fa.pem", "rediss://u:p@h/0?ssl_ca_certs=%2Fa.pem"),
        ("valkey://h", "redis://h"),
        ("valkeys://h", "rediss://h"),
        ("redis+unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_a_url_is_read_as_redis_py_writes_it(url: str, theirs: str) -> None:
    place = place_of(url)
    assert place.url == theirs
    assert (place.accepts_loss, place.prefix, place.timeout) == (False, "bedrock-proxy", 5.0)


def test_what_a_url_says_of_us_stays_with_us() -> None:
    place = place_of("redis://h/1?durability=accepted&prefix=team&timeout=0.5")
    assert place.url == "redis://h/1"
    assert (place.accepts_loss, place.prefix, place.timeout) == (True, "team", 0.5)


@pytest.mark.parametrize(
    "said",
    [
        "durabilty=accepted",
        "durability=maybe",
        "prefix=",
        "prefix=a{b}",
        "timeout=0",
        "timeout=soon",
        "timeout=1000",
    ],
)
def test_a_url_with_an_error_is_refused_without_its_password(said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        place_of(f"redis://user:secret@h/0?{said}")
    assert "secret" not in str(caught.value)


def test_a_socket_needs_a_path_and_a_port_a_number() -> None:
    with pytest.raises(ConfigurationError, match="socket"):
        place_of("redis+unix://")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RedisStore.from_url("redis://h:port/0")


def test_a_unix_socket_and_a_database_number_are_reached(server: Server) -> None:
    store = open_store(f"redis+unix://{server.socket}?db=3")
    assert isinstance(store, RedisStore)
    add(store)
    with server.client() as client:
        assert client.info("keyspace").keys() == {"db3"}
    store.close()


def test_a_server_without_an_append_only_file_is_refused_unless_that_is_accepted() -> None:
    with serving("--appendonly", "no") as server:
        with pytest.raises(ConfigurationError, match="appendonly yes"):
            open_store(server.url)
        store = open_store(server.url + "?durability=accepted")
        add(store)
        store.close()


def test_a_server_that_evicts_any_key_is_refused(server: Server) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "100mb")
    with pytest.raises(ConfigurationError, match="noeviction"):
        open_store(server.url)


@pytest.mark.parametrize(
    ("persistence", "memory"),
    [
        ({"aof_enabled": 1}, {"maxmemory": 0, "maxmemory_policy": "allkeys-lru"}),
        ({"aof_enabled": 1}, {"maxmemory": 9, "maxmemory_policy": "volatile-lru"}),
        ({}, {}),
    ],
)
def test_what_a_server_does_not_say_is_not_held_against_it(
    persistence: dict[str, Any], memory: dict[str, Any]
) -> None:
    check_durability(persistence, memory)


def test_the_scripts_are_in_the_package() -> None:
    folder = Path(redis_package.__file__).parent
    found = {path.stem for path in folder.glob("*.lua")}
    assert found == {
        *("rules", "admit", "renew", "release", "finish", "rebuild", "change", "claim"),
    }


def test_the_contract_suite_runs_on_a_cluster() -> None:
    store = made()
    client: Any = store._line._client
    assert client.info("cluster")["cluster_enabled"] == 1
    with pytest.raises(exceptions.ResponseError, match="same slot"):
        client.eval("return 1", 2, "one", "another")
    assert REDIS.is_durable
    store.close()
