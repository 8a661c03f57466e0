"""The spool: durable, bounded, and replayed without losing or doubling anything."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stories import add, admitted, ask, rows, used

from bedrock_proxy.admission import Grant
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy_adapters.stores import spool as spool_module
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.spool import Replayed, Spool, SpoolFull, SpoolGate


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    add(made)
    return made


def leases(store: Any, count: int) -> list[Any]:
    return [admitted(store, ask(f"r{number}")) for number in range(count)]


def test_what_was_spooled_is_settled_by_the_replay(spool: Spool, store: MemoryStore) -> None:
    records = [(used(lease, 20 + n), lease) for n, lease in enumerate(leases(store, 3))]
    for each in records:
        spool.append(*each)
    assert spool.size > 0
    assert spool.replay(store.finish) == Replayed(settled=3)
    assert rows(store) == [record for record, _ in records]
    assert store.open_leases() == ()
    assert spool.size == 0
    assert spool.replay(store.finish) == Replayed()


def test_every_field_of_the_record_and_its_lease_survives(spool: Spool, store: MemoryStore) -> None:
    (lease,) = leases(store, 1)
    record = used(
        lease, 33, None, error_code="timeout", first_byte_ms=None, aws_request_id="ü\u2028"
    )
    spool.append(record, lease)
    found: list[Any] = []
    spool.replay(lambda *each: found.append(each))
    assert found == [(record, lease)]


def test_it_reached_the_disk_before_it_is_told(
    spool: Spool, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    original = spool_module.os.fsync
    monkeypatch.setattr(spool_module.os, "fsync", lambda fd: (synced.append(fd), original(fd))[1])
    (lease,) = leases(store, 1)
    spool.append(used(lease), lease)
    assert len(synced) == 2  # the file, and the folder that it is new in


def test_while_the_store_is_still_down_everything_stays(spool: Spool, store: MemoryStore) -> None:
    for lease in leases(store, 4):
        spool.append(used(lease), lease)
    taken: list[str] = []

    def flaky(record: Any, lease: Any) -> None:
        if record.request_id in {"r1", "r3"}:
            raise StoreUnavailable("down")
        taken.append(record.request_id)

    assert spool.replay(flaky) == Replayed(settled=2, left=2)
    assert spool.replay(store.finish) == Replayed(settled=2)
    assert taken == ["r0", "r2"]
    assert [row.request_id for row in rows(store)] == ["r1", "r3"]


def test_what_is_appended_during_a_replay_is_not_lost(spool: Spool, store: MemoryStore) -> None:
    first, second = leases(store, 2)
    spool.append(used(first), first)

    def finish(record: Any, lease: Any) -> None:
        if record.request_id == "r0":
            spool.append(used(second), second)
        store.finish(record, lease)

    spool.replay(finish)
    spool.replay(finish)
    assert [row.request_id for row in rows(store)] == ["r0", "r1"]


@pytest.mark.parametrize("keep", [1, 8, 9, 100])
def test_an_unfinished_line_is_set_aside_and_harms_no_other(
    spool: Spool, store: MemoryStore, keep: int
) -> None:
    one, two, three = leases(store, 3)
    spool.append(used(one), one)
    whole = spool.path.read_bytes()
    spool.append(used(two), two)
    torn = spool.path.read_bytes()[: len(whole) + keep]
    spool.path.write_bytes(torn)
    spool.append(used(three), three)
    assert spool.replay(store.finish) == Replayed(settled=2, broken=1)
    assert [row.request_id for row in rows(store)] == ["r0", "r2"]
    assert spool.path.with_name("spool.broken").read_bytes().strip() == torn[len(whole) :].strip()


def test_a_flipped_bit_is_noticed(spool: Spool, store: MemoryStore) -> None:
    (lease,) = leases(store, 1)
    spool.append(used(lease, 30), lease)
    text = spool.path.read_bytes()
    spool.path.write_bytes(text.replace(b'"token_count":30', b'"token_count":31'))
    assert spool.replay(store.finish) == Replayed(broken=1)
    assert rows(store) == []


def test_admission_closes_while_what_was_admitted_can_still_be_kept(
    tmp_path: Path, store: MemoryStore
) -> None:
    spool = Spool(tmp_path / "spool", cap=8_000)
    gate = SpoolGate(store, spool)
    assert gate.kind == "instant"
    under_way = [admitted(store, ask(f"before-{number}")) for number in range(3)]
    kept = 0
    with pytest.raises(StoreUnavailable):
        for number in range(20):
            decision = gate.admit(ask(f"r{number}"))
            assert isinstance(decision, Grant)
            spool.append(used(decision.lease), decision.lease)
            kept += 1
    assert kept >= 1
    assert spool.is_full
    assert spool.size < 8_000
    for lease in under_way:
        spool.append(used(lease), lease)
    lease = admitted(store, ask("r-kept"))
    assert gate.renew(lease, lease.deadline).deadline > lease.deadline  # type: ignore[union-attr]
    gate.release(lease.request)
    assert Replayed(settled=kept + 3) == spool.replay(store.finish)
    assert isinstance(gate.admit(ask("later")), Grant)


def test_a_spool_beyond_its_cap_refuses(tmp_path: Path, store: MemoryStore) -> None:
    spool = Spool(tmp_path / "spool", cap=2_500)
    with pytest.raises(SpoolFull):
        for lease in leases(store, 10):
            spool.append(used(lease), lease)
    assert 0 < spool.size <= 2_500


def test_threads_that_spool_at_once_do_not_mix_lines(spool: Spool, store: MemoryStore) -> None:
    taken = leases(store, 40)

    def append(part: list[Any]) -> None:
        for lease in part:
            spool.append(used(lease), lease)

    threads = [threading.Thread(target=append, args=(taken[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spool.replay(store.finish) == Replayed(settled=40)


def test_a_record_the_disk_refuses_is_an_error_not_a_silence(
    tmp_path: Path, store: MemoryStore
) -> None:
    (lease,) = leases(store, 1)
    with pytest.raises(OSError, match="No such file"):
        Spool(tmp_path / "nowhere" / "spool").append(used(lease), lease)
