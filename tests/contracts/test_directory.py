"""Every store: customers, their keys, and whose token it is."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from tests.contracts.factories import FACTORIES, StoreFactory
from tests.contracts.stories import MINUTE, NOON, add, admitted, ask, key, refused

from bedrock_proxy.admission import Barred
from bedrock_proxy.customers import (
    AlreadyTaken,
    Customer,
    CustomerNotFound,
    CustomerStatus,
    KeyNotFound,
    Limits,
    TooManyKeys,
)
from bedrock_proxy.store import CACHE_MS, every_customer

HOUR = 60 * MINUTE


def test_a_token_leads_to_its_owner_and_an_unknown_one_to_nobody(store: Any) -> None:
    first = add(store, models=frozenset({"model-1", "model-2"}))
    owner = store.find_token(first.digest, NOON)
    assert owner.customer_id == "ann"
    assert owner.key == first
    assert owner.models == frozenset({"model-1", "model-2"})
    assert owner.status is CustomerStatus.ACTIVE
    assert store.find_token(b"nobody", NOON) is None
    assert store.find_token(b"nobody", NOON + 1) is None


def test_an_empty_allow_list_is_not_every_model(store: Any) -> None:
    one = add(store, "ann", models=frozenset())
    other = add(store, "bob", models=None)
    assert store.find_token(one.digest, NOON).models == frozenset()
    assert store.find_token(other.digest, NOON).models is None


def test_a_customer_is_kept_as_given(store: Any) -> None:
    limits = Limits(requests_per_minute=1, burst=0, tokens_per_month=10**15, cost_per_day=10**17)
    add(store, limits=limits, models=frozenset({"m"}))
    customer = store.get_customer("ann")
    assert (customer.name, customer.email, customer.created_at) == (
        "Ann",
        "ann@example.com",
        NOON,
    )
    assert customer.limits == limits
    with pytest.raises(CustomerNotFound, match="bob"):
        store.get_customer("bob")


def test_no_two_customers_share_an_id_a_key_or_a_token(store: Any) -> None:
    first = add(store)
    with pytest.raises(AlreadyTaken):
        add(store)
    stranger = evolve(store.get_customer("ann"), id="bob")
    for taken in (evolve(key("fresh"), digest=first.digest), evolve(key("x"), key_id=first.key_id)):
        with pytest.raises(AlreadyTaken):
            store.create_customer(stranger, taken)
        with pytest.raises(AlreadyTaken):
            store.add_key("ann", taken, NOON)
    with pytest.raises(CustomerNotFound):
        store.get_customer("bob")


def test_customers_are_listed_by_pages(store: Any) -> None:
    names = [f"c{number:02}" for number in range(7)]
    for name in reversed(names):
        add(store, name)
    first = store.list_customers(limit=3)
    assert [each.id for each in first.items] == names[:3]
    second = store.list_customers(limit=3, after=first.next)
    last = store.list_customers(limit=3, after=second.next)
    assert [each.id for each in (*second.items, *last.items)] == names[3:]
    assert last.next is None
    assert store.list_customers(limit=7).next is None
    assert [each.id for each in every_customer(store)] == names


def test_I12_a_disabled_customer_is_barred_from_the_next_admission(store: Any) -> None:
    add(store)
    admitted(store, ask("r1"))
    changed = store.update_customer(
        "ann", lambda customer: evolve(customer, status=CustomerStatus.DISABLED, id="other")
    )
    assert (changed.id, changed.status) == ("ann", CustomerStatus.DISABLED)
    refusal = refused(store, ask("r2"))
    assert (refusal.reason, refusal.retry_after) == (Barred.CUSTOMER_DISABLED, None)
    store.update_customer("ann", lambda customer: evolve(customer, status=CustomerStatus.ACTIVE))
    admitted(store, ask("r3"))
    with pytest.raises(CustomerNotFound):
        store.update_customer("nobody", lambda customer: customer)


def test_I12_a_revoked_key_admits_nothing_even_where_its_token_is_remembered(store: Any) -> None:
    first = add(store)
    store.add_key("ann", key("second"), NOON)
    assert store.find_token(first.digest, NOON)
    store.revoke_key("ann", first.key_id)
    assert refused(store, ask("r1")).reason is Barred.KEY_GONE
    assert store.find_token(first.digest, NOON + 1) is None
    admitted(store, ask("r2", key_id="second"))
    with pytest.raises(KeyNotFound):
        store.revoke_key("ann", first.key_id)
    with pytest.raises(CustomerNotFound):
        store.revoke_key("nobody", "second")


def test_I12_a_standing_tells_who_is_shut_out_even_where_the_token_is_remembered(
    factory: StoreFactory, store: Any, tmp_path: Path
) -> None:
    first = add(store)
    brief = key("brief", expires_at=NOON + 5_000)
    store.add_key("ann", brief, NOON)
    assert store.find_token(first.digest, NOON)
    standing = store.standing("ann", NOON + 4_999)
    assert (standing.status, standing.keys) == (CustomerStatus.ACTIVE, {first.key_id, "brief"})
    assert store.standing("ann", NOON + 5_000).keys == {first.key_id}
    elsewhere = factory.make(tmp_path) if factory.is_durable else store
    elsewhere.revoke_key("ann", first.key_id)
    elsewhere.update_customer("ann", lambda known: evolve(known, status=CustomerStatus.DISABLED))
    standing = store.standing("ann", NOON + 1)
    assert (standing.status, standing.keys) == (CustomerStatus.DISABLED, {"brief"})


@pytest.mark.parametrize(
    "factory", [each for each in FACTORIES if each.is_durable], ids=lambda factory: factory.name
)
def test_I12_a_token_is_forgotten_once_admission_said_that_its_key_is_gone(
    factory: StoreFactory, tmp_path: Path
) -> None:
    store, elsewhere = factory.make(tmp_path), factory.make(tmp_path)
    first, other = add(store), add(store, "bob")
    assert store.find_token(first.digest, NOON)
    assert store.find_token(other.digest, NOON)
    elsewhere.revoke_key("ann", first.key_id)
    assert store.find_token(first.digest, NOON), "remembered"
    assert refused(store, ask("r1")).reason is Barred.KEY_GONE
    assert store.find_token(first.digest, NOON) is None
    assert store.find_token(other.digest, NOON)
    store.close()
    elsewhere.close()


def test_a_key_of_somebody_else_admits_nothing(store: Any) -> None:
    add(store, "ann")
    add(store, "bob")
    assert refused(store, ask("r1", key_id="key-bob")).reason is Barred.KEY_GONE
    assert refused(store, ask("r2", customer_id="nobody")).reason is Barred.KEY_GONE


def test_an_expired_key_is_unknown_from_that_millisecond_on(store: Any) -> None:
    add(store)
    brief = key("brief", expires_at=NOON + 5_000)
    store.add_key("ann", brief, NOON)
    assert store.find_token(brief.digest, NOON + 4_999)
    assert store.find_token(brief.digest, NOON + 5_000) is None
    admitted(store, ask("r1", NOON + 4_999, key_id="brief"))
    assert refused(store, ask("r2", NOON + 5_000, key_id="brief")).reason is Barred.KEY_GONE


def test_a_rotated_key_runs_out_after_its_grace_period(store: Any) -> None:
    first = add(store)
    old = store.rotate_key("ann", key("second", NOON + 1), NOON + 1, HOUR)
    assert (old.key_id, old.deprecated_at, old.expires_at) == (
        first.key_id,
        NOON + 1,
        NOON + 1 + HOUR,
    )
    found = store.find_token(first.digest, NOON + 2)
    assert found.key == old
    admitted(store, ask("r1", NOON + 2))
    admitted(store, ask("r2", NOON + 2, key_id="second"))
    assert refused(store, ask("r3", NOON + 1 + HOUR)).reason is Barred.KEY_GONE
    assert store.find_token(first.digest, NOON + 1 + HOUR + CACHE_MS) is None


def test_without_grace_the_old_key_is_gone_at_once(store: Any) -> None:
    first = add(store)
    store.rotate_key("ann", key("second"), NOON, 0)
    assert [each.key_id for each in store.list_keys("ann")] == ["second"]
    assert store.find_token(first.digest, NOON) is None
    assert refused(store, ask("r1")).reason is Barred.KEY_GONE


def test_rotation_takes_the_newest_unless_a_key_is_named(store: Any) -> None:
    add(store)
    store.add_key("ann", key("second", NOON + 5), NOON + 5)
    assert store.rotate_key("ann", key("third", NOON + 9), NOON + 9, HOUR).key_id == "second"
    named = store.rotate_key("ann", key("fourth", NOON + 9), NOON + 9, 0, "key-ann")
    assert named.key_id == "key-ann"
    assert {each.key_id for each in store.list_keys("ann")} == {"second", "third", "fourth"}
    with pytest.raises(KeyNotFound):
        store.rotate_key("ann", key("fifth"), NOON, HOUR, "no-such-key")
    assert len(store.list_keys("ann")) == 3


def test_rotating_twice_does_not_lengthen_the_grace_of_the_first(store: Any) -> None:
    add(store)
    once = store.rotate_key("ann", key("second"), NOON, HOUR)
    twice = store.rotate_key("ann", key("third"), NOON + 9, HOUR, once.key_id)
    assert (twice.deprecated_at, twice.expires_at) == (once.deprecated_at, once.expires_at)


def test_four_keys_are_enough_and_expired_ones_make_room(store: Any) -> None:
    add(store)
    for number in range(2, 5):
        store.add_key("ann", key(f"k{number}", NOON + number, expires_at=NOON + HOUR), NOON)
    with pytest.raises(TooManyKeys):
        store.add_key("ann", key("k5"), NOON)
    with pytest.raises(TooManyKeys):
        store.rotate_key("ann", key("k5"), NOON, HOUR)
    assert len(store.list_keys("ann")) == 4
    store.rotate_key("ann", key("k5"), NOON, 0)
    assert {each.key_id for each in store.list_keys("ann")} == {"key-ann", "k2", "k3", "k5"}
    assert len(store.list_keys("ann")) == 4
    store.add_key("ann", key("k6"), NOON + HOUR)
    assert {each.key_id for each in store.list_keys("ann")} == {"key-ann", "k5", "k6"}
    with pytest.raises(CustomerNotFound):
        store.add_key("nobody", key("k7"), NOON)
    with pytest.raises(CustomerNotFound):
        store.list_keys("nobody")


def test_revoking_all_keys_leaves_none(store: Any) -> None:
    add(store)
    store.add_key("ann", key("second"), NOON)
    assert store.revoke_all_keys("ann") == 2
    assert store.list_keys("ann") == ()
    assert refused(store, ask("r1")).reason is Barred.KEY_GONE
    store.add_key("ann", key("third"), NOON)
    admitted(store, ask("r2", key_id="third"))


@pytest.mark.parametrize("nasty", ["'; DROP TABLE customers; --", '"', "\u0000", "ünïcode", "%_*"])
def test_whatever_a_name_holds_is_a_name(store: Any, nasty: str) -> None:
    first = key(f"key-{nasty}")
    customer = Customer(id=f"id-{nasty}", name=nasty, email=nasty, created_at=NOON)
    store.create_customer(customer, first)
    assert store.get_customer(customer.id) == customer
    assert store.find_token(first.digest, NOON).customer_id == customer.id
    admitted(store, ask("r1", customer_id=customer.id, key_id=first.key_id))
