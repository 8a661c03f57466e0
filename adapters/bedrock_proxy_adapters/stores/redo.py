"""
The redo log: what was decided and told, and is not committed to the SQLite file yet.

A process that keeps its turn (:mod:`.tenure`) tells a decision as soon as it is written here, where
it outlives the process (the kernel has it); the file follows with all of them in one commit. Whoever
has the turn next after a process that was killed finds what it left, and does it again.

The log begins anew with each tenure, whose number is in every line. The file knows the number of the
last tenure that it holds, so what is in it already is never done twice, whatever became of the log.
"""

import json
import logging
import os
import sqlite3
import sys
from functools import partial
from pathlib import Path
from typing import Final
from zlib import crc32

from bedrock_proxy import admission
from bedrock_proxy.admission import Grant
from bedrock_proxy.customers import UNLIMITED
from bedrock_proxy_adapters.stores import gate, ledger
from bedrock_proxy_adapters.stores.rows import load_lease, record_from_columns
from bedrock_proxy_adapters.stores.ticket import beside, open_beside

ADMITTED: Final = "A"
"""A line with the lease of a request that was admitted."""
FINISHED: Final = "F"
"""A line with the columns of a row that was settled."""

_END: Final = b"\0"
_EMPTY: Final = (b"", _END)

# Of another version, perhaps, or what SQLite cannot hold; not what a file or a disk may suffer from.
_UNUSABLE: Final = (
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)

_log = logging.getLogger("bedrock_proxy")


def path_of(database: Path) -> Path:
    """Where the redo log of a database lies."""
    return beside(database, "-redo")


class RedoLog:
    """
    The log of one database. Only the holder of the turn writes to it.

    Attributes:
        set_aside_so_far: How many of its lines this process could not use.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = os.fspath(path)
        self._file = open_beside(path)
        self._inode = os.fstat(self._file).st_ino
        self.set_aside_so_far = 0
        self._at = 0

    def begin(self) -> None:
        """The next line is the first of a tenure's."""
        self._at = 0

    def append(self, number: int, kind: str, text: str) -> None:
        """
        Write down one decision of the tenure with this *number*.

        Raises:
            OSError: It is not written.
        """
        line = f"{number} {kind} {text}".encode()
        # The end is overwritten by the next line, and keeps older ones behind it from being read.
        whole = b"%08x %b\n%b" % (crc32(line), line, _END)
        if os.pwrite(self._file, whole, self._at) != len(whole):
            raise OSError("the disk is full")
        self._at += len(whole) - 1

    def clear(self) -> None:
        """
        All of it is committed.

        Raises:
            OSError: It is still there; that does no harm.
        """
        self._at = 0
        os.pwrite(self._file, _END, 0)

    @property
    def is_there(self) -> bool:
        """Whether the file is still what others find under its name."""
        try:
            return os.stat(self._name).st_ino == self._inode  # noqa: PTH116 -- twice as fast
        except FileNotFoundError:
            return False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        if sys.platform == "win32":
            return True  # nobody keeps a turn there
        return os.pread(self._file, 1, 0) in _EMPTY

    def lines(self) -> list[tuple[int, str, str]]:
        """The number of the tenure, the kind and the text of each whole line."""
        found: list[tuple[int, str, str]] = []
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            whole = file.read().split(_END, 1)[0]
        for each in whole.split(b"\n"):
            checksum, _, line = each.partition(b" ")
            parts = line.decode(errors="replace").split(" ", 2)
            if checksum != b"%08x" % crc32(line) or len(parts) != 3 or not parts[0].isdecimal():
                break  # the process was killed while it wrote this; nobody was told of it
            found.append((int(parts[0]), parts[1], parts[2]))
        return found

    def set_aside(self, kind: str, text: str) -> None:
        """Keep a line that is of no use, so that it does not hold up those behind it."""
        self.set_aside_so_far += 1
        bad = self._path.with_name(self._path.name + ".bad")
        with open(bad, "a", opener=partial(os.open, mode=0o600)) as file:
            file.write(f"{kind} {text}\n")
        _log.error("A line of the redo log %s cannot be used, and is kept in %s.", self._path, bad)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def is_left(database: Path) -> bool:
    """Whether there is something in the redo log of a database."""
    try:
        with path_of(database).open("rb") as file:
            return file.read(1) not in _EMPTY
    except OSError:
        return False


def last_folded(connection: sqlite3.Connection) -> int:
    """The number of the last tenure that the file holds."""
    number: int = connection.execute("SELECT folded FROM redo").fetchone()[0]
    return number


def set_folded(connection: sqlite3.Connection, number: int) -> None:
    """Say that the file holds the tenure with this *number*."""
    connection.execute("UPDATE redo SET folded = ?", (number,))


def redo(connection: sqlite3.Connection, log: RedoLog) -> None:
    """
    Within a transaction: do what *log* says and the file does not hold. To be cleared once that is
    committed.

    Raises:
        sqlite3.Error: The file could not be read or written.
    """
    number = last_folded(connection) + 1
    lines = [line for line in log.lines() if line[0] >= number]
    if not lines:
        return
    for of, kind, text in lines:
        if of > number:
            log.set_aside(kind, text)  # of another file, which it is not for this one to hold
            continue
        connection.execute("SAVEPOINT line")
        try:
            _DO_AGAIN[kind](connection, text)
        except _UNUSABLE:
            connection.execute("ROLLBACK TO line")
            log.set_aside(kind, text)
        connection.execute("RELEASE line")
    if lines[0][0] == number:
        set_folded(connection, number)


def _admit_again(connection: sqlite3.Connection, text: str) -> None:
    lease = load_lease(text)
    request = lease.request
    if gate.is_known(connection, request.request_id):
        return
    state = gate.load(connection, request.customer_id)
    limits = gate.limits_of(connection, request.customer_id)
    decision, after = admission.decide(state, limits, request)
    if not isinstance(decision, Grant):
        # It was granted, and Bedrock may have been called: it counts, whatever somebody who did not
        # look here has written since.
        decision, after = admission.decide(state, UNLIMITED, request)
    if isinstance(decision, Grant):
        lease = decision.lease
        gate.save(connection, request.customer_id, after)
    gate.put_lease(connection, lease)


def _finish_again(connection: sqlite3.Connection, text: str) -> None:
    ledger.finish(connection, record_from_columns(json.loads(text)))


_DO_AGAIN: Final = {ADMITTED: _admit_again, FINISHED: _finish_again}
