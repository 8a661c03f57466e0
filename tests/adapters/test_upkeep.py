"""The upkeep: leases of dead processes settled, waiting rows entered, once in each process."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.contracts.stories import add, admitted, ask, rows, used
from tests.running import wait_for

from bedrock_proxy.admission import Lease
from bedrock_proxy.customers import Customer
from bedrock_proxy.errors import ConfigurationError, store_unavailable
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.memory import MemoryStore
from bedrock_proxy_adapters.stores.spool import Replayed, Spool
from bedrock_proxy_adapters.upkeep import Upkeep


class Books:
    """Says what was asked of it; fails as often as it is told to."""

    def __init__(self, overdue: int = 0, failures: tuple[Exception, ...] = ()) -> None:
        self.said: list[str] = []
        self.overdue = overdue
        self.failures = list(failures)
        self.threads: set[str] = set()

    def reap(self, now: int, limit: int = 1_000) -> int:
        self.threads.add(threading.current_thread().name)
        self.said.append("reap")
        if self.failures:
            raise self.failures.pop(0)
        count = min(limit, self.overdue)
        self.overdue -= count
        return count

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        self.said.append("finish")

    def get_customer(self, customer_id: str) -> Customer:
        return Customer(id=customer_id, name="n", email="e", created_at=1)


class Waiting:
    def __init__(self, books: Books, size: int = 1) -> None:
        self.size = size
        self._books = books

    def replay(self, finish: Callable[[UsageRecord, Lease], object]) -> None:
        self._books.said.append("replay")
        self.size = 0


@pytest.fixture
def ended() -> Iterator[list[Upkeep]]:
    begun: list[Upkeep] = []
    yield begun
    for each in begun:
        each.end()


def test_true_figures_are_entered_before_estimates_are_made() -> None:
    books = Books()
    Upkeep(books, 60.0, Waiting(books)).once()
    assert ["replay", "reap"] == books.said


def test_rows_of_another_stores_customers_stay_in_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two proxies that were started in one folder share the spool there."""
    spool, ours, theirs = Spool(tmp_path / "spool"), MemoryStore(), MemoryStore()
    add(ours, "ann")
    add(theirs, "bob")
    for store, name in ((ours, "ann"), (theirs, "bob")):
        for number in range(2):
            lease = admitted(store, ask(f"{name}-{number}", customer_id=name))
            spool.append(used(lease), lease)
    with caplog.at_level(logging.WARNING, "bedrock_proxy"):
        for _ in range(2):
            Upkeep(ours, 60.0, spool).once()
    assert [row.request_id for row in rows(ours)] == ["ann-0", "ann-1"]
    told = {r.getMessage() for r in caplog.records}
    assert told == {
        (
            "2 usage row(s) in the spool are of customers whom this store does not know, and stay "
            "there: is it the spool of another store?"
        )
    }
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bedrock_proxy"):
        Upkeep(theirs, 60.0, spool).once()
    assert [row.request_id for row in rows(theirs)] == ["bob-0", "bob-1"]
    assert theirs.open_leases() == ()
    assert ["The spool is empty again: 2 usage row(s) were settled."] == [
        r.getMessage() for r in caplog.records
    ]


def test_an_empty_spool_is_left_alone() -> None:
    books = Books()
    Upkeep(books, 60.0, Waiting(books, size=0)).once()
    assert ["reap"] == books.said


def test_everything_that_is_overdue_is_settled() -> None:
    books = Books(overdue=2_500)
    Upkeep(books, 60.0).once()
    assert 0 == books.overdue
    assert 3 == len(books.said)


def test_it_looks_at_once_and_again_after_half_a_lease(ended: list[Upkeep]) -> None:
    books = Books()
    upkeep = Upkeep(books, 0.05)
    ended.append(upkeep)
    upkeep.begin()
    wait_for(lambda: len(books.said) >= 3 or None, "three looks")
    assert {"bedrock-proxy-upkeep"} == books.threads


def test_beginning_twice_is_beginning_once(ended: list[Upkeep]) -> None:
    books = Books()
    upkeep = Upkeep(books, 60.0)
    ended.append(upkeep)
    racing = [threading.Thread(target=upkeep.begin) for _ in range(8)]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    wait_for(lambda: books.said or None, "the first look")
    assert ["reap"] == books.said


def test_a_store_that_is_down_or_a_defect_only_puts_it_off(
    ended: list[Upkeep], caplog: pytest.LogCaptureFixture
) -> None:
    books = Books(failures=(store_unavailable(), RuntimeError("CANARY")))
    upkeep = Upkeep(books, 0.02)
    ended.append(upkeep)
    with caplog.at_level(logging.WARNING, "bedrock_proxy"):
        upkeep.begin()
        wait_for(lambda: len(books.said) >= 4 or None, "four looks")
    levels = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "bedrock_proxy"]
    assert [level for level, _ in levels] == ["WARNING", "ERROR"]
    assert "RuntimeError" in levels[1][1]
    assert "CANARY" not in caplog.text


def test_it_ends_when_told(ended: list[Upkeep]) -> None:
    books = Books()
    upkeep = Upkeep(books, 0.02)
    upkeep.begin()
    wait_for(lambda: books.said or None, "a look")
    upkeep.end()
    wait_for(
        lambda: (
            not any(
                t.name == "bedrock-proxy-upkeep" and t.is_alive() for t in threading.enumerate()
            )
            or None
        ),
        "the thread's end",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_begins_its_own(ended: list[Upkeep]) -> None:
    books = Books()
    upkeep = Upkeep(books, 60.0)
    ended.append(upkeep)
    upkeep.begin()
    wait_for(lambda: books.said or None, "the parent's look")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        books.said.clear()
        upkeep.begin()
        try:
            wait_for(lambda: books.said or None, "the child's look", 5)
            os.write(writer, b"looked")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    said = os.read(reader, 10)
    os.close(reader)
    assert b"looked" == said


def test_what_a_store_says_while_it_is_closed_is_not_told(
    ended: list[Upkeep], caplog: pytest.LogCaptureFixture
) -> None:
    """A program that ends at once closes its store under the first look."""
    upkeep: Upkeep
    looked = threading.Event()

    class Closing(Books):
        def reap(self, now: int, limit: int = 1_000) -> int:
            upkeep.end()
            looked.set()
            raise store_unavailable()

    upkeep = Upkeep(Closing(), 60.0)
    ended.append(upkeep)
    with caplog.at_level(logging.WARNING, "bedrock_proxy"):
        upkeep.begin()
        assert looked.wait(20)
        wait_for(
            lambda: (
                not [t for t in threading.enumerate() if t.name == "bedrock-proxy-upkeep"] or None
            ),
            "the upkeep to end",
        )
    assert not caplog.records


def test_why_it_was_put_off_is_told_and_that_the_spool_is_empty_again(
    ended: list[Upkeep], caplog: pytest.LogCaptureFixture
) -> None:
    away = store_unavailable()
    away.__cause__ = ConfigurationError("There is no table; `bedrock-proxy store create` makes it")

    class Kept(Waiting):
        def replay(self, finish: Callable[[UsageRecord, Lease], object]) -> Replayed:  # type: ignore[override]
            Waiting.replay(self, finish)
            return Replayed(settled=3)

    books = Books(failures=(away, away, away))
    upkeep = Upkeep(books, 0.02, Kept(books))
    ended.append(upkeep)
    with caplog.at_level(logging.WARNING, "bedrock_proxy"):
        upkeep.begin()
        wait_for(lambda: books.said.count("reap") >= 5 or None, "five looks")
    said = [r.getMessage() for r in caplog.records if r.name == "bedrock_proxy"]
    assert [
        "The spool is empty again: 3 usage row(s) were settled.",
        (
            "upkeep was put off: the customer database cannot be used: There is no table; "
            "`bedrock-proxy store create` makes it."
        ),
    ] == said, "once, though it was put off three times"
