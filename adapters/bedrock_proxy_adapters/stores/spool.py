"""
A local file for the rows that the store could not take, until it can.

Each line is one settlement: a checksum and JSON. A line counts once it has been fsynced;
what a crash leaves of an unfinished one is set aside. Any number of processes may append
while one replays.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Lock
from typing import Final
from zlib import crc32

from attrs import frozen

from bedrock_proxy.admission import AdmissionRequest, Grant, Lease, Refusal
from bedrock_proxy.errors import StoreUnavailable, store_unavailable
from bedrock_proxy.ports import Answer, Gate, PortKind
from bedrock_proxy.usage import UsageRecord
from bedrock_proxy_adapters.stores.rows import dump, dump_lease, load_lease, record_of

if sys.platform != "win32":
    import fcntl

SPOOL_CAP: Final = 64 * 1024 * 1024
"""How many bytes the spool may hold; then admission closes."""


HEADROOM: Final = 1024 * 1024
"""Bytes kept for the requests that were admitted before; about eight hundred rows."""

LOOK_EVERY_S: Final = 0.05
"""How often admission looks how large the spool is: far fewer requests come meanwhile."""


class SpoolFull(StoreUnavailable):
    """The spool holds as much as it may: the record was not kept."""


@frozen
class Replayed:
    """
    What a replay did.

    Attributes:
        settled: Records that the ledger took.
        broken: Lines that a crash left unfinished, or that cannot be read for another
            reason, now in the file's ``.broken`` neighbour.
        left: Records that are still to be settled, because the store is still down.
    """

    settled: int = 0
    broken: int = 0
    left: int = 0


class Spool:
    """
    The spool file at *path*; made when first needed.

    Args:
        cap: Bytes it may hold.
    """

    def __init__(self, path: str | os.PathLike[str], *, cap: int = SPOOL_CAP) -> None:
        self.path = Path(path).absolute()
        self._replaying = self.path.with_name(self.path.name + ".replaying")
        self._broken = self.path.with_name(self.path.name + ".broken")
        self._cap = cap
        self._lock = Lock()
        self._roomy_until = 0.0

    @property
    def size(self) -> int:
        """Bytes waiting to be replayed."""
        return _size(self.path) + _size(self._replaying)

    @property
    def is_full(self) -> bool:
        """
        Whether admission must close. It closes while there is still room: what is under
        way by then must be kept too. That there is room is believed for :data:`LOOK_EVERY_S`,
        unless this process has kept something meanwhile.
        """
        now = time.monotonic()
        if now < self._roomy_until:
            return False
        full = self.size >= self._cap - min(self._cap // 2, HEADROOM)
        self._roomy_until = 0.0 if full else now + LOOK_EVERY_S
        return full

    def append(self, record: UsageRecord, lease: Lease) -> None:
        """
        Keep a settlement; it has reached the disk when this returns.

        Raises:
            SpoolFull: There is no room for it.
            OSError: The disk does not take it.
        """
        body = dump({"record": record.as_dict(), "lease": dump_lease(lease)}).encode()
        line = b"%08x %s\n" % (crc32(body), body)
        self._roomy_until = 0.0
        with self._lock, _locked(self.path) as file:
            end = os.lseek(file, 0, os.SEEK_END)
            if end + _size(self._replaying) + len(line) > self._cap:
                raise SpoolFull(f"The spool {self.path} is full.")
            if end and os.pread(file, 1, end - 1) != b"\n":
                line = b"\n" + line
            written = 0
            while written < len(line):
                written += os.write(file, line[written:])
            os.fsync(file)
            if not end:
                _sync_folder(self.path.parent)

    def replay(self, finish: Callable[[UsageRecord, Lease], object]) -> Replayed:
        """
        Give every record to *finish* (a ledger's, not a native one's). Killing it at any
        moment loses nothing: finishing twice changes nothing.

        A record that the ledger refuses for a reason of its own stays in the spool too.
        """
        if not self.size:
            return Replayed()
        with _locked(self.path.with_name(self.path.name + ".lock")):
            settled = broken = left = 0
            # What an earlier replay did not get to the end of comes first.
            for _ in range(2):
                if not self._take_over():
                    break
                one = self._replay_taken(finish)
                settled, broken, left = settled + one.settled, broken + one.broken, one.left
                if one.left:
                    break
            return Replayed(settled, broken, left)

    def _take_over(self) -> bool:
        """Set the waiting records apart, so that appending goes on meanwhile."""
        if _size(self._replaying):
            return True
        if not _size(self.path):
            return False
        with self._lock, _locked(self.path):
            self.path.rename(self._replaying)
            _sync_folder(self.path.parent)
        return True

    def _replay_taken(self, finish: Callable[[UsageRecord, Lease], object]) -> Replayed:
        lines = self._replaying.read_bytes().split(b"\n")
        kept: list[bytes] = []
        bad: list[bytes] = []
        settled = 0
        for line in filter(None, lines):
            parsed = _parse(line)
            if parsed is None:
                bad.append(line)
                continue
            try:
                finish(*parsed)
                settled += 1
            except Exception:  # noqa: BLE001 -- whatever it is, it must not hold up the others
                kept.append(line)
        if bad:
            with self._broken.open("ab") as file:
                file.write(b"\n".join(bad) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        if kept:
            new = self._replaying.with_name(self._replaying.name + ".new")
            with new.open("wb") as file:
                file.write(b"\n".join(kept) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._replaying)
        else:
            self._replaying.unlink()
        _sync_folder(self.path.parent)
        return Replayed(settled, len(bad), len(kept))


class SpoolGate:
    """
    A gate that closes while the spool is full: what it admitted could not be accounted for.
    """

    def __init__(self, gate: Gate, spool: Spool) -> None:
        self._gate = gate
        self._spool = spool
        self.kind: PortKind = gate.kind

    def admit(self, request: AdmissionRequest) -> Answer[Grant | Refusal]:
        """
        See :class:`~bedrock_proxy.ports.Gate`.

        Raises:
            StoreUnavailable: The spool is full.
        """
        if self._spool.is_full:
            raise store_unavailable(f"the spool {self._spool.path} is full")
        return self._gate.admit(request)

    def renew(self, lease: Lease, at: int) -> Answer[Lease]:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._gate.renew(lease, at)

    def release(self, request: AdmissionRequest) -> Answer[None]:
        """See :class:`~bedrock_proxy.ports.Gate`."""
        return self._gate.release(request)


def _parse(line: bytes) -> tuple[UsageRecord, Lease] | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % crc32(body):
        return None
    try:
        values = json.loads(body)
        return record_of(values["record"]), load_lease(values["lease"])
    except (KeyError, TypeError, ValueError):
        return None  # of another version: one line must not hold up those behind it


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 -- twice as fast, at every admission
    except FileNotFoundError:
        return 0


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Generator[int]:
    """The file at *path*, opened for appending and locked among processes."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX)
            # A replay may have renamed the file while we waited for it.
            if _inode(path) == os.fstat(file).st_ino:
                yield file
                return
        finally:
            os.close(file)


def _sync_folder(folder: Path) -> None:
    """Make a new or renamed entry durable."""
    if sys.platform == "win32":
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
