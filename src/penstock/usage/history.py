"""Read a ledger: its calls, totals and minutes. `ledger` writes it, and `evidence` draws conclusions."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from penstock._text import read_word
from penstock.limits import Rate
from penstock.usage.file import LedgerError, open_reader

_SUBJECT = "coalesce(model, limiter, '')"
_COLUMNS = {"user": "coalesce(user, '')", "subject": _SUBJECT, "outcome": "outcome"}
_CALL = (
    "at, user, limiter, model, outcome, status, waited, elapsed, "
    "estimated, settled, input_tokens, output_tokens, dollars"
)
_SENT = "outcome IN ('granted', 'answered', 'rejected', 'failed', 'lost')"


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call.

    Attributes:
        at: When it was granted or refused, in seconds since 1970.
        user: Its flow; None: not said.
        limiter: The limiter's name.
        model: Which was asked.
        outcome: "granted": how it ended was not said. "answered", "rejected" (429), "failed", "lost": as the
            service answered, or did not. "refused": the limiter said "not now". "withdrawn": it was never sent.
        status: Of the service's answer.
        waited: Seconds in the queue.
        elapsed: Seconds from the grant to the end of the answer.
        estimated: Units that it was charged at first.
        settled: Units that it turned out to take; None: not said.
        usage: `input_tokens` and `output_tokens`, as the service said.
        dollars: What it cost; None: unknown.
    """

    at: float
    user: str | None
    limiter: str | None
    model: str | None
    outcome: str
    status: int | None
    waited: float
    elapsed: float | None
    estimated: Mapping[str, float]
    settled: Mapping[str, float] | None
    usage: Mapping[str, float]
    dollars: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """What some calls took together.

    Attributes:
        calls: Those that were sent.
        requests, tokens: What they were charged, or turned out to take.
        dollars: What they cost, as far as that is known.
        waited: Seconds in the queue, all together.
        rejected: 429s.
        failed: Other errors, and answers that never came.
        refused: Calls that the limiter refused; they were not sent.
        users: How many different ones there were.
        unpriced: Tokens of calls that were served at a price that is not known.
    """

    calls: int
    requests: float
    tokens: float
    dollars: float
    waited: float
    rejected: int
    failed: int
    refused: int
    users: int
    unpriced: float


@dataclass(frozen=True, slots=True)
class Minute:
    """What was sent in one minute.

    Attributes:
        at: When it began, in seconds since 1970.
        requests, tokens: What was charged, or turned out to be taken.
        waited: Seconds that the calls had waited.
    """

    at: float
    requests: float
    tokens: float
    waited: float


def _amount(unit: str, otherwise: str) -> str:
    """SQL for the units of a call: as settled, else as estimated."""
    path = f"'$.{unit}'"
    return f"coalesce(json_extract(settled, {path}), json_extract(estimated, {path}), {otherwise})"


_REQUESTS, _TOKENS = _amount("requests", "1"), _amount("tokens", "0")

_TOTALS = f"""
    count(CASE WHEN {_SENT} THEN 1 END),
    coalesce(sum(CASE WHEN {_SENT} THEN {_REQUESTS} END), 0),
    coalesce(sum(CASE WHEN {_SENT} THEN {_TOKENS} END), 0),
    coalesce(sum(dollars), 0), coalesce(sum(waited), 0),
    count(CASE WHEN outcome = 'rejected' THEN 1 END),
    count(CASE WHEN outcome IN ('failed', 'lost') THEN 1 END),
    count(CASE WHEN outcome = 'refused' THEN 1 END),
    count(DISTINCT user),
    coalesce(sum(CASE WHEN dollars IS NULL AND outcome IN ('granted', 'answered', 'lost') THEN {_TOKENS} END), 0)
"""


class History:
    """Reads a ledger, while others may write it. Moments are seconds since 1970.

    Args:
        path: The ledger's file.

    Raises:
        LedgerError: There is none, or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._connection = open_reader(self.path)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def calls(self, since: float | None = None, until: float | None = None) -> Iterator[RecordedCall]:
        """Each call from `since` on and before `until`, in the order of their time."""
        query = f"SELECT {_CALL} FROM calls WHERE {_BETWEEN} ORDER BY at, id"  # noqa: S608 - our own text alone
        for row in self._rows(query, _span(since, until)):
            at, user, limiter, model, outcome, status, waited, elapsed, estimated, settled, given, made, dollars = row
            usage = {"input_tokens": given or 0.0, "output_tokens": made or 0.0} if given or made else {}
            charged, true = json.loads(estimated), None if settled is None else json.loads(settled)
            yield RecordedCall(
                at, user, limiter, model, outcome, status, waited, elapsed, charged, true, usage, dollars
            )

    def totals(self, since: float | None = None, until: float | None = None, *, subject: str | None = None) -> Totals:
        """What the calls took together; of one model, or limiter, alone if `subject` names it."""
        where = _BETWEEN if subject is None else f"{_BETWEEN} AND {_SUBJECT} = ?"
        also = () if subject is None else (subject,)
        (row,) = self._rows(f"SELECT {_TOTALS} FROM calls WHERE {where}", (*_span(since, until), *also))  # noqa: S608
        return Totals(*row)

    def totals_by(
        self, what: Literal["user", "subject", "outcome"], since: float | None = None, until: float | None = None
    ) -> dict[str, Totals]:
        """The totals of each user, each model (or limiter, where no model is known), or each outcome.

        The user `""` is that of calls without one.

        Raises:
            ValueError: `what` is another word.
        """
        column = _COLUMNS[read_word("what", what, _COLUMNS)]
        query = f"SELECT {column}, {_TOTALS} FROM calls WHERE {_BETWEEN} GROUP BY 1 ORDER BY 3 DESC, 1"  # noqa: S608
        return {name: Totals(*row) for name, *row in self._rows(query, _span(since, until))}

    def minutes(self, subject: str, since: float | None = None, until: float | None = None) -> list[Minute]:
        """Each minute in which something was sent to a model (or by a limiter), in order."""
        query = (
            f"SELECT 60 * CAST(at / 60 AS INTEGER), sum({_REQUESTS}), sum({_TOKENS}), sum(waited) FROM calls "  # noqa: S608
            f"WHERE {_BETWEEN} AND {_SUBJECT} = ? AND {_SENT} GROUP BY 1 ORDER BY 1"
        )
        return [Minute(float(at), *more) for at, *more in self._rows(query, (*_span(since, until), subject))]

    def limits(self, subject: str) -> dict[str, tuple[Rate, ...]]:
        """The limits that a model, or limiter, was under last, as far as they were told."""
        query = (
            "SELECT unit, amount, per FROM limits AS this WHERE subject = ? AND at = "
            "(SELECT max(at) FROM limits WHERE subject = this.subject AND unit = this.unit) ORDER BY unit, per"
        )
        found: dict[str, tuple[Rate, ...]] = {}
        for unit, amount, per in self._rows(query, (subject,)):
            rate = Rate(amount, per, max(1.0, amount))
            found[unit] = found.get(unit, ()) if rate in found.get(unit, ()) else (*found.get(unit, ()), rate)
        return found

    def span(self) -> tuple[float, float] | None:
        """The moments of the first and of the last call; None: there is none."""
        (row,) = self._rows("SELECT min(at), max(at) FROM calls", ())
        return None if row[0] is None else (row[0], row[1])

    def dropped(self, since: float | None = None, until: float | None = None) -> int:
        """How many events are missing, as they came while the disk was slow or full."""
        ((events,),) = self._rows(
            f"SELECT coalesce(sum(events), 0) FROM gaps WHERE {_BETWEEN}",  # noqa: S608
            _span(since, until),
        )
        return int(events)

    def _rows(self, query: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        try:
            yield from self._connection.execute(query, arguments)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path} cannot be read: SQLite says {error}") from error


_BETWEEN = "at >= ? AND at < ?"


def _span(since: float | None, until: float | None) -> tuple[float, float]:
    return -1e300 if since is None else since, 1e300 if until is None else until
