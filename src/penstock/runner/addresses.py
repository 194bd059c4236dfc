"""Whether what answers at an address is the service, or refuses whatever it is asked.

A wrong path, a proxy's page, a log-in form: the first answers are all the same refusal, or none is an answer that a
service of this kind gives, and none of the rows can be to blame for it. Nothing here sends or waits; `troubles`
decides what follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from penstock import clock
from penstock.runner.answers import is_page
from penstock.runner.place import Place
from penstock.runner.source import Row, load_json
from penstock.runner.work import RefusedReply

__all__ = ["REFUSALS", "Addresses"]

REFUSALS = 20
"""Answers of one path that are all the same refusal, or no answers at all, before no further row is sent there."""

_OF_THE_PATH = frozenset({404, 405, 411, 415, 421, 501, 505})
_OF_THE_SIZE = frozenset({413, 414, 431})


@dataclass(slots=True)
class _Refusals:
    """What a path has answered so far: refusals that are all the same, and what is no answer."""

    what: tuple[object, ...] | None = None
    count: int = 0
    models: set[str] = field(default_factory=set)
    no_answers: int = 0
    since: float = 0.0


class Addresses:
    """What the paths of each place have answered.

    Attributes:
        asked: The (path, model) of all rows that were read.
    """

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()
        self._right: set[tuple[Place, str]] = set()
        self._refusals: dict[tuple[Place, str], _Refusals] = {}

    def answered(self, place: Place, path: str) -> None:
        """The service is there: it answered a row, or refused one for what is in it."""
        if (place, path) not in self._right:
            self._right.add((place, path))
            self._refusals.pop((place, path), None)

    def serves(self, place: Place) -> bool:
        """Whether the service was met at a place, at any path."""
        return any(where is place for where, _ in self._right)

    def is_right(self, place: Place, path: str) -> bool:
        """Whether the service was met there."""
        return (place, path) in self._right

    def is_doubtful(self, place: Place, row: Row) -> bool:
        """Whether the path of a row has answered there, and nothing but the same refusal."""
        return (place, row.path) in self._refusals

    def refused(self, place: Place, row: Row, refused: RefusedReply) -> bool:
        """A row was refused for good. Whether it is sure by now that every row of its path will be.

        Rows of each model that is known must have been refused: some servers do not name the model that they lack.
        """
        where = place, row.path
        what = None if where in self._right else _of_no_row(row, refused)
        known = self._refusals.get(where)
        if what is None or (known is not None and known.what not in {None, what}):
            self.answered(place, row.path)
            return False
        known = self._refusals.setdefault(where, _Refusals())
        known.what = what
        known.count += 1
        known.models.add(row.model)
        return known.count >= REFUSALS and known.models >= {model for path, model in self.asked if path == row.path}

    def gave_no_answer(self, place: Place, path: str, at_least: float) -> bool:
        """What came is neither an answer nor a refusal.

        Whether it is sure by now that no row of the path will be answered: for `at_least` so many seconds none was.
        """
        known = self._refusals.setdefault((place, path), _Refusals())
        if not known.no_answers:
            known.since = clock.now()
        known.no_answers += 1
        return known.no_answers >= REFUSALS and clock.now() - known.since >= at_least


def _of_no_row(row: Row, refused: RefusedReply) -> tuple[object, ...] | None:
    """A refusal for which its row cannot be to blame, to be compared with others; None: it may be."""
    status, verdict = refused.reply.status, refused.verdict
    if is_page(refused.reply.content) and status not in _OF_THE_SIZE:
        return (status,)
    if status not in _OF_THE_PATH or "model" in verdict.code.lower() or _names(row, verdict.message):
        return None
    return status, verdict.code, verdict.message


def _names(row: Row, message: str) -> bool:
    """Whether a message repeats a value of a row's body, such as the name of its model."""
    values = [value for value in load_json(row.body).values() if isinstance(value, str) and value]
    return any(re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", message) for value in values)
