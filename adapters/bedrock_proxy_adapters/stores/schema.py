"""
The SQLite file: where it may lie, its tables, and how it is opened.
"""

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bedrock_proxy.errors import ConfigurationError
from bedrock_proxy.usage import LEDGER_FIELDS
from bedrock_proxy_adapters.stores.ticket import Ticket, beside

BUSY_TIMEOUT_S: Final = 5.0
"""How long SQLite itself waits for a lock that somebody holds without a ticket."""

# Locks and the shared memory of WAL need one kernel for all who open the file
# (SQLite documentation, "Write-Ahead Logging", and "How To Corrupt", section 2.1).
_NETWORK: Final = frozenset(
    {
        "9p",
        "afs",
        "afp",
        "afpfs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.mountpoint-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "webdav",
    }
)


MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE customers (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        email TEXT NOT NULL,
        status TEXT NOT NULL,
        limits TEXT NOT NULL,
        models TEXT,
        created_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE keys (
        key_id TEXT NOT NULL PRIMARY KEY,
        customer_id TEXT NOT NULL REFERENCES customers (id),
        digest BLOB NOT NULL UNIQUE,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        deprecated_at INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_by_customer ON keys (customer_id);
    CREATE TABLE gates (
        customer_id TEXT NOT NULL PRIMARY KEY,
        clock INTEGER NOT NULL,
        state TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        request_id TEXT NOT NULL PRIMARY KEY,
        customer_id TEXT NOT NULL,
        deadline INTEGER NOT NULL,
        body TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX leases_by_customer ON leases (customer_id, deadline);
    CREATE TABLE ledger (
        request_id TEXT NOT NULL PRIMARY KEY,
        customer_id TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model_id TEXT NOT NULL,
        model TEXT NOT NULL,
        dialect TEXT NOT NULL,
        operation TEXT NOT NULL,
        stream INTEGER NOT NULL,
        admitted_at INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        first_byte_ms INTEGER,
        attempts INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_read_tokens INTEGER NOT NULL,
        cache_write_5m_tokens INTEGER NOT NULL,
        cache_write_1h_tokens INTEGER NOT NULL,
        token_count INTEGER NOT NULL,
        basis TEXT NOT NULL,
        state TEXT NOT NULL,
        corrected_at INTEGER,
        outcome TEXT NOT NULL,
        error_code TEXT,
        cost_nanousd INTEGER,
        price_version TEXT,
        aws_request_id TEXT,
        client_request_id TEXT
    ) STRICT;
    CREATE INDEX ledger_by_time ON ledger (admitted_at, request_id);
    CREATE INDEX ledger_by_customer ON ledger (customer_id, admitted_at, request_id);
    """,
    """
    CREATE TABLE redo (
        only INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
        folded INTEGER NOT NULL
    ) STRICT;
    INSERT INTO redo (only, folded) VALUES (1, 0);
    """,
)
"""What makes each version of the schema (``PRAGMA user_version``) from the one before it."""

LEDGER_COLUMNS: Final = ", ".join(LEDGER_FIELDS)


def check_place(path: Path) -> None:
    """
    Refuse a place where SQLite cannot be relied upon.

    Raises:
        ConfigurationError: The folder is missing, or lies on a network file system.
    """
    if not path.parent.is_dir():
        raise ConfigurationError(
            f"The folder of the database {path} does not exist; create it, or set "
            "BEDROCK_PROXY_STORE to another place."
        )
    mounts = _read_mounts()
    kind = file_system_of(path.parent.resolve(), mounts) if mounts else None
    if kind in _NETWORK:
        raise ConfigurationError(
            f"The database {path} lies on a network file system ({kind}), where SQLite loses "
            "data. Put it on a local disk, or use a DynamoDB or Redis store."
        )


def _read_mounts() -> str:
    if sys.platform != "linux":
        return ""
    with contextlib.suppress(OSError):
        return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return ""


def file_system_of(folder: Path, mountinfo: str) -> str | None:
    """
    The type of the file system *folder* lies on, by the kernel's list of mounts
    (proc_pid_mountinfo(5)), or None where it is not listed.
    """
    found: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        mount_fields = before.split(" ")
        if not dash or len(mount_fields) < 5:
            continue
        point = Path(mount_fields[4].replace("\\040", " ").replace("\\011", "\t"))
        if folder == point or point in folder.parents:
            depth = len(point.parts)
            # Of two mounts on one point, the later hides the earlier.
            if found is None or depth >= found[0]:
                found = depth, after.split(" ")[0]
    return None if found is None else found[1]


PAGE_BYTES: Final = 1024
"""
The size of a new file's pages. A commit writes every page that it touched, eight or so, and of
each only a row is new: with small pages it takes a third less time. A file keeps the size it was
made with.
"""

CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""How long the log may grow before it is copied into the file: SQLite's own default, in bytes."""


def connect(path: Path, *, create: bool = False, synchronous: str = "FULL") -> sqlite3.Connection:
    """
    Open the file with the settings every connection needs.

    Args:
        synchronous: ``FULL``: a commit has reached the disk before anybody is told, so that
            neither a lease nor a row is lost with the power. ``NORMAL``: it is for the caller
            to see to that; such a connection waits for no lock and leaves checkpoints, which
            wait for the disk, to the others.

    Raises:
        sqlite3.Error: It cannot be opened, or is no database.
    """
    mode = "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S if synchronous == "FULL" else 0.0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        if create:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            _begin_log(connection)
        else:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        # Files of earlier versions have pages of another size.
        size: int = connection.execute("PRAGMA page_size").fetchone()[0]
        pages = CHECKPOINT_BYTES // size if synchronous == "FULL" else 0
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _begin_log(connection: sqlite3.Connection) -> None:
    """Put a new file in WAL mode; SQLite itself does not wait for others who do so too."""
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(0.005)
        else:
            return


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """
    Bring the schema up to date, each version in one transaction.

    Raises:
        ConfigurationError: The file was written by a later version of this package, or it
            holds tables that are not ours.
        sqlite3.Error: The file cannot be written.
    """
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)
            if version > len(migrations):
                raise ConfigurationError(
                    f"The database has schema version {version}, but this version of "
                    f"bedrock-proxy knows only {len(migrations)}. Upgrade bedrock-proxy."
                )
            if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
                raise ConfigurationError(
                    "The database holds tables that bedrock-proxy did not make. "
                    "Set BEDROCK_PROXY_STORE to a file of its own."
                )
            if version == len(migrations):
                connection.execute("ROLLBACK")
                return
            for statement in _statements(migrations[version]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _statements(script: str) -> Iterator[str]:
    # `executescript` would commit on its own, between the statements of one version.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _migrate_in_turn(connection: sqlite3.Connection, path: Path) -> None:
    ticket = Ticket(beside(path, "-ticket"), beside(path, "-redo"))
    taken = ticket.take_within(BUSY_TIMEOUT_S)
    try:
        migrate(connection)
    finally:
        if taken:
            ticket.give_back()
        ticket.close()


def prepare(path: Path) -> None:
    """
    Make sure that the file is there, is ours and is up to date. Leaves nothing open.

    Raises:
        ConfigurationError: It is not, and cannot be made so; the message says why.
    """
    if sqlite3.sqlite_version_info < (3, 37):
        raise ConfigurationError(
            f"SQLite {sqlite3.sqlite_version} is too old: bedrock-proxy needs 3.37 or later."
        )
    check_place(path)
    try:
        with contextlib.closing(connect(path, create=True)) as connection:
            # Who only looks waits for nobody: servers may write nearly all the time.
            if _version(connection) != len(MIGRATIONS):
                _migrate_in_turn(connection, path)
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(f"The database {path} cannot be used: {error}.") from error
    with contextlib.suppress(OSError):
        os.chmod(path, 0o600)  # noqa: PTH101 -- digests and e-mail addresses are nobody else's
