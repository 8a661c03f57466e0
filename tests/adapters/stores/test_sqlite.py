"""What only the SQLite store has: files, forks, groups, schemas, and event loops."""

import asyncio
import contextlib
import multiprocessing
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stories import LEASE_MS, NOON, add, admitted, ask, key, refused, rows, used

from bedrock_proxy.admission import Grant
from bedrock_proxy.customers import AlreadyTaken, Limits
from bedrock_proxy.errors import ConfigurationError, StoreUnavailable, Unavailable
from bedrock_proxy.store import CACHE_MS
from bedrock_proxy_adapters.stores import database, gate, loop_writer, schema
from bedrock_proxy_adapters.stores.schema import file_system_of, migrate
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.stores.ticket import Ticket
from bedrock_proxy_adapters.stores.transactions import Transactions


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = SqliteStore(tmp_path / "store.db")
    yield made
    made.close()


# --- the file ---------------------------------------------------------------------------------


def test_a_missing_folder_is_a_sentence_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.* does not exist"):
        SqliteStore(tmp_path / "nowhere" / "store.db")


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("this is a letter, and a rather long one at that\n" * 200)
    with pytest.raises(ConfigurationError, match="cannot be used: file is not a database"):
        SqliteStore(path)


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(ConfigurationError, match="did not make"):
        SqliteStore(path)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match=r"schema version 99.*Upgrade"):
        SqliteStore(path)


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        path = Path("/proc/self/store.db")  # nobody can make files there, not even root
    else:
        path = tmp_path / "store.db"
        tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        SqliteStore(path)


def test_the_file_is_readable_by_its_owner_only(store: SqliteStore) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_every_table_is_strict_and_every_commit_reaches_the_disk(store: SqliteStore) -> None:
    with contextlib.closing(schema.connect(store.path)) as connection:
        tables = connection.execute("PRAGMA table_list").fetchall()
        ours = {row[1]: row[5] for row in tables if not row[1].startswith("sqlite_")}
        assert ours == dict.fromkeys(["customers", "keys", "gates", "leases", "ledger", "redo"], 1)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_new_file_has_small_pages_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 8192")
        migrate(connection)
    for path, size in ((tmp_path / "new.db", schema.PAGE_BYTES), (old, 8192)):
        store = SqliteStore(path)
        add(store)
        lease = admitted(store, ask("r1"))
        store.finish(used(lease), lease)
        assert [row.request_id for row in rows(store)] == ["r1"]
        store.close()
        with contextlib.closing(schema.connect(path)) as connection:
            assert connection.execute("PRAGMA page_size").fetchone() == (size,)
            pages = connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0]
            assert pages * size == schema.CHECKPOINT_BYTES


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/efs rw,relatime shared:2 - nfs4 fs.example.com:/ rw,vers=4.1
31 30 0:41 / /mnt/efs/local rw - tmpfs tmpfs rw
32 22 0:42 / /mnt/with\\040space rw - fuse.sshfs host: rw
33 22 0:43 / /srv rw - nfs host:/a rw
34 22 0:44 / /srv rw - xfs /dev/sdb rw
this line is broken
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/mnt/efs", "nfs4"),
        ("/mnt/efs/data", "nfs4"),
        ("/mnt/efs/local/data", "tmpfs"),
        ("/mnt/efsother", "ext4"),
        ("/mnt/with space/x", "fuse.sshfs"),
        ("/srv/data", "xfs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_latest_mount(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are read on Linux only")
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path.resolve()} rw - nfs4 host:/ rw\n"
    monkeypatch.setattr(schema, "_read_mounts", lambda: mounts)
    with pytest.raises(ConfigurationError, match=r"network file system \(nfs4\)"):
        SqliteStore(tmp_path / "store.db")


def test_migrations_run_in_order_once_and_whole(tmp_path: Path) -> None:
    with contextlib.closing(schema.connect(tmp_path / "m.db", create=True)) as connection:
        first = "CREATE TABLE a (x TEXT) STRICT;\nCREATE TABLE b (x TEXT) STRICT;"
        migrate(connection, [first])
        connection.execute("INSERT INTO a VALUES ('kept')")
        broken = "ALTER TABLE a ADD COLUMN y INTEGER;\nCREATE TABLE b (x TEXT);"
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            migrate(connection, [first, broken])
        assert connection.execute("SELECT * FROM a").fetchall() == [("kept",)]
        migrate(connection, [first, "ALTER TABLE a ADD COLUMN y INTEGER;"])
        migrate(connection, [first, "ALTER TABLE a ADD COLUMN y INTEGER;"])
        assert connection.execute("SELECT * FROM a").fetchall() == [("kept", None)]
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_two_stores_that_open_at_once_make_the_schema_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def make(path: Path) -> None:
        try:
            SqliteStore(path).close()
        except BaseException as error:
            errors.append(error)

    for number in range(40):  # one in a hundred met a lock that SQLite does not wait for
        path = tmp_path / f"{number}.db"
        threads = [threading.Thread(target=make, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_file_that_vanishes_is_an_unreachable_store_not_a_lost_row(store: SqliteStore) -> None:
    add(store)
    lease = admitted(store, ask("r1"))
    moved = store.path.with_name("moved.db")
    store.path.rename(moved)
    with pytest.raises(StoreUnavailable):
        store.finish(used(lease), lease)
    with pytest.raises(StoreUnavailable):
        store.admit(ask("r2"))
    with pytest.raises(StoreUnavailable):
        store.list_rows()
    moved.rename(store.path)
    store.finish(used(lease), lease)
    assert len(rows(store)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")
def test_nothing_lasting_is_opened_before_the_first_call(tmp_path: Path) -> None:
    before = threading.active_count()
    store = SqliteStore(tmp_path / "store.db")
    assert threading.active_count() == before
    opened = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [name for name in opened if name.startswith(str(tmp_path.resolve()))]
    store.close()


# --- processes --------------------------------------------------------------------------------


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="forking beside a thread warns from 3.12 on"
)
def test_a_store_used_before_a_fork_serves_both_sides(store: SqliteStore) -> None:
    add(store, limits=Limits(requests_per_day=10))
    admitted(store, ask("before"))
    assert store.find_token(key("key-ann").digest, NOON)

    def child() -> None:
        assert store.find_token(key("key-ann").digest, NOON)
        lease = admitted(store, ask("child"))
        store.finish(used(lease), lease)
        store.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    admitted(store, ask("parent"))
    process.join(30)
    assert process.exitcode == 0
    assert store.gate_state("ann").day_requests == 3
    assert [row.request_id for row in rows(store)] == ["child"]


def test_a_request_gives_up_when_the_turn_does_not_come(store: SqliteStore) -> None:
    add(store)
    admitted(store, ask("r1"))
    ticket = Ticket(store.path.with_name("store.db-ticket"))
    with ticket.held():
        writer = store._database.writer()
        with pytest.raises(StoreUnavailable):
            writer.do(lambda connection: gate.admit(connection, ask("r2")), patience=0.05)
        with pytest.raises(StoreUnavailable):
            writer.do(lambda connection: gate.admit(connection, ask("r3")), patience=0.05)
    ticket.close()
    admitted(store, ask("r4"))
    held = {lease.request.request_id for lease in store.open_leases()}
    assert "r3" not in held, "what had not begun was begun after its caller had given up"


# --- the writing thread -----------------------------------------------------------------------


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_what_waits_together_is_committed_together(store: SqliteStore) -> None:
    add(store)
    commits: list[int] = []
    original = Transactions._transact

    def counted(self: Transactions, group: Any, *connection: Any) -> Any:
        commits.append(len(group))
        return original(self, group, *connection)

    ticket = Ticket(store.path.with_name("store.db-ticket"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transactions, "_transact", counted)
        threads = [
            threading.Thread(target=lambda n=n: admitted(store, ask(f"r{n}"))) for n in range(20)
        ]
        queue = store._database.writer()._queue
        with ticket.held():
            # The first alone, so that the writer waits for the ticket with it; then the others.
            threads[0].start()
            wait_until(lambda: threads[0].is_alive() and queue.empty())
            time.sleep(0.05)
            for thread in threads[1:]:
                thread.start()
            wait_until(lambda: queue.qsize() == 19)
        for thread in threads:
            thread.join()
    ticket.close()
    assert commits == [1, 19]
    assert len(store.open_leases()) == 20


def test_a_defect_in_one_piece_of_work_harms_no_other_in_its_group(store: SqliteStore) -> None:
    add(store)
    writer = store._database.writer()
    outcomes: dict[str, Any] = {}

    def broken(connection: sqlite3.Connection) -> None:
        gate.admit(connection, ask("broken"))
        connection.execute("INSERT INTO nowhere VALUES (1)")

    def wrong(connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    def run(name: str, work: Any) -> None:
        try:
            outcomes[name] = writer.do(work)
        except BaseException as error:
            outcomes[name] = error

    ticket = Ticket(store.path.with_name("store.db-ticket"))
    works = [
        ("good", lambda connection: gate.admit(connection, ask("good"))),
        ("broken", broken),
        ("wrong", wrong),
        ("better", lambda connection: gate.admit(connection, ask("better"))),
    ]
    threads = [threading.Thread(target=run, args=each) for each in works]
    with ticket.held():
        # The first alone, so that the writer waits for the ticket with it; then the others.
        threads[0].start()
        wait_until(lambda: threads[0].is_alive() and writer._queue.empty())
        time.sleep(0.05)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: writer._queue.qsize() == 3)
    for thread in threads:
        thread.join()
    ticket.close()
    assert isinstance(outcomes["good"], Grant)
    assert isinstance(outcomes["better"], Grant)
    assert isinstance(outcomes["broken"], StoreUnavailable)
    assert isinstance(outcomes["wrong"], ZeroDivisionError)
    assert {each.request.request_id for each in store.open_leases()} == {"good", "better"}


def test_an_operators_mistake_leaves_the_group_as_it_is(store: SqliteStore) -> None:
    add(store)
    with pytest.raises(AlreadyTaken):
        add(store)
    assert len(store.list_customers().items) == 1


def test_a_request_id_that_was_settled_is_not_admitted_again(store: SqliteStore) -> None:
    """A host may hand in ids of its own; one id can pay for one call only."""
    add(store)
    lease = admitted(store, ask("r1"))
    store.finish(used(lease), lease)
    before = store.gate_state("ann")
    with pytest.raises(Unavailable, match="settled already"):
        store.admit(ask("r1"))
    assert store.gate_state("ann") == before


def test_closing_does_what_is_waiting_and_may_be_repeated(store: SqliteStore) -> None:
    add(store)
    store._database.writer().do_later(lambda connection: gate.admit(connection, ask("r1")))
    store.close()
    store.close()
    again = SqliteStore(store.path)
    assert len(again.open_leases()) == 1
    again.close()


# --- what is overdue --------------------------------------------------------------------------


def test_admission_settles_what_is_overdue(store: SqliteStore) -> None:
    add(store)
    admitted(store, ask("forgotten"))
    admitted(store, ask("next", NOON + LEASE_MS + 1_000))
    store.reap(NOON)  # waits its turn behind the reaper
    assert [row.request_id for row in rows(store)] == ["forgotten"]
    assert [each.request.request_id for each in store.open_leases()] == ["next"]


# --- tokens -----------------------------------------------------------------------------------


def test_a_known_token_is_not_looked_up_again_for_a_minute(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store)
    digest = key("key-ann").digest
    owner = store.find_token(digest, NOON)
    unknown = store.find_token(b"unknown", NOON)

    @contextlib.contextmanager
    def fail(self: Any) -> Any:
        raise StoreUnavailable("down")
        yield

    monkeypatch.setattr(database.Database, "looking_up", fail)
    assert store.find_token(digest, NOON + CACHE_MS - 1) == owner
    assert store.find_token(b"unknown", NOON + CACHE_MS - 1) == unknown
    with pytest.raises(StoreUnavailable):
        store.find_token(digest, NOON + CACHE_MS)
    with pytest.raises(StoreUnavailable):
        store.find_token(b"unknown", NOON + CACHE_MS)
    with pytest.raises(StoreUnavailable):
        store.find_token(b"another", NOON)


def test_I12_a_remembered_token_of_another_process_meets_admission(tmp_path: Path) -> None:
    here, there = SqliteStore(tmp_path / "store.db"), SqliteStore(tmp_path / "store.db")
    first = add(here)
    assert there.find_token(first.digest, NOON)
    here.revoke_key("ann", first.key_id)
    assert there.find_token(first.digest, NOON + 1)
    refused(there, ask("r1"))
    here.close()
    there.close()


# --- event loops ------------------------------------------------------------------------------


def test_the_native_face_is_awaited_and_shares_the_store(store: SqliteStore) -> None:
    add(store, limits=Limits(requests_per_day=50))
    native = store.native()
    assert (store.kind, native.kind) == ("blocking", "native")

    async def one(number: int) -> bool:
        owner = await native.find_token(key("key-ann").digest, NOON)
        assert owner is not None
        decision = await native.admit(ask(f"r{number}"))
        if not isinstance(decision, Grant):
            return False
        lease = await native.renew(decision.lease, NOON + 10)
        if number % 2:
            await native.finish(used(lease), lease)
        else:
            await native.release(lease.request)
        return True

    async def main() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(40)))

    assert all(asyncio.run(main()))
    assert len(rows(store)) == 20
    assert store.gate_state("ann").day_requests == 20


def test_a_cancelled_wait_breaks_neither_the_loop_nor_the_store(store: SqliteStore) -> None:
    add(store)
    native = store.native()

    async def main() -> None:
        ticket = Ticket(store.path.with_name("store.db-ticket"))
        with ticket.held():
            task = asyncio.ensure_future(native.admit(ask("r1")))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        ticket.close()
        await native.admit(ask("r2"))
        await native.release(ask("r1"))

    asyncio.run(main())
    assert [each.request.request_id for each in store.open_leases()] == ["r2"]


def test_a_native_wait_gives_up_too(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store)
    monkeypatch.setattr(loop_writer, "PATIENCE_S", 0.05)

    async def main() -> None:
        ticket = Ticket(store.path.with_name("store.db-ticket"))
        with ticket.held(), pytest.raises(StoreUnavailable):
            await store.native().admit(ask("r1"))
        ticket.close()

    asyncio.run(main())


def test_a_failing_file_is_an_unreachable_store_for_coroutines_too(store: SqliteStore) -> None:
    add(store)
    store.path.unlink()

    async def main() -> None:
        with pytest.raises(StoreUnavailable):
            await store.native().admit(ask("r1"))

    asyncio.run(main())
