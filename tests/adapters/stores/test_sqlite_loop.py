"""
Writing to SQLite from an event loop: at once where nobody else writes, durable as promised. What is
decided while a turn is kept is in ``test_sqlite_tenure.py``.
"""

import asyncio
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.factories import granted, on_a_loop, told
from tests.contracts.stories import LEASE_MS, NOON, add, ask, key, rows, used

from bedrock_proxy.admission import Grant, Refusal
from bedrock_proxy.customers import Limits
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores import loop_writer, schema, syncer
from bedrock_proxy_adapters.stores.sqlite import NativeSqliteStore, SqliteStore
from bedrock_proxy_adapters.stores.syncer import Syncer
from bedrock_proxy_adapters.stores.ticket import Ticket
from bedrock_proxy_adapters.stores.transactions import Transactions
from bedrock_proxy_adapters.stores.writer import Writer


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = SqliteStore(tmp_path / "store.db")
    add(made, limits=Limits(requests_per_day=1_000))
    yield made
    made.close()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """
    What was done where, in transactions of its own: the sizes of groups at once and by the thread,
    and the syncs.
    """
    monkeypatch.setattr(Transactions, "begin_tenure", lambda _: None)
    seen: dict[str, list[Any]] = {"at once": [], "thread": [], "sync": []}
    at_once, submit, sync = Transactions.try_commit, Writer.submit, Syncer._sync

    def try_commit(self: Transactions, group: Any) -> Any:
        done = at_once(self, group)
        if done is not None:
            seen["at once"].append(len(group))
        return done

    def submitted(self: Writer, job: Any) -> None:
        seen["thread"].append(job)
        submit(self, job)

    def synced(self: Syncer) -> None:
        seen["sync"].append(time.monotonic())
        sync(self)

    monkeypatch.setattr(Transactions, "try_commit", try_commit)
    monkeypatch.setattr(Writer, "submit", submitted)
    monkeypatch.setattr(Syncer, "_sync", synced)
    return seen


# --- where it is done -----------------------------------------------------------------------------


def test_what_nobody_else_hinders_needs_no_thread(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        assert await native.find_token(key("key-ann").digest, NOON)
        lease = await granted(native, "r1")
        lease = await native.renew(lease, NOON + LEASE_MS)
        await native.finish(used(lease), lease)
        assert isinstance(await native.standing("ann", NOON), object)

    on_a_loop(store, story)
    assert counted["thread"] == []
    assert counted["at once"] == [1] * 5
    assert [row.request_id for row in rows(store)] == ["r1"]


def test_what_comes_in_one_turn_of_the_loop_is_one_transaction(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await asyncio.gather(*(granted(native, f"r{number}") for number in range(40)))

    on_a_loop(store, story)
    assert counted["at once"] == [40]
    assert len(store.open_leases()) == 40


def test_T03_a_settlement_shares_the_transaction_of_the_next_admission(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    """The place that it frees is free for whoever asks after it."""
    add(store, "bob", limits=Limits(concurrency=1))

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1", customer_id="bob")
        settling = asyncio.ensure_future(native.finish(used(lease), lease))
        await asyncio.sleep(0)
        second = await granted(native, "r2", customer_id="bob")
        assert [each.request.request_id for each in store.open_leases()] == ["r2"]
        await settling
        await native.finish(used(second), second)

    on_a_loop(store, story)
    assert counted["at once"] == [1, 2, 1]
    assert [row.request_id for row in rows(store, customer_id="bob")] == ["r1", "r2"]


def test_many_settlements_do_not_wait_for_company(
    store: SqliteStore, counted: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_writer, "MAX_GROUP", 4)
    monkeypatch.setattr(loop_writer, "COMPANY_S", 3600)

    async def story(native: NativeSqliteStore) -> None:
        leases = [await granted(native, f"r{number}") for number in range(4)]
        del counted["at once"][:]
        await asyncio.gather(*(native.finish(used(lease), lease) for lease in leases))

    on_a_loop(store, story)
    assert counted["at once"] == [4]


@pytest.mark.parametrize("who", ["another process", "the writing thread"])
def test_while_somebody_else_writes_the_thread_waits_for_the_turn(
    store: SqliteStore, who: str, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        ticket = Ticket(store.path.with_name("store.db-ticket"))
        with ticket.held():
            if who == "the writing thread":
                store._database.writer().do_later(lambda _: None)
            asking = [asyncio.ensure_future(granted(native, f"r{n}")) for n in range(3)]
            await asyncio.sleep(0.05)
            assert not any(each.done() for each in asking)
            assert counted["at once"] == []
        await asyncio.gather(*asking)
        ticket.close()

    on_a_loop(store, story)
    assert len(counted["thread"]) >= 3
    assert len(store.open_leases()) == 3


def test_nobody_overtakes_the_work_that_waits_in_the_thread(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    """Or a busy loop could keep it waiting for ever."""
    gone = threading.Event()

    async def story(native: NativeSqliteStore) -> None:
        store._database.writer().do_later(lambda _: gone.wait(20))
        while not store._database.writer().waited_for:
            await asyncio.sleep(0.001)
        asking = asyncio.ensure_future(granted(native, "r1"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        gone.set()
        await asking

    on_a_loop(store, story)
    assert counted["at once"] == []


def test_a_lock_that_somebody_holds_without_a_ticket_is_waited_for_by_the_thread(
    store: SqliteStore,
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        shell = sqlite3.connect(store.path, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        asking = asyncio.ensure_future(granted(native, "r1"))
        began = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < 2, "the loop waited"
        shell.execute("COMMIT")
        shell.close()
        await asking

    on_a_loop(store, story)


# --- groups ------------------------------------------------------------------------------------------


def test_T04_a_refusal_in_the_middle_of_a_group_changes_nothing(store: SqliteStore) -> None:
    add(store, "bob", limits=Limits(requests_per_day=2))

    async def story(native: NativeSqliteStore) -> list[Any]:
        return await asyncio.gather(
            *(told(native.admit, ask(f"b{number}", customer_id="bob")) for number in range(5)),
            *(told(native.admit, ask(f"a{number}")) for number in range(3)),
        )

    said = on_a_loop(store, story)
    assert [isinstance(each, Grant) for each in said] == [True] * 2 + [False] * 3 + [True] * 3
    assert isinstance(said[2], Refusal)
    assert store.gate_state("bob").day_requests == 2
    assert store.gate_state("ann").day_requests == 3


def test_I6_a_defect_in_the_middle_of_a_group_undoes_only_itself(store: SqliteStore) -> None:
    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE customers SET name = 'nobody'")
        raise LookupError("a defect")

    async def story(native: NativeSqliteStore) -> list[Any]:
        writer = store._database.loop_writer()
        return await asyncio.gather(
            told(native.admit, ask("r1")),
            writer.do(breaks, durable=False),
            told(native.admit, ask("r2")),
            return_exceptions=True,
        )

    first, broken, second = on_a_loop(store, story)
    assert isinstance(first, Grant)
    assert isinstance(second, Grant)
    assert isinstance(broken, LookupError)
    assert store.gate_state("ann").day_requests == 2
    assert store.get_customer("ann").name != "nobody"


def test_two_processes_that_take_turns_keep_one_limit(tmp_path: Path) -> None:
    """What this process saw last is never what it decides by."""
    here, there = SqliteStore(tmp_path / "store.db"), SqliteStore(tmp_path / "store.db")
    add(here, limits=Limits(requests_per_day=10))

    async def story() -> int:
        count = 0
        for number in range(20):
            native = (here, there)[number % 2].native()
            count += isinstance(await told(native.admit, ask(f"r{number}")), Grant)
        return count

    assert asyncio.run(story()) == 10
    here.close()
    there.close()


# --- the disk -------------------------------------------------------------------------------------------


def test_a_settlement_is_told_only_when_it_has_reached_the_disk(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    sync = Syncer._sync

    def slow(self: Syncer) -> None:
        go_on.wait(20)
        sync(self)

    monkeypatch.setattr(Syncer, "_sync", slow)

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        finishing = asyncio.ensure_future(native.finish(used(lease), lease))
        await asyncio.sleep(0.1)
        assert not finishing.done()
        # The kernel has it: other connections see it, and so would those who come after us.
        assert [row.request_id for row in rows(store)] == ["r1"]
        await granted(native, "r2")  # nobody waits for the disk to admit
        go_on.set()
        await finishing

    on_a_loop(store, story)


def test_settlements_share_a_sync_and_an_admission_has_one_soon(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        leases = [await granted(native, f"r{number}") for number in range(30)]
        await asyncio.sleep(0.1)
        assert 1 <= len(counted["sync"]) <= 6
        before = len(counted["sync"])
        await asyncio.gather(*(native.finish(used(lease), lease) for lease in leases))
        assert len(counted["sync"]) == before + 1

    on_a_loop(store, story)


def test_what_changes_nothing_is_not_synced(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        for _ in range(5):
            assert isinstance(await told(native.admit, ask("x", customer_id="nobody")), Refusal)
            await native.standing("ann", NOON)
        await asyncio.sleep(0.05)

    on_a_loop(store, story)
    assert counted["sync"] == []


def test_a_disk_that_fails_is_an_unreachable_store(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow then spools the row, which counts once however often it is kept."""

    def failing(file: int) -> None:
        raise OSError(5, "Input/output error")

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        with monkeypatch.context() as patch:
            patch.setattr(syncer, "_fdatasync", failing)
            with pytest.raises(StoreUnavailable):
                await native.finish(used(lease), lease)
        await native.finish(used(lease), lease)

    on_a_loop(store, story)
    assert len(rows(store)) == 1


def test_a_disk_that_hangs_is_given_up(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(loop_writer, "PATIENCE_S", 0.1)
    monkeypatch.setattr(syncer, "_fdatasync", lambda _: go_on.wait(20))

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        with pytest.raises(StoreUnavailable):
            await native.finish(used(lease), lease)
        go_on.set()

    on_a_loop(store, story)


def test_the_log_is_copied_into_the_file_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest_log(name: str, every: int) -> int:
        monkeypatch.setattr(syncer, "CHECKPOINT_EVERY", every)
        store = SqliteStore(tmp_path / name)
        add(store)

        async def story(native: NativeSqliteStore) -> int:
            largest = 0
            for number in range(100):
                lease = await granted(native, f"r{number}")
                await native.finish(used(lease), lease)
                largest = max(largest, (tmp_path / f"{name}-wal").stat().st_size)
            return largest

        size: int = on_a_loop(store, story)
        assert len(rows(store)) == 100
        store.close()
        return size

    assert largest_log("with.db", 5) < largest_log("without.db", 10**9) / 3


def test_what_was_committed_before_closing_is_synced_and_told(
    store: SqliteStore, counted: dict[str, list[Any]]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        finishing = asyncio.ensure_future(native.finish(used(lease), lease))
        await asyncio.sleep(0.001)
        store.close()
        await asyncio.wait_for(finishing, 20)
        with pytest.raises(StoreUnavailable):
            await told(native.admit, ask("r2"))

    on_a_loop(store, story)
    assert counted["sync"]


def test_loops_that_ended_leave_nothing_open(store: SqliteStore) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await granted(native, f"r{time.monotonic_ns()}")

    for _ in range(5):
        on_a_loop(store, story)
    assert len(store._database._loops) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_writes_with_a_connection_of_its_own(store: SqliteStore) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await granted(native, f"r-{os.getpid()}")

    on_a_loop(store, story)
    child = os.fork()
    if child == 0:
        try:
            on_a_loop(store, story)
            store.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    on_a_loop(store, lambda native: granted(native, "r-after"))
    assert len(store.open_leases()) == 3


def test_the_loops_connection_waits_for_no_lock_and_leaves_checkpoints_to_others(
    tmp_path: Path,
) -> None:
    SqliteStore(tmp_path / "store.db").close()
    connection = schema.connect(tmp_path / "store.db", synchronous="NORMAL")
    said = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "busy_timeout", "wal_autocheckpoint", "journal_mode")
    }
    connection.close()
    assert said == {
        "synchronous": 1, "busy_timeout": 0, "wal_autocheckpoint": 0, "journal_mode": "wal",
    }  # fmt: skip
