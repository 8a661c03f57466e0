"""
The ticket: whose turn it is to write to an SQLite file, among all processes on this machine.
"""

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from time import monotonic, sleep
from typing import Final

if sys.platform != "win32":
    import fcntl

_LOOK_EVERY_S: Final = 0.002


def beside(database: Path, ending: str) -> Path:
    """Where a file lies that belongs to *database*."""
    return database.with_name(database.name + ending)


def open_beside(path: Path) -> int:
    """
    Open a file that belongs to a database, ``<database>-<what>``, or make it: for its owner only, who
    is the database's own even where root makes it (as SQLite does it with its files).

    Raises:
        OSError: It cannot be opened.
    """
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    database = path.name.rpartition("-")[0]
    if sys.platform != "win32" and database and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = path.with_name(database).stat()
            os.fchown(opened, owner.st_uid, owner.st_gid)
    return opened


class Ticket:
    """
    Whose turn it is. One thread at a time.

    Args:
        path: The file whose lock says so.
        wish_path: The file whose lock says that somebody waits. Without it, whoever keeps the turn
            for a moment does not hear that it is wanted sooner.
    """

    def __init__(self, path: Path, wish_path: Path | None = None) -> None:
        self._path = os.fspath(path)
        self._wish_path = wish_path
        self._file = open_beside(path)
        self._wish: int | None = None
        self._open_wish()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """Wait for the turn and keep it; the kernel gives it back if we are killed."""
        if sys.platform == "win32":
            yield
            return
        if not self.take():
            with self._wished():
                self._lock(fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.give_back()

    def take(self) -> bool:
        """Take the turn if nobody has it; whether it is ours now, and to be given back."""
        if sys.platform == "win32":
            return False
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def take_within(self, patience: float) -> bool:
        """Take the turn as soon as nobody has it, within some seconds; whether it is ours now."""
        if sys.platform == "win32":
            return False
        until = monotonic() + patience
        with self._wished():
            while not self.take():
                if monotonic() >= until:
                    return False
                sleep(_LOOK_EVERY_S)
        return True

    def give_back(self) -> None:
        """Let others have the turn that was taken."""
        if sys.platform != "win32":
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the turn."""
        if sys.platform == "win32" or self._wish is None:
            return False
        try:
            fcntl.flock(self._wish, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._wish, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._file)
        if self._wish is not None:
            os.close(self._wish)

    def _lock(self, how: int) -> None:
        if sys.platform == "win32":
            return
        while True:
            fcntl.flock(self._file, how)
            try:
                ours = os.stat(self._path).st_ino == os.fstat(self._file).st_ino  # noqa: PTH116 -- twice as fast
            except FileNotFoundError:
                ours = False
            if ours:
                return
            # Somebody moved the file away, or removed it: it is no longer what others go by.
            file = open_beside(Path(self._path))
            self.close()
            self._file = file
            self._open_wish()

    def _open_wish(self) -> None:
        self._wish = None
        if self._wish_path is not None:
            # Without it we wait a little longer, or others do.
            with contextlib.suppress(OSError):
                self._wish = open_beside(self._wish_path)

    @contextlib.contextmanager
    def _wished(self) -> Generator[None]:
        if sys.platform == "win32" or self._wish is None:
            yield
            return
        wish = self._wish
        fcntl.flock(wish, fcntl.LOCK_SH)
        try:
            yield
        finally:
            if wish == self._wish:  # else it has been closed
                fcntl.flock(wish, fcntl.LOCK_UN)
