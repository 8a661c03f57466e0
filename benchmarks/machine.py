"""The machine under the measurement: its cores, and what processes take of them."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil
from attrs import frozen

from benchmarks.load import cpu_of

SATURATED: Final = 0.95
"""Share of a core from which what it runs is late, and with it every latency it measures."""


@frozen
class Cores:
    """Which core serves, and which one makes the load; the same one where there is only one."""

    server: int
    load: int

    @property
    def apart(self) -> bool:
        return self.server != self.load


def cores() -> Cores:
    """The first core serves, the second one makes the load."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[1] if len(usable) > 1 else usable[0])


def pin(process: int, core: int) -> None:
    """Keep a process, and what it starts, on one core."""
    os.sched_setaffinity(process, {core})


def tree(process: int) -> list[int]:
    """A process and what it started."""
    try:
        children = psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process, *(child.pid for child in children)]


def cpu(process: int) -> float:
    """Seconds of CPU of a process tree."""
    spent = 0.0
    for one in tree(process):
        with contextlib.suppress(OSError):
            spent += cpu_of(one)
    return spent


def rss(process: int) -> float:
    """MiB in memory of a process tree."""
    total = 0
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(one).memory_info().rss
    return total / 2**20


def open_files(process: int) -> int:
    """File descriptors of a process tree."""
    return sum(len(list(Path(f"/proc/{one}/fd").iterdir())) for one in tree(process))


@frozen
class Times:
    """What a core had done by then, in ticks."""

    busy: int
    whole: int

    def share_since(self, earlier: "Times") -> float:
        """How busy the core was, whoever kept it busy."""
        whole = self.whole - earlier.whole
        return (self.busy - earlier.busy) / whole if whole else 0.0


def core_times(core: int) -> Times:
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            ticks = [int(each) for each in fields[:8]]
            return Times(sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    raise LookupError(f"core {core}")


def allow_files(count: int) -> int:
    """Raise the limit of open files, for us and what we start; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, max(soft, count)) if hard != resource.RLIM_INFINITY else max(soft, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def slope(points: list[tuple[float, float]]) -> float:
    """The rise of y for one of x, by least squares."""
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    where = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=where, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return said or None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def description() -> dict[str, Any]:
    """What a figure must be read with."""
    packages = ("aiohttp", "boto3", "httptools", "msgspec", "redis", "uvicorn", "uvloop")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "commit": _commit(),
    }
