"""The cases: what is asked of every target, and how one figure is made of several rounds."""

import contextlib
import http.client
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from benchmarks import answers, machine
from benchmarks.lab import Lab, Reading, settle
from benchmarks.servers import (
    SPIKES,
    Running,
    Target,
    books,
    clean_environment,
    launch,
    missing,
    running,
    start,
    upstreams,
)

PER_EVENTS: Final = "CPU ms per 1,000 events"
PER_REQUEST: Final = "CPU ms per request"


@frozen(kw_only=True)
class Case:
    """
    A load, and the figure that is read from it.

    Attributes:
        budget: Seconds after which no further round begins.
    """

    name: str
    meaning: str
    unit: str
    streams: int = 1
    repeat: int = 1
    events: int = 200
    pace: float = 0.0
    rounds: int = 5
    budget: float = 60.0
    plain: bool = False

    def figure(self, reading: Reading) -> float:
        return reading.per_request if self.plain else reading.per_1000_events


def _stream(name: str, streams: int, rounds: int, budget: float) -> Case:
    meaning = f"{streams} stream{'s' * (streams > 1)}, an event every 20 ms"
    return Case(
        name=name,
        meaning=meaning,
        unit=PER_EVENTS,
        streams=streams,
        pace=0.02,
        rounds=rounds,
        budget=budget,
    )


CASES: Final = {
    case.name: case
    for case in (
        Case(
            name="S1",
            meaning="8 streams at once, 200 events each without a pause",
            unit=PER_EVENTS,
            streams=8,
            repeat=2,
            rounds=15,
            budget=40,
        ),
        _stream("S2-1", 1, 3, 60),
        _stream("S2-100", 100, 3, 50),
        _stream("S2-500", 500, 3, 45),
        _stream("S2-1000", 1_000, 3, 75),
        Case(
            name="N1",
            meaning="a 1 KB answer that is no stream, one at a time",
            unit=PER_REQUEST,
            repeat=100,
            plain=True,
            rounds=25,
            budget=60,
        ),
        Case(
            name="N1-16",
            meaning="a 1 KB answer that is no stream, 16 at once",
            unit=PER_REQUEST,
            streams=16,
            repeat=12,
            plain=True,
            rounds=15,
            budget=40,
        ),
    )
}


@define
class Results:
    """What was measured so far."""

    figures: list[dict[str, Any]] = field(factory=list)
    notes: list[str] = field(factory=list)

    def add(
        self,
        case: str,
        target: Target | None,
        value: float,
        unit: str,
        *,
        dialect: str = "sse",
        **more: Any,
    ) -> None:
        """A figure; *target* is None for the fake Bedrock itself."""
        described = (
            {"target": "fake", "label": FLOOR, "kind": "fake"}
            if target is None
            else {"target": target.name, "label": target.label, "kind": target.kind}
        )
        if target is not None and target.kind == "proxy":
            described |= {
                "host": target.host,
                "store": target.store,
                "upstream": target.upstream,
            }
        figure = {"case": case, **described, "dialect": dialect, "value": value, "unit": unit}
        self.figures.append({**figure, **more})
        late = "" if more.get("timely", True) or "CPU" in unit else LATE
        goal, floor = more.get("goal"), more.get("at_least")
        if goal is not None:
            late += f"  (target ≤ {goal:g}{'' if value <= goal else ': missed'})"
        if floor is not None:
            late += f"  (target ≥ {floor:g}{'' if value >= floor else ': missed'})"
        of = described["target"] + ("" if dialect in ("sse", "plain") else f", {dialect}")
        print(f"  {case:8} {of:34} {value:9.3f} {unit}{late}", flush=True)

    def note(self, said: str) -> None:
        self.notes.append(said)
        print(f"  {said}", flush=True)


LATE: Final = "  (not valid: the load's core was saturated)"
FLOOR: Final = "the fake Bedrock itself"


def headline_targets() -> list[Target]:
    """`serve` with each upstream it can be told to use, the default one first."""
    found = upstreams()
    if not found:
        return [Target(name="serve", label="bedrock-proxy serve", kind="proxy")]
    return [
        Target(
            name=f"serve-{name}",
            label=f"bedrock-proxy serve, {name} upstream",
            kind="proxy",
            upstream=name,
        )
        for name in sorted(found)
    ]


def variants() -> list[Target]:
    """`serve` over the other stores, and the synchronous host."""
    first = headline_targets()[0]
    return [
        *(
            Target(
                name=f"{first.name}-{store}",
                label=f"{first.label}, {store}",
                kind="proxy",
                store=store,
                upstream=first.upstream,
            )
            for store in ("memory", "redis", "dynamodb")
        ),
        Target(
            name="gunicorn",
            label="gunicorn, threads, boto3 upstream",
            kind="proxy",
            host="gunicorn",
            upstream="boto3" if upstreams() else "default",
            most_streams=500,
        ),
    ]


@frozen
class Entry:
    """A running target (None: the fake Bedrock) and the dialect it is asked in."""

    running: Running | None
    dialect: str = "sse"

    @property
    def target(self) -> Target | None:
        return None if self.running is None else self.running.target


def dialect_of(entry: Entry, case: Case) -> str:
    if entry.running is None:
        return "invoke-plain" if case.plain else "invoke"
    if case.plain:
        return {"invoke": "invoke-plain", "converse": "converse-plain"}.get(entry.dialect, "plain")
    return entry.dialect


def compare(
    lab: Lab, results: Results, case: Case, entries: Iterable[Entry], rounds: int | None = None
) -> None:
    """Rounds in turn over all *entries*, so that what disturbs one disturbs its neighbours too."""
    able = [
        entry
        for entry in entries
        if entry.target is None or case.streams <= entry.target.most_streams
    ]
    taken: list[list[Reading]] = [[] for _ in able]
    end = time.monotonic() + case.budget
    for turn in range(case.rounds if rounds is None else rounds):
        if turn and time.monotonic() > end:
            break
        for entry, readings in zip(able, taken, strict=True):
            few = entry.target is not None and entry.target.store == "dynamodb"
            readings.append(
                lab.measure(
                    entry.running,
                    dialect_of(entry, case),
                    streams=case.streams,
                    repeat=min(case.repeat, 5) if few else case.repeat,
                    events=case.events,
                    pace=case.pace,
                )
            )
    for entry, readings in zip(able, taken, strict=True):
        figures = [case.figure(reading) for reading in readings]
        results.add(
            case.name,
            entry.target,
            statistics.median(figures),
            case.unit,
            dialect=dialect_of(entry, case),
            rounds=figures,
            wall_s=statistics.median(reading.wall_s for reading in readings),
            load_busy=statistics.median(reading.load_busy for reading in readings),
            core_busy=statistics.median(reading.core_busy for reading in readings),
            timely=statistics.median(reading.timely for reading in readings) > 0.5,
        )


def first_event(lab: Lab, results: Results, entries: Iterable[Entry], rounds: int = 11) -> None:
    """What a target adds to the time to the first event, against the fake Bedrock asked directly."""
    asked = [(entry, entry.running) for entry in entries if entry.running is not None]
    taken: list[list[tuple[bool, float, float]]] = [[] for _ in asked]
    ask: dict[str, Any] = {"repeat": 15, "events": 2, "pace": 0.005}
    for _ in range(rounds):
        for (entry, server), readings in zip(asked, taken, strict=True):
            direct = lab.measure(None, "invoke", **ask)
            through = lab.measure(server, entry.dialect, **ask)
            floor = statistics.median(direct.told["first_ms"])
            added = statistics.median(through.told["first_ms"]) - floor
            tail = machine.percentile(through.told["first_ms"], 0.99) - floor
            readings.append((direct.timely and through.timely, added, tail))
    for (entry, _), readings in zip(asked, taken, strict=True):
        # Rounds that somebody else's load disturbed count only where there are no others.
        counted = [each for each in readings if each[0]] or readings
        results.add(
            "TTFT",
            entry.target,
            statistics.median(added for _, added, _ in counted),
            "ms added",
            dialect=entry.dialect,
            rounds=[added for _, added, _ in readings],
            p99=statistics.median(tail for _, _, tail in counted),
            timely=counted[0][0],
        )


def memory(lab: Lab, results: Results, targets: Iterable[Target], streams: int = 500) -> None:
    """What a new process holds while so many streams are open, and what each stream adds."""
    for target in targets:
        if target.most_streams < streams:
            continue
        with running(target, lab.port) as server:
            lab.measure(server, "sse", streams=1, repeat=5)
            idle = machine.rss(server.pid)
            reading = lab.measure(server, "sse", streams=streams, events=50, pace=0.1, look=True)
        assert reading.peak_mib is not None
        results.add(f"RSS-{streams}", target, reading.peak_mib, "MiB", idle=idle)
        each = (reading.peak_mib - idle) * 1024 / streams
        results.add("L3", target, each, "KiB a stream", goal=64.0, streams=streams)


def first_answer(lab: Lab, results: Results, targets: Iterable[Target], runs: int = 5) -> None:
    """From the start of the process to the first byte of its first streamed answer."""
    lab.bedrock(events=2, pace=0.005)
    for target in targets:
        if target.store == "memory" or target.kind == "fake":
            continue
        walls: list[float] = []
        cpus: list[float] = []
        with tempfile.TemporaryDirectory(prefix="bench-") as bytecode:
            _started(lab, target, bytecode)  # compiles what a deployed program has compiled
            for _ in range(runs):
                wall, cpu = _started(lab, target, bytecode)
                walls.append(wall)
                cpus.append(cpu)
        results.add("START", target, statistics.median(walls), "ms", rounds=walls)
        results.add("START-CPU", target, statistics.median(cpus), "CPU ms", rounds=cpus)


def _started(lab: Lab, target: Target, bytecode: str) -> tuple[float, float]:
    """Wall and CPU in ms. *bytecode* is the folder where that of all modules is, or will be."""
    compiled = {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        if target.kind == "spike":
            began = time.monotonic()
            command = ["-m", f"benchmarks.spikes.{target.host}", str(lab.port)]
            process = start(command, machine.cores().server, clean_environment(**compiled))
            stack.callback(process.stop)
            port, tokens, kept = int(process.line()), (), None
        else:
            kept = stack.enter_context(books(target.store, folder))
            began = time.monotonic()
            process, port = launch(target, lab.port, kept.url, folder, **compiled)
            stack.callback(process.stop)
            tokens = Running(target, port, process.pid, kept, folder).tokens
        path, body, headers = answers.request("sse")
        if tokens:
            headers["authorization"] = f"Bearer {tokens[0]}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        stack.callback(connection.close)
        connection.request("POST", path, body, {**headers, "content-type": "application/json"})
        reply = connection.getresponse()
        reply.read(1)
        wall, cpu = (time.monotonic() - began) * 1000, machine.cpu(process.pid) * 1000
        assert reply.read().endswith(b"data: [DONE]\n\n"), "the first answer is not whole"
        if kept is not None:
            settle(Running(target, port, process.pid, kept, folder), 1, 27)
    return wall, cpu


def headline(lab: Lab, results: Results, wanted: Callable[[str], bool], rounds: int | None) -> None:
    """`serve` with all it does against the bare spikes."""
    targets = [*headline_targets(), *SPIKES]
    names = ("S1", "S2-1", "S2-100", "S2-500", "S2-1000", "N1", "N1-16")
    if any(wanted(name) for name in (*names, "TTFT")):
        with contextlib.ExitStack() as stack:
            entries = [Entry(None)]
            for target in targets:
                entries.append(Entry(stack.enter_context(running(target, lab.port))))
                # What the first requests import and open is no part of what the others cost.
                lab.measure(entries[-1].running, "sse", streams=8)
                lab.measure(entries[-1].running, "plain", streams=8)
            for name in names:
                if wanted(name):
                    compare(lab, results, CASES[name], entries, rounds)
            if wanted("TTFT"):
                first_event(lab, results, entries, rounds or 11)
    if wanted("RSS") or wanted("L3"):
        memory(lab, results, targets)
    if wanted("START"):
        first_answer(lab, results, targets, min(rounds or 5, 5))


def breadth(lab: Lab, results: Results, *, everything: bool) -> None:
    """The other dialects, stores and hosts; fewer rounds, and the paced case only where asked."""
    names = [*(["S2-100"] if everything else []), "S1", "N1"]
    first = headline_targets()[0]
    dialects = ("array", "invoke", "converse")
    for target, spoken in ((first, dialects), *((other, ("sse",)) for other in variants())):
        why = missing(target.store)
        if why is not None:
            results.note(f"{target.name}: not measured, {why}")
            continue
        with running(target, lab.port) as server:
            entries = [Entry(server, dialect) for dialect in spoken]
            lab.measure(server, "sse", streams=8)
            for name in names:
                if target.store == "dynamodb" and name != "N1":
                    # The emulator takes far longer than what is measured: admission alone counts.
                    continue
                compare(lab, results, CASES[name], entries, None if everything else 3)


if __name__ == "__main__":
    sys.exit("python -m benchmarks")
