"""The result as a file and as a table."""

import json
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.cases import Results

RESULTS: Final = Path(__file__).parent / "results"
LATEST: Final = RESULTS / "latest.json"

COLUMNS: Final = (
    ("S1", "S1", 1),
    ("S2-100", "S2-100", 1),
    ("S2-500", "S2-500", 1),
    ("N1", "N1", 2),
    ("N1-16", "N1-16", 2),
    ("TTFT", "TTFT added, ms", 2),
    ("RSS-500", "RSS at 500, MiB", 0),
    ("START", "first answer, ms", 0),
)


def document(results: Results, began: float) -> dict[str, Any]:
    """All of a run, for machines."""
    cores = machine.cores()
    return {
        "format": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "machine": machine.description(),
        "cores": {"server": cores.server, "load": cores.load, "apart": cores.apart},
        "figures": results.figures,
        "notes": results.notes,
    }


def write(said: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1) + "\n")


def find(said: dict[str, Any], case: str, target: str) -> float | None:
    """The figure of the plain or simple dialect; None where it was not measured."""
    for figure in said["figures"]:
        if (figure["case"], figure["target"]) == (case, target) and (
            target == "fake" or figure["dialect"] in ("sse", "plain")
        ):
            return float(figure["value"])
    return None


def rows(said: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and labels of the targets that the table compares, the proxy's first."""
    found: dict[str, str] = {}
    for kind in ("proxy", "spike", "fake"):
        for figure in said["figures"]:
            plain = figure.get("store", "sqlite") == "sqlite" and figure.get("host") != "gunicorn"
            if figure["kind"] == kind and plain:
                found.setdefault(figure["target"], figure["label"])
    return list(found.items())


def table(said: dict[str, Any]) -> str:
    """The comparison, as Markdown that reads well in a terminal too."""
    named = rows(said)
    shown = [c for c in COLUMNS if any(find(said, c[0], name) is not None for name, _ in named)]
    width = max([len(label) for _, label in named], default=0)
    lines = [
        f"| {'':{width}} | " + " | ".join(title for _, title, _ in shown) + " |",
        f"|:{'-' * width}-|"
        + "|".join("-" * (len(title) + 1) + ":" for _, title, _ in shown)
        + "|",
    ]
    for name, label in named:
        cells: list[str] = []
        for case, title, digits in shown:
            value = find(said, case, name)
            cells.append(f"{'–' if value is None else f'{value:.{digits}f}':>{len(title)}}")
        lines.append(f"| {label:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(said: dict[str, Any], yardstick: str = "aiohttp") -> list[str]:
    """Each proxy's figures as multiples of a spike's."""
    lines: list[str] = []
    for name, label in rows(said):
        if not name.startswith("serve"):
            continue
        parts: list[str] = []
        for case in ("S1", "S2-100", "S2-500", "N1", "N1-16"):
            ours, bare = find(said, case, name), find(said, case, yardstick)
            if ours is not None and bare:
                parts.append(f"{case} {ours / bare:.2f}")
        if parts:
            lines.append(f"{label} ÷ {yardstick} spike: {', '.join(parts)}")
    return lines
