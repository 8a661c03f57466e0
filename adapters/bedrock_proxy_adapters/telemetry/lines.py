"""
Lines to standard output or standard error, which nobody may be reading.

A pipe whose reader has stopped (a log driver that is stuck, ``| less``, a terminal after Ctrl-S)
takes some 64 KiB and then makes its writer wait: on an event loop, with all that it serves.
"""

import io
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

from typing_extensions import override

if sys.platform != "win32":
    import select

MAX_KEPT: Final = 4 * 1024 * 1024
"""Bytes that wait for a reader; some fifteen thousand usage lines."""

CLOSE_WITHIN: Final = 1.0
"""Seconds that what is kept may take when all is over."""

AT_ONCE: Final = 512 if sys.platform == "win32" else select.PIPE_BUF
"""Bytes that a pipe takes without waiting where it takes any (POSIX, ``write``: PIPE_BUF)."""


class Lines:
    """
    Writes lines, and never waits for whoever reads them.

    A line goes out at once where that takes no waiting. Otherwise it is kept, and a thread that
    lives as long as there is something to write waits in its place; beyond :data:`MAX_KEPT` the
    newest are dropped, and *dropped* is written once it goes on. Any thread may call.

    Only what may make its writer wait is written so; a file, a stream that is more than a
    descriptor's (a test's, one that compresses) and everything on Windows is written as ever.

    Args:
        stream: Called for each line, for it may be replaced: where to write.
        dropped: The line that tells how many were dropped.
    """

    def __init__(self, stream: Callable[[], TextIO], dropped: Callable[[int], str]) -> None:
        self._stream = stream
        self._line_of_dropped = dropped
        self._lock = threading.Lock()
        self._seen: TextIO | None = None
        self._file: int | None = None
        self._poll: Callable[[int], object] = bool
        self._kept: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, line: str, *, droppable: bool = True) -> None:
        """
        Write *line*, or see to it that it is written.

        Raises:
            OSError: It cannot be written: the reader is gone, the disk is full.
        """
        stream = self._stream()
        if stream is not self._seen:
            self._look_at(stream)
        file = self._file
        if file is None:
            stream.write(line + "\n")
            stream.flush()
            return
        data = f"{line}\n".encode(stream.encoding, "backslashreplace")
        with self._lock:
            if self._thread is None and self._takes(data):
                with suppress(BlockingIOError):  # somebody else has made it so
                    written = os.write(file, data)
                    if written == len(data):
                        return
                    data, droppable = data[written:], False
            if droppable and self._size + len(data) > MAX_KEPT:
                self._dropped += 1
                return
            self._kept.append((file, data))
            self._size += len(data)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="bedrock-proxy-lines", daemon=True)
                thread.start()
                self._thread = thread

    def close(self, within: float = CLOSE_WITHIN) -> None:
        """Wait until what is kept is written, *within* seconds; what is not by then is lost."""
        thread = self._thread
        if thread is not None:
            thread.join(within)

    def _look_at(self, stream: TextIO) -> None:
        """Find out how *stream* is written."""
        self._file = None
        file = _file_of(stream)
        # A file on a disk takes everything, without our help.
        if sys.platform != "win32" and file is not None and not _is_on_disk(file):
            stream.flush()
            poll = select.poll()
            poll.register(file, select.POLLOUT)
            self._poll = poll.poll
            self._file = file
        self._seen = stream

    def _takes(self, data: bytes) -> bool:
        """Whether writing *data* now takes no waiting."""
        return len(data) <= AT_ONCE and bool(self._poll(0))

    # --- on the thread

    def _run(self) -> None:
        file = -1
        while True:
            with self._lock:
                if self._kept:
                    file, data = self._kept.popleft()
                    self._size -= len(data)
                elif self._dropped:
                    data = f"{self._line_of_dropped(self._dropped)}\n".encode()
                    self._dropped = 0
                else:
                    self._thread = None
                    return
            # Not by the stream, whose lock the interpreter needs in order to end. What cannot be
            # written at all cannot be told either.
            with suppress(OSError):
                _write(file, data)


class LinesHandler(logging.Handler):
    """
    What is logged, as lines to *stream*. One at level CRITICAL is never dropped: it may stand for
    a usage row.
    """

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        super().__init__()
        self._lines = Lines(stream, "{} lines of the log were dropped: nobody read them.".format)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(self.format(record), droppable=record.levelno < logging.CRITICAL)
        except Exception:  # noqa: BLE001 -- as logging's own handlers do
            self.handleError(record)

    @override
    def close(self) -> None:
        self._lines.close()
        super().close()


def _file_of(stream: TextIO) -> int | None:
    """The descriptor that *stream* writes to and does nothing else with; None for any other."""
    below: object = stream.buffer if type(stream) is io.TextIOWrapper else None
    if type(below) is io.BufferedWriter:
        below = below.raw  # unless Python runs unbuffered
    try:
        return below.fileno() if type(below) is io.FileIO else None
    except ValueError:  # it is closed
        return None


def _is_on_disk(file: int) -> bool:
    return stat.S_ISREG(os.fstat(file).st_mode)


def _write(file: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(file, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(file, select.POLLOUT)
            poll.poll()
