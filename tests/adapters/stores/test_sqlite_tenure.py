"""
A turn to write that is kept for a moment (M: admission off the loop's transactions): the books are
those of transactions of their own, whoever looks, whoever dies, and whatever the disk does.
"""

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts.factories import granted, on_a_loop, told
from tests.contracts.stories import LEASE_MS, NOON, add, ask, rows, used

from bedrock_proxy.admission import Grant, Lease, Refusal
from bedrock_proxy.customers import CustomerStatus, Limits
from bedrock_proxy.errors import BedrockProxyError, StoreUnavailable
from bedrock_proxy_adapters.stores import (
    database,
    gate,
    ledger,
    loop_writer,
    redo,
    schema,
    syncer,
    watch,
)
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.redo import RedoLog
from bedrock_proxy_adapters.stores.sqlite import NativeSqliteStore, SqliteStore
from bedrock_proxy_adapters.stores.tenure import Tenure
from bedrock_proxy_adapters.stores.ticket import beside
from bedrock_proxy_adapters.stores.transactions import Job, Transactions


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db", reap_at_admission=False)
    add(made, limits=Limits(requests_per_day=1_000, concurrency=20))
    yield made
    made.close()


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are kept until somebody wants them."""
    monkeypatch.setattr(loop_writer, "SYNC_EVERY_S", 3600)
    monkeypatch.setattr(watch, "LONGEST_S", 3600)


def in_file(path: Path, table: str) -> int:
    """How many rows any program would find in the file itself."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


# --- what is kept, and who sees it ----------------------------------------------------------------


@pytest.mark.usefixtures("long")
def test_a_request_that_begins_and_ends_within_a_tenure_never_has_a_lease_in_the_file(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def put_lease(lease: Lease, text: str) -> Any:
        written.append(lease.request.request_id)
        return columns(lease, text)

    columns = gate.lease_columns
    monkeypatch.setattr(gate, "lease_columns", put_lease)

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "whole")
        finishing = native.finish(used(lease), lease)
        await granted(native, "begun")
        assert in_file(store.path, "ledger") == in_file(store.path, "leases") == 0
        store._database.loop_writer().end_tenure()
        assert in_file(store.path, "ledger") == in_file(store.path, "leases") == 1
        assert written == ["begun"]
        assert not asyncio.ensure_future(finishing).done(), "the disk has not been asked yet"

    on_a_loop(store, story)


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("who", ["this process", "another"])
def test_what_was_told_is_seen_at_once_by_whoever_reads(store: SqliteStore, who: str) -> None:
    """Another process waits for the turn: what one tells, all know."""
    other = SqliteStore(store.path, reap_at_admission=False)
    reader = store if who == "this process" else other

    async def story(native: NativeSqliteStore) -> None:
        for number in range(3):
            lease = await granted(native, f"r{number}")
            assert [each.request.request_id for each in reader.open_leases()] == [f"r{number}"]
            assert reader.gate_state("ann").day_requests == number + 1
            native.finish(used(lease), lease)
            # Out of the way of a reader: whoever keeps the turn looks when the next request comes.
            reading = asyncio.to_thread(lambda: len(rows(reader)))
            await asyncio.sleep(0.05)
            await native.standing("ann", NOON)
            assert await reading == number + 1

    if who == "another":
        # It waits for a second at most, and for this thread, which cannot give way meanwhile.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "LONGEST_S", 0.05)
            on_a_loop(store, story)
    else:
        on_a_loop(store, story)
    other.close()


@pytest.mark.usefixtures("long")
def test_the_owner_of_a_token_is_looked_up_without_giving_the_turn_back(store: SqliteStore) -> None:
    key = add(store, "bob")

    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        owner = await native.find_token(key.digest, NOON)
        assert owner is not None
        assert owner.customer_id == "bob"
        assert await native.find_token(b"unknown" * 4 + b"....", NOON) is None
        assert in_file(store.path, "leases") == 0

    on_a_loop(store, story)


@pytest.mark.usefixtures("long")
def test_a_tenure_gathers_no_more_than_may_be_written_at_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_writer, "MOST_KEPT", 4)

    async def story(native: NativeSqliteStore) -> None:
        seen = []
        for number in range(10):
            await granted(native, f"r{number}")
            seen.append(in_file(store.path, "leases"))
        assert seen == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]

    on_a_loop(store, story)


@pytest.mark.usefixtures("long")
def test_what_comes_while_others_are_under_way_is_decided_with_them_at_the_end_of_the_turn(
    store: SqliteStore,
) -> None:
    """Alone, it waits for nothing."""

    async def story(native: NativeSqliteStore) -> None:
        alone = [native.admit(ask(f"a{number}")) for number in range(loop_writer.COMPANIONS)]
        assert all(isinstance(each, Grant) for each in alone)
        together = [native.admit(ask(f"t{number}")) for number in range(20)]
        said = [await each for each in together if isinstance(each, asyncio.Future)]
        assert len(said) == len(together)
        # In the order in which they came: the concurrency is 20.
        left = 20 - len(alone)
        assert [isinstance(each, Grant) for each in said] == [True] * left + [False] * (20 - left)
        assert in_file(store.path, "leases") == 0
        for each in (*alone, *said[:left]):
            assert isinstance(each, Grant)
            native.finish(used(each.lease), each.lease)
        for name in ("x", "y"):
            store._database.loop_writer().end_tenure()
            decision = await told(native.admit, ask(name))
            native.finish(used(decision.lease), decision.lease)
        store._database.loop_writer().end_tenure()
        assert isinstance(native.admit(ask("alone-again")), Grant)

    on_a_loop(store, story)


@pytest.mark.usefixtures("long")
def test_a_customer_whose_limits_cannot_be_read_keeps_nobody_else_from_being_admitted(
    store: SqliteStore,
) -> None:
    """As those of a later version: they are never taken for none."""
    add(store, "bob")
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        connection.execute("UPDATE customers SET limits = '{\"later\": 1}' WHERE id = 'bob'")

    async def story(native: NativeSqliteStore) -> None:
        for number in range(loop_writer.COMPANIONS):
            await granted(native, f"a{number}")
        asked = [("b1", "bob"), ("a-next", "ann"), ("b2", "bob"), ("a-last", "ann")]
        said = await asyncio.gather(
            *(told(native.admit, ask(name, customer_id=who)) for name, who in asked),
            return_exceptions=True,
        )
        assert [type(each) for each in said] == [ValueError, Grant, ValueError, Grant]
        store._database.loop_writer()._most = store._database.loop_writer()._most_before = 0
        with pytest.raises(ValueError, match="later"):
            await told(native.admit, ask("b3", customer_id="bob"))

    on_a_loop(store, story)
    assert len(store.open_leases()) == loop_writer.COMPANIONS + 2


# --- whose turn it is -------------------------------------------------------------------------------


@pytest.mark.usefixtures("long")
def test_whoever_waits_for_the_turn_has_it_at_the_next_request(store: SqliteStore) -> None:
    other = SqliteStore(store.path, reap_at_admission=False)

    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        waiting = asyncio.to_thread(other.admit, ask("theirs"))
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0.1)
        assert not task.done()
        await granted(native, "r2")
        assert isinstance(await asyncio.wait_for(task, 5), Grant)
        # For a moment the two take turns, transaction by transaction.
        await granted(native, "r3")
        assert in_file(store.path, "leases") == 4
        await asyncio.sleep(loop_writer.CROWDED_S + 0.05)
        await granted(native, "r4")
        assert in_file(store.path, "leases") == 4

    on_a_loop(store, story)
    other.close()


def test_T03_a_settlement_that_waits_for_company_is_not_overtaken_by_a_tenure(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place that it frees is free for whoever asks after it."""
    monkeypatch.setattr(loop_writer, "COMPANY_S", 3600)
    add(store, "bob", limits=Limits(concurrency=1))

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1", customer_id="bob")
        writer = store._database.loop_writer()
        writer.end_tenure(crowded=True)
        settling = native.finish(used(lease), lease)
        writer._crowded_until = 0.0
        await granted(native, "r2", customer_id="bob")
        await settling

    on_a_loop(store, story)
    assert [lease.request.request_id for lease in store.open_leases()] == ["r2"]


def admit_elsewhere(store: SqliteStore, took: list[float]) -> None:
    """Another process's request, and how many seconds it waited."""
    began = time.monotonic()
    assert isinstance(store.admit(ask("theirs")), Grant)
    took.append(time.monotonic() - began)


def test_a_loop_whose_thread_does_something_else_keeps_nobody_waiting(store: SqliteStore) -> None:
    other = SqliteStore(store.path, reap_at_admission=False)
    took: list[float] = []

    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        thread = threading.Thread(target=admit_elsewhere, args=(other, took))
        thread.start()
        time.sleep(2)
        thread.join()

    on_a_loop(store, story)
    other.close()
    assert took[0] < 1


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.update_customer("ann", lambda ann: ann),
        lambda store: store.reap(NOON),
        lambda store: store.rebuild(NOON),
        lambda store: store.admit(ask("blocking")),
    ],
    ids=["a customer", "reap", "rebuild", "admit"],
)
def test_a_change_from_the_loops_own_thread_does_not_wait_for_itself(
    store: SqliteStore, change: Callable[[SqliteStore], Any]
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        began = time.monotonic()
        change(store)
        assert time.monotonic() - began < 5
        assert in_file(store.path, "leases") >= 1

    on_a_loop(store, story)


def test_a_disk_that_takes_its_time_does_not_make_others_wait_for_the_turn(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(syncer, "_fdatasync", lambda _: go_on.wait(20))
    other = SqliteStore(store.path, reap_at_admission=False)
    took: list[float] = []

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        finishing = native.finish(used(lease), lease)
        await asyncio.sleep(0.1)  # the disk is asked, and says nothing
        await granted(native, "r2")
        thread = threading.Thread(target=admit_elsewhere, args=(other, took))
        thread.start()
        time.sleep(1)
        go_on.set()
        thread.join()
        await finishing

    on_a_loop(store, story)
    other.close()
    assert took[0] < 0.7


def test_a_reading_waits_no_longer_than_it_may_for_one_who_is_stopped(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_FOR_OTHERS_S", 0.2)
    stopped = Kept(store.path.parent, "store.db")
    stopped.admit(ask("r1"))
    began = time.monotonic()
    assert store.open_leases() == ()
    assert 0.2 <= time.monotonic() - began < 5
    store.close()
    assert time.monotonic() - began < 5
    stopped.close()


@pytest.mark.usefixtures("long")
def test_an_interrupt_while_the_turn_is_taken_gives_it_back(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        store._database.loop_writer().end_tenure()
        with monkeypatch.context() as patch:
            patch.setattr(redo, "last_folded", interrupted)
            with pytest.raises(KeyboardInterrupt):
                native.admit(ask("r2"))
        assert isinstance(store.admit(ask("r3")), Grant)

    on_a_loop(store, story)


@pytest.mark.usefixtures("long")
def test_two_loops_of_one_process_share_the_turn(store: SqliteStore) -> None:
    def admit(name: str) -> int:
        async def story(native: NativeSqliteStore) -> int:
            count = 0
            for number in range(30):
                decision = await told(native.admit, ask(f"{name}-{number}"))
                count += isinstance(decision, Grant)
                await asyncio.sleep(0.002)
            return count

        admitted: int = on_a_loop(store, story)
        return admitted

    async def both() -> list[int]:
        return await asyncio.gather(*(asyncio.to_thread(admit, name) for name in "ab"))

    assert sum(asyncio.run(both())) == 20  # the concurrency


def test_nobody_is_watched_who_keeps_no_turn_any_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_WATCHED_S", 0.1)

    async def story(native: NativeSqliteStore) -> None:
        for name in ("r1", "r2"):  # it falls asleep in between, and wakes
            await granted(native, name)
            watching = store._database._watch
            assert watching is not None
            assert watching.keepers
            end = time.monotonic() + 10
            while watching.keepers or not watching.asleep:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            assert in_file(store.path, "leases") == int(name[1])

    on_a_loop(store, story)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("long")
def test_no_transaction_crosses_a_fork(store: SqliteStore) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        child = os.fork()
        if child == 0:
            try:
                asyncio.set_event_loop(None)
                store.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert in_file(store.path, "leases") == 1
        lease = await granted(native, "r2")
        native.finish(used(lease), lease)

    on_a_loop(store, story)
    assert [lease.request.request_id for lease in store.open_leases()] == ["r1"]
    assert [row.request_id for row in rows(store)] == ["r2"]


@pytest.mark.parametrize("what", ["-redo", "-ticket"])
def test_a_file_beside_the_database_that_somebody_removed_is_made_anew(
    tmp_path: Path, what: str
) -> None:
    kept = Kept(tmp_path)
    customers(kept.store)
    kept.admit(ask("r1"))
    kept.end()
    beside(kept.path, what).unlink()
    kept.admit(ask("r2"))
    other = SqliteStore(kept.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "WAIT_FOR_OTHERS_S", 0.01)
        other.open_leases()  # in vain: the turn is kept, for others too
    kept.die()
    assert len(other.open_leases()) == 2
    other.close()
    kept.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_what_root_makes_beside_a_database_belongs_to_the_databases_owner(tmp_path: Path) -> None:
    """Or a command that root ran once would lock the server out."""
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    os.chown(path, 12_345, 23_456)
    for what in ("-redo", "-ticket"):
        beside(path, what).unlink()
    store = SqliteStore(path)
    add(store)
    store.close()
    for what in ("-redo", "-ticket"):
        status = beside(path, what).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12_345, 23_456, 0o600)


def test_one_file_has_one_log_whatever_it_is_called(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    customers(kept.store)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(kept.path)
    other = SqliteStore(link)
    kept.admit(ask("r1"))
    kept.die()
    assert len(other.open_leases()) == 1
    other.close()
    kept.close()
    assert [each.name for each in link.parent.iterdir()] == ["link.db"]


def test_A01_what_belongs_to_another_file_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(tmp_path)
    customers(kept.store)
    log = RedoLog(redo.path_of(kept.path))
    log.append(7, redo.ADMITTED, "of a file that was here before")
    log.close()
    assert kept.store.open_leases() == ()
    assert redo.path_of(kept.path).with_name("kept.db-redo.bad").is_file()
    assert "kept.db-redo.bad" in caplog.text
    kept.admit(ask("r1"))
    kept.die()
    assert len(kept.store.open_leases()) == 1
    kept.close()


def test_a_new_schema_is_made_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a server that keeps its turn nearly all the time."""
    kept = Kept(tmp_path)
    customers(kept.store)
    kept.keep()
    ended = threading.Event()

    def give_way() -> None:
        while not kept.writer.is_wanted:
            time.sleep(0.001)
        kept.end()
        ended.set()

    thread = threading.Thread(target=give_way)
    thread.start()
    later = (*schema.MIGRATIONS, "CREATE TABLE more (x TEXT) STRICT;")
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    monkeypatch.setattr(schema.migrate, "__defaults__", (later,))
    SqliteStore(kept.path).close()
    assert ended.is_set()
    thread.join()
    kept.close()


def test_opening_a_store_waits_for_nobody_who_writes(store: SqliteStore) -> None:
    """A server that is busy may keep its turn nearly all the time."""
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        SqliteStore(store.path).close()
        assert time.monotonic() - began < schema.BUSY_TIMEOUT_S / 2


# --- the books are those of transactions of their own -------------------------------------------


@frozen
class Step:
    """
    Something that happens.

    Attributes:
        what: ``admit``, ``finish`` (what was admitted at a place), ``end`` (of the tenure), ``die``.
        tokens: That are asked for, or used.
    """

    what: str
    customer: str = "ann"
    place: int = 0
    tokens: int = 0
    after: int = 0


STEPS = st.lists(
    st.one_of(
        st.builds(
            Step,
            what=st.just("admit"),
            customer=st.sampled_from(["ann", "bob", "off"]),
            tokens=st.integers(1, 400),
            after=st.sampled_from([0, 0, 1, 700, 30_000, LEASE_MS, 86_400_000]),
        ),
        st.builds(
            Step,
            what=st.just("finish"),
            place=st.integers(0, 30),
            tokens=st.integers(0, 500),
            after=st.sampled_from([0, 1, 500]),
        ),
        st.builds(Step, what=st.sampled_from(["end", "end", "die"])),
    ),
    max_size=40,
)


class Kept:
    """A store of which one process keeps the turn, and dies now and then."""

    def __init__(self, folder: Path, name: str = "kept.db") -> None:
        self.path = folder / name
        self.store = SqliteStore(self.path, reap_at_admission=False)
        self.tenure: Tenure | None = None
        self.live()

    def live(self) -> None:
        self.writer = Transactions(self.path, beside(self.path, "-ticket"), "NORMAL")

    def keep(self) -> Tenure:
        if self.tenure is None:
            self.tenure = self.writer.begin_tenure()
        assert self.tenure is not None
        return self.tenure

    def end(self) -> None:
        if self.tenure is not None:
            self.writer.end_tenure(self.tenure)
            self.tenure = None

    def die(self) -> None:
        self.tenure = None
        self.writer.let_go()  # as the kernel does: what was not committed is gone, and the turn free
        self.live()

    def admit(self, request: Any) -> Any:
        decision = self.keep().admit(request)
        if decision is None:
            self.end()
            decision = self.alone(lambda connection: gate.admit(connection, request))
        return decision

    def finish(self, record: Any) -> None:
        if not self.keep().finish(record):
            self.end()
            self.alone(lambda connection: ledger.finish(connection, record))

    def alone(self, work: Any) -> Any:
        [(_, value, error)] = self.writer.commit([Job(work)])
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        self.end()
        self.writer.let_go()
        self.store.close()


def customers(store: Any) -> None:
    add(
        store,
        limits=Limits(requests_per_minute=20, tokens_per_minute=2_000, concurrency=3),
    )
    add(
        store,
        "bob",
        limits=Limits(requests_per_day=9, tokens_per_month=3_000, cost_per_day=20_000),
    )
    add(store, "off", status=CustomerStatus.DISABLED)


def books(store: Any) -> Any:
    ids = ("ann", "bob", "off")
    return (
        rows(store),
        sorted(store.open_leases(), key=lambda lease: lease.request.request_id),
        [store.gate_state(each) for each in ids],
    )


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
def test_I1_to_I14_tenures_and_deaths_leave_the_books_that_a_plain_store_has(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    plain, kept = MemoryStore(reap_at_admission=False), Kept(tmp_path_factory.mktemp("kept"))
    customers(plain)
    customers(kept.store)
    now, held = NOON, list[Lease]()
    for number, step in enumerate(steps):
        now += step.after
        if step.what == "admit":
            request = ask(
                f"r{number}",
                now,
                step.customer,
                output_tokens=step.tokens,
                cost_nanousd=step.tokens,
            )
            decision = kept.admit(request)
            assert decision == plain.admit(request)
            if isinstance(decision, Grant):
                held.append(decision.lease)
        elif step.what == "finish":
            if held:
                lease = held[step.place % len(held)]
                record = used(
                    lease, step.tokens, duration_ms=max(0, now - lease.request.at + step.after)
                )
                kept.finish(record)
                plain.finish(record, lease)
        else:
            getattr(kept, step.what)()
    kept.end()
    assert books(kept.store) == books(plain)
    kept.close()


@settings(max_examples=60, deadline=None)
@given(
    cut=st.floats(0, 1),
    story=st.lists(st.sampled_from(["ann", "bob", "finish"]), min_size=1, max_size=10),
)
def test_A01_a_log_that_breaks_off_anywhere_gives_the_decisions_that_were_told_until_there(
    tmp_path_factory: pytest.TempPathFactory, cut: float, story: list[str]
) -> None:
    plain, kept = MemoryStore(reap_at_admission=False), Kept(tmp_path_factory.mktemp("cut"))
    customers(plain)
    customers(kept.store)
    log = redo.path_of(kept.path)
    sizes: list[int] = []
    seen = [books(plain)]
    held: list[Lease] = []
    for number, who in enumerate(story):
        if held and who == "finish":
            lease = held.pop()
            kept.finish(used(lease, number))
            plain.finish(used(lease, number), lease)
        else:
            request = ask(f"r{number}", NOON + number, "bob" if who == "bob" else "ann")
            decision = kept.admit(request)
            assert decision == plain.admit(request)
            if not isinstance(decision, Grant):
                continue
            held.append(decision.lease)
        sizes.append(log.stat().st_size)
        seen.append(books(plain))
    whole = log.read_bytes()
    at = int(cut * len(whole))
    log.write_bytes(whole[:at])
    kept.die()
    # A line is whole without its end, and without that of the log.
    assert books(kept.store) == seen[sum(at >= size - 2 for size in sizes)]
    kept.close()


def test_T03_a_late_settlement_of_an_expired_lease_frees_no_place_that_was_free_already(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path)
    add(kept.store, limits=Limits(concurrency=1))
    late = kept.admit(ask("late"))
    kept.end()
    now = NOON + LEASE_MS + 1
    assert isinstance(kept.admit(ask("next", now)), Grant)
    kept.finish(used(late.lease, duration_ms=LEASE_MS + 1))
    assert isinstance(kept.admit(ask("refused", now)), Refusal)
    kept.close()


def test_A01_a_log_that_another_process_has_done_with_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    customers(kept.store)
    kept.admit(ask("r1"))
    with monkeypatch.context() as patch:
        patch.setattr(Tenure, "fold", broken)
        patch.setattr(redo, "redo", broken)
        with pytest.raises(StoreUnavailable):
            kept.end()
    kept.tenure = None
    assert len(kept.store.open_leases()) == 1
    assert not redo.is_left(kept.path)
    kept.admit(ask("r2"))
    kept.die()
    assert len(kept.store.open_leases()) == 2
    kept.close()


def test_I14_what_is_in_the_file_already_is_never_done_again(tmp_path: Path) -> None:
    """Not even where the machine lost power, and the log that comes back is an old one."""
    kept = Kept(tmp_path)
    customers(kept.store)
    log = redo.path_of(kept.path)
    kept.admit(ask("given-back"))
    old = log.read_bytes()
    kept.end()
    kept.store.release(ask("given-back"))
    for number in range(3):
        log.write_bytes(old)
        assert kept.store.open_leases() == ()
        assert kept.store.gate_state("ann").day_requests == number
        kept.admit(ask(f"r{number}"))
        kept.end()
        kept.store.finish(used(kept.store.open_leases()[0]), kept.store.open_leases()[0])
    kept.close()


def test_what_somebody_wrote_who_does_not_know_the_log_is_not_overwritten(tmp_path: Path) -> None:
    """A server of the version before, that still runs."""
    kept = Kept(tmp_path)
    add(kept.store, limits=Limits(requests_per_day=2))
    kept.admit(ask("told"))
    log = redo.path_of(kept.path)
    left = log.read_bytes()
    log.write_bytes(b"")
    kept.die()
    for name in ("theirs-1", "theirs-2"):
        assert isinstance(kept.store.admit(ask(name)), Grant)
    log.write_bytes(left)
    leases = {lease.request.request_id for lease in kept.store.open_leases()}
    assert leases == {"told", "theirs-1", "theirs-2"}
    # Three were told that they may go; all three count, and the fourth may not.
    assert kept.store.gate_state("ann").day_requests == 3
    assert isinstance(kept.store.admit(ask("fourth")), Refusal)
    kept.close()


def test_a_line_that_cannot_be_used_is_kept_and_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(tmp_path)
    customers(kept.store)
    kept.admit(ask("r1"))
    kept.admit(ask("r2"))
    log = RedoLog(redo.path_of(kept.path))
    first, second = log.lines()
    for line in (first, (1, "Z", "of a later version"), (1, redo.FINISHED, "[1, 2]"), second):
        log.append(*line)
    log.close()
    kept.die()
    assert {lease.request.request_id for lease in kept.store.open_leases()} == {"r1", "r2"}
    bad = redo.path_of(kept.path).with_name("kept.db-redo.bad")
    assert bad.read_text() == "Z of a later version\nF [1, 2]\n"
    assert bad.stat().st_mode & 0o777 == 0o600
    assert caplog.text.count("kept.db-redo.bad") == 2
    kept.close()


# --- the disk ---------------------------------------------------------------------------------------


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("short", [False, True], ids=["refused", "cut short"])
def test_a_log_that_cannot_be_written_is_done_without(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    pwrite = os.pwrite

    def half(file: int, data: bytes, at: int) -> int:
        return pwrite(file, data[: len(data) // 2], at)

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        await asyncio.sleep(0.1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half if short else full)
            other = await granted(native, "r2")
            await native.finish(used(lease), lease)
        await native.finish(used(other), other)

    on_a_loop(store, story)
    assert [row.request_id for row in rows(store)] == ["r1", "r2"]
    assert store.open_leases() == ()
    assert store.gate_state("ann").day_requests == 2


def broken(*_: Any, **__: Any) -> Any:
    raise sqlite3.OperationalError("disk I/O error")


def test_what_cannot_be_written_into_the_file_stays_in_the_log_until_it_can(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the disk hears of it, and keeps the row; it counts once nevertheless."""

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "fold", broken)
            patch.setattr(redo, "redo", broken)
            with pytest.raises(StoreUnavailable):
                await native.finish(used(lease), lease)
            assert in_file(store.path, "ledger") == 0
        await granted(native, "r2")
        await native.finish(used(lease), lease)

    on_a_loop(store, story)
    assert_once(store)


def test_what_goes_wrong_with_all_of_it_at_once_is_done_line_by_line(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "fold", broken)
            await native.finish(used(lease), lease)
        await granted(native, "r2")

    on_a_loop(store, story)
    assert_once(store)


def assert_once(store: SqliteStore) -> None:
    assert [row.request_id for row in rows(store)] == ["r1"]
    assert [lease.request.request_id for lease in store.open_leases()] == ["r2"]
    assert store.gate_state("ann").day_requests == 2
    assert store.gate_state("ann").day_tokens == 30 + 100


def test_a_row_that_sqlite_cannot_hold_undoes_only_itself(store: SqliteStore) -> None:
    async def story(native: NativeSqliteStore) -> None:
        bad, good = await granted(native, "bad"), await granted(native, "good")
        finishing = [native.finish(used(bad, 2**70), bad), native.finish(used(good), good)]
        said = await asyncio.gather(*finishing, return_exceptions=True)
        # Nobody is told which of them it was: both are kept elsewhere, and one of them in vain.
        assert all(isinstance(each, Exception) for each in said)
        await native.finish(used(good), good)

    on_a_loop(store, story)
    assert [row.request_id for row in rows(store)] == ["good"]
    assert [lease.request.request_id for lease in store.open_leases()] == ["bad"]
    assert store.gate_state("ann").day_tokens == 30 + 100


def test_A01_a_transaction_that_sqlite_undoes_by_itself_is_done_again_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after some errors of a disk (SQLite documentation, "Transaction", section 3)."""

    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        finishing = native.finish(used(lease), lease)
        tenure = store._database.loop_writer()._tenure
        assert tenure is not None
        tenure._connection.execute("ROLLBACK")
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "admit", broken)
            await granted(native, "r2")
        await finishing

    on_a_loop(store, story)
    assert_once(store)


@pytest.mark.parametrize("junk", [b"00000000 ", b"00000000", b"\xff\xfe", b"\n\n", b"a b c d"])
def test_junk_in_the_log_holds_up_nobody(store: SqliteStore, junk: bytes) -> None:
    redo.path_of(store.path).write_bytes(junk)
    assert store.open_leases() == ()
    assert isinstance(store.admit(ask("r1")), Grant)
    assert not redo.is_left(store.path)


def test_while_nothing_can_be_written_nothing_is_admitted(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(native: NativeSqliteStore) -> None:
        await granted(native, "r1")
        with monkeypatch.context() as patch:
            patch.setattr(Tenure, "fold", broken)
            patch.setattr(redo, "redo", broken)
            await asyncio.sleep(0.1)
            with pytest.raises(StoreUnavailable):
                await told(native.admit, ask("r2"))
        await granted(native, "r3")

    on_a_loop(store, story)
    assert {lease.request.request_id for lease in store.open_leases()} == {"r1", "r3"}


def test_a_store_that_is_closed_writes_what_it_kept(store: SqliteStore) -> None:
    async def story(native: NativeSqliteStore) -> None:
        lease = await granted(native, "r1")
        await granted(native, "r2")
        finishing = asyncio.ensure_future(native.finish(used(lease), lease))
        store.close()
        await asyncio.wait_for(finishing, 10)
        with pytest.raises(BedrockProxyError):
            await told(native.admit, ask("r3"))

    on_a_loop(store, story)
    assert in_file(store.path, "ledger") == in_file(store.path, "leases") == 1
    assert not redo.is_left(store.path)


def test_a_file_of_the_version_before_is_brought_up_to_date_with_all_it_holds(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.db"
    with contextlib.closing(schema.connect(path, create=True)) as connection:
        schema.migrate(connection, schema.MIGRATIONS[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transactions, "begin_tenure", lambda _: None)
        patch.setattr(schema, "prepare", lambda _: None)
        old = SqliteStore(path)
        add(old)
        lease = old.admit(ask("r1"))
        assert isinstance(lease, Grant)
        old.close()
    store = SqliteStore(path)
    on_a_loop(store, lambda native: granted(native, "r2"))
    assert {each.request.request_id for each in store.open_leases()} == {"r1", "r2"}
    store.close()
