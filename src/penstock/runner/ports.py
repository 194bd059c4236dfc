"""What a run reads from and writes to, whatever that is: files for the command line, Python objects for a program.

Those themselves are in `output` and `library`.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

from penstock.runner.naming import Naming
from penstock.runner.source import Rejected, Row

__all__ = ["Known", "Sink", "Source", "words_of_change"]


class Known(enum.Enum):
    """What earlier runs, and earlier lines, say about a row."""

    NEW = "new"
    ANSWERED = "answered"
    CHANGED = "changed"
    """Its custom_id is answered, but another question was asked."""
    BY_ANOTHER = "by another"
    """It is answered, by a server that is not asked now."""
    DUPLICATE = "duplicate"


def words_of_change(known: Known, line: int, named: Naming) -> str:
    """Why a row that was answered ends a run that was not told what to do about it."""
    what = (
        "was answered by a server that is not asked now"
        if known is Known.BY_ANOTHER
        else "asks something else than what is answered under its custom_id"
    )
    return (
        f"line {line} {what}: {named('changed', 'rerun')} asks again and drops that answer, "
        f"{named('changed', 'keep')} keeps it"
    )


class Source(Protocol):
    """Where rows come from.

    Attributes:
        name: What to call it.
        is_regular: Whether it can be read without waiting, so that it pays to read ahead before anything is chosen.
        passed: Rows that were passed over since this was last set to 0, since they are answered already.
    """

    name: str
    is_regular: bool
    passed: int

    async def read(self) -> tuple[int, bytes | Rejected | None] | None:
        """The next row: its number from 1, and its JSON; None instead of JSON that is too long.

        Of a row that cannot be JSON, why. None after the last row.
        """
        ...

    def stop(self) -> None:
        """End soon, as if there were no further rows."""
        ...


class Sink(Protocol):
    """Where results go. What cannot be written is an `OutputError`, and ends the run."""

    @property
    def full(self) -> bool:
        """Whether no further row should be begun for now."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether answers are kept although something cannot be written any more."""
        ...

    @property
    def is_piped(self) -> bool:
        """Whether `finish` may wait for another program."""
        ...

    def known(self, row: Row) -> Known:
        """What earlier runs say about a row; asked once for each."""
        ...

    def may_be_billed(self, row: Row) -> bool:
        """Whether an earlier run sent this row and was ended before it knew the outcome."""
        ...

    def sent(self, row: Row, attempt: int) -> None:
        """A row is about to be sent."""
        ...

    def over(self, row: Row) -> None:
        """What was sent is known not to be answered."""
        ...

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> None:
        """A row is answered, by JSON on one line."""
        ...

    def fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        """A row is given up."""
        ...

    def check(self) -> None:
        """Look whether everything is still where it should be; called twice a second."""
        ...

    def give_up(self) -> None:
        """Wait for no other program any more."""
        ...

    def finish(self) -> None:
        """The run is over."""
        ...
