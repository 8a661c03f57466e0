"""
Where the time goes in ``bedrock-proxy serve``: what ``make profile`` runs.

    python -m benchmarks.profile [--case S1]… [--calls] [--upstream boto3] [--top 25]

A sampler from outside (py-spy) looks 500 times a second at what each thread is doing while it
holds the processor, and slows nothing down; what C functions take is counted to the Python
function that called them. ``--calls`` counts every call instead (cProfile): C functions apart,
numbers of calls, and a distorted picture, since each call costs more than it otherwise would.
"""

import argparse
import contextlib
import cProfile
import os
import pstats
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks import cases, lab, machine
from benchmarks.servers import (
    SERVE,
    Process,
    Running,
    Target,
    books,
    environment_for,
    start,
)

RATE: Final = 500
"""Samples a second."""
SECONDS: Final = 6.0
"""Of each case."""
DEFAULT: Final = ("S1", "S2-100", "N1")

_PLACE: Final = re.compile(r"(?P<name>.+) \((?P<file>.+?)(?::(?P<line>\d+))?\)$")


def module(path: str) -> str:
    """The name of the module in a file, as far as it can be told."""
    shown = re.sub(r"^.*/(site-packages|src|adapters|lib/python3\.\d+|lib-dynload)/", "", path)
    return shown.removesuffix(".py").removesuffix("/__init__").replace("/", ".").strip(".")


def threads_of(folded: str) -> dict[str, tuple[Counter[str], int]]:
    """For each kind of thread the samples of its innermost functions, and all its samples."""
    found: dict[str, tuple[Counter[str], int]] = {}
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if "_find_and_load" in stack or not count.isdecimal():
            continue
        thread = re.sub(r"thread \(\S+\)(: )?|[-_ ]?\d+(?= |$)|\(.*\)", "", frames[0]).strip()
        alone = "no Python frame (uvloop, the interpreter)"
        place = _PLACE.match(frames[-1]) if len(frames) > 1 else None
        inner = alone if place is None else f"{module(place['file'])}:{place['name']}"
        functions, total = found.get(thread or "other", (Counter(), 0))
        functions[inner] += int(count)
        found[thread or "other"] = functions, total + int(count)
    return found


@contextlib.contextmanager
def profiled(
    opened: lab.Lab, target: Target, folder: Path, *, calls: bool
) -> Iterator[tuple[Running, Path]]:
    """`serve` under a profiler, which writes what it saw to a file when the server ends."""
    seen = folder / "seen"
    serve = ["-c", SERVE, "serve", "--port", "0"]
    if calls:
        serve = ["-m", "benchmarks.profile", "--serve", str(seen)]
    with books(target.store, folder) as kept:
        environment = environment_for(target, opened.port, kept.url)
        core = machine.cores().server
        if calls:
            process = start(serve, core, environment, folder, lines_of="stderr")
        else:
            sampler = str(Path(sys.executable).parent / "py-spy")
            options = ["record", "--rate", str(RATE), "--threads", "--nonblocking"]
            options += ["--format", "raw", "--function", "--output", str(seen), "--"]
            process = start(
                [*options, sys.executable, *serve],
                core, environment, folder, lines_of="stderr", program=sampler,
            )  # fmt: skip
        try:
            while "Listening on" not in (line := process.line()):
                pass
            pid = served_by(process, sampled=not calls)
            machine.pin(process.pid, machine.cores().load if not calls else core)
            port = int(line.rpartition(":")[2])
            yield Running(target, port, pid, kept, folder), seen
        finally:
            # The server ends on SIGTERM, and the sampler with it.
            for child in machine.tree(process.pid)[1:] if not calls else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            if not calls:
                process.popen.wait(60)
            process.stop()


def served_by(process: Process, *, sampled: bool) -> int:
    """The server's own process: the sampler's child."""
    return machine.tree(process.pid)[-1] if sampled else process.pid


def look(opened: lab.Lab, target: Target, name: str, *, calls: bool, top: int) -> None:
    """Run one case under a profiler and print what it saw."""
    case = cases.CASES[name]
    entry_dialect = "plain" if case.plain else "sse"
    with tempfile.TemporaryDirectory(prefix="bench-") as where:
        folder = Path(where)
        with profiled(opened, target, folder, calls=calls) as (server, seen):
            end = time.monotonic() + SECONDS
            spent = 0.0
            events = requests = 0
            while time.monotonic() < end:
                reading = opened.measure(
                    server, entry_dialect, streams=case.streams, repeat=case.repeat,
                    events=case.events, pace=case.pace,
                )  # fmt: skip
                spent += reading.cpu_s
                events, requests = events + reading.events, requests + reading.requests
        each = f"{spent * 1e3 / requests:.2f} CPU ms a request"
        if events:
            each = f"{spent * 1e6 / events:.1f} CPU ms per 1,000 events"
        print(f"\n{name}: {case.meaning}\n  {target.label}: {each}, the profiler's part included")
        if calls:
            show_calls(seen, top)
        else:
            show_samples(seen.read_text(), top)


def show_samples(folded: str, top: int) -> None:
    """Own time by function, for each kind of thread."""
    found = threads_of(folded)
    whole = sum(total for _, total in found.values()) or 1
    for thread, (functions, total) in sorted(found.items(), key=lambda each: -each[1][1]):
        if total < whole * 0.02:
            continue
        print(f"  thread {thread}: {total / whole:.0%} of the samples")
        for function, count in functions.most_common(top):
            if count >= whole * 0.002:
                print(f"    {count / whole:6.1%}  {function}")


def show_calls(seen: Path, top: int) -> None:
    """Own time by function over all threads, with numbers of calls."""
    stats = pstats.Stats(str(seen)).stats  # type: ignore[attr-defined]
    rows = sorted(stats.items(), key=lambda each: -each[1][2])
    whole = sum(row[2] for _, row in rows) or 1.0
    for (file, _, name), (_, calls, own, _, _) in rows[:top]:
        where = name if file == "~" else f"{module(file)}:{name}"
        print(f"    {own / whole:6.1%} {calls:9d} calls  {where}")


def serve(seen: str) -> None:
    """`serve` with every thread under cProfile; what :func:`profiled` starts."""
    profiles: list[cProfile.Profile] = []

    def watched(run: Any) -> Any:
        def inner(*arguments: Any) -> None:
            # The thread's own CPU: waiting is no work.
            profile = cProfile.Profile(time.thread_time)
            try:
                profile.enable()
            except ValueError:
                # From Python 3.12 on there is one profiler a process.
                run(*arguments)
                return
            profiles.append(profile)
            try:
                run(*arguments)
            finally:
                profile.disable()

        return inner

    from bedrock_proxy_adapters.cli import main

    threading.Thread.run = watched(threading.Thread.run)  # type: ignore[method-assign]
    sys.argv = ["bedrock-proxy", "serve", "--port", "0"]
    with contextlib.suppress(SystemExit):
        watched(main)()
    stats = pstats.Stats(profiles[0])
    for profile in profiles[1:]:
        stats.add(profile)
    stats.dump_stats(seen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", action="append", choices=sorted(cases.CASES), metavar="NAME")
    parser.add_argument("--calls", action="store_true", help="count calls (cProfile)")
    parser.add_argument("--upstream", help="async or boto3; else what serve chooses")
    parser.add_argument("--top", type=int, default=25, help="functions to show for each thread")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    targets = {target.upstream: target for target in cases.headline_targets()}
    if options.upstream and options.upstream not in targets:
        parser.error(f"serve has no upstream {options.upstream} here: {', '.join(targets)}")
    target = targets[options.upstream] if options.upstream else next(iter(targets.values()))
    with lab.opened() as opened:
        for name in options.case or DEFAULT:
            look(opened, target, name, calls=options.calls, top=options.top)


if __name__ == "__main__":
    main()
