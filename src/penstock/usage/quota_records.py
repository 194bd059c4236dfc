"""The records of quotas in a shared store: the caps for everybody, a record per user, and what each has used.

What was used is counted by limiters, in rows of theirs. Beside those rows this keeps JSON: `{name}/caps`, and
`{name}/user/{user}` for users with caps of their own, reviews, or units that a review has allowed. Everything here
blocks: on the disk, or on a server.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from penstock._concurrency.locks import new_lock
from penstock._concurrency.shared_state import around_forks
from penstock._core.decision import decide, reshape
from penstock._core.rows import DamagedRow
from penstock._core.windows import period_around
from penstock._text import without_braces
from penstock.errors import StoreError
from penstock.limits import Calendar, Limit
from penstock.stores.contract import Decide, Row, Store, Terms
from penstock.usage.caps import Cap, CapKey, Caps, origins, plain_caps, read_plain_caps
from penstock.usage.reviews import Extra, Review, UserRecord

_T = TypeVar("_T")

_MOST_REVIEWS = 50
"""Reviews of a user that are kept."""

_FOR_EVER = 1e9
"""Seconds for which a document is kept."""

_STATE = b"json"
"""In the place of the numbers that a limiter's row has."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used of one limit, and the end of its period in seconds since 1970."""

    unit: str
    limit: Calendar
    used: float
    resets_at: float


def period_of(cap: Cap | Calendar, now: float) -> tuple[float, float]:
    """When the period that holds the moment `now` begins and ends."""
    return period_around(now, cap.period, ZoneInfo(cap.tz))


class Records:
    """The records of one quota. Safe to use from any thread; a fork in between is no harm.

    Attributes:
        lock: Held while the store is asked; also by what must not be forked in the middle.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name: str = name
        self.place_ttl: float = store.place_ttl
        self._own = store.another()  # the store of the limiters is its dispatcher's alone
        self.lock: threading.RLock = new_lock()
        _all.add(self)

    def close(self) -> None:
        """Let go of the connection."""
        with self.lock:
            self._own.disconnect()

    def _exchange(self, name: str, decide: Decide) -> None:
        with self.lock:
            self._own.exchange([name], decide)

    # Names

    def used_name(self, user: str) -> str:
        """What the limiter of a user is called."""
        return f"{self.name}/used/{without_braces(user)}"

    def _user_name(self, user: str) -> str:
        return f"{self.name}/user/{without_braces(user)}"

    def users(self) -> list[str]:
        """Users with a record, or that have used something."""
        found = set()
        with self.lock:
            for kind in ("used", "user"):
                prefix = f"{self.name}/{kind}/"
                found |= {unquote(name.removeprefix(prefix)) for name in self._own.names(prefix)}
        return sorted(found)

    # Records

    def for_everybody(self, wanted: Caps | None, *, is_first: bool) -> Caps:
        """The caps for everybody; `wanted` become those if there are none, or if this is the first question."""
        plain = None if wanted is None else {"caps": plain_caps(wanted)}

        def put(there: Any) -> Any:
            return plain if plain is not None and (is_first or there is None) else there

        found = self._changed(f"{self.name}/caps", put)
        return {} if found is None else self._read(lambda: read_plain_caps(found["caps"]))

    def user(self, user: str) -> UserRecord:
        """The record of a user; an empty one if there is none."""
        return self._read(_record_of, user, self._changed(self._user_name(user), lambda there: there))

    def change_user(self, user: str, change: Callable[[UserRecord], UserRecord]) -> UserRecord:
        """Replace the record of a user, atomically, and return the new one."""

        def put(there: Any) -> Any:
            return _plain_record(change(self._read(_record_of, user, there)))

        return self._read(_record_of, user, self._changed(self._user_name(user), put))

    def _changed(self, name: str, change: Callable[[Any], Any]) -> Any:
        """Read a document, and write what `change` makes of it, if that is another."""
        document: Any = None

        def decide(rows: list[Row | None], _: float) -> list[tuple[Row, float] | None]:
            nonlocal document
            (row,) = rows
            before = None if row is None else self._read(_document, row[0])
            document = change(before)
            text = json.dumps(document, separators=(",", ":"))
            return [None if document is None or (row and row[0] == text) else ((text, _STATE), _FOR_EVER)]

        self._exchange(name, decide)
        return document

    def _read(self, read: Callable[..., _T], *what: Any) -> _T:
        try:
            return read(*what)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise StoreError(
                f'what is kept of the quota "{self.name}" in {self._own!r} cannot be read ({type(error).__name__}: '
                f"{error}): another version of penstock has written it, or another program"
            ) from error

    # What was used

    def terms(self, user: str, limits: Mapping[str, tuple[Limit, ...]]) -> Terms:
        """The limits of a user, as the store knows them."""
        return Terms(self.used_name(user), limits, self.place_ttl)

    def agree(self, user: str, limits: Mapping[str, tuple[Limit, ...]]) -> None:
        """Count a user by these limits from now on, in all processes."""
        terms = self.terms(user, limits)

        def put(rows: list[Row | None], now: float) -> list[tuple[Row, float] | None]:
            (row,) = rows
            if row is None or row[0] == terms.text:
                return [None]
            before = Terms.of_text(terms.name, row[0], self.place_ttl)
            origin = origins(_each(before), _each(terms))
            with self._whole(user):
                state, keep = reshape(row[1], before.numbers(now), terms.numbers(now), origin, now)
            return [((terms.text, state), keep)]

        with self.lock:
            self._own.exchange([terms.name], put)
            self._own.announce([terms.name])

    def spent(self, user: str) -> list[Spent]:
        """What a user has used, limit by limit; empty: nothing."""
        found: list[Spent] = []

        def look(rows: list[Row | None], now: float) -> list[tuple[Row, float] | None]:
            (row,) = rows
            found.clear()
            if row is not None:
                terms = Terms.of_text(self.used_name(user), row[0], self.place_ttl)
                with self._whole(user):
                    states = decide([row[1]], [terms.numbers(now)], (), 0.0, now).states
                for index, (unit, limit) in enumerate(_each(terms)):
                    found.append(Spent(unit, limit, states[3 * index + 1], states[3 * index + 2] / 1e6))
            return [None]

        self._exchange(self.used_name(user), look)
        return found

    @contextmanager
    def _whole(self, user: str) -> Iterator[None]:
        try:
            yield
        except DamagedRow:
            raise StoreError(
                f"what {user!r:.200} has used is damaged in {self._own!r}: reset it, and it begins with nothing used"
            ) from None

    def reset(self, user: str) -> bool:
        """Forget what a user has used; return whether there was anything. Calls under way give nothing back then."""
        was = False

        def begin(rows: list[Row | None], now: float) -> list[tuple[Row, float] | None]:
            nonlocal was
            (row,) = rows
            was = row is not None
            if row is None:
                return [None]
            terms = Terms.of_text(self.used_name(user), row[0], self.place_ttl)
            decision = decide([None], [terms.numbers(now)], (), 0.0, now)
            return [((row[0], decision.rows[0]), decision.keep[0])]

        self._exchange(self.used_name(user), begin)
        return was


def _each(terms: Terms) -> list[tuple[str, Calendar]]:
    """The limits in the order of the rows. Those of quotas are all of the calendar."""
    each = [(unit, limit) for unit, kinds in terms.limits.items() for limit in kinds]
    if not all(isinstance(limit, Calendar) for _, limit in each):
        raise StoreError(f'"{terms.name}" counts {terms}, which is not a quota: another limiter has taken its name')
    return each  # type: ignore[return-value]  # as was just seen


def _document(text: str) -> dict[str, Any]:
    """A document out of its row; ValueError where it is none: absent ones have no row."""
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{text[:20]!r} is not an object")
    return document


def _record_of(user: str, plain: Any) -> UserRecord:
    if plain is None:
        return UserRecord(user, {}, {})
    extra = {CapKey(*cap): Extra(float(units), float(until)) for *cap, units, until in plain["extra"]}
    return UserRecord(user, read_plain_caps(plain["own"]), extra, tuple(Review(**one) for one in plain["reviews"]))


def _plain_record(record: UserRecord) -> dict[str, Any]:
    return {
        "own": plain_caps(record.own),
        "extra": [[*cap, *extra] for cap, extra in record.extra.items()],
        "reviews": [asdict(one) for one in record.reviews[-_MOST_REVIEWS:]],
    }


def _before_fork(records: Records) -> None:
    """A child must not have SQLite's idea of its parent's locks, nor a connection that its parent reads."""
    records.lock.acquire()
    records._own.disconnect()


def _after_fork_in_child(records: Records) -> None:
    records.lock = new_lock()


_all: weakref.WeakSet[Records] = weakref.WeakSet()
around_forks(_all, _before_fork, lambda records: records.lock.release(), _after_fork_in_child)
