"""Whether what answers at an address is the service, or refuses whatever it is asked.

A wrong path, a proxy's page, a login form: the first answers are all the same refusal, and none of the rows can be to
blame for it. Nothing here sends or waits; `troubles` decides what follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from penstock.runner.place import Place
from penstock.runner.source import Row, load_json
from penstock.runner.work import Refused

__all__ = ["REFUSALS", "Addresses"]

REFUSALS = 20
"""Answers of one path that are all the same refusal, before no further row is sent there."""

_OF_THE_PATH = frozenset({404, 405, 411, 415, 421, 426, 501, 505})
_OF_THE_SIZE = frozenset({413, 414, 431})


@dataclass(slots=True)
class _Refusals:
    """What a path has answered so far, all of it the same."""

    what: tuple[object, ...]
    count: int = 0
    models: set[str] = field(default_factory=set)


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

    def is_doubtful(self, place: Place, row: Row) -> bool:
        """Whether the path of a row has answered there, and nothing but the same refusal."""
        return (place, row.path) in self._refusals

    def refused(self, place: Place, row: Row, refused: Refused) -> bool:
        """A row was refused for good. Whether it is sure by now that every row of its path will be.

        Rows of each model that is known must have been refused: some servers do not name the model that they lack.
        """
        where = place, row.path
        what = None if where in self._right else _of_no_row(row, refused)
        known = self._refusals.get(where)
        if what is None or (known is not None and known.what != what):
            self.answered(place, row.path)
            return False
        known = self._refusals.setdefault(where, _Refusals(what))
        known.count += 1
        known.models.add(row.model)
        return known.count >= REFUSALS and known.models >= {model for path, model in self.asked if path == row.path}


def _of_no_row(row: Row, refused: Refused) -> tuple[object, ...] | None:
    """A refusal for which its row cannot be to blame, to be compared with others; None: it may be."""
    status, verdict = refused.reply.status, refused.verdict
    is_page = refused.reply.content.lstrip()[:1] == b"<"
    if (is_page and status not in _OF_THE_SIZE) or 300 <= status < 400:
        return (status,)
    if status not in _OF_THE_PATH or "model" in verdict.code.lower() or _names(row, verdict.message):
        return None
    return status, verdict.code, verdict.message


def _names(row: Row, message: str) -> bool:
    """Whether a message repeats a value of a row's body, such as the name of its model."""
    values = [value for value in load_json(row.body).values() if isinstance(value, str) and value]
    return any(re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", message) for value in values)
