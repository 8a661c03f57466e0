"""What every command prints with: JSON for programs, tables for people."""

import json
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from errno import EADDRINUSE
from itertools import islice
from typing import Any, Final

import click

from bedrock_proxy.errors import ConfigurationError

_AT_ONCE: Final = 500
"""Rows that are aligned together: a long list begins to appear before its end is read."""


def as_json(value: object) -> None:
    """One JSON value on one line, in ASCII: no terminal or pipe can spoil it."""
    click.echo(json.dumps(value, separators=(",", ":")))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """
    Aligned columns, numbers to the right; how many rows there were.

    A column's width never shrinks, but it may grow after every :data:`_AT_ONCE` rows.
    """
    shown = ([_cell(value) for value in row] for row in rows)
    widths = [len(name) for name in columns]
    numeric: list[bool] | None = None
    count = 0
    while (group := list(islice(shown, _AT_ONCE))) or not count:
        cells = list(zip(*group, strict=True))
        for n, column in enumerate(cells):
            widths[n] = max(widths[n], *(len(cell) for cell in column))
        if numeric is None:
            numeric = [_are_numbers(column) for column in cells] or [False] * len(columns)
            _line(columns, widths, numeric)
        for row in group:
            _line(row, widths, numeric)
        if not group:
            break
        count += len(group)
    return count


def _line(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> None:
    cells = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    )
    click.echo("  ".join(cells).rstrip())


def _are_numbers(column: Sequence[str]) -> bool:
    said = [cell for cell in column if cell not in {"-", "unlimited"}]
    return bool(said) and all(cell.replace(",", "").isdigit() for cell in said)


def not_listening(host: str, port: int, error: OSError) -> ConfigurationError:
    """Why nothing can be served at this address, without Python's own remarks."""
    known = error.errno is not None and error.errno > 0
    why = os.strerror(error.errno or 0) if known else str(error.strerror).partition(" (")[0]
    advice = (
        " Choose another port with --port; 0 takes a free one." if error.errno == EADDRINUSE else ""
    )
    return ConfigurationError(f"Could not listen on {host}:{port}: {why}.{advice}")


def url_of(listener: socket.socket) -> str:
    """Where *listener* is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def note(text: str) -> None:
    """A remark for the person at the terminal: not part of the answer."""
    click.echo(text, err=True)


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
