"""
A process that uses one SQLite store as a server would: started, raced and killed by the
tests of accounting. Run as ``python -m tests.faults.accounting_worker MODE DATABASE …``.

Each mode prints ``ready``, waits for a line, does its work, and prints JSON.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from tests.contracts.factories import told
from tests.contracts.stories import NOON, ask, used

from bedrock_proxy import accounts
from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.errors import StoreUnavailable
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores import gate, ledger, redo, spool, transactions, writer
from bedrock_proxy_adapters.stores.redo import RedoLog
from bedrock_proxy_adapters.stores.spool import Spool
from bedrock_proxy_adapters.stores.sqlite import SqliteStore
from bedrock_proxy_adapters.stores.tenure import Tenure
from bedrock_proxy_adapters.stores.ticket import Ticket


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Log:
    """What a fake Bedrock would know: which requests were really called, and how they went."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, **fact: Any) -> None:
        os.write(self._file, json.dumps(fact).encode() + b"\n")


# --- where a process may die ----------------------------------------------------------------


def _dies_before(module: Any, name: str, nth: int) -> None:
    original = getattr(module, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            die()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def _dies_after(module: Any, name: str, nth: int) -> None:
    original = getattr(module, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == nth:
            die()
        return result

    setattr(module, name, wrapped)


# Between the functions named here, each step of a transaction ends: a request admits with
# one `gate.save`, and settles with another.
PATCHED: dict[str, Callable[[], None]] = {
    "admit: decided, nothing written": lambda: _dies_before(gate, "save", 3),
    "admit: state written, no lease": lambda: _dies_after(gate, "save", 3),
    "admit: all written, not committed": lambda: _dies_after(gate, "admit", 2),
    "admit: committed, not told": lambda: _dies_before(writer, "deliver", 3),
    "settle: decided, nothing written": lambda: _dies_after(accounts, "enter", 2),
    "settle: row written, not the state": lambda: _dies_before(gate, "save", 4),
    "settle: state written, lease still there": lambda: _dies_before(gate, "drop_lease", 2),
    "settle: all written, not committed": lambda: _dies_after(ledger, "finish", 2),
    "settle: committed, not told": lambda: _dies_before(writer, "deliver", 4),
    "reaper: one of several settled": lambda: _dies_before(accounts, "estimated_row", 2),
    "reaper: all written, not committed": lambda: _dies_after(ledger, "reap", 1),
    "spool: written, not durable": lambda: _dies_before(spool.os, "fsync", 1),
    "spool: durable, not told": lambda: _dies_after(Spool, "append", 1),
    "replay: taken over, nothing settled": lambda: _dies_before(spool, "_parse", 1),
    "replay: one settled, still in the file": lambda: _dies_before(spool, "_parse", 2),
    "replay: all settled, still in the file": lambda: _dies_before(spool.Path, "unlink", 1),
}


def _dies_in_the_middle_of_a_line(nth: int) -> None:
    pwrite = os.pwrite
    lines = 0

    def half(file: int, data: bytes, at: int) -> int:
        nonlocal lines
        lines += data != b"\0"
        if lines == nth:
            pwrite(file, data[: len(data) // 2], at)
            die()
        return pwrite(file, data, at)

    os.pwrite = half


# On a loop a request writes two lines to the redo log, where nobody else wants the turn; they are
# folded into the file in the time that its settlement takes to reach the disk.
KEPT: dict[str, Callable[[], None]] = {
    "tenure: decided, not in the log": lambda: _dies_before(RedoLog, "append", 3),
    "tenure: half of it in the log": lambda: _dies_in_the_middle_of_a_line(3),
    "tenure: in the log, not told": lambda: _dies_after(RedoLog, "append", 3),
    "tenure: settled, not in the log": lambda: _dies_before(RedoLog, "append", 4),
    "tenure: half of the row in the log": lambda: _dies_in_the_middle_of_a_line(4),
    "tenure: row in the log, not told": lambda: _dies_after(RedoLog, "append", 4),
    "fold: nothing written": lambda: _dies_before(Tenure, "fold", 2),
    "fold: all written, not committed": lambda: _dies_after(redo, "set_folded", 2),
    "fold: committed, still in the log": lambda: _dies_before(RedoLog, "clear", 2),
    "fold: committed, not told": lambda: _dies_after(Tenure, "fold", 2),
}

REDONE: dict[str, Callable[[], None]] = {
    "redo: nothing done": lambda: _dies_before(redo, "redo", 1),
    "redo: some of it done": lambda: _dies_after(gate, "put_lease", 1),
    "redo: all done, not committed": lambda: _dies_after(redo, "redo", 1),
    "redo: committed, still in the log": lambda: _dies_before(RedoLog, "clear", 1),
}
"""Where the process that finds the log of one that was killed may die itself, at its first request."""

INLINE = [
    "admitted",
    "called",
    "first byte",
    "usage known",
    "settled",
]
"""Where :func:`serve` itself dies."""


def serve(store: SqliteStore, log: Log, name: str, failpoint: str, count: int, lease: int) -> None:
    """Requests one after the other; at the second, the process dies at *failpoint*."""

    def here(place: str) -> None:
        if number == 1 and place == failpoint:
            die()

    keeps = Spool(store.path.with_name("spool"))
    spools = failpoint.startswith(("spool", "replay"))
    patches = PATCHED | KEPT | REDONE
    if failpoint in patches and not failpoint.startswith(("reaper", "replay")):
        patches[failpoint]()
    for number in range(count):
        request = ask(f"{name}-{number}", now_ms(), lease_ms=lease)
        decision = store.admit(request)
        if not isinstance(decision, Grant):
            log.say(refused=request.request_id)
            continue
        here("admitted")
        log.say(called=request.request_id)
        here("called")
        here("first byte")
        record = used(decision.lease, 10 + number)
        here("usage known")
        if spools or number == 2:
            keeps.append(record, decision.lease)
        else:
            store.finish(record, decision.lease)
        log.say(told=request.request_id, tokens=record.token_count)
        here("settled")
    if failpoint.startswith("reaper"):
        for number in range(3):
            store.admit(ask(f"{name}-left-{number}", now_ms(), lease_ms=1))
            log.say(called=f"{name}-left-{number}")
        time.sleep(0.01)
        PATCHED[failpoint]()
        store.reap(now_ms())
    if failpoint.startswith("replay"):
        PATCHED[failpoint]()
    keeps.replay(store.finish)


def burst(store: SqliteStore, name: str, count: int) -> int:
    """How many of so many requests at one instant are admitted."""
    return sum(
        isinstance(store.admit(ask(f"{name}-{number}", NOON)), Grant) for number in range(count)
    )


def saturate(store: SqliteStore, name: str, seconds: float) -> list[int]:
    """When the requests of a client that never pauses were admitted."""
    times: list[int] = []
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        decision = store.admit(ask(f"{name}-{number}", now_ms()))
        if isinstance(decision, Grant):
            times.append(decision.lease.request.at)
            store.finish(used(decision.lease, duration_ms=0), decision.lease)
        else:
            time.sleep(0.002)
    return times


def hold(store: SqliteStore, name: str, lease_ms: int) -> None:
    """Take leases and keep each for a little, until killed."""
    number = 0
    while True:
        number += 1
        with contextlib.suppress(StoreUnavailable):
            decision = store.admit(ask(f"{name}-{number}", now_ms(), lease_ms=lease_ms))
            if isinstance(decision, Grant):
                time.sleep(0.02)
                store.finish(used(decision.lease), decision.lease)
            else:
                time.sleep(0.005)


def rebuild(store: SqliteStore, count: int) -> None:
    for _ in range(count):
        store.rebuild(now_ms())


def get_then_set() -> None:
    """A defect: decides in one transaction and writes in the next."""
    save, admit = gate.save, gate.admit

    def late_admit(connection: Any, request: Any) -> Any:
        later: list[tuple[Any, ...]] = []
        gate.save = lambda connection, *args: later.append(args)
        decision = admit(connection, request)
        gate.save = save
        connection.execute("COMMIT")
        time.sleep(0.001)
        connection.execute("BEGIN IMMEDIATE")
        for args in later:
            save(connection, *args)
        return decision

    gate.admit = late_admit
    without_ticket()


def deferred() -> None:
    """A defect: transactions that begin by reading, so that two may read the same."""
    original = transactions.schema.connect

    class Deferred:
        def __init__(self, connection: Any) -> None:
            self._connection = connection

        def execute(self, statement: str, *args: Any) -> Any:
            if statement == "BEGIN IMMEDIATE":
                statement = "BEGIN DEFERRED"
            return self._connection.execute(statement, *args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    transactions.schema.connect = lambda path, **how: Deferred(original(path, **how))  # type: ignore[assignment,return-value]
    without_ticket()


def without_ticket() -> None:
    @contextlib.contextmanager
    def held(self: Any) -> Generator[None]:
        yield

    Ticket.held = held  # type: ignore[method-assign]


class OnALoop(SqliteStore):
    """The native face, as an event loop of this process's own calls it."""

    def __init__(self, path: str) -> None:
        super().__init__(path, reap_at_admission=False)
        self._face = self.native()
        self._runner = asyncio.Runner()

    def admit(self, request: AdmissionRequest) -> Grant | Refusal:
        return self._runner.run(told(self._face.admit, request))

    def finish(self, record: UsageRecord, lease: Lease) -> None:
        self._runner.run(told(self._face.finish, record, lease))

    def close(self) -> None:
        super().close()
        self._runner.close()


def main() -> None:
    mode, path, name, *rest = sys.argv[1:]
    looped = mode.startswith("loop-")
    mode = mode.removeprefix("loop-")
    store = OnALoop(path) if looped else SqliteStore(path, reap_at_admission=False)
    print("ready", flush=True)
    sys.stdin.readline()
    match mode:
        case "serve":
            failpoint, count, lease = rest
            log = Log(Path(path).with_name("upstream.log"))
            serve(store, log, name, failpoint, int(count), int(lease))
            result: Any = None
        case "burst":
            defect, count = rest
            {"none": lambda: None, "get-then-set": get_then_set, "deferred": deferred}[defect]()
            try:
                result = burst(store, name, int(count))
            except StoreUnavailable as error:
                result = repr(error)
        case "saturate":
            result = saturate(store, name, float(rest[0]))
        case "hold":
            hold(store, name, int(rest[0]))
            result = None
        case "rebuild":
            rebuild(store, int(rest[0]))
            result = None
        case _:
            raise SystemExit(f"no such mode: {mode}")
    print(json.dumps(result), flush=True)
    store.close()


if __name__ == "__main__":
    main()
