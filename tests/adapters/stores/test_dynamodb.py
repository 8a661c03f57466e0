"""What only the DynamoDB store has: packed items, expressions, round trips, lost replies."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from botocore.exceptions import ConnectionClosedError
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
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
from tests.servers import dynamodb

from bedrock_proxy import tokens
from bedrock_proxy.admission import Barred, GateState, Grant, Limit
from bedrock_proxy.customers import AlreadyTaken, Customer, CustomerStatus, Key, Limits
from bedrock_proxy.errors import ConfigurationError, StoreUnavailable
from bedrock_proxy.periods import DAY_MS, day_of, month_of
from bedrock_proxy.store import CACHE_MS
from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.operator_log import Seldom
from bedrock_proxy_adapters.stores.dynamodb import (
    DynamoDBStore,
    connection,
    expressions,
    ledger,
    packing,
)
from bedrock_proxy_adapters.stores.dynamodb.image import Image, fresh_gate, gate_key, image_of
from bedrock_proxy_adapters.stores.dynamodb.packing import Adjustment, Held, Settings, Terms

EVERYTHING = Limits(
    requests_per_minute=600,
    burst=100,
    tokens_per_minute=1_000_000,
    concurrency=20,
    requests_per_day=100_000,
    tokens_per_day=100_000_000,
    tokens_per_month=2_000_000_000,
    cost_per_day=500_000_000_000,
    cost_per_month=9_000_000_000_000,
)


class Recording:
    """A client that notes each call, and may fail one of them."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.meta = client.meta
        self.calls: list[str] = []
        self.units = 0.0
        self.fails_at: int | None = None
        self.how = ""
        self.before: Callable[[str], Any] | None = None

    def begin(self) -> None:
        self.calls.clear()
        self.units = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**parameters: Any) -> Any:
            fails = len(self.calls) == self.fails_at
            if self.before is not None:
                self.before(name)
            self.calls.append(name)
            if fails and self.how in {"refused", "killed before"}:
                raise Killed if self.how == "killed before" else broken()
            reply = getattr(self.client, name)(**parameters)
            if name in {"put_item", "update_item"}:
                # A write unit is a write of up to 1 KB, of the larger of before and after.
                item = parameters.get("Item") or reply.get("Attributes")
                self.units += -(-item_size(item) // 1024)
            if fails:
                raise Killed if self.how == "killed after" else broken()
            return reply

        return call


class Killed(BaseException):
    """The process is gone: nothing of ours runs after it."""


def broken() -> ConnectionClosedError:
    return ConnectionClosedError(endpoint_url="http://127.0.0.1")


def item_size(item: Any) -> int:
    """AWS, Amazon DynamoDB Developer Guide, "DynamoDB item sizes and formats"."""

    def size(value: Any) -> int:
        ((kind, said),) = value.items()
        if kind == "S":
            return len(said.encode())
        if kind == "N":
            digits = said.lstrip("-").strip("0") or "0"
            return (len(digits) + 1) // 2 + 1 + said.startswith("-")
        if kind == "B":
            return len(said)
        if kind == "BOOL":
            return 1
        assert kind == "M"
        return 3 + sum(len(name.encode()) + size(each) + 1 for name, each in said.items())

    return sum(len(name.encode()) + size(value) for name, value in item.items())


@pytest.fixture(params=dynamodb.NAMES)
def emulator(request: pytest.FixtureRequest) -> dynamodb.Emulator:
    return dynamodb.shared(request.param)


@pytest.fixture
def recording(emulator: dynamodb.Emulator) -> Recording:
    return Recording(emulator.shared_client)


@pytest.fixture
def store(emulator: dynamodb.Emulator, recording: Recording) -> Iterator[DynamoDBStore]:
    made = DynamoDBStore(emulator.table(), recording, reap_at_admission=False)
    yield made
    made.close()


def another(store: DynamoDBStore, client: Any) -> DynamoDBStore:
    """The same table as another process sees it."""
    return DynamoDBStore(store.table, client, reap_at_admission=False)


# --- packing ------------------------------------------------------------------------------------

TIMES = st.integers(1, 4_102_444_800_000)
COUNTS = st.integers(0, 10**12)
IDS = st.one_of(
    st.uuids().map(str),
    TIMES.map(lambda at: f"{at:012x}"[:8] + "-" + f"{at:012x}"[8:] + "-7abc-8def-0123456789ab"),
    st.text(min_size=1, max_size=40),
)


@given(
    IDS,
    st.builds(
        Held,
        shape=st.binary(min_size=6, max_size=6),
        at=TIMES,
        deadline=st.just(0),
        input_tokens=COUNTS,
        output_tokens=COUNTS,
        cost_nanousd=st.none() | COUNTS,
        took_request=st.booleans(),
        generation=st.none() | TIMES.map(lambda at: at // 1000),
        client_request_id=st.none() | st.uuids().map(str) | st.text(max_size=40),
    ),
    st.integers(0, 10**8),
)
def test_a_packed_lease_is_read_back_as_it_was(request_id: str, held: Held, lease_ms: int) -> None:
    held = evolve(held, deadline=held.at + lease_ms)
    assert packing.unpack_lease(request_id, packing.pack_lease(request_id, held)) == held
    assert packing.request_id_of(packing.lease_name(request_id)) == request_id


TERMS = st.builds(Terms, expires_at=st.none() | TIMES, deprecated_at=st.none() | TIMES)
KEY_IDS = st.one_of(
    st.binary(min_size=8, max_size=8).map(tokens.mint_key_id),
    st.text(min_size=1, max_size=30),
    st.just("key_zzzzzzzzzzz"),
)


@given(
    st.builds(
        Settings,
        status=st.sampled_from(CustomerStatus),
        limits=st.builds(
            Limits,
            requests_per_minute=st.none() | COUNTS,
            burst=st.none() | COUNTS,
            tokens_per_minute=st.none() | COUNTS,
            concurrency=st.none() | COUNTS,
            cost_per_month=st.none() | st.integers(0, 10**17),
        ),
        keys=st.dictionaries(KEY_IDS, TERMS, max_size=4),
    )
)
def test_packed_settings_are_read_back_as_they_were(settings: Settings) -> None:
    assert packing.unpack_settings(packing.pack_settings(settings)) == settings


@given(
    st.builds(
        Adjustment,
        nonce=st.binary(min_size=8, max_size=8),
        at=TIMES,
        deadline=st.just(0),
        requests=st.sampled_from([0, 1]),
        tokens=COUNTS,
        cost_nanousd=COUNTS,
    )
)
def test_a_packed_adjustment_is_read_back_as_it_was(adjustment: Adjustment) -> None:
    adjustment = evolve(adjustment, deadline=adjustment.at + 7)
    assert packing.unpack_adjustment(packing.pack_adjustment(adjustment)) == adjustment


def test_what_a_later_version_limits_does_not_pass_for_unlimited() -> None:
    settings = Settings(status=CustomerStatus.ACTIVE, limits=Limits(), keys={})
    packed = packing.pack_settings(settings)
    with pytest.raises(ValueError, match="later version"):
        packing.unpack_settings(b"\x02" + packed[1:])
    with pytest.raises(ValueError, match="later version"):
        packing.unpack_settings(packed[:2] + b"\x80\x04")


@pytest.mark.parametrize("name", ["", "=", "abc", "~abc", "A" * 21 + "!"])
def test_what_we_did_not_name_is_not_taken_for_a_lease(name: str) -> None:
    if name == "=":
        assert packing.request_id_of(name) == ""
        return
    with pytest.raises(ValueError, match="no lease is called"):
        packing.request_id_of(name)


def uuid7(at: int, number: int) -> str:
    text = f"{at:012x}7{number:03x}9{number:03x}{number:012x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def busy_customer(store: DynamoDBStore) -> str:
    """Everything is limited, there are four keys, of which three run out, and 16 leases."""
    now = NOON + 1_234
    ids = [tokens.mint_key_id(bytes((n,)) * 8) for n in range(4)]
    customer = Customer(
        id="cust_3691f7407738861a", name="A", email="a@b.example", limits=EVERYTHING, created_at=now
    )
    keys = [
        Key(key_id=key_id, digest=tokens.digest(key_id * 2, b"pepper"), created_at=now + n)
        for n, key_id in enumerate(ids)
    ]
    store.create_customer(customer, keys[0])
    for each in keys[1:]:
        store.rotate_key(customer.id, each, now + 5, 86_400_000)
    for number in range(16):
        at = now + number * 7
        admitted(
            store,
            ask(
                uuid7(at - 3, number),
                at,
                customer.id,
                key_id=ids[3],
                input_tokens=12_345,
                output_tokens=4_096,
                cost_nanousd=98_476_500,
                client_request_id=None,
                model_id="us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                model="anthropic.claude-sonnet-4-5-20250929-v1:0",
                operation="InvokeModelWithResponseStream",
            ),
        )
    return customer.id


def test_T10_the_gate_item_is_within_one_write_unit_at_16_leases_and_four_keys(
    store: DynamoDBStore, emulator: dynamodb.Emulator
) -> None:
    customer_id = busy_customer(store)
    item = emulator.shared_client.get_item(TableName=store.table, Key=gate_key(customer_id))["Item"]
    assert len(item["L"]["M"]) == 16
    assert len(store.list_keys(customer_id)) == 4
    per_lease = [len(n) + len(v["B"]) + 1 for n, v in item["L"]["M"].items()]
    print(f"T10: {item_size(item)} bytes, of which leases of {min(per_lease)} to {max(per_lease)}")
    assert item_size(item) <= 1024


# --- round trips --------------------------------------------------------------------------------


def test_T10_a_warm_request_is_three_calls_and_three_write_units(
    store: DynamoDBStore, recording: Recording
) -> None:
    add(store, limits=EVERYTHING)
    digest = key("key-ann").digest
    for number in range(3):
        store.find_token(digest, NOON + number * 50)
        lease = admitted(store, ask(uuid7(NOON, number), NOON + number * 50))
        store.finish(used(lease), lease)
    recording.begin()
    at = NOON + CACHE_MS - 1
    assert store.find_token(digest, at) is not None
    lease = admitted(store, ask(uuid7(at, 9), at))
    assert recording.calls == ["update_item"], "before the first byte"
    store.finish(used(lease), lease)
    assert recording.calls == ["update_item", "put_item", "update_item"]
    print(f"T10: {recording.calls}, {recording.units} write units")
    assert recording.units == 3


def test_T10_a_rejection_is_one_reading(store: DynamoDBStore, recording: Recording) -> None:
    add(store, limits=Limits(requests_per_minute=1))
    admitted(store, ask("r1"))
    recording.begin()
    assert refused(store, ask("r2")).reason is Limit.REQUESTS_PER_MINUTE
    assert recording.calls == ["get_item"]
    assert recording.units == 0


def test_T10_other_calls_are_counted_too(store: DynamoDBStore, recording: Recording) -> None:
    first = add(store, limits=EVERYTHING)
    recording.begin()
    store.find_token(first.digest, NOON)
    assert recording.calls == ["get_item", "batch_get_item"], "a token is looked up"
    cold = another(store, recording)
    recording.begin()
    lease = admitted(cold, ask("r1"))
    assert recording.calls == ["get_item", "get_item", "put_item", "update_item"], "cold, first"
    cold = another(store, recording)
    recording.begin()
    admitted(cold, ask("r2"))
    assert recording.calls == ["get_item", "get_item", "update_item"], "cold"
    recording.begin()
    store.finish(used(lease), lease)
    assert recording.calls == ["get_item", "put_item", "update_item"], "settled elsewhere"
    lease = admitted(store, ask("r3"))
    recording.begin()
    store.renew(lease, NOON + 150_000)
    assert recording.calls == ["update_item"]
    recording.begin()
    store.release(lease.request)
    assert recording.calls == ["get_item", "update_item"]


# --- the expressions themselves -----------------------------------------------------------------


def stubbed(emulator: dynamodb.Emulator) -> tuple[DynamoDBStore, Stubber]:
    client = emulator.client()
    return DynamoDBStore("table", client, reap_at_admission=False), Stubber(client)


def test_the_expressions_of_a_request_are_these(emulator: dynamodb.Emulator) -> None:
    """What is sent to DynamoDB is part of what must not change by accident."""
    store, stub = stubbed(emulator)
    limits = Limits(
        requests_per_minute=60, tokens_per_minute=6_000, concurrency=3, tokens_per_day=9_000
    )
    settings = Settings(status=CustomerStatus.ACTIVE, limits=limits, keys={"key-ann": Terms()})
    item = fresh_gate("ann", settings)
    empty_r, empty_t = NOON * 60, NOON * 6_000
    item |= {
        name: {"N": str(value)}
        for name, value in {
            "ck": NOON - 10,
            "rr": 60,
            "rs": NOON - 10,
            "rt": empty_r + 59_400,
            "tr": 6_000,
            "ts": NOON - 10,
            "tt": empty_t + 6_000_000,
            "gn": NOON // 1000,
            "t1": empty_t - 5,
            "d1": 6_000_005,
            "t2": empty_t + 7,
            "d2": 5_999_993,
            "dr": 1,
            "dt": 100,
            "dc": 5,
            "mr": 1,
            "mt": 100,
            "mc": 5,
        }.items()
    }
    shape = store._table.shapes
    request = ask("r1", NOON)
    from bedrock_proxy_adapters.stores.dynamodb.gate import _SHAPE
    from bedrock_proxy_adapters.stores.rows import dump

    text = dump([getattr(request, field) for field in _SHAPE])
    shape.put(text, b"shape!")
    packed = (
        bytes((1 | 2 | 8 | 16,))
        + b"shape!"
        + packing._signed(NOON)
        + packing._span(LEASE_MS)
        + packing._number(10)
        + packing._number(90)
        + packing._number(1_000)
        + packing._signed(0)
        + b"theirs"
    )
    stub.add_response(
        "get_item",
        {"Item": item},
        {"TableName": "table", "Key": gate_key("ann"), "ConsistentRead": True},
    )
    held = item | {"L": {"M": {"=r1": {"B": packed}}}, "ck": {"N": str(NOON)}}
    stub.add_response(
        "update_item",
        {"Attributes": held},
        {
            "TableName": "table",
            "Key": gate_key("ann"),
            "UpdateExpression": (
                "SET ck = :now, rt = rt + :minute, tt = tt + :t_units, t1 = :t_full,"
                " d1 = tt - :t_empty, t2 = t2 + :t_units, dr = dr + :one, dt = dt + :tokens,"
                " dc = dc + :cost, mr = mr + :one, mt = mt + :tokens, mc = mc + :cost,"
                " L.#r = :r"
            ),
            "ConditionExpression": (
                "cv = :cv AND size(L) < :places AND ck BETWEEN :day AND :now"
                " AND rt BETWEEN :r_empty AND :r_room AND gn = :gn"
                " AND tt BETWEEN :t_empty AND :t_room AND t1 < :t_empty AND t2 >= :t_empty"
                " AND dt <= :dt_room AND attribute_not_exists(L.#r)"
            ),
            "ExpressionAttributeNames": {"#r": "=r1"},
            "ExpressionAttributeValues": {
                ":cv": {"N": "0"},
                ":places": {"N": "3"},
                ":day": {"N": str(NOON - 12 * 60 * MINUTE)},
                ":now": {"N": str(NOON)},
                ":minute": {"N": "60000"},
                ":r_empty": {"N": str(empty_r)},
                ":r_room": {"N": str(empty_r + 59 * 60_000)},
                ":gn": {"N": str(NOON // 1000)},
                ":t_empty": {"N": str(empty_t)},
                ":t_room": {"N": str(empty_t + 5_900 * 60_000)},
                ":t_units": {"N": "6000000"},
                ":t_full": {"N": str(empty_t + 6_000_000)},
                ":one": {"N": "1"},
                ":tokens": {"N": "100"},
                ":cost": {"N": "1000"},
                ":dt_room": {"N": "8900"},
                ":r": {"B": packed},
            },
            "ReturnValues": "ALL_NEW",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        },
    )
    with stub:
        lease = admitted(store, request)
        record = used(lease)
        row = {
            "pk": {"S": "L#ann"},
            "sk": {"S": f"00{NOON}/r1"},
            **{
                name: {"N": str(value)} if type(value) is int else {"S": str(value)}
                for name, value in record.as_dict().items()
                if value is not None
            },
            "stream": {"BOOL": True},
        }
        stub.add_response(
            "put_item",
            {},
            {
                "TableName": "table",
                "Item": row,
                "ConditionExpression": "attribute_not_exists(pk)",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            },
        )
        stub.add_response(
            "update_item",
            {"Attributes": item},
            {
                "TableName": "table",
                "Key": gate_key("ann"),
                "UpdateExpression": (
                    "SET dt = dt - :tokens, mt = mt - :tokens, dc = dc - :cost, mc = mc - :cost,"
                    " tt = tt - :refund, d1 = d1 - :refund, d2 = d2 - :refund REMOVE L.#r"
                ),
                "ConditionExpression": (
                    "attribute_exists(L.#r) AND ck BETWEEN :begin AND :end AND gn = :gn"
                    " AND d1 >= :refund"
                ),
                "ExpressionAttributeNames": {"#r": "=r1"},
                "ExpressionAttributeValues": {
                    ":begin": {"N": str(NOON - 12 * 60 * MINUTE)},
                    ":end": {"N": str(NOON + 12 * 60 * MINUTE - 1)},
                    ":tokens": {"N": "70"},
                    ":cost": {"N": "700"},
                    ":gn": {"N": str(NOON // 1000)},
                    ":refund": {"N": str(70 * 60_000)},
                },
                "ReturnValues": "ALL_NEW",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            },
        )
        store.finish(record, lease)
        stub.assert_no_pending_responses()


TURN = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp() * 1000)
CLOCKS = st.sampled_from(
    [
        at
        for turn in (TURN - 2 * DAY_MS, TURN - DAY_MS, TURN, TURN + DAY_MS, TURN + 30 * DAY_MS)
        for at in (turn - 1, turn, turn + 1, turn + DAY_MS // 2)
    ]
)


def image_at(clock: int) -> Image:
    settings = Settings(status=CustomerStatus.ACTIVE, limits=Limits(), keys={})
    return image_of("ann", fresh_gate("ann", settings) | {"ck": {"N": str(clock)}})


def allows(parameters: Any, clock: int) -> bool:
    """What the condition says of an item with this clock, as far as it speaks of the clock."""
    values = {name: int(said.get("N", 0)) for name, said in _values(parameters).items()}
    condition = parameters["ConditionExpression"]
    between = re.search(r"ck BETWEEN (:\w+) AND (:\w+)", condition)
    if between is not None:
        return values[between[1]] <= clock <= values[between[2]]
    from_on = re.search(r"ck >= (:\w+)", condition)
    assert from_on is not None, condition
    return clock >= values[from_on[1]]


def _values(parameters: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = parameters["ExpressionAttributeValues"]
    return found


@given(at=CLOCKS, remembered=CLOCKS, clock=CLOCKS)
def test_A08_A09_a_request_is_counted_by_the_clock_that_the_item_has(
    at: int, remembered: int, clock: int
) -> None:
    """Whatever clock a process remembers, later or earlier: what it writes is what is so now."""
    held = Held(
        shape=b"shape!",
        at=at,
        deadline=at + LEASE_MS,
        input_tokens=10,
        output_tokens=90,
        cost_nanousd=None,
        took_request=False,
        generation=None,
        client_request_id=None,
    )
    update = expressions.settlement_update(image_at(remembered), "r1", held, 30, 0, at).parameters()
    if clock == remembered:
        assert allows(update, clock)
    if allows(update, clock):
        counted = [part for part in ("dt", "mt") if f"{part} = {part} - " in str(update)]
        same_day, same_month = day_of(at) == day_of(clock), month_of(at) == month_of(clock)
        assert counted == ["dt"] * same_day + ["mt"] * same_month


# --- replies that are lost ----------------------------------------------------------------------


def audit(store: DynamoDBStore, called: set[str]) -> None:
    """What must be true once the spool is replayed and the reaper has run."""
    store.reap(NOON + 10 * LEASE_MS)
    found = rows(store)
    ids = [row.request_id for row in found]
    assert len(ids) == len(set(ids)), "a request has two rows"
    assert called <= set(ids), "a row was lost"
    assert store.open_leases() == ()
    state = store.gate_state("ann")
    assert state.day_requests == len(found)
    assert state.day_tokens == sum(row.token_count for row in found)
    assert state.day_cost == sum(row.cost_nanousd or 0 for row in found)


FAULTS = ["refused", "lost", "killed before", "killed after"]


class Life:
    """What one process does: what the store does not take is spooled, or given back."""

    def __init__(self, store: DynamoDBStore, number: int) -> None:
        self.store = store
        self.number = number
        self.called: set[str] = set()
        self.left: list[Callable[[], Any]] = []

    def admit(self, name: str) -> Any:
        request = ask(f"{self.number}-{name}", NOON + self.number)
        try:
            decision = self.store.admit(request)
        except StoreUnavailable:
            self.left.append(lambda: self.store.release(request))
            return None
        assert isinstance(decision, Grant)
        self.called.add(request.request_id)
        return decision.lease

    def finish(self, lease: Any, tokens: int, **more: Any) -> None:
        if lease is not None:
            record = used(lease, tokens, **more)
            self.left.append(lambda: self.store.finish(record, lease))
            with suppress(StoreUnavailable):
                self.store.finish(record, lease)

    def live(self) -> None:
        """A request, cold; one that is warm; one that the reaper settles before it ends."""
        for number in range(2):
            self.finish(self.admit(str(number)), 40 + number)
        late = self.admit("late")
        with suppress(StoreUnavailable):
            self.store.reap(NOON + self.number + LEASE_MS)
        self.finish(late, 33, duration_ms=LEASE_MS)


@pytest.mark.parametrize("how", FAULTS)
def test_A01_A03_whichever_call_fails_nothing_is_lost_doubled_or_held(
    store: DynamoDBStore, recording: Recording, how: str
) -> None:
    add(store, limits=EVERYTHING)
    recording.how = how
    called: set[str] = set()
    number = 0
    while True:
        life = Life(another(store, recording), number)
        recording.begin()
        recording.fails_at = number
        with suppress(Killed):
            life.live()
        recording.fails_at = None
        over = number >= len(recording.calls)
        for again in life.left:  # the store is back
            again()
        called |= life.called
        if over:
            break
        number += 1
    print(f"A01/A03 {how}: {number} calls, each of which failed once")
    assert number >= 15
    audit(store, called)


def test_A03_a_reply_that_botocore_lost_and_asked_for_again_counts_once(
    emulator: dynamodb.Emulator,
) -> None:
    client = emulator.client(retries={"total_max_attempts": 3, "mode": "standard"})
    store = DynamoDBStore(emulator.table(), client, reap_at_admission=False)
    lost: list[str] = []
    losing = True

    def lose_the_first_reply(request: Any, **more: Any) -> None:
        target = request.headers["X-Amz-Target"]
        name = (target.decode() if isinstance(target, bytes) else target).rpartition(".")[2]
        if losing and name in {"UpdateItem", "PutItem"} and (not lost or lost[-1] != name):
            lost.append(name)
            client._endpoint.http_session.send(request)
            raise broken()
        if lost and lost[-1] == name:
            lost.append("")

    add(store, limits=EVERYTHING)
    client.meta.events.register("before-send.dynamodb", lose_the_first_reply)
    for number in range(3):
        lease = admitted(store, ask(f"r{number}"))
        store.finish(used(lease), lease)
    lease = admitted(store, ask("late"))
    store.reap(NOON + LEASE_MS)
    store.finish(used(lease, 44, duration_ms=LEASE_MS), lease)
    store.update_customer("ann", lambda customer: evolve(customer, name="B", limits=Limits()))
    store.add_key("ann", key("second"), NOON)
    losing = False
    assert lost.count("UpdateItem") >= 8
    assert lost.count("PutItem") >= 5
    assert [row.token_count for row in rows(store)] == [44, 30, 30, 30]
    assert (store.get_customer("ann").name, len(store.list_keys("ann"))) == ("B", 2)
    audit(store, {"r0", "r1", "r2", "late"})
    client.close()


def test_a_customer_that_everybody_writes_to_is_503_and_not_a_hang(
    store: DynamoDBStore, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store)
    admitted(store, ask("r1"))
    monkeypatch.setattr(connection, "_LONGEST_WAIT", 0.01)

    def always_too_late(self: connection.Table, customer_id: str, update: Any) -> Any:
        recording.calls.append("try")
        return connection.Refused(None)

    monkeypatch.setattr(connection.Table, "update", always_too_late)
    recording.begin()
    with pytest.raises(StoreUnavailable):
        store.admit(ask("r2"))
    assert recording.calls.count("try") == connection.TRIES


# --- counting again beside the requests ---------------------------------------------------------


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["estimated", "forgotten"])
def test_A07_A13_a_true_figure_that_comes_while_counters_are_rebuilt_counts_once(
    store: DynamoDBStore, emulator: dynamodb.Emulator, is_forgotten: bool
) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    if is_forgotten:
        store.release(lease.request)
    else:
        store.reap(NOON + LEASE_MS)
    client = Recording(emulator.shared_client)
    server = another(store, client)
    truth = used(lease, 30, 300, duration_ms=LEASE_MS)

    def correct_and_die(name: str) -> None:
        if name == "query" and watched.before is not None:
            watched.before = None
            # Announced, and the row is written; the counters are still to come.
            client.before = lambda name: client.calls[-1:] == ["put_item"] and die()
            with suppress(Killed):
                server.finish(truth, lease)

    def die() -> None:
        raise Killed

    watched = Recording(emulator.shared_client)
    watched.before = correct_and_die
    another(store, watched).rebuild(NOON, "ann")
    audit(store, {"r1"})
    assert [row.token_count for row in rows(store)] == [30]


def counters(state: GateState) -> tuple[int, ...]:
    return (
        *(state.day_requests, state.day_tokens, state.day_cost),
        *(state.month_requests, state.month_tokens, state.month_cost),
    )


def truth(store: DynamoDBStore, customer_id: str) -> tuple[int, ...]:
    """What the counters ought to be."""
    state = store.gate_state(customer_id)
    found = [
        (row.admitted_at, row.token_count, row.cost_nanousd or 0)
        for row in rows(store, customer_id=customer_id)
    ] + [
        (lease.request.at, lease.tokens, lease.cost_nanousd)
        for lease in store.open_leases(customer_id)
    ]
    of_day = [each for each in found if day_of(each[0]) == state.day]
    of_month = [each for each in found if month_of(each[0]) == state.month]
    return tuple(
        number
        for period in (of_day, of_month)
        for number in (len(period), sum(e[1] for e in period), sum(e[2] for e in period))
    )


class Served:
    """A customer who goes on being served, by a process of its own, and whose counters are wrong."""

    def __init__(self, store: DynamoDBStore, client: Any, name: str, ahead: int) -> None:
        self.store, self.name = store, name
        self.server = another(store, client)
        self.number = 0
        add(store, name, Limits(tokens_per_minute=10**6, tokens_per_day=10**6))
        self.early = [self.admit(NOON) for _ in range(4)]
        for lease in (self.admit(NOON), self.admit(NOON)):
            self.server.finish(used(lease), lease)
        self.clock = NOON + ahead
        self.open = [self.admit(self.clock) for _ in range(4)]
        for lease in (self.admit(self.clock), self.admit(self.clock)):
            self.server.finish(used(lease), lease)
        client.update_item(
            TableName=store.table,
            Key=gate_key(name),
            UpdateExpression="SET dt = dt + :n, mr = mr - :n, mc = mc + :n",
            ExpressionAttributeValues={":n": {"N": "7"}},
        )

    def admit(self, at: int) -> Any:
        self.number += 1
        return admitted(self.server, ask(f"{self.name}-{self.number}", at, self.name))

    def serve(self) -> None:
        """A call from end to end, one that does not come to be, two that begin and two that end."""
        lease = self.admit(self.clock)
        self.server.finish(used(lease, 11, 12), lease)
        self.open += [self.admit(self.clock), self.admit(self.clock)]
        if self.early:
            lease = self.early.pop()
            self.server.finish(used(lease, 130, 140), lease)
        lease = self.open.pop(0)
        self.server.finish(used(lease, 15, 16), lease)
        self.server.release(self.admit(self.clock).request)


AHEAD = pytest.mark.parametrize(
    "ahead",
    [0, 2 * 60 * MINUTE, DAY_MS, 20 * DAY_MS],
    ids=["in time", "hours ahead", "a day ahead", "a month ahead"],
)
MOVES = pytest.mark.parametrize("moves", [0, 1], ids=["clock stands", "clock moves"])


def recount_beside(store: DynamoDBStore, client: Any, ahead: int, moves: int, turn: int) -> int:
    """A recount while a customer is served before its call *turn*, or before each; how many."""
    customer = Served(store, client, f"c{turn}", ahead)
    watched = Recording(client)

    def serve(name: str) -> None:
        if turn in {len(watched.calls), -1}:
            # Every machine's clock is right by now.
            customer.clock = NOON + moves * len(watched.calls)
            customer.serve()

    watched.before = serve
    another(store, watched).rebuild(NOON, customer.name, set_clock=True)
    assert store.gate_state(customer.name).clock <= NOON + MINUTE
    assert counters(store.gate_state(customer.name)) == truth(store, customer.name)
    for lease in customer.early + customer.open:
        customer.server.finish(used(lease, 17, 18), lease)
    assert counters(store.gate_state(customer.name)) == truth(store, customer.name)
    assert store.open_leases(customer.name) == ()
    return len(watched.calls)


@AHEAD
@MOVES
def test_A08_A13_counters_are_put_right_beside_a_customer_who_is_served(
    store: DynamoDBStore, emulator: dynamodb.Emulator, ahead: int, moves: int
) -> None:
    recount_beside(store, emulator.shared_client, ahead, moves, 4)


@pytest.mark.slow
@AHEAD
@MOVES
def test_A08_A13_counters_are_put_right_whatever_is_served_between_two_calls(
    store: DynamoDBStore, emulator: dynamodb.Emulator, ahead: int, moves: int
) -> None:
    recount_beside(store, emulator.shared_client, ahead, moves, -1)
    turn = 0
    while turn < recount_beside(store, emulator.shared_client, ahead, moves, turn):
        turn += 1


def test_A13_a_customer_that_cannot_be_recounted_is_named_and_the_others_are(
    store: DynamoDBStore, emulator: dynamodb.Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ann", "bob", "cid"):
        add(store, name)
        emulator.shared_client.update_item(
            TableName=store.table,
            Key=gate_key(name),
            UpdateExpression="SET mt = :n",
            ExpressionAttributeValues={":n": {"N": "7"}},
        )
    update = connection.Table.update

    def too_late(self: connection.Table, customer_id: str, asked: Any) -> Any:
        if customer_id == "bob":
            return connection.Refused(None)
        return update(self, customer_id, asked)

    monkeypatch.setattr(connection, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(connection.Table, "update", too_late)
    with pytest.raises(StoreUnavailable, match=r"^1 of 3 customers .*: bob\.$"):
        store.rebuild(NOON)
    assert [store.gate_state(name).month_tokens for name in ("ann", "bob", "cid")] == [0, 7, 0]


# --- down, slow, and back -----------------------------------------------------------------------


def test_a_store_that_is_down_slow_and_back_admits_nothing_meanwhile_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = dynamodb.start("ministack")
    try:
        for name, value in dynamodb.CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(connection, "READ_TIMEOUT", 0.2)
        monkeypatch.setattr(connection, "ATTEMPTS", 2)
        table = emulator.table()
        store = DynamoDBStore(table, endpoint_url=emulator.url, reap_at_admission=False)
        first = add(store)
        assert store.find_token(first.digest, NOON)
        lease, other = admitted(store, ask("r1")), admitted(store, ask("r2"))
        emulator.pause()
        for call in (
            lambda: store.admit(ask("r3")),
            lambda: store.finish(used(lease), lease),
            lambda: store.find_token(b"unknown", NOON),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - began < 30, "slow is an answer, not a hang"
        assert store.find_token(first.digest, NOON + CACHE_MS - 1), "known tokens are remembered"
        emulator.resume()
        store.release(ask("r3"))  # it may have arrived after all
        store.finish(used(lease), lease)
        assert [row.request_id for row in rows(store)] == ["r1"]
        emulator.stop()
        with pytest.raises(StoreUnavailable) as refused:
            store.admit(ask("r4"))
        assert refused.value.retry_after == 5
        assert store.find_token(first.digest, NOON + CACHE_MS - 1)
        with pytest.raises(StoreUnavailable):
            store.find_token(first.digest, NOON + CACHE_MS)
        with pytest.raises(StoreUnavailable) as down:
            store.finish(used(other), other)
        assert "127.0.0.1" not in down.value.message, "the client learns nothing of the inside"
        assert "127.0.0.1" in str(down.value.__cause__)
        store.close()
    finally:
        emulator.stop()


# --- several processes' views -------------------------------------------------------------------


def test_two_proxies_share_limits_and_know_of_each_others_changes_at_the_next_request(
    store: DynamoDBStore, emulator: dynamodb.Emulator
) -> None:
    other = another(store, emulator.shared_client)
    first = add(store, limits=Limits(requests_per_minute=4, concurrency=10))
    second = key("second")
    store.add_key("ann", second, NOON)
    for each in (store, other, store, other):
        assert each.find_token(first.digest, NOON)
        admitted(each, ask(f"r{time.monotonic_ns()}"))
    for each in (store, other):
        assert refused(each, ask("no")).reason is Limit.REQUESTS_PER_MINUTE
    other.update_customer("ann", lambda c: evolve(c, limits=Limits(requests_per_minute=5)))
    admitted(store, ask("more"))
    other.update_customer("ann", lambda c: evolve(c, limits=Limits()))
    admitted(store, ask("still more"))
    other.revoke_key("ann", first.key_id)
    assert store.find_token(first.digest, NOON + 1), "remembered"
    assert refused(store, ask("late")).reason is Barred.KEY_GONE
    admitted(store, ask("with the other key", key_id="second"))
    other.update_customer("ann", lambda c: evolve(c, status=CustomerStatus.DISABLED))
    assert refused(store, ask("last", key_id="second")).reason is Barred.CUSTOMER_DISABLED


def test_a_lease_of_another_process_is_renewed_reaped_and_released_here(
    store: DynamoDBStore, emulator: dynamodb.Emulator
) -> None:
    other = another(store, emulator.shared_client)
    add(store, limits=EVERYTHING)
    one, two, three = (admitted(store, ask(f"r{n}")) for n in range(3))
    assert other.open_leases() == (one, two, three)
    longer = other.renew(one, NOON + 100_000)
    assert store.open_leases() == (two, three, longer)
    other.release(two.request)
    assert other.reap(NOON + LEASE_MS) == 1
    store.finish(used(one), one)
    assert [(row.request_id, row.state) for row in rows(store)] == [
        ("r0", State.FINAL),
        ("r2", State.ESTIMATED),
    ]
    audit(store, {"r0", "r2"})


@pytest.mark.parametrize("limits", [Limits(), Limits(requests_per_minute=1, tokens_per_minute=200)])
def test_A08_nobody_admits_by_the_clock_that_he_remembers_after_it_was_put_back(
    store: DynamoDBStore, emulator: dynamodb.Emulator, limits: Limits
) -> None:
    add(store, limits=limits)
    other = another(store, emulator.client())
    hours = 3 * 60 * MINUTE
    wrong = admitted(other, ask("wrong", NOON + hours))
    other.release(wrong.request)  # so that its bucket is empty, by that clock
    store.rebuild(NOON, set_clock=True)
    first = admitted(other, ask("r1", NOON))
    assert first.request.at == NOON
    other.finish(used(first), first)
    assert admitted(store, ask("r2", NOON + MINUTE)).request.at == NOON + MINUTE
    assert store.gate_state("ann").clock == NOON + MINUTE
    audited = store.gate_state("ann")
    store.rebuild(NOON + MINUTE)
    assert store.gate_state("ann") == audited


def test_A08_it_is_the_deadline_in_the_table_that_is_renewed(
    store: DynamoDBStore, recording: Recording, emulator: dynamodb.Emulator
) -> None:
    """Whatever the process that runs the stream remembers: an operator may have shortened it."""
    add(store)
    lease = store.renew(admitted(store, ask("r1")), NOON + 3 * DAY_MS)
    operator = another(store, emulator.shared_client)
    now = NOON + MINUTE
    operator.rebuild(now, set_clock=True)
    recording.begin()
    lease = store.renew(lease, now + 1)
    assert recording.calls == ["get_item", "update_item"]
    recording.begin()
    lease = store.renew(lease, now + LEASE_MS // 2)
    assert recording.calls == ["update_item"], "as ever"
    assert operator.open_leases() == (lease,)
    longer = operator.renew(lease, now + LEASE_MS)
    assert store.renew(lease, now + LEASE_MS - 1) == longer, "never back"
    assert operator.open_leases() == (longer,)


def test_a_lease_whose_shape_is_gone_keeps_no_other_from_being_settled(
    emulator: dynamodb.Emulator,
    store: DynamoDBStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "_seldom", Seldom())
    add(store, "ann")
    add(store, "bob")
    admitted(store, ask("a1"))
    for number in range(3):
        admitted(store, ask(f"b{number}", NOON + number, "bob", model="other"))
    client = emulator.client()
    name = store._table.name
    shapes = [i for i in client.scan(TableName=name)["Items"] if i["pk"]["S"].startswith("S#")]
    [gone] = [each for each in shapes if "other" not in each["body"]["S"]]
    client.delete_item(TableName=name, Key={"pk": gone["pk"], "sk": gone["sk"]})
    other = another(store, client)
    with caplog.at_level("WARNING", "bedrock_proxy"):
        assert other.reap(NOON + 2 * LEASE_MS) == 3
        assert other.reap(NOON + 2 * LEASE_MS) == 0
    assert [row.request_id for row in rows(other)] == ["b0", "b1", "b2"]
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        f"A lease of ann cannot be settled, and stays: the item {gone['pk']['S']} is"
    )
    assert other.rebuild(NOON, set_clock=True) == 2


def test_settling_elsewhere_refunds_as_much_as_settling_here(
    store: DynamoDBStore, emulator: dynamodb.Emulator
) -> None:
    """In a bucket that does not drain, each of a generation's leases gets its refund."""
    add(store, limits=Limits(tokens_per_minute=1_000))
    leases = [
        admitted(store, ask(f"r{n}", NOON + n, input_tokens=200, output_tokens=0)) for n in range(5)
    ]
    assert refused(store, ask("no", NOON + 5)).reason is Limit.TOKENS_PER_MINUTE
    other = another(store, emulator.shared_client)
    other.finish(used(leases[0], 50, duration_ms=10), leases[0])
    state = store.gate_state("ann")
    assert state.tokens.units == 1_000 - 150
    admitted(store, ask("yes", NOON + 20, input_tokens=150, output_tokens=0))


def test_what_was_used_beyond_the_reservation_is_charged(store: DynamoDBStore) -> None:
    add(store, limits=Limits(tokens_per_minute=1_000))
    lease = admitted(store, ask("r1"))
    store.finish(used(lease, 950, duration_ms=0), lease)
    assert refused(store, ask("r2")).reason is Limit.TOKENS_PER_MINUTE
    lease = admitted(store, ask("r3", NOON + MINUTE))
    store.finish(used(lease, 1_500, duration_ms=5 * MINUTE), lease)
    assert refused(store, ask("r4", NOON + 6 * MINUTE)).retry_after == 30
    assert store.gate_state("ann").day_tokens == 2_450


def test_more_expired_leases_than_can_be_named_wait_for_the_reaper(store: DynamoDBStore) -> None:
    add(store, limits=Limits(concurrency=102))
    for number in range(102):
        admitted(store, ask(f"old{number:03}"))
    later = NOON + LEASE_MS
    for number in range(100):
        admitted(store, ask(f"new{number:03}", later))
    assert refused(store, ask("one more", later)).reason is Limit.CONCURRENCY
    assert store.reap(later) == 102
    admitted(store, ask("one more", later))


def test_admission_settles_what_is_overdue_without_making_the_request_wait(
    emulator: dynamodb.Emulator,
) -> None:
    store = DynamoDBStore(emulator.table(), emulator.shared_client)
    add(store)
    admitted(store, ask("forgotten"))
    admitted(store, ask("next", NOON + LEASE_MS + 1_000))
    for thread in threading.enumerate():
        if thread.name == "bedrock-proxy-reap":
            thread.join(30)
    assert [row.request_id for row in rows(store)] == ["forgotten"]
    assert [each.request.request_id for each in store.open_leases()] == ["next"]


def test_rows_may_expire_but_not_before_their_month_is_over(emulator: dynamodb.Emulator) -> None:
    with pytest.raises(ConfigurationError, match="32 days"):
        DynamoDBStore("table", emulator.shared_client, ledger_days=31)
    store = DynamoDBStore(emulator.table(), emulator.shared_client, ledger_days=400)
    add(store)
    lease = admitted(store, ask("r1"))
    store.finish(used(lease), lease)
    (item,) = emulator.shared_client.query(
        TableName=store.table,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": "L#ann"}},
    )["Items"]
    assert int(item["ttl"]["N"]) == NOON // 1000 + 400 * 86_400
    assert len(rows(store)) == 1


# --- customers ----------------------------------------------------------------------------------


def test_a_token_left_by_an_interrupted_creation_becomes_free(
    store: DynamoDBStore, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.begin()
    recording.fails_at, recording.how = 3, "killed before"
    with pytest.raises(Killed):
        add(store)
    recording.fails_at = None
    digest = key("key-ann").digest
    assert store.find_token(digest, NOON) is None
    assert store.list_customers().items == ()
    bob = evolve(key("key-bob"), digest=digest)
    with pytest.raises(AlreadyTaken):
        store.create_customer(Customer(id="bob", name="B", email="b", created_at=NOON), bob)
    later = time.time_ns() + 61 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)
    store.create_customer(Customer(id="bob", name="B", email="b", created_at=NOON), bob)
    owner = store.find_token(digest, NOON)
    assert owner is not None
    assert owner.customer_id == "bob"


def test_A07_an_estimate_is_corrected_once_by_all_who_try_at_once(store: DynamoDBStore) -> None:
    add(store)
    for turn in range(5):
        lease = admitted(store, ask(f"r{turn}"))
        store.reap(NOON + LEASE_MS)
        threads = [
            threading.Thread(
                target=store.finish,
                args=(used(lease, 10 + n, n, duration_ms=LEASE_MS, basis=Basis.REPORTED), lease),
            )
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    audit(store, {f"r{turn}" for turn in range(5)})
    assert all(row.state is State.FINAL for row in rows(store))


# --- where it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "dynamodb://",
        "dynamodb://?region=us-east-1",
        "dynamodb://table/path",
        "dynamodb://table?regoin=us-east-1",
        "dynamodb://table?region=",
        "dynamodb://table?region=a&region=b",
        "dynamodb://table?ledger_days=many",
    ],
)
def test_an_url_that_names_no_table_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not of the form dynamodb://table"):
        DynamoDBStore.from_url(url)


def test_no_region_is_a_sentence_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigurationError, match="No AWS region"):
        DynamoDBStore.from_url("dynamodb://table")


def test_a_missing_table_names_the_command_that_makes_it(emulator: dynamodb.Emulator) -> None:
    store = DynamoDBStore("not-there", emulator.shared_client)
    with pytest.raises(StoreUnavailable) as missing:
        store.list_customers()
    assert "`bedrock-proxy store create`" in str(missing.value.__cause__)


def test_making_the_table_says_what_was_done_and_may_be_repeated(
    emulator: dynamodb.Emulator,
) -> None:
    store = DynamoDBStore("made-here", emulator.shared_client)
    first, again = store.create_table(), store.create_table()
    assert (first.is_new, again.is_new) == (True, False)
    assert (first.table, first.region) == ("made-here", "us-east-1")
    on = emulator.name == "ministack"  # dynalite has neither
    assert (again.recovery, again.expiry, len(again.refused)) == (on, on, 0 if on else 2)
    add(store)
    emulator.shared_client.delete_table(TableName="made-here")


def test_a_table_of_another_kind_is_left_alone(emulator: dynamodb.Emulator) -> None:
    emulator.shared_client.create_table(
        TableName="theirs",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    with pytest.raises(ConfigurationError, match="of another kind"):
        DynamoDBStore("theirs", emulator.shared_client).create_table()
    emulator.shared_client.delete_table(TableName="theirs")
