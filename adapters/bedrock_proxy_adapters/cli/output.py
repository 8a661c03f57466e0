"""What every command prints with: JSON for programs, tables for people."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click


def as_json(value: object) -> None:
    """One JSON value on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; numbers to the right."""
    shown = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(cell == "-" or cell.replace(",", "").lstrip("-").isdigit() for cell in cells)
        for cells in zip(*shown, strict=True)
    ] or [False] * len(columns)
    widths = [max([len(name), *(len(row[n]) for row in shown)]) for n, name in enumerate(columns)]
    for row in [list(columns), *shown]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def when(epoch_ms: int | None) -> str | None:
    """An instant as people read it, in UTC; None stays None."""
    if epoch_ms is None:
        return None
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    # A name may hold what would move the cursor.
    return "".join(c if c.isprintable() else "?" for c in str(value))
