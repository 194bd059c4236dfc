"""Numbers of a million rows, of which a megabyte at most is held in memory and the rest in a temporary file.

The files are databases of SQLite's without a name: nobody else sees them, and they go when they are closed, whatever
ends the program. So nothing here outlives a run: what must is in its journal.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator

from penstock.runner.files import OutputError

__all__ = ["IdSet", "NumberTable"]


CACHE = 1_000
"""Kilobytes of each that are held in memory."""


class IdSet:
    """A set of custom_ids.

    It holds their digests (`custom_id_digest`), of 64 bits: two different ids are taken for one with a probability of 3
    in a million for 10 million rows.
    """

    def __init__(self) -> None:
        self._cursor: sqlite3.Cursor | None = None

    def add(self, digest: int) -> bool:
        """Add an id by its digest; False if it was there already.

        Raises:
            OutputError: There is no room for the temporary file.
        """
        try:
            if self._cursor is None:
                self._cursor = _open(self, "ids (id INTEGER PRIMARY KEY)")
            self._cursor.execute("INSERT OR IGNORE INTO ids VALUES (?)", (digest - (1 << 63),))
        except sqlite3.Error as error:
            raise _no_room(error) from None
        return self._cursor.rowcount == 1


class NumberTable:
    """Whole numbers by whole numbers, as a dict has them; read in the order of the keys."""

    def __init__(self) -> None:
        self._cursor: sqlite3.Cursor | None = None

    def put(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Put numbers under keys, in place of those that are there.

        Raises:
            OutputError: There is no room for the temporary file.
        """
        try:
            if self._cursor is None:
                self._cursor = _open(self, "numbers (key INTEGER PRIMARY KEY, number INTEGER NOT NULL)")
            self._cursor.executemany("INSERT OR REPLACE INTO numbers VALUES (?, ?)", pairs)
        except sqlite3.Error as error:
            raise _no_room(error) from None

    def __getitem__(self, key: int) -> int:
        """The number under a key that is there."""
        found = next(self._select("SELECT number FROM numbers WHERE key = ?", key), None)
        if found is None:
            raise KeyError(key)
        return found

    def in_order(self) -> Iterator[int]:
        """The numbers, by ascending keys."""
        return self._select("SELECT number FROM numbers ORDER BY key")

    def _select(self, query: str, *arguments: int) -> Iterator[int]:
        if self._cursor is None:
            return
        try:
            for (number,) in self._cursor.connection.execute(query, arguments):
                yield number
        except sqlite3.Error as error:
            raise _no_room(error) from None


def _open(owner: object, table: str) -> sqlite3.Cursor:
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    close: Callable[[], None] = database.close
    weakref.finalize(owner, close)
    database.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000;CREATE TABLE {table}; BEGIN"
    )
    return database.cursor()


def _no_room(error: sqlite3.Error) -> OutputError:
    return OutputError(
        f"no room for a temporary file of 20 bytes a row ({error}): SQLITE_TMPDIR may name a folder that has it"
    )
