"""Stores on a bad day: a spool that cannot be read, a writer that cannot get its turn."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from tests.contracts.stories import add, admitted, ask, used

from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores import writer as writer_module
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.spool import Spool
from bedrock_proxy_adapters.stores.writer import Writer
from bedrock_proxy_adapters.upkeep import Upkeep


def test_A03_a_spooled_line_of_another_version_is_set_aside_and_holds_nobody_up(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    add(store)
    spool = Spool(tmp_path / "spool")
    body = json.dumps({"record": {"request_id": "r0", "shape": 9}, "lease": "{}"}).encode()
    line = b"%08x %s\n" % (crc32(body), body)
    spool.path.write_bytes(line)
    lease = admitted(store, ask("r1"))
    spool.append(used(lease, 20), lease)
    done = spool.replay(store.finish)
    assert (done.settled, done.broken, done.left) == (1, 1, 0)
    assert (tmp_path / "spool.broken").read_bytes() == line
    assert spool.size == 0


def test_A03_a_spool_that_cannot_be_replayed_does_not_keep_leases_from_being_settled() -> None:
    said: list[str] = []

    class Unreadable:
        size = 1

        def replay(self, finish: Any) -> None:
            said.append("replay")
            raise PermissionError

    class Books:
        def reap(self, now: int, limit: int = 1_000) -> int:
            said.append("reap")
            return 0

        def finish(self, record: Any, lease: Any) -> None: ...

    with pytest.raises(PermissionError):
        Upkeep(Books(), 60.0, Unreadable()).once()
    assert said == ["replay", "reap"]


def test_S20_a_writer_whose_turn_never_comes_does_not_keep_the_process_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the ticket and is stopped: the end is bounded all the same."""
    monkeypatch.setattr(writer_module, "PATIENCE_S", 0.1)
    ticket = tmp_path / "ticket"
    held = os.open(ticket, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    writer = Writer(tmp_path / "none.db", ticket)
    try:
        with pytest.raises(StoreUnavailable):
            writer.do(lambda connection: None, patience=0.1)
        closing = threading.Thread(target=writer.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
    finally:
        os.close(held)
    writer._thread.join(10)
    assert not writer._thread.is_alive()


def test_A03_a_row_that_the_ledger_chokes_on_stays_and_the_others_are_settled(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    add(store)
    spool = Spool(tmp_path / "spool")
    for name in ("r1", "r2"):
        lease = admitted(store, ask(name))
        spool.append(used(lease, 20), lease)

    def finish(record: Any, lease: Any) -> None:
        if record.request_id == "r1":
            raise OverflowError("a defect of ours, or of the store's driver")
        store.finish(record, lease)

    done = spool.replay(finish)
    assert (done.settled, done.broken, done.left) == (1, 0, 1)
    assert spool.replay(store.finish).settled == 1
    assert store.open_leases() == ()


def test_A01_a_child_does_not_keep_the_turn_of_a_parent_that_died_with_it(tmp_path: Path) -> None:
    """
    A lock taken by ``flock`` lives as long as any process has the file open that took it:
    a forked child must let go of its parent's.
    """
    path = tmp_path / "proxy.db"
    program = textwrap.dedent(
        f"""
        import os, signal, sys, threading, time
        from bedrock_proxy_adapters.stores.sqlite import SqliteStore

        store = SqliteStore({str(path)!r})
        begun = threading.Event()

        def hold(connection):
            begun.set()
            time.sleep(60)

        writer = store._database.writer()
        threading.Thread(target=lambda: writer.do(hold), daemon=True).start()
        assert begun.wait(20)
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.wait(20)
    try:
        writer = Writer(path, tmp_path / "proxy.db-ticket")
        assert writer.do(lambda connection: 7, patience=5.0) == 7
        writer.close()
    finally:
        os.kill(child, signal.SIGKILL)
