"""The result as a file and as a table."""

import json
import statistics
import time
from pathlib import Path
from typing import Any, Final, cast

from benchmarks import machine
from benchmarks.cases import Results

RESULTS: Final = Path(__file__).parent / "results"
LATEST: Final = RESULTS / "latest.json"

DIALECTS: Final = {
    "sse": "simple, SSE",
    "plain": "simple, SSE",
    "array": "simple, JSON array",
    "invoke": "Bedrock, InvokeModel",
    "invoke-plain": "Bedrock, InvokeModel",
    "converse": "Bedrock, Converse",
    "converse-plain": "Bedrock, Converse",
}

ENOUGH: Final = 8
"""Rounds from which on their spread says something."""

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
    found = _measured(said, case, target)
    return None if found is None else float(found["value"])


def _measured(said: dict[str, Any], case: str, target: str) -> dict[str, Any] | None:
    for figure in said["figures"]:
        if (figure["case"], figure["target"]) == (case, target) and (
            target == "fake" or figure["dialect"] in ("sse", "plain")
        ):
            return cast("dict[str, Any]", figure)
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
    if not shown:
        return ""
    width = max(len(label) for _, label in named)
    # Figures of five places stay in their columns.
    wide = [max(len(title), 5) for _, title, _ in shown]
    titles = " | ".join(f"{title:>{w}}" for (_, title, _), w in zip(shown, wide, strict=True))
    lines = [
        f"| {'':{width}} | {titles} |",
        f"|:{'-' * width}-|" + "|".join("-" * (w + 1) + ":" for w in wide) + "|",
    ]
    for name, label in named:
        cells: list[str] = []
        for (case, _, digits), w in zip(shown, wide, strict=True):
            value = find(said, case, name)
            cells.append(f"{'–' if value is None else f'{value:.{digits}f}':>{w}}")
        lines.append(f"| {label:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _grid(titles: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; columns that hold figures lean to the right."""
    rule = [":--" if column == 0 else "--:" for column in range(len(titles))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, rule, *lines])


def breadth_table(said: dict[str, Any]) -> str:
    """The first proxy's other dialects, and the other stores and hosts."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for figure in said["figures"]:
        if figure["kind"] != "proxy" or figure["case"] not in ("S1", "S2-100", "N1"):
            continue
        spoken = DIALECTS.get(figure["dialect"])
        usual = figure["store"] == "sqlite" and figure["host"] == "serve"
        if spoken is None or (usual and spoken == DIALECTS["sse"]):
            continue
        cells = found.setdefault((figure["label"], spoken), {})
        cells[figure["case"]] = figure["value"]
    cases = [
        case for case in ("S1", "S2-100", "N1") if any(case in each for each in found.values())
    ]
    lines = [
        [label, spoken, *(f"{cells[case]:.1f}" if case in cells else "–" for case in cases)]
        for (label, spoken), cells in found.items()
    ]
    return _grid(["", "dialect", *cases], lines)


def loads_table(said: dict[str, Any]) -> str:
    """What was measured of L1 to L9, with the targets."""
    lines: list[list[str]] = []
    for figure in said["figures"]:
        if not figure["case"].startswith("L"):
            continue
        value, goal, least = figure["value"], figure.get("goal"), figure.get("at_least")
        target, met = "–", ""
        if goal is not None:
            target, met = f"≤ {goal:g}", "met" if value <= goal else "**missed**"
        elif least is not None:
            target, met = f"≥ {least:g}", "met" if value >= least else "**missed**"
        if not figure.get("timely", True):
            met = "not valid: the load's core was saturated"
        of = "" if figure["kind"] == "fake" else figure["label"]
        lines.append([figure["case"], of, f"{value:.2f} {figure['unit']}", target, met])
    return _grid(["", "", "measured", "target", ""], lines)


def ratios(said: dict[str, Any], yardstick: str = "aiohttp") -> list[str]:
    """
    Each proxy's figures as multiples of a spike's: of each round its own, and of these the median,
    with the middle half of them where there are enough.
    """
    lines: list[str] = []
    for name, label in rows(said):
        if not name.startswith("serve"):
            continue
        parts: list[str] = []
        for case in ("S1", "S2-100", "S2-500", "N1", "N1-16", "TTFT"):
            ours, bare = _measured(said, case, name), _measured(said, case, yardstick)
            if ours is None or bare is None:
                continue
            # What is added to a time may be nothing.
            pairs = zip(ours["rounds"], bare["rounds"], strict=True)
            each = sorted(one / other for one, other in pairs if other > 0)
            if not each:
                continue
            part = f"{case} {statistics.median(each):.2f}"
            if len(each) >= ENOUGH:
                lower, _, upper = statistics.quantiles(each, n=4)
                part += f" ({lower:.2f} to {upper:.2f})"
            parts.append(part)
        if parts:
            lines.append(f"{label} ÷ {yardstick} spike: {', '.join(parts)}")
    return lines
