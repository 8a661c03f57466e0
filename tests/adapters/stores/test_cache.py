"""The memory of tokens: a minute, bounded, and never a reason to accept anything."""

import pytest

from bedrock_proxy.customers import CustomerStatus, Key, TokenOwner
from bedrock_proxy.store import CACHE_MS
from bedrock_proxy_adapters.stores import cache
from bedrock_proxy_adapters.stores.cache import OwnerCache

NOON = 1_768_478_400_000


def owner(expires_at: int | None = None) -> TokenOwner:
    return TokenOwner(
        customer_id="ann",
        key=Key(key_id="k", digest=b"d", created_at=NOON, expires_at=expires_at),
        status=CustomerStatus.ACTIVE,
        models=None,
    )


def test_an_answer_is_remembered_for_less_than_a_minute_either_way() -> None:
    found = OwnerCache()
    found.put(b"known", NOON, owner())
    found.put(b"unknown", NOON, None)
    for at in (NOON, NOON + CACHE_MS - 1, NOON - CACHE_MS + 1):
        assert found.get(b"known", at) == owner()
        assert found.get(b"unknown", at) is False
    assert found.get(b"known", NOON - CACHE_MS) is None
    assert found.get(b"unknown", NOON + CACHE_MS) is None


def test_a_remembered_key_still_expires_on_time() -> None:
    found = OwnerCache()
    found.put(b"known", NOON, owner(expires_at=NOON + 5))
    assert found.get(b"known", NOON + 4) is not False
    assert found.get(b"known", NOON + 5) is False


def test_a_token_that_appears_is_not_hidden_by_its_absence() -> None:
    found = OwnerCache()
    found.put(b"d", NOON, None)
    found.put(b"d", NOON, owner())
    assert found.get(b"d", NOON) == owner()
    found.put(b"d", NOON, None)
    assert found.get(b"d", NOON) is False
    found.clear()
    assert found.get(b"d", NOON) is None


def test_junk_pushes_out_junk_and_customers_by_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_UNKNOWN", 3)
    monkeypatch.setattr(cache, "MAX_OWNERS", 3)
    found = OwnerCache()
    found.put(b"customer", NOON, owner())
    for number in range(10):
        found.put(b"junk%d" % number, NOON, None)
    assert found.get(b"customer", NOON) == owner()
    assert [found.get(b"junk%d" % n, NOON) for n in (6, 7, 8, 9)] == [None, False, False, False]
    for number in range(2):
        found.put(b"c%d" % number, NOON, owner())
    found.get(b"customer", NOON)
    found.put(b"c2", NOON, owner())
    assert found.get(b"c0", NOON) is None
    assert found.get(b"customer", NOON) == owner()
