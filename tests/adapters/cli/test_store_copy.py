"""``store copy``: everything arrives, once, and nothing of another's is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from attrs import evolve
from tests.adapters.cli.conftest import Run
from tests.contracts.stories import LEASE_MS, NOON, add, admitted, ask, key, rows, used
from tests.contracts.test_ledger import fill
from tests.servers.redis import serving

from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.periods import DAY_MS
from bedrock_proxy.store import Store
from bedrock_proxy.usage import Basis, State
from bedrock_proxy_adapters.config import open_store
from bedrock_proxy_adapters.stores import transfer
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.stores.transfer import copy_store

LATER = NOON + 3 * DAY_MS


@pytest.fixture
def source() -> MemoryStore:
    """Two customers with rows, one without keys, one disabled; estimates among the rows."""
    made = MemoryStore(reap_at_admission=False)
    fill(made)
    made.reap(LATER)
    made.add_key("ann", key("second", NOON + 1, expires_at=NOON + 5), NOON)
    made.rotate_key("bob", key("third", NOON + 2), NOON + 2, 1_000)
    add(made, "carol", Limits(requests_per_day=7), models=frozenset({"m"}))
    made.revoke_all_keys("carol")
    add(made, "dave", Limits())
    made.update_customer("dave", lambda c: evolve(c, status=CustomerStatus.DISABLED))
    return made


def contents(store: Any) -> Any:
    customers = store.list_customers(limit=100).items
    return customers, [store.list_keys(c.id) for c in customers], rows(store)


def test_everything_arrives_and_copying_again_changes_nothing(
    source: MemoryStore, tmp_path: Path
) -> None:
    target = SqliteStore(tmp_path / "t.db")
    copied = copy_store(source, target, LATER)
    assert contents(target) == contents(source)
    assert (copied.customers, copied.keys, copied.rows) == (4, 5, len(rows(source)))
    assert copied.source == copied.target
    assert copied.source.tokens == sum(row.token_count for row in rows(source))
    again = copy_store(source, target, LATER)
    assert (again.customers, again.keys, again.rows) == (0, 0, 0)
    assert contents(target) == contents(source)
    target.close()


def test_the_counters_of_the_day_go_on_from_the_ledger(source: MemoryStore) -> None:
    target = MemoryStore()
    now = max(row.admitted_at for row in rows(source))
    copy_store(source, target, now)
    source.rebuild(now)
    for name in ("ann", "bob"):
        one, other = source.standing(name, now), target.standing(name, now)
        assert (one.today, one.month) == (other.today, other.month)
        assert one.month.requests > 0


def test_what_came_since_is_brought_and_estimates_are_corrected(source: MemoryStore) -> None:
    target = MemoryStore()
    lease = admitted(source, ask("late", LATER))
    source.finish(used(lease, state=State.ESTIMATED, basis=Basis.ESTIMATED), lease)
    copy_store(source, target, LATER)
    source.finish(used(lease, 77, 770), lease)
    new = admitted(source, ask("new", LATER + 1))
    source.finish(used(new, 5), new)
    assert copy_store(source, target, LATER).rows == 2
    found = {row.request_id: row for row in rows(target)}
    assert (found["late"].token_count, found["late"].state) == (77, State.FINAL)
    assert found["new"].token_count == 5


def test_open_requests_stay_and_are_counted(source: MemoryStore) -> None:
    admitted(source, ask("open", LATER))
    target = MemoryStore()
    assert copy_store(source, target, LATER).open_leases == 1
    assert target.open_leases() == ()
    assert "open" not in {row.request_id for row in rows(target)}


def test_later_traffic_and_other_customers_of_the_target_stay(source: MemoryStore) -> None:
    target = MemoryStore()
    copy_store(source, target, LATER)
    add(target, "eve")
    lease = admitted(target, ask("theirs", LATER))
    target.finish(used(lease), lease)
    copied = copy_store(source, target, LATER)
    assert (copied.only_in_target, copied.others, copied.rows) == (1, 1, 0)
    assert copied.source == copied.target
    assert "theirs" in {row.request_id for row in rows(target)}


def test_rows_that_end_while_it_copies_are_left_for_the_next_copy(
    source: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 of the guide: copy while the old servers serve."""
    monkeypatch.setattr(transfer, "_AT_ONCE", 7)
    leases = [admitted(source, ask(f"late-{n:03}", LATER)) for n in range(60)]

    class Serving(MemoryStore):
        def finish(self, record: Any, lease: Any) -> None:
            super().finish(record, lease)
            if leases:
                ending = leases.pop()
                source.finish(used(ending), ending)

    target = Serving()
    before = len(rows(source))
    copied = copy_store(source, target, LATER)
    assert copied.source == copied.target
    assert before <= copied.rows < len(rows(source))
    while leases:
        ending = leases.pop()
        source.finish(used(ending), ending)
    assert copy_store(source, target, LATER).rows == len(rows(source)) - copied.rows
    assert contents(target) == contents(source)


def test_an_estimate_that_the_target_has_corrected_stays_corrected(source: MemoryStore) -> None:
    lease = admitted(source, ask("late", LATER))
    source.reap(LATER + LEASE_MS)
    target = MemoryStore()
    copy_store(source, target, LATER)
    target.finish(used(lease, 25), lease)
    new = admitted(source, ask("new", LATER + 1))
    source.finish(used(new), new)
    for _ in range(2):
        copied = copy_store(source, target, LATER)
        assert copied.corrected == 1
    assert {row.request_id: row.token_count for row in rows(target)}["late"] == 25


def limits_differ(store: Store) -> None:
    store.update_customer("ann", lambda c: evolve(c, limits=Limits(concurrency=1)))


def a_key_more(store: Store) -> None:
    store.add_key("ann", key("extra", LATER), LATER)


def a_row_differs(store: Any) -> None:
    row = store._rows["r00"]
    store._rows["r00"] = evolve(row, token_count=row.token_count + 1, state=State.FINAL)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (limits_differ, "customer ann"),
        (a_key_more, "key extra of customer ann"),
        (a_row_differs, "row r00"),
    ],
)
def test_a_target_that_differs_is_refused_before_anything_is_written(
    source: MemoryStore, change: Callable[[Store], None], named: str
) -> None:
    target = MemoryStore()
    copy_store(source, target, LATER)
    change(target)
    add(source, "zoe")
    before = contents(target)
    with pytest.raises(ConfigurationError, match=named):
        copy_store(source, target, LATER)
    assert contents(target) == before


def test_a_token_that_belongs_to_another_customer_of_the_target_is_refused(
    source: MemoryStore,
) -> None:
    target = MemoryStore()
    add(target, "zoe")
    target.add_key("zoe", key("key-ann"), NOON)
    with pytest.raises(ConfigurationError, match="key key-ann of customer ann"):
        copy_store(source, target, LATER)
    assert [each.id for each in target.list_customers().items] == ["zoe"]


class Forgetful(MemoryStore):
    """Loses a row, or changes one, on the way."""

    changes: Callable[[Any], Any] = staticmethod(lambda record: None)

    def finish(self, record: Any, lease: Any) -> None:
        record = type(self).changes(record) if record.request_id == "r00" else record
        if record is not None:
            super().finish(record, lease)


@pytest.mark.parametrize(
    "changes", [lambda record: None, lambda record: evolve(record, cost_nanousd=1)]
)
def test_a_target_that_does_not_keep_what_it_is_told_is_found_out(
    source: MemoryStore, changes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forgetful, "changes", staticmethod(changes))
    with pytest.raises(ConfigurationError, match=r"does not read back.*row r00"):
        copy_store(source, Forgetful(), LATER)


def test_a_dry_run_counts_and_writes_nothing(source: MemoryStore) -> None:
    target = MemoryStore()
    copied = copy_store(source, target, LATER, dry_run=True)
    assert (copied.customers, copied.rows) == (4, len(rows(source)))
    assert contents(target) == ((), [], [])


def test_a_copy_that_was_cut_off_is_completed(
    source: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is cut off."""
    names = ("create_customer", "add_key", "revoke_key", "finish", "rebuild")
    cut = 0
    while True:
        cut += 1
        target = MemoryStore()
        left = [cut]

        def counted(original: Any, left: list[int] = left) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(target, name, counted(getattr(target, name)))
            try:
                copy_store(source, target, LATER)
                break
            except KeyboardInterrupt:
                pass
        copy_store(source, target, LATER)
        assert contents(target) == contents(source)
    assert cut > 60


def test_from_a_file_to_redis_and_back_by_the_command(
    run: Run, tmp_path: Path, source: MemoryStore
) -> None:
    first, last = f"sqlite:///{tmp_path / 'a.db'}", f"sqlite:///{tmp_path / 'b.db'}"
    opened = open_store(first)
    copy_store(source, opened, LATER)
    opened.close()
    with serving() as server:
        away = f"{server.url}?prefix=copied-{crc32(bytes(tmp_path)):x}"
        tried = run("store", "copy", first, away, "--dry-run", "--json").json
        assert (tried["customers"], tried["target"]["requests"]) == (4, 0)
        said = run("store", "copy", first, away)
        assert said.code == 0, said.err
        assert f"copied: 4 customers, 5 tokens, {len(rows(source))} ledger rows" in said.out
        there = open_store(away)
        assert contents(there) == contents(source)
        there.close()
        back = run("store", "copy", away, last, "--json").json
        assert back["source"] == back["target"]
        assert back["rows"] == len(rows(source))
    again = open_store(last)
    assert contents(again) == contents(source)
    again.close()


def test_mistakes_are_sentences(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    open_store(url).close()
    assert "same store" in run("store", "copy", url, url).err
    assert "memory:" in run("store", "copy", url, "memory:").err
    missing = f"sqlite:///{tmp_path / 'no.db'}"
    assert "no database" in run("store", "copy", missing, url).err
    assert "dry" not in run("store", "copy", url, missing, "--dry-run").err
    assert not (tmp_path / "no.db").exists()
