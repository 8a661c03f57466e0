"""
A result into the documentation: ``python -m benchmarks.publish [RESULT.json]``, or
``make bench ARGS=--publish``, which measures first.

The result is kept as ``benchmarks/results/reference.json``; the picture is drawn and the tables of
``docs/explanation/speed.md`` are written from it.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any, Final

from benchmarks import picture, report

REFERENCE: Final = report.RESULTS / "reference.json"
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "speed.md"


def filled(page: str, parts: dict[str, str]) -> str:
    """
    *page* with new text between its markers, ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: A marker is missing.
    """
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        between = f"{begin}\n{text}\n{end}".replace("\\", r"\\")
        page, found = pattern.subn(between, page)
        if found != 1:
            raise ValueError(f"The page has {found} places for {name}, and should have one.")
    return page


def parts_of(said: dict[str, Any]) -> dict[str, str]:
    """What the page tells of a result."""
    machine = said["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    measured = (
        f"Measured on {said['date'][:10]} at commit {machine['commit'] or 'unknown'}: "
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, {packages}."
    )
    lines = [f"- {line}" for line in report.ratios(said)]
    return {
        "measured": measured,
        "comparison": report.table(said),
        "ratios": "\n".join(lines),
        "breadth": report.breadth_table(said),
        "loads": report.loads_table(said),
    }


def publish(said: dict[str, Any]) -> None:
    """Write the reference result, the picture and the page's tables."""
    report.write(said, REFERENCE)
    picture.PICTURE.write_text(picture.draw(said))
    PAGE.write_text(filled(PAGE.read_text(), parts_of(said)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("result", type=Path, nargs="?", default=report.LATEST)
    publish(json.loads(parser.parse_args().result.read_text()))
    print(f"{REFERENCE}\n{picture.PICTURE}\n{PAGE}")


if __name__ == "__main__":
    main()
