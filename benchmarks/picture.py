"""
The result as a picture: ``python -m benchmarks.picture [RESULT.json] [PICTURE.svg]``.

Bars of CPU on a logarithmic scale, for each case the proxy's first, then the bare spikes.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks import report

PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "speed.svg"

PANELS: Final = (
    ("S1", "S1: 8 streams at once, 200 events each without a pause", 1),
    ("S2-100", "S2-100: 100 streams, an event every 20 ms", 1),
    ("S2-500", "S2-500: 500 streams, an event every 20 ms", 1),
)
LEFT: Final = 306
RIGHT: Final = 60
WIDTH: Final = 880
BAR: Final = 18
GAP: Final = 6
STYLE: Final = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
  .title { font-size: 18px; font-weight: 600; }
  .case { font-weight: 600; }
  .quiet { font-size: 12px; fill: #59636e; }
  .ground { fill: #ffffff; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .proxy { fill: #0969da; }
  .second { fill: #54aeff; }
  .spike { fill: #afb8c1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .ground { fill: #0d1117; }
    .grid { stroke: #30363d; }
    .proxy { fill: #4493f8; }
    .second { fill: #1f5fb5; }
    .spike { fill: #6e7681; }
  }
"""


def _scale(values: list[float]) -> tuple[float, float]:
    """From the decade below *values* to the next tick above them."""
    low = 10.0 ** math.floor(math.log10(min(values)))
    high = next(tick for tick in _ticks(low, max(values) * 10) if tick >= max(values))
    return low, high if high > low else low * 10


def _ticks(low: float, high: float) -> list[float]:
    found: list[float] = []
    decade = low
    while decade <= high:
        found += [tick for tick in (decade, decade * 2, decade * 5) if tick <= high]
        decade *= 10
    return found


def draw(said: dict[str, Any]) -> str:
    """
    The picture of a result, as SVG.

    Raises:
        ValueError: None of the cases it shows was measured.
    """
    targets = [(name, label) for name, label in report.rows(said) if name != "fake"]
    panels = [
        (title, digits, [(n, label, value) for n, label in targets
                         if (value := report.find(said, case, n)) is not None])
        for case, title, digits in PANELS
    ]  # fmt: skip
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise ValueError("The result has none of the cases that the picture shows.")
    low, high = _scale([value for _, _, bars in panels for _, _, value in bars])
    spans: list[tuple[float, float]] = []
    span = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return LEFT + span * (math.log10(value) - math.log10(low)) / (
            math.log10(high) - math.log10(low)
        )

    drawn: list[str] = []
    y = 96.0
    for title, digits, bars in panels:
        drawn.append(f'<text class="case" x="24" y="{y:.0f}">{escape(title)}</text>')
        y += 12
        tops = y - 4
        proxies = [name for name, _, _ in bars if name.startswith("serve")]
        for name, label, value in bars:
            kind = "spike" if name not in proxies else "proxy" if name == proxies[0] else "second"
            middle = y + BAR / 2 + 4.5
            drawn += [
                f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>',
                (
                    f'<rect class="{kind}" x="{LEFT}" y="{y:.1f}" width="{x(value) - LEFT:.1f}" '
                    f'height="{BAR}" rx="2"/>'
                ),
                f'<text x="{x(value) + 6:.1f}" y="{middle:.1f}">{value:.{digits}f}</text>',
            ]
            y += BAR + GAP
        spans.append((tops, y))
        y += 30
    bottom = y - 30
    grid: list[str] = []
    for tick in _ticks(low, high):
        at = f"{x(tick):.1f}"
        grid += [
            f'<line class="grid" x1="{at}" y1="{above:.0f}" x2="{at}" y2="{below:.0f}"/>'
            for above, below in spans
        ]
        grid.append(
            f'<text class="quiet" x="{at}" y="{bottom + 16:.0f}" text-anchor="middle">{tick:g}</text>'
        )
    machine = said["machine"]
    packages = machine["packages"]
    versions = [f"Python {machine['python']}"]
    versions += [
        f"{n} {packages[n]}" for n in ("uvicorn", "uvloop", "aiohttp", "boto3") if n in packages
    ]
    foot = [
        (
            "CPU milliseconds of the serving processes per 1,000 streamed events, logarithmic; "
            "shorter is cheaper."
        ),
        f"{said['date'][:10]} · commit {machine['commit'] or 'unknown'} · {machine['processor']} · "
        + " · ".join(versions),
    ]
    height = bottom + 36
    for line in foot:
        grid.append(f'<text class="quiet" x="24" y="{height + 4:.0f}">{escape(line)}</text>')
        height += 18
    height += 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img">\n'
        f"<title>CPU per 1,000 streamed events: bedrock-proxy and bare spikes</title>\n"
        f"<style>{STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{height:.0f}"/>\n'
        '<text class="title" x="24" y="36">What a streamed event costs</text>\n'
        '<text class="quiet" x="24" y="58">bedrock-proxy with authentication, limits and the '
        "SQLite ledger on; the bare spikes translate and do nothing else</text>\n"
        + "\n".join([*grid, *drawn])
        + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", default=report.LATEST)
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    options = parser.parse_args()
    options.picture.write_text(draw(json.loads(options.result.read_text())))
    print(options.picture)


if __name__ == "__main__":
    main()
