"""State in a file of this machine, for all of its processes: durable, and without a server.

Each row has a checksum, so a flipped bit is an error and never a grant. Once for each file all rows are looked at,
since a name that cannot be found any more would be a limit that is full: if any row is damaged, names without a row are
refused, and the others go on. A file that was removed or replaced while it was open is found out by its inode, and so
are the two that SQLite keeps beside it: the log, and the index of the log, through which processes see what the others
have written. Those two never shrink while they are in use, so one that did was cut. An index is made anew out of the
log, and loses nothing. What was in a log that was cut is lost: from then on all limits count as used up at that moment.

One transaction decides a whole batch, in the dispatcher's thread, so the event loop is never blocked by the disk. The
journal is a write-ahead log with `synchronous=NORMAL`: a process may be killed at any instruction, and after a power
cut the file is whole, though the last moments may be missing. Time is the machine's wall clock; rows are relative to
the moment they were written, so a clock that steps back grants nothing (a clock that steps forward refills, as it must
look to every process).

SQLite's own `busy_timeout` sleeps in ever longer steps, so that one of four processes hardly ever gets the lock. Here
it is 0, and a process that finds the file locked tries again after a random 50 to 200 µs; after a tenth of a second,
twenty times as rarely.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any
from weakref import finalize

from penstock import clock
from penstock._chance import CHANCE
from penstock._text import repr_of
from penstock.errors import StoreError
from penstock.stores._connections import outlive
from penstock.stores.contract import (
    KEPT_IF_EMPTY,
    Decide,
    Recipe,
    Row,
    Store,
    Unreachable,
    begins_empty,
    damaged_row,
)

__all__ = ["SQLiteStore"]

_OURS = 0x70656E73
"""`application_id` of our files: "pens"."""

_VERSION = 1
"""`user_version` of the tables as they are now."""

_TABLES = """
CREATE TABLE penstock_rows (
    name TEXT PRIMARY KEY,
    terms TEXT NOT NULL,
    row BLOB NOT NULL,
    expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX penstock_expires ON penstock_rows (expires);
"""

_SELECT = "SELECT terms, row, expires FROM penstock_rows WHERE name = ?"

_KEPT_LONGER = 3600
"""Seconds for which a row that means nothing any more is kept: the terms in it are what newcomers are compared with."""


_LOSS = ""
"""Stands for a name, which is never empty: the row has the moment when the log was last cut, in µs since 1970."""

_NOTED = 0.25
"""Seconds within which a process that finds the log cut notes it in the file: until then its new index looks right."""

_QUICK = 0.1
"""Seconds for which the lock is asked for again and again; after that another process keeps it, and it is asked for
more rarely."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""Codes of errors that only a damaged file can bring about, or one that another program has changed: our statements are
right."""

_INDEX_GROWS_BY, _INDEX_HEADER, _LOG_HEADER, _FRAME_HEADER = 32_768, 136, 32, 24
"""Bytes, of SQLite's formats of the log and its index. The system kills a process that reads behind the index's end;
an index whose header is zeros is made anew by the next process that reads it."""

_kept_open: list[int] = []
"""Files in which an index was mended: to close one would let go of all locks that SQLite has on it in this process."""

_FileId = tuple[int, int] | None
"""Device and inode of a file; None: there is none."""


def _file_and_size(path: str, *, follows: bool = True) -> tuple[_FileId, int]:
    """The file at a path, and its size. `follows`: a symbolic link there stands for what it leads to."""
    try:
        found = os.stat(path, follow_symlinks=follows)  # noqa: PTH116 - asked several times in each transaction
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


def _path_of(path: Any) -> Path:
    """The path, whatever the current directory will be; ValueError where no file can have it."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"path must be the path of a file, a text or an os.PathLike, not {repr_of(path)}")
    if os.fspath(path) == ":memory:":
        raise ValueError(
            "SQLiteStore needs a file, which other processes can open: for this process alone, leave store= out"
        )
    if re.match(r"[a-z][a-z0-9+.-]+://", str(path)):
        raise ValueError(f"path must be the path of a file, and {repr_of(os.fspath(path))} is a URL")
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"no file can have the path {os.fspath(path)!r}: it has a NUL or a lone surrogate")
    return Path(os.fsdecode(path)).absolute()


def _checksum(name: str, terms: str, state: bytes, expires: int) -> bytes:
    """Eight bytes that tell a row from what a damaged file holds."""
    digest = hashlib.blake2b(state, digest_size=8)
    digest.update(f"{expires} {len(name)} {name}{terms}".encode())
    return digest.digest()


def _is_whole(name: Any, terms: Any, state: Any, expires: Any) -> bool:
    """Whether a row is what was once written."""
    kinds_are_right = isinstance(name, str) and isinstance(terms, str) and isinstance(state, bytes)
    return kinds_are_right and _checksum(name, terms, state[:-8], expires) == state[-8:]


def _is_whole_in_bytes(name: Any, terms: Any, state: Any, expires: Any) -> bool:
    """The same, of texts that need not be any."""
    try:
        return _is_whole(name.decode(), terms.decode(), state, expires)
    except (AttributeError, UnicodeDecodeError):
        return False


def _is_cut(error: Exception) -> bool:
    """Whether SQLite has read behind the end of a file that must be longer."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHORT_READ


def _code(error: sqlite3.Error) -> int:
    """SQLite's own, less what it says of the cause."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _refuse_triggers(_: int, __: str | None, ___: str | None, ____: str | None, by: str | None) -> int:
    """Refuse statements that would run a trigger or read a view: what is written may be undone or ignored there.

    SQLite asks when it prepares a statement, and anew when the tables have changed.
    """
    return sqlite3.SQLITE_OK if by is None else sqlite3.SQLITE_DENY


class SQLiteStore(Store):
    """The limits of one machine, in one file.

    Args:
        path: The file; made if it is not there. Not on a network drive: SQLite's locks do not hold there. A relative
            path is one of the directory that is current now.
        on_state_loss: After the file or its log was removed or replaced, a limiter begins "full" (at most one burst too
            much each time), or "empty" (never too much; costs one burst, at the very first start too, and after 30 days
            without use).
        options: As for every shared store: `place_ttl`, `patience`, `on_outage`, `share`, `on_event`.

    Raises:
        ValueError: An option is wrong, or no file can have that path. What is wrong with the file is found at first
            use, as `StoreError`.
    """

    batch = 256
    shows = True

    def __init__(self, path: str | os.PathLike[str], *, on_state_loss: str = "full", **options: Any) -> None:
        super().__init__(**options)
        self.path: Path = _path_of(path)
        self._here = str(self.path)
        self._is_link = False  # whether there is a symbolic link; SQLite keeps its log beside what that leads to
        self._log = self._index = ""
        self.lost_is_empty: bool = begins_empty(on_state_loss)
        self._connection: sqlite3.Connection | None = None
        self._kept: finalize[..., Any] | None = None
        self._file: _FileId = None  # the file that was opened last
        self._beside: tuple[_FileId, _FileId] = (None, None)  # the log of its connection, and the index of that
        self._sizes = (0, 0)  # of those, at least
        self._index_is_wrong = False  # it must be made anew
        self._lost = False  # rows may tell of an earlier moment than the last: they must be taken for used up
        self._lost_at = -1.0  # the moment of that, as the file has it; below 0: it never was so
        self._verified: _FileId = None  # the file whose rows were all looked at
        self._damaged_rows = False  # whether it has some: then a name without a row may be one of them
        self._sweep_after = 0.0

    def __repr__(self) -> str:
        return f"SQLiteStore({self._here!r})"

    def slowest_answer(self) -> float:
        """The patience, which is for the lock, and a transaction. See `Store.slowest_answer`."""
        return 2 * self.patience + 0.5

    def recipe(self) -> Recipe:
        """The same file, whatever the directory. See `Store.recipe`."""
        lost = "empty" if self.lost_is_empty else "full"
        return Recipe(type(self), (str(self.path),), {**self.options(), "on_state_loss": lost})

    def exchange(self, names: Sequence[str], decide: Decide) -> None:
        """Run a transaction over the rows. See `Store.exchange`."""
        try:
            connection = self._connection or self._connect()
            self._mend_index(connection)
            self._begin(connection)
            try:
                self._check_files(connection)
                self._decide(connection, names, decide)
                connection.execute("COMMIT")
                self._sizes = (_file_and_size(self._log)[1], self._sizes[1])
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError, StoreError) as error:
            if _is_cut(error):
                self._index_is_wrong = self._lost = True
            self.disconnect()
            if self._lost:
                with contextlib.suppress(sqlite3.Error, OSError, StoreError):
                    self._connect()  # which notes it in the file, before any process goes on there
            if isinstance(error, StoreError):
                raise
            if isinstance(error, OSError):
                raise self._cannot_open(error) from error
            if _code(error) in _DAMAGED:
                self._verified = None
            raise self._explain(error) from error

    def names(self, prefix: str) -> list[str]:
        """Look them up in the index. See `Store.names`."""
        query = (
            "SELECT name FROM penstock_rows WHERE name >= ? AND name < ? AND name != '' AND expires >= ? ORDER BY name"
        )
        try:
            connection = self._connection or self._connect()
            self._mend_index(connection)
            found = connection.execute(query, (prefix, prefix + chr(0x10FFFF), int(clock.wall()))).fetchall()
        except (sqlite3.Error, StoreError) as error:
            self.disconnect()
            if isinstance(error, StoreError):
                raise
            raise self._explain(error) from error
        return [name for (name,) in found]

    def peek(self, name: str) -> Row | None:
        """Read it without a lock. What is wrong with the file is found by the next call. See `Store.peek`."""
        connection = self._connection
        if connection is None:
            return None
        try:
            self._mend_index(connection)
            row = connection.execute(_SELECT, (name,)).fetchone()
        except (sqlite3.Error, OSError):
            return None
        return self._checked(name, row) if row is not None and _is_whole(name, *row) else None

    def _decide(self, connection: sqlite3.Connection, names: Sequence[str], decide: Decide) -> None:
        read = connection.execute
        found = [read(_SELECT, (name,)).fetchone() for name in names]
        rows = [self._known(name, row) for name, row in zip(names, found, strict=True)]
        if None in rows:
            loss = read(_SELECT, (_LOSS,)).fetchone()
            self._lost_at = -1.0 if loss is None else float(self._checked(_LOSS, loss)[0])
        wall = clock.wall()
        for name, row, new in zip(names, found, decide(rows, float(int(wall * 1e6))), strict=True):
            if new is None:
                continue
            (terms, state), keep = new
            expires = int(wall + keep + (KEPT_IF_EMPTY if self.lost_is_empty else _KEPT_LONGER))
            state += _checksum(name, terms, state, expires)
            if row is None:
                read("INSERT INTO penstock_rows VALUES (?, ?, ?, ?)", (name, terms, state, expires))
            elif row[::2] == (terms, expires):  # as most: the index need not be written
                read("UPDATE penstock_rows SET row = ? WHERE name = ?", (state, name))
            else:
                read(
                    "UPDATE penstock_rows SET terms = ?, row = ?, expires = ? WHERE name = ?",
                    (terms, state, expires, name),
                )
        if wall > self._sweep_after and not self._damaged_rows:
            self._sweep_after = wall + 60
            read(
                "DELETE FROM penstock_rows WHERE name IN (SELECT name FROM penstock_rows WHERE expires < ? LIMIT 1000)",
                (wall,),
            )

    def _known(self, name: str, row: Any) -> Row | None:
        """What is known of a name; StoreError: it is not what was once written, or it may be missing."""
        if row is None:
            if self._damaged_rows:
                raise StoreError(
                    f"{self._here!r} has damaged rows, and that of {name!r}, which is missing, may be one of them: "
                    "nothing was granted. Move the file away; a new one begins with full limits"
                )
            return None
        return self._checked(name, row)

    def _checked(self, name: str, row: Any) -> Row:
        """A row without its checksum; StoreError where it is not what was once written."""
        terms, state, expires = row
        if not _is_whole(name, terms, state, expires):
            raise damaged_row(repr(self._here), name)
        return terms, state[:-8]

    def _verify(self, connection: sqlite3.Connection) -> None:
        """Look at all of the file, once: a row that cannot be found any more would be a limit that is full again."""
        if self._verified == self._file:
            return
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise self._damaged(said)
        rows = connection.execute("SELECT CAST(name AS BLOB), CAST(terms AS BLOB), row, expires FROM penstock_rows")
        self._damaged_rows = not all(starmap(_is_whole_in_bytes, rows))
        self._verified = self._file

    def _take_all_for_used_up(self, connection: sqlite3.Connection) -> None:
        """Forget all rows, and note the moment: names without a row were used up then."""
        self._begin(connection)
        now = clock.wall()
        terms, expires = f"{now * 1e6:.0f}", int(now + KEPT_IF_EMPTY)
        connection.execute("DELETE FROM penstock_rows")
        marker = (_LOSS, terms, _checksum(_LOSS, terms, b"", expires), expires)
        connection.execute("INSERT INTO penstock_rows VALUES (?, ?, ?, ?)", marker)
        connection.execute("COMMIT")
        self._damaged_rows = self._lost = False

    def _born(self, now: float) -> float:
        """The last loss, unless what is not there counts as used up anyway. See `Store._born`."""
        return now if self.lost_is_empty else self._lost_at

    def _check_files(self, connection: sqlite3.Connection) -> None:
        """Refuse to go on in files that are not at their paths any more: others would not see what is granted."""
        file = _file_and_size(self._here, follows=self._is_link)[0]
        beside, sizes = self._beside_there()
        here = file == self._file and beside == self._beside
        if here and (sizes[0] >= self._sizes[0] or self._log_is_whole(connection, sizes[0])):
            self._sizes = sizes
            return
        what, how, lost = repr(self._here), "removed or replaced", "what was used is lost"
        if file == self._file:
            what, lost = f"the log of {what}", "some of what was used may be lost"
        self._lost = here or self.lost_is_empty
        if here:
            how, lost, self._index_is_wrong = "cut", "all limits count as used up now", True
        elif file == self._file and beside[0] is None:
            # No process has begun another log: what is in this one can still be written into the file.
            connection.execute("ROLLBACK")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._file = self._verified = None  # what is there next may have the same inode, and be another file
        raise StoreError(
            f"{what} was {how} while it was in use, and {lost}: nothing was granted. "
            "The next call goes on in the file that is there then"
        )

    def _log_is_whole(self, connection: sqlite3.Connection, size: int) -> bool:
        """Whether a log that became shorter has all that its index tells of: SQLite itself may have emptied it."""
        connection.execute("ROLLBACK")
        try:
            _, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            return False
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        time.sleep(_NOTED)
        self._begin(connection)
        return bool(frames <= 0 or size >= _LOG_HEADER + frames * (_FRAME_HEADER + page))

    def _beside_there(self) -> tuple[tuple[_FileId, _FileId], tuple[int, int]]:
        """The log and its index, and their sizes."""
        (log, log_size), (index, index_size) = _file_and_size(self._log), _file_and_size(self._index)
        return (log, index), (log_size, index_size)

    def _mend_index(self, connection: sqlite3.Connection) -> None:
        """Let SQLite make an index that was cut anew out of the log, before a process reads behind its end."""
        index, size = _file_and_size(self._index)
        least = self._sizes[1] if index == self._beside[1] else 0
        whole = max(least, _INDEX_GROWS_BY, -(-size // _INDEX_GROWS_BY) * _INDEX_GROWS_BY)
        if index is None or (size == whole and not self._index_is_wrong):
            return
        os.truncate(self._index, whole)
        try:
            self._begin(connection)  # no process may be writing
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                raise
        file = os.open(self._index, os.O_RDWR)
        _kept_open.append(file)
        os.write(file, bytes(_INDEX_HEADER))
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        self._index_is_wrong = False

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Take the lock of the file; give up after `patience`."""
        begun = clock.now()
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                waited = clock.now() - begun
                if _code(error) != sqlite3.SQLITE_BUSY or waited > self.patience:
                    raise
                pause = CHANCE.uniform(50e-6, 200e-6)
                time.sleep(pause if waited < _QUICK else 20 * pause)
            else:
                return

    def _connect(self) -> sqlite3.Connection:
        if self.path.is_dir():
            raise StoreError(f"{self._here!r} is a directory: SQLiteStore needs the path of a file in it")
        if not self.path.exists():
            self._file = None  # it will be a new one
        elif self.path.stat().st_nlink > 1:
            raise StoreError(
                f"{self._here!r} has other names (hard links), and "
                "processes that open it by those would not see what is granted here: remove them, or use symbolic links"
            )
        self._is_link, there = self.path.is_symlink(), os.path.realpath(self._here)
        self._log, self._index = f"{there}-wal", f"{there}-shm"
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        connection.set_authorizer(_refuse_triggers)
        try:
            self._mend_index(connection)
            self._prepare(connection)
            self._file = _file_and_size(self._here)[0]
            self._beside, self._sizes = self._beside_there()
            self._verify(connection)
            if self._lost:
                self._take_all_for_used_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._kept = connection, outlive(self, connection)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables where there are none. To close the connection takes back what was begun."""
        give_up = clock.now() + max(1.0, self.patience)
        while True:  # several processes may open a new file at the same moment, and turning on the log needs it alone
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or clock.now() > give_up:
                    raise
                time.sleep(CHANCE.uniform(1e-3, 5e-3))
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _OURS and (tables or version):
            raise StoreError(
                f"{self._here!r} is the database of another program, which SQLiteStore leaves alone: "
                "give it a file of its own"
            )
        if version > _VERSION:
            raise StoreError(
                f"{self._here!r} was written by a later penstock (tables of version {version}; this one knows "
                f"{_VERSION}): upgrade penstock here, or use another file"
            )
        is_the_same = self._file is not None and self._file == _file_and_size(self._here)[0]
        if version == 0 and is_the_same and not self._lost:
            raise StoreError(
                f"{self._here!r} is damaged: it was emptied while it was in use, and nothing was granted. "
                "Remove it; a new one begins with full limits"
            )
        if version == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_OURS}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> StoreError:
        code = _code(error)
        path = repr(self._here)
        if code == sqlite3.SQLITE_BUSY:
            return Unreachable(
                f"{path} has been locked by another process for {self.patience:g} s: "
                "find the one that holds a transaction open on it, or raise patience="
            )
        if code == sqlite3.SQLITE_AUTH:
            return StoreError(
                f"{path} has a trigger or a view of another program on its tables, which may undo what is written: "
                "nothing was granted. Drop it; the next call goes on"
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreError(
                f"the disk of {path} is full: nothing was granted. Free some space; the next call tries again"
            )
        if code == sqlite3.SQLITE_CANTOPEN:
            return self._cannot_open(error)
        if code == sqlite3.SQLITE_READONLY or not os.access(
            self.path if self.path.exists() else self.path.parent, os.W_OK
        ):
            return StoreError(
                f"{path} cannot be written: let this user write to it, to the -wal and -shm beside it, and to its "
                f"directory ({error})"
            )
        if code in _DAMAGED:
            return self._damaged(str(error))
        if _is_cut(error):
            return StoreError(
                f"the log of {path} was cut while it was in use, and all limits count as used up now: "
                "nothing was granted. The next call goes on with what is there"
            )
        return StoreError(f"{path}: SQLite says {error} ({getattr(error, 'sqlite_errorname', 'no code')})")

    def _cannot_open(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._here!r} cannot be opened: does its directory exist, and may this user write there? ({error})"
        )

    def _damaged(self, how: str) -> StoreError:
        return StoreError(
            f"{self._here!r} is damaged, or no SQLite database ({how}): nothing was granted. "
            "Move it away; a new one begins with full limits"
        )

    def before_fork(self) -> None:
        """Close the file. See `Store.before_fork`.

        Locks on files are not inherited, but SQLite in the child would believe that it has those of its parent.
        """
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection. See `Store.disconnect`."""
        connection, self._connection, kept, self._kept = self._connection, None, self._kept, None
        if kept is not None:
            kept.detach()
        if connection is not None:
            if not self._index_is_wrong:
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._mend_index(connection)  # to close it reads the index
            connection.close()
