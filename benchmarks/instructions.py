"""
Instructions, counted: what one plain request and one streamed event cost, free of noise.

    python -m benchmarks.instructions [--case request]… [--against raw]… [--top 25]

On a shared machine the CPU time of the very same program differs from one minute to the next by
more than a change is worth. Its instructions do not: Valgrind (Debian: ``valgrind``) counts them
to within a per cent, so that a change of two per cent can be seen in one run. What the kernel does
is not counted, nor how well instructions go together; the figures of ``make bench`` are what counts
in the end.

The server is some fifty times slower meanwhile: a settlement meets no next admission in time, and is
committed on its own.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks import cases, lab, machine
from benchmarks.servers import SERVE, Process, Running, Target, books, environment_for, start

TOOLS: Final = ("valgrind", "callgrind_control")
REQUESTS: Final = 60
EVENTS: Final = (20, 220)
"""Of two streams: the difference is the cost of the events alone."""
PACE: Final = 0.02
"""Seconds from event to event: each comes alone, also to a server that is so slow."""

_NUMBERED: Final = re.compile(r"\((\d+)\)(?: (.*))?")


@frozen
class Counted:
    """A server under Valgrind, and where it writes what was counted."""

    running: Running
    written: Path

    def control(self, *options: str) -> None:
        """Tell Valgrind something."""
        subprocess.run(
            ["callgrind_control", *options, str(self.running.pid)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what goes on within, and nothing else."""
        self.control("-i", "on")
        try:
            yield
        finally:
            self.control("-i", "off")
            self.control("--dump")

    def last(self) -> Path:
        """What was counted last."""
        found = self.written.parent.glob(f"{self.written.name}.*")
        return max(found, key=lambda path: int(path.suffix[1:]))


@contextlib.contextmanager
def under_valgrind(opened: lab.Lab, target: Target) -> Iterator[Counted]:
    """*target*, started and warm."""
    core = machine.cores().server
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        written = folder / "counted"
        options = ["--tool=callgrind", "--instr-atstart=no", "-q"]
        options += [f"--callgrind-out-file={written}", sys.executable]
        if target.kind == "spike":
            command = [*options, "-m", f"benchmarks.spikes.{target.host}", str(opened.port)]
            process = start(command, core, program="valgrind")
            stack.callback(process.stop)
            running = Running(target, int(process.line()), process.pid, None, folder)
        else:
            kept = stack.enter_context(books(target.store, folder))
            environment = environment_for(target, opened.port, kept.url)
            command = [*options, "-c", SERVE, "serve", "--port", "0"]
            process = start(
                command, core, environment, folder, lines_of="stderr", program="valgrind"
            )
            stack.callback(process.stop)
            running = Running(target, _listening(process), process.pid, kept, folder)
        opened.measure(running, "plain", repeat=30)
        opened.measure(running, "sse", repeat=5, events=50)
        yield Counted(running, written)


def _listening(process: Process) -> int:
    while "Listening on" not in (line := process.line()):
        pass
    return int(line.rpartition(":")[2])


def of_request(opened: lab.Lab, counted: Counted) -> tuple[float, Counter[str]]:
    """Instructions of a plain request, one at a time."""
    with counted.counting():
        opened.measure(counted.running, "plain", repeat=REQUESTS)
    found = functions(counted.last())
    return found.total() / REQUESTS, found


def of_event(opened: lab.Lab, counted: Counted) -> tuple[float, Counter[str]]:
    """Instructions of a streamed event that comes alone."""
    found: list[Counter[str]] = []
    for events in EVENTS:
        with counted.counting():
            opened.measure(counted.running, "sse", events=events, pace=PACE)
        found.append(functions(counted.last()))
    more = Counter(found[1])
    more.subtract(found[0])
    return more.total() / (EVENTS[1] - EVENTS[0]), more


KINDS: Final = {"request": of_request, "event": of_event}


def functions(where: Path) -> Counter[str]:
    """The instructions of each C function, those that it calls apart."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    here = ""
    called = False
    with where.open() as lines:
        for line in lines:
            kind, _, rest = line.rstrip("\n").partition("=")
            if kind in {"fn", "cfn"}:
                numbered = _NUMBERED.match(rest)
                assert numbered is not None
                if numbered[2]:
                    names[numbered[1]] = numbered[2]
                here = numbered[1] if kind == "fn" else here
            elif kind == "calls":
                called = True
            elif line[:1] in "+-*0123456789" and here:
                if not called:
                    found[re.sub(r"'\d+$", "", names[here])] += int(line.split()[-1])
                called = False
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--case", action="append", choices=sorted(KINDS), help="only this")
    spikes = [spike.name for spike in cases.SPIKES if "boto3" not in spike.name]
    parser.add_argument(
        "--against", action="append", choices=spikes, default=[], help="a bare spike, too"
    )
    parser.add_argument("--top", type=int, default=0, help="so many C functions of each")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        parser.error(f"{missing[0]} is missing; install it (Debian: apt-get install valgrind)")
    kinds = options.case or list(KINDS)
    targets = [target for target in cases.headline_targets() if target.upstream != "boto3"][:1]
    targets += [spike for spike in cases.SPIKES if spike.name in options.against]
    with lab.opened() as opened:
        for target in targets:
            with under_valgrind(opened, target) as counted:
                for kind in kinds:
                    count, found = KINDS[kind](opened, counted)
                    print(f"{target.label}: {count:,.0f} instructions for each {kind}", flush=True)
                    for name, own in found.most_common(options.top):
                        print(f"    {own / found.total():6.1%}  {name}")


if __name__ == "__main__":
    main()
