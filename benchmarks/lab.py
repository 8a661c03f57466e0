"""One measurement: a fake Bedrock and a load on one core, what is measured on the other."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, frozen

from benchmarks import machine
from benchmarks.load import Order, line_of
from benchmarks.servers import Process, Running, start

PATIENCE: Final = 300.0
"""Seconds that one measurement may take."""


class WrongAnswer(Exception):
    """An answer, or the ledger, is not what it must be: a figure would mean nothing."""


@frozen(kw_only=True)
class Reading:
    """
    What one run gave.

    Attributes:
        cpu_s: CPU seconds of the process tree that is measured.
        requests, events: Answers, and streamed events in them; all were checked.
        wall_s: From the first request to the last byte.
        peak_mib: The most that the process tree held in memory; None where nobody looked.
        load_busy: Share of the load's core that the load and the fake Bedrock took.
        core_busy: Share of that core that was taken at all.
        told: The load's own report.
    """

    cpu_s: float
    requests: int
    events: int
    wall_s: float
    peak_mib: float | None
    load_busy: float
    core_busy: float
    told: dict[str, Any]

    @property
    def per_1000_events(self) -> float:
        """CPU milliseconds."""
        return self.cpu_s * 1e6 / self.events

    @property
    def per_request(self) -> float:
        """CPU milliseconds."""
        return self.cpu_s * 1e3 / self.requests

    @property
    def timely(self) -> bool:
        """Whether its latencies mean anything."""
        return machine.cores().apart and max(self.load_busy, self.core_busy) < machine.SATURATED


@define
class Lab:
    """The fake Bedrock and the load, once they run."""

    fake: Process
    load: Process
    port: int

    def bedrock(self, **how: Any) -> dict[str, Any]:
        """Tell the fake Bedrock how to answer; without *how*, ask what it did."""
        data = json.dumps(how).encode() if how else None
        url = f"http://127.0.0.1:{self.port}/_fake"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as reply:
            said: dict[str, Any] = json.loads(reply.read())
            return said

    def measure(
        self,
        running: Running | None,
        dialect: str,
        *,
        events: int = 200,
        pace: float = 0.0,
        delay: float = 0.0,
        look: bool = False,
        settled: bool = True,
        **more: Any,
    ) -> Reading:
        """
        One run against *running*; against the fake Bedrock itself where None.

        Args:
            look: Also follow the memory.
            settled: The ledger must end with a row for each whole answer, and its tokens.
            more: Fields of :class:`benchmarks.load.Order`.

        Raises:
            WrongAnswer: See there.
        """
        record = bool(more.get("record"))
        self.bedrock(events=events, pace=pace, delay=delay, record=record)
        order = Order(
            port=self.port if running is None else running.port,
            dialect=dialect,
            events=events,
            tokens=() if running is None else running.tokens,
            watch=(self.fake.pid,),
            **more,
        )
        process = self.fake.pid if running is None else running.pid
        core = machine.cores().load
        before, core_before = machine.cpu(process), machine.core_times(core)
        assert self.load.popen.stdin is not None
        self.load.popen.stdin.write(line_of(order))
        self.load.popen.stdin.flush()
        peak = None
        if look:
            peak = machine.rss(process)
            while self.load.lines.empty():
                peak = max(peak, machine.rss(process))
                time.sleep(0.1)
        told = json.loads(self.load.line(PATIENCE))
        core_busy = machine.core_times(core).share_since(core_before)
        if "error" in told:
            raise WrongAnswer(f"{running.target.name if running else 'fake'}: {told['error']}")
        answered = told["statuses"].get("200", 0)
        streamed = not dialect.endswith("plain")
        if running is not None and settled:
            tokens = 25 + (events if streamed else 180)
            settle(running, answered, answered * tokens)
        return Reading(
            cpu_s=machine.cpu(process) - before,
            requests=told["requests"],
            events=answered * events if streamed else 0,
            wall_s=told["wall"],
            peak_mib=peak,
            load_busy=told["load_cpu"] / told["wall"],
            core_busy=core_busy,
            told=told,
        )


def settle(running: Running, rows: int, tokens: int) -> None:
    """
    Wait until the ledger has just so many more rows and tokens than before.

    Raises:
        WrongAnswer: It never has.
    """
    if running.books is None:
        return
    wanted = (running.seen[0] + rows, running.seen[1] + tokens)
    end = time.monotonic() + 30
    while (found := running.books.count()) != wanted:
        if time.monotonic() > end or found[0] > wanted[0]:
            raise WrongAnswer(
                f"{running.target.name}: the ledger has {found[0]} rows and {found[1]} tokens, "
                f"and should have {wanted[0]} and {wanted[1]}"
            )
        time.sleep(0.05)
    running.seen = wanted


@contextlib.contextmanager
def opened() -> Iterator[Lab]:
    """A fake Bedrock and a load, on their core; this process goes there too."""
    machine.allow_files(200_000)
    core = machine.cores().load
    with contextlib.ExitStack() as stack:
        fake = start(["-m", "benchmarks.fake"], core)
        stack.callback(fake.stop)
        load = start(["-m", "benchmarks.load"], core)
        stack.callback(load.stop)
        yield Lab(fake, load, int(fake.line()))
