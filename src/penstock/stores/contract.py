"""What a shared store is: one call that decides a batch, with the store's own time.

A store knows no waiters. It keeps a row of bytes per name, and beside it the limits that the row is counted for, so
that a process with other limits under the same name is found out. All arithmetic is in `_core.decision`, or in its twin
in Lua.

To write a store of your own, subclass `Store` and give it one method, `exchange`: read some rows, call a function,
write what it returns, all of it atomically. `penstock.testing.store_contract` holds what it must then keep.
"""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote
from weakref import WeakValueDictionary
from zoneinfo import ZoneInfo

from penstock._concurrency.locks import new_lock
from penstock._core.decision import decide as decide_rows
from penstock._core.decision import reshape
from penstock._core.lease import working
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, TIMED, WINDOW, DamagedRow
from penstock._core.windows import period_around
from penstock._numbers import Seconds, read_number, read_seconds
from penstock._text import repr_of
from penstock._validation import check_hook
from penstock.errors import StoreError, Unreachable
from penstock.limits import Calendar, InFlight, Limit, Rate, Sliding

__all__ = [
    "KEPT_IF_EMPTY",
    "Batch",
    "FromEnvironment",
    "Recipe",
    "Reply",
    "Row",
    "Store",
    "Terms",
    "Unreachable",
]

KEPT_IF_EMPTY = 30 * 86_400
"""Seconds for which idle rows are kept where an absent row counts as used up."""

MOST_SECONDS = 1_000_000.0
"""The longest `patience`, `timeout` and `place_ttl`: eleven days."""

Row = tuple[str, bytes]
"""Of one name: the text of its terms, and what it has used."""

Decide = Callable[[list[Row | None], float], list[tuple[Row, float] | None]]
"""Of the rows that are there, and the time: the rows to write, each with the seconds for which it means something."""

_Numbers = tuple[float, float, float, float, float]


class Terms:
    """The limits of one name, on which all processes must agree. Does not change.

    Attributes:
        name: What the state is kept under.
        limits: Per unit, in the order of the units' names, so that the order in which they were written does not
            matter.
        lease: Seconds for which processes may hold what they were granted before they use it; None: they do not.
        text: The same in one line, to be compared, and read back by `of_text`.
    """

    __slots__ = ("_fixed", "_valid_from", "_valid_until", "lease", "limits", "name", "place_ttl", "text")

    def __init__(
        self, name: str, limits: Mapping[str, tuple[Limit, ...]], place_ttl: float, lease: float | None = None
    ) -> None:
        self.name: str = name
        self.limits: dict[str, tuple[Limit, ...]] = dict(sorted(limits.items()))
        self.place_ttl: float = place_ttl
        self.lease: float | None = lease
        units = {unit: [_plain(unit, limit) for limit in kinds] for unit, kinds in self.limits.items()}
        self.text: str = json.dumps(units if lease is None else [units, float(lease)], separators=(",", ":"))
        self._fixed: tuple[_Numbers, ...] = ()
        self._valid_from = self._valid_until = -math.inf

    @classmethod
    def of_text(cls, name: str, text: str, place_ttl: float) -> Terms:
        """Read the terms of another process back.

        Raises:
            StoreError: The text is not one of ours.
        """
        try:
            plain = json.loads(text)
            units, lease = plain if isinstance(plain, list) else (plain, None)
            limits = {unit: tuple(_KINDS[kind[0]](*kind[1:]) for kind in kinds) for unit, kinds in units.items()}
            return cls(name, limits, place_ttl, lease)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
            raise StoreError(
                f'the limits kept under "{name}" cannot be read: {text[:80]!r}. Another version of penstock, '
                "or another program, has written there: use another name, or remove that entry"
            ) from error

    def __str__(self) -> str:
        limits = ", ".join(f"{unit}={' and '.join(map(_show, kinds))}" for unit, kinds in self.limits.items())
        return limits if self.lease is None else f"{limits}, leased for {self.lease:g} s"

    def numbers(self, now: float) -> tuple[_Numbers, ...]:
        """The limits as `_core.decision` wants them, at the store's time `now` in microseconds."""
        if not self._valid_from <= now < self._valid_until:  # the clock may have been put back
            self._valid_from, self._valid_until = -math.inf, math.inf
            self._fixed = tuple(self._of(limit, now) for kinds in self.limits.values() for limit in kinds)
        return self._fixed

    def origins(self, before: Terms) -> list[int]:
        """Per limit, the number of the one among those before that it goes on from; below 0: none."""
        keys = [(unit, index) for unit, kinds in before.limits.items() for index in range(len(kinds))]
        origins = []
        for unit, kinds in self.limits.items():
            for index in range(len(kinds)):
                key = (unit, index) if (unit, index) in keys else (unit, 0)
                origins.append(keys.index(key) if key in keys else -1)
        return origins

    def _of(self, limit: Limit, now: float) -> _Numbers:
        if self.lease is not None:
            limit = working(limit, self.lease)
        if isinstance(limit, Rate):
            return BUCKET, limit.rate, float(limit.burst), float(limit.overdraft), 0.0
        if isinstance(limit, Calendar):
            zone = ZoneInfo(limit.tz)
            begin, end = period_around(now / 1e6, limit.period, zone)
            _, next_end = period_around(end, limit.period, zone)
            self._valid_from = max(self._valid_from, round(begin * 1e6))
            self._valid_until = min(self._valid_until, round(end * 1e6))
            return CALENDAR, float(limit.amount), round(end * 1e6), round(next_end * 1e6), 0.0
        if isinstance(limit, Sliding):
            return WINDOW, float(limit.amount), float(limit.per), LOG, 0.0
        assert isinstance(limit, InFlight)
        if limit.ttl is None:
            return WINDOW, float(limit.amount), self.place_ttl, RENEWED, 0.0
        return WINDOW, float(limit.amount), float(limit.ttl), TIMED, 0.0


_KINDS: dict[str, Callable[..., Limit]] = {
    "rate": lambda amount, per, burst, overdraft: Rate(amount, per, burst, overdraft=overdraft),
    "calendar": Calendar,
    "sliding": Sliding,
    "in flight": InFlight,
}


def _plain(unit: str, limit: Limit) -> list[Any]:
    """A limit as it is written, in one way for all that are equal: 60, 60.0 and Decimal("60") are one amount."""
    if isinstance(limit, Rate):
        return ["rate", _units(limit.amount), float(limit.per), _units(limit.burst), limit.overdraft]
    if isinstance(limit, Calendar):
        period = limit.period if isinstance(limit.period, str) else float(limit.period)
        return ["calendar", _units(limit.amount), period, limit.tz]
    if isinstance(limit, Sliding):
        return ["sliding", _units(limit.amount), float(limit.per)]
    if isinstance(limit, InFlight):
        return ["in flight", _units(limit.amount), None if limit.ttl is None else float(limit.ttl)]
    raise ValueError(
        f"{unit}: a shared store cannot count {repr_of(limit)}, whose meter lives in one process. Use a Rate, "
        "calendar(), sliding() or in_flight(), or keep this limiter in memory"
    )


def _units(amount: float) -> float:
    return int(amount) if amount % 1 == 0 else float(amount)


def _show(limit: Limit) -> str:
    ttl = getattr(limit, "ttl", None)
    return f"{limit}" if ttl is None else f"{limit} for {ttl:g} s"


@dataclass(slots=True)
class Batch:
    """What one call asks.

    Attributes:
        terms: The names that it is about.
        operations: As in `_core.operations`; limits are counted through all names, from 0.
        owner: The process that asks: one number for all its batches, and for no other's.
        number: The owner's number of this batch; the same when it is sent again.
        now: What the asker takes the store's time to be, in microseconds since 1970; for the calendar.
    """

    terms: list[Terms]
    operations: list[float]
    owner: float
    number: int
    now: float


@dataclass(slots=True)
class Reply:
    """What the store says.

    Attributes:
        now: Its time, in microseconds since 1970.
        others: Names that are counted for other terms, with the text of those. If there is one, nothing was decided.
        epochs, verdicts, states: As in `_core.decision.Decision`.
    """

    now: float
    others: dict[str, str]
    epochs: Sequence[float]
    verdicts: Sequence[float]
    states: Sequence[float]


def damaged_row(where: str, name: str) -> StoreError:
    """The error for a row that is not what was once written."""
    return StoreError(
        f"{where}: what is kept under {name!r} is damaged: nothing was granted. "
        f"Remove it there, and {name!r} begins with full limits"
    )


def seconds_of(option: str, value: Any, *, zero: bool = False) -> float:
    """An option of a store that is a span of time, as seconds: one that a socket and a thread can wait for."""
    seconds = read_seconds(value)
    if seconds is None or not (0 < seconds <= MOST_SECONDS or (zero and seconds == 0)):
        least = "0" if zero else "above 0"
        raise ValueError(
            f"{option} must be a number of seconds, {least} to {MOST_SECONDS:,.0f}, or a timedelta, not "
            f"{repr_of(value)}"
        )
    return float(seconds)


def _is_one_of(value: Any, *words: str) -> bool:
    """Whether it is one of these words; whatever else it is, it need not be comparable to any."""
    return isinstance(value, str) and value in words


def check_part_of_key(what: str, text: str) -> None:
    """Refuse a text that no store can keep, or not where a key begins with it; ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        problem = "a lone surrogate, which no store can keep"
    else:
        if "{" not in text and "}" not in text:
            return
        problem = "a brace, which would tell Redis Cluster where to put it"
    raise ValueError(f"the {what} {repr_of(text)} has {problem}: use other characters")


def begins_empty(on_state_loss: str) -> bool:
    """Whether rows that are not there count as used up, as `on_state_loss=` says."""
    if not _is_one_of(on_state_loss, "full", "empty"):
        raise ValueError(f'on_state_loss must be "full" or "empty", not {repr_of(on_state_loss)}')
    return on_state_loss == "empty"


@dataclass(slots=True)
class Recipe:
    """What a store is made from again, in this process or another. A value.

    Attributes:
        make: Makes it: nearly always its class.
        arguments: By position. One that is `FromEnvironment` is read where the store is made.
        options: By keyword.
    """

    make: Callable[..., Store]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(slots=True)
class FromEnvironment:
    """A text with parts that are read from environment variables where it is used, so that no secret travels.

    Attributes:
        parts: Texts as they are, and variables: the name, and whether the value must be percent-encoded.
    """

    parts: Sequence[str | tuple[str, bool]]

    def read(self) -> str:
        """The text.

        Raises:
            ValueError: A variable is not set.
        """
        return "".join(part if isinstance(part, str) else self._value(*part) for part in self.parts)

    @staticmethod
    def _value(name: str, quoted: bool) -> str:
        value = os.environ.get(name)
        if value is None:
            raise ValueError(
                f"the address of a store is read from the environment variable {name}, which is not set here: "
                "set it in every process that uses the store, as where the store was made"
            )
        return quote(value, safe="") if quoted else value


_known: WeakValueDictionary[Any, Store] = WeakValueDictionary()
_unpickled: dict[Any, Store] = {}  # they are used again and again, by each task of an engine: one per address is kept


def _arguments_of(recipe: Recipe) -> tuple[Any, ...]:
    return tuple(arg.read() if isinstance(arg, FromEnvironment) else arg for arg in recipe.arguments)


def _key_of(recipe: Recipe) -> Any:
    """What two stores have in common that are one; None if that cannot be told."""
    key = (recipe.make, _arguments_of(recipe), tuple(sorted(recipe.options.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _made_again(recipe: Recipe) -> Store:
    """The store of a recipe: the one that this process has already, or a new one."""
    key = _key_of(recipe)
    store = None if key is None else _known.get(key)
    if store is None:
        store = recipe.make(*_arguments_of(recipe), **recipe.options)
        if key is not None:
            _known[key] = _unpickled[key] = store
    return store


class Store(ABC):
    """A shared store. Its methods block, and are called by one thread: the dispatcher's, which begins at first use.

    Args:
        place_ttl: Seconds after which the places in flight of a process that died come back, unless the limit has a
            `ttl`; above 0. A living process renews its places three times as often.
        patience: Seconds without an answer after which `on_outage` says what happens; 0 or more. Both may be given as a
            `timedelta`, and are at most a million.
        on_outage: "raise": waiters and new calls get `StoreError` until there is an answer. "share": this process goes
            on by itself with `share` of every limit. "open": all calls go through. Calls that went through are charged
            afterwards.
        share: The part of the limits that this process may use while there is no answer, above 0 to 1: 1/n where n
            processes share them. It goes with "share", which needs it.
        on_event: Called with a `penstock.events.StoreLost` or `StoreRecovered` whenever that changes.

    Raises:
        ValueError: An option is wrong.
    """

    batch: ClassVar[int] = 64
    """The most requests in one call."""
    quiet_at_fork: ClassVar[bool] = True
    """Whether a fork waits until nothing is being asked, so that `before_fork` can let go of what a child must not
    inherit."""
    lost_is_empty: bool = False
    """Whether a row that is not there counts as used up."""
    hears: ClassVar[bool] = False
    """Whether `listen` tells of changes. If not, long reservations are confirmed before they are used."""
    shows: ClassVar[bool] = False
    """Whether `peek` shows rows, so a process that waits for places sees when its turn has come. If neither this nor
    `hears` is so, it asks again and again."""

    def __init__(
        self,
        *,
        place_ttl: Seconds = 60.0,
        patience: Seconds = 1.0,
        on_outage: str = "raise",
        share: float | None = None,
        on_event: Callable[[Any], object] | None = None,
    ) -> None:
        self.place_ttl: float = seconds_of("place_ttl", place_ttl)
        self.patience: float = seconds_of("patience", patience, zero=True)
        if not _is_one_of(on_outage, "raise", "share", "open"):
            raise ValueError(f'on_outage must be "raise", "share" or "open", not {repr_of(on_outage)}')
        if (share is not None) != (on_outage == "share"):
            raise ValueError(
                'give share= with on_outage="share", and only then: 1/n where n processes share the limits'
            )
        part = None if share is None else read_number(share)
        if share is not None and not (part is not None and 0 < part <= 1):
            raise ValueError(
                f"share must be a part of 1, such as 1/4 where four processes share the limits, not {repr_of(share)}"
            )
        check_hook(on_event)
        self.on_outage = on_outage
        self.share: float | None = part
        self.on_event = on_event
        self.lock: threading.RLock = new_lock()
        self.in_use: bool = False  # whether there may be a thread, and connections
        self.dispatcher: Any = None  # what takes batches here, once there is something to send

    @abstractmethod
    def exchange(self, names: Sequence[str], decide: Decide) -> None:
        """Read the rows of `names`, call `decide` with them and the time, and write what it returns: atomically.

        `decide` gets the store's time in microseconds since 1970, whole, and returns per name the row to write and the
        seconds for which it means something, or None for "leave it". It may be called again if the rows have changed
        meanwhile.

        Raises:
            Unreachable: No answer; trying again may help.
            StoreError: It cannot serve before a person changes something.
        """

    def decide(self, batch: Batch) -> Reply:
        """Decide all of `batch` at one moment, or nothing, and once however often it is sent.

        Raises:
            Unreachable, StoreError: As in `exchange`.
        """
        reply: Reply | None = None

        def decide(rows: list[Row | None], now: float) -> list[tuple[Row, float] | None]:
            nonlocal reply
            others = {
                terms.name: row[0] for terms, row in zip(batch.terms, rows, strict=True) if row and row[0] != terms.text
            }
            if others:
                reply = Reply(now, others, (), (), ())
                return [None] * len(rows)
            limits = [terms.numbers(now) for terms in batch.terms]
            known = [row and row[1] for row in rows]
            try:
                decision = decide_rows(known, limits, batch.operations, batch.owner, now, self._born(now))
            except DamagedRow as damaged:
                raise damaged_row(repr(self), batch.terms[damaged.index].name) from None
            reply = Reply(now, {}, decision.epochs, decision.verdicts, decision.states)
            return [
                ((terms.text, row), keep)
                for terms, row, keep in zip(batch.terms, decision.rows, decision.keep, strict=True)
            ]

        self.exchange([terms.name for terms in batch.terms], decide)
        assert reply is not None, "exchange did not call decide"
        return reply

    def change(self, terms: Terms) -> None:
        """Count `terms.name` for `terms` from now on; what was used stays used.

        Raises:
            Unreachable, StoreError: As in `exchange`.
        """

        def decide(rows: list[Row | None], now: float) -> list[tuple[Row, float] | None]:
            (row,) = rows
            if row is None:
                decision = decide_rows([None], [terms.numbers(now)], (), 0.0, now, self._born(now))
                return [((terms.text, decision.rows[0]), decision.keep[0])]
            before = Terms.of_text(terms.name, row[0], terms.place_ttl)
            try:
                origins = terms.origins(before)
                reshaped, keep = reshape(row[1], before.numbers(now), terms.numbers(now), origins, now)
            except DamagedRow:
                raise damaged_row(repr(self), terms.name) from None
            return [((terms.text, reshaped), keep)]

        self.exchange([terms.name], decide)
        self.announce([terms.name])

    def _born(self, now: float) -> float:
        """The moment before which a row that is not there was used, as `decide_rows` wants it."""
        return now if self.lost_is_empty else -1.0

    def names(self, prefix: str) -> list[str]:
        """The names that begin with `prefix` and have a row, in order.

        Raises:
            Unreachable, StoreError: As in `exchange`; or this kind of store cannot tell.
        """
        raise StoreError(f"{self!r} cannot list the names in it: give {type(self).__name__} a method names(prefix)")

    def prepare(self) -> None:  # noqa: B027 - most stores have nothing to do here
        """Connect, so that what depends on the server is known before the first batch is written.

        Raises:
            Unreachable, StoreError: As in `exchange`.
        """

    def announce(self, names: Sequence[str]) -> None:  # noqa: B027
        """Tell other processes that something about these names has changed, where the store can."""

    def announce_freed(self, name: str, seconds: float) -> None:  # noqa: B027
        """Tell other processes that something of `name` was given back, where the store can.

        It is as much as flows in in so many seconds. Below 0 it is the number of the request that is next, for places.
        """

    def listen(self, heard: Callable[[str, float], None]) -> None:  # noqa: B027
        """From now on call `heard(name, seconds)`, in any thread, when another process announces something.

        A change is announced with 0 seconds. A store that cannot tell does nothing.
        """

    def peek(self, name: str) -> Row | None:
        """The row of a name as it was written last; None: there is none, or it cannot be shown now.

        It costs far less than a call, writes nothing and raises nothing: processes look every few milliseconds.
        """
        return None

    def group_of(self, name: str) -> object:
        """Names of one group can be decided in one call. Here all can."""
        return None

    def node_of(self, name: str) -> object:
        """The part of the store that can fail alone and has that name; None: all of the store answers or none does."""
        return None

    def beside(self) -> Store:
        """The same store by connections of its own, to ask a silent node again without holding up the others."""
        return self

    def check_name(self, name: str | None) -> None:
        """Refuse names that the store cannot keep.

        Raises:
            ValueError: It is one of those.
        """
        if not name:
            raise ValueError("a limiter in a shared store needs a name=: it is what other processes find its state by")
        check_part_of_key("name", name)

    def disconnect(self) -> None:  # noqa: B027
        """Let go of connections. The next call makes new ones."""

    def before_fork(self) -> None:  # noqa: B027
        """This process is about to fork, and no call is under way: let go of what a child must not inherit."""

    def forget(self) -> None:
        """In the child of a fork: connections are the parent's. Let go of them without a word to the other end."""
        self.disconnect()

    def recipe(self) -> Recipe:
        """What another process makes this store from, so that its limiters can be pickled.

        Without secrets that the environment holds.

        Raises:
            TypeError: It cannot be made again.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: give it a method recipe() that returns what "
            "another process makes it from, as a penstock.stores.contract.Recipe, or make the limiter in each process"
        )

    def another(self) -> Store:
        """A store of the same address, with connections of its own.

        Raises:
            TypeError: It cannot be made again.
        """
        recipe = self.recipe()
        return recipe.make(*_arguments_of(recipe), **recipe.options)

    def slowest_answer(self) -> float:
        """Seconds after which there is an answer or none will come: the patience, and one call."""
        return self.patience + 5.0

    def options(self) -> dict[str, Any]:
        """The options that all stores have, for `recipe`."""
        return {
            "place_ttl": self.place_ttl,
            "patience": self.patience,
            "on_outage": self.on_outage,
            "share": self.share,
            "on_event": self.on_event,
        }

    def __reduce__(self) -> Any:
        recipe = self.recipe()
        key = _key_of(recipe)
        if key is not None:
            _known.setdefault(key, self)
        return _made_again, (recipe,)

    def __copy__(self) -> Store:
        return self  # it is an address, and what is there is one

    def __deepcopy__(self, _: Any) -> Store:
        return self

    def close(self, timeout: Seconds | None = None) -> None:
        """Send what is still to be sent, then end threads and connections. The next use starts anew.

        Requests that still wait get a `StoreError`.

        Args:
            timeout: Seconds to wait for that, at most, or a `timedelta`; 0 or more. `patience` and the time of a call
                unless given. What takes longer goes on in the background.

        Raises:
            ValueError: `timeout` is no such span. Nothing was closed.
        """
        patience = 2 * self.patience + 1 if timeout is None else seconds_of("timeout", timeout, zero=True)
        self.in_use = False
        if self.dispatcher is None:
            self.disconnect()
        else:
            self.dispatcher.stop(patience)

    def __del__(self) -> None:
        if getattr(self, "in_use", False):  # a constructor that raised has not come so far
            message = f"{self!r} was never closed: call close() when it is not needed any more"
            warnings.warn(message, ResourceWarning, source=self)  # noqa: B028 - no caller is to blame
            self.disconnect()
