"""The file of a ledger: its tables, and how it is opened.

It is a SQLite database in the write-ahead mode, so that several processes may write and read at once, and a process may
be killed at any instruction. What was committed survives that; a power cut may take the last moments.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from penstock.errors import PenstockError

_OURS = 0x70656E6C
"""`application_id` of our files: "penl"."""

_VERSION = 1
"""`user_version` of the tables as they are now."""

_TABLES = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    process INTEGER NOT NULL,
    user TEXT,
    limiter TEXT,
    model TEXT,
    outcome TEXT NOT NULL,
    status INTEGER,
    waited REAL NOT NULL,
    elapsed REAL,
    estimated TEXT NOT NULL,
    settled TEXT,
    input_tokens REAL,
    output_tokens REAL,
    dollars REAL
);
CREATE INDEX calls_at ON calls (at);
CREATE TABLE limits (
    at REAL NOT NULL,
    subject TEXT NOT NULL,
    unit TEXT NOT NULL,
    amount REAL NOT NULL,
    per REAL NOT NULL
);
CREATE TABLE gaps (
    at REAL NOT NULL,
    process INTEGER NOT NULL,
    events INTEGER NOT NULL
);
"""


class LedgerError(PenstockError):
    """The file of a ledger cannot be read or written, and the message says why."""


def open_writer(path: Path, timeout: float) -> sqlite3.Connection:
    """Open a ledger for writing; make it if it is not there. `timeout`: seconds to wait for others that write.

    Raises:
        LedgerError: It is the file of another program, or of a later version.
        sqlite3.Error: It cannot be opened now.
    """
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        if _check(connection, path) == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_OURS}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a ledger for reading.

    Raises:
        LedgerError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}: a Ledger makes it when the first call is recorded")
    address = path.absolute().as_uri()
    last: sqlite3.Error | None = None
    for options in ("mode=ro", "immutable=1"):  # the latter where the folder is read-only, so no process writes
        connection = None
        try:
            connection = sqlite3.connect(
                f"{address}?{options}", uri=True, timeout=5, isolation_level=None, check_same_thread=False
            )
            if _check(connection, path) == 0:
                raise LedgerError(f"{path} is empty: nothing was recorded there yet")
            return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, sqlite3.Error):
                raise
            last = error
    raise LedgerError(f"{path} cannot be read as a ledger: SQLite says {last}") from last


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the tables, 0: there are none; LedgerError where they are not ours."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _OURS and (tables or version):
        raise LedgerError(f"{path} is the database of another program: give the ledger a file of its own")
    if version > _VERSION:
        raise LedgerError(
            f"{path} was written by a later penstock (tables of version {version}; this one knows {_VERSION}): upgrade "
            "penstock here, or use another file"
        )
    return int(version)
