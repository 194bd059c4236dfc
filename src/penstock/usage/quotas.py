"""Caps per user, by day, week and month: hard, or with a review.

    quotas = Quotas("quotas.db", {"requests": "100/day", "dollars": "20/month"}, tz="Europe/Berlin")
    async with quotas("alice", dollars=0.01) as permit:      # or QuotaExceeded, at once
        reply = await client.chat.completions.create(...)
        permit.settle(dollars=cost_of(reply))

A user's caps are a limiter with `calendar` limits in a shared store, so all that holds of limiters holds here: a call
is charged on all caps or on none, cancelling charges nothing, the true cost is settled afterwards, and a process that
is killed has lost nothing. Quotas differ from limiters: no call waits, and caps differ by user and may be changed at
any time, by any process.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, get_args

from anyio import to_thread

from penstock import clock
from penstock._numbers import Number, amount, is_bool
from penstock._text import read_word, repr_of, text_of
from penstock._validation import check_hook, merge_given
from penstock.errors import ConfigurationConflict, RateLimited, StoreError, Unsatisfiable
from penstock.limiter import Limiter
from penstock.permit import Permit
from penstock.stores.contract import Store
from penstock.stores.sqlite import SQLiteStore
from penstock.usage.caps import UNITS, Cap, CapKey, CapLike, Caps, check_units, least, limits_of, read_caps
from penstock.usage.quota import Quota, QuotaExceeded
from penstock.usage.quota_records import Records, period_of
from penstock.usage.reviews import Review, ReviewState, UserRecord

ReviewAnswer = bool | float | None
Reviewer = Callable[[QuotaExceeded], ReviewAnswer | Awaitable[ReviewAnswer]]
GivenCaps = Mapping[str, CapLike | list[CapLike] | tuple[CapLike, ...]]

_LOOK_AGAIN = 5.0
"""Seconds after which a user's record is read again, for what another process has changed and the store did not
tell."""

_MOST_USERS = 10_000
"""Users whose limiters are kept at hand."""

_ROUNDS = 8
"""Times that a call tries again because the caps have changed, or were raised by a review."""


class Quotas:
    """Caps per user, kept in a store: shared by all processes that use it, and still there tomorrow.

    `quotas(user, tokens=5)` is an async context manager, and one for threads, like `limiter(tokens=5)`. It never waits:
    beyond a cap it raises `QuotaExceeded` at once. Unless the call says more, it costs one request and the smallest
    amount of every other unit that has a cap (a token, a millionth of a dollar), so that a user with nothing left is
    refused. `permit.settle()` sets the true cost.

    Safe to use from any number of tasks, threads and processes. A change of caps by another process holds from the next
    call on, after five seconds at the latest.

    Args:
        store: The path of a SQLite file, made if it is not there; or a `SQLiteStore` or `RedisStore`.
        caps: For everybody: per unit `"100/day"`, `"2M/month"`, `calendar(100, "day", "Europe/Berlin")`, or a list of
            those. None: those that the store has.
        tz: The time zone of caps that are written as texts; UTC unless given, and in `set` the one that all caps for
            everybody have.
        name: What these quotas are called in the store.
        review: What happens beyond a cap. None: the call is refused. "queue": it is refused, and a review is recorded,
            for a person to `approve` or `refuse`. A function of the `QuotaExceeded`, plain or async: False refuses;
            True lets this call through; a number allows that many units more until the period ends; None leaves it to
            the queue. In a coroutine a plain function must not block. Decisions are recorded, see `reviews`.
        on_event: Called with grants and refusals, as a limiter's: a `Ledger`, for example.

    Raises:
        ValueError: A cap or an option is wrong.
        StoreError: When it is used: the store cannot be read or written.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        caps: GivenCaps | None = None,
        *,
        tz: str | None = None,
        name: str = "quota",
        review: Literal["queue"] | Reviewer | None = None,
        on_event: Callable[[Any], object] | None = None,
    ) -> None:
        if review is not None and review != "queue" and not callable(review):
            raise ValueError(f'review= must be "queue", a function of what was refused, or None, not {repr_of(review)}')
        check_hook(on_event)
        if not isinstance(name, str):
            raise ValueError(f"name= must be a string, not {repr_of(name)}")
        name = text_of(name)
        self._is_ours = not isinstance(store, Store)
        self.store: Store = store if isinstance(store, Store) else SQLiteStore(store)
        self.store.check_name(name)
        if "/" in name:
            raise ValueError(
                f"the name {repr_of(name)} has a slash, which comes between it and the user: use other characters"
            )
        self.name: str = name
        self.review: Literal["queue"] | Reviewer | None = review
        tz = None if tz is None else text_of(tz)
        Cap(1, "day", tz or "UTC")  # is there such a time zone?
        self._wanted = None if caps is None else read_caps(caps, tz or "UTC")
        self._tz = tz
        self._on_event = on_event
        self._records = Records(self.store, name)
        self._for_everybody: tuple[float, Caps] | None = None
        self._users: OrderedDict[str, _User] = OrderedDict()

    def __repr__(self) -> str:
        return f"Quotas({self.store!r}, name={self.name!r})"

    def close(self) -> None:
        """Let go of the file, or of the connection.

        A store that was given as one stays open. The next use begins anew.
        """
        with self._records.lock:
            self._users.clear()
        self._records.close()
        if self._is_ours:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Calls

    def __call__(self, user: object, cost: Mapping[str, Number] | None = None, /, **costs: Number) -> _Charge:
        """A call of that user: to enter with `async with` or `with`, which yields a `Permit`.

        Args:
            user: The user that calls: a name, or anything that shows itself as one.
            cost: Amount per unit, as one mapping; or by keyword. Units of which this user has no cap are let through.
            costs: Amount per unit.

        Raises:
            QuotaExceeded: When it is entered: the user has come to a cap, and no review lets it through.
            UnknownUnit, CostError: The cost is wrong.
            ValueError: The user has no name.
        """
        return _Charge(self, read_user(user), dict(merge_given("costs", cost, costs)))

    async def acquire(self, user: object, cost: Mapping[str, Number] | None = None, /, **costs: Number) -> Permit:
        """Charge a call of that user, and return its permit. Arguments and errors: as in `quotas(user, ...)`."""
        return await self(user, cost, **costs).__aenter__()

    def _known(self, user: str, *, anew: bool = False) -> _User:
        """The user's limiter, with the caps that hold now. Blocks where they have to be read; `anew`: in any case."""
        with self._records.lock:
            now = clock.wall()
            known = self._users.get(user)
            if known is not None and not anew and known.is_fresh(now):
                self._users.move_to_end(user)
                return known
            caps, changes_at = self._caps_of(user, known, now, anew=anew)
            if known is not None and known.caps == caps:
                limiter = known.limiter
            else:
                limits = limits_of(caps, {*UNITS, *caps})
                if known is None or known.limiter.limits.keys() != limits.keys():
                    name = self._records.used_name(user)
                    limiter = Limiter(limits, name=name, store=self.store, on_event=self._on_event)
                else:  # the store first: it has to know them before the limiter goes by them
                    limiter = known.limiter
                    self._records.agree(user, limits)
                    limiter.reconfigure(limits)
            self._users[user] = known = _User(limiter, caps, now, changes_at)
            self._users.move_to_end(user)
            if len(self._users) > _MOST_USERS:  # one came, so one goes
                self._users.popitem(last=False)
            return known

    def _caps_of(self, user: str, known: _User | None, now: float, *, anew: bool) -> tuple[Caps, float]:
        """The user's caps, and when they change by themselves next."""
        try:
            everybody = self._caps_for_everybody(now, anew=anew)
            record = self._records.user(user)
        except StoreError:
            if anew or self.store.on_outage == "raise":
                raise
            if known is not None:  # the limiter decides, as the store says
                return known.caps, math.inf
            return self._wanted or {} if self._for_everybody is None else self._for_everybody[1], math.inf
        return record.caps(everybody, now), record.changes_at(now)

    def _caps_for_everybody(self, now: float, *, anew: bool = False) -> Caps:
        found = self._for_everybody
        if found is None or anew or not 0 <= now - found[0] < _LOOK_AGAIN:
            # Written once, as a later process may want others; and where a server has lost its state.
            self._for_everybody = found = (now, self._records.for_everybody(self._wanted, is_first=found is None))
        return found[1]

    def _settle_conflict(self, user: str) -> None:
        """The store counts a user by other caps than ours: read them, and see that it counts by those."""
        known = self._known(user, anew=True)
        self._records.agree(user, known.limiter.limits)

    def _refusal(
        self,
        user: str,
        cost: Mapping[str, float],
        before: _User,
        refused: ConfigurationConflict | RateLimited | Unsatisfiable,
    ) -> QuotaExceeded | None:
        """The error of a call that was refused; None: the caps have changed since, so that it should be tried again."""
        if isinstance(refused, ConfigurationConflict):
            self._settle_conflict(user)
            return None
        wait = refused.retry_after if isinstance(refused, RateLimited) else math.inf  # by the store's clock
        try:
            known = self._known(user, anew=True)
        except StoreError:
            if self.store.on_outage == "raise":
                raise
            return self._refusal_by_share(user, cost, wait)
        if known.caps != before.caps:
            return None
        found = [
            QuotaExceeded.of(quota, cost.get(quota.unit, least(quota.unit)), clock.wall(), wait)
            for quota in self._quotas_of(user, self._records.user(user))
        ]
        beyond = [error for error in found if error.missing > 1e-12 * error.limit]
        return max(beyond, key=lambda error: (error.asked > error.limit, error.resets_at), default=None)

    def _refusal_by_share(self, user: str, cost: Mapping[str, float], wait: float) -> QuotaExceeded:
        """The same where the store does not answer: this process has used up its share of the user's caps."""
        asked = {one: cost.get(one.unit, least(one.unit)) for one in self.last(user)}
        tightest = max(asked, key=lambda one: (one.used + asked[one]) / (one.limit or 1e-9))
        error = QuotaExceeded.of(tightest, asked[tightest], clock.wall(), wait)
        error.args = (f"{error.args[0]}; the store does not answer, and no more than a share is let through",)
        return error

    # Reviews

    def _note(self, error: QuotaExceeded, answer: ReviewAnswer) -> bool:
        """Record what a review answered, or with None that one is wanted; return whether the call may try again."""
        allowed = _units(answer, error.missing)
        by = "" if self.review == "queue" else str(getattr(self.review, "__name__", "function"))

        def put(record: UserRecord) -> UserRecord:
            now = clock.wall()
            return record.asked(error, now) if answer is None else record.decided_at_once(error, allowed, by, now)

        review = self._records.change_user(error.user, put).reviews[-1]
        if allowed:
            self._settle_conflict(error.user)
        if allowed and allowed >= error.missing * (1 - 1e-12):
            return True
        error.review = review.state
        words = {
            "pending": "a review is pending",
            "refused": "a review has refused more",
            "approved": "a review has allowed more, but not so much",
        }[review.state]
        error.args = (f"{error.args[0]}; {words}",)
        return False

    def reviews(self, state: str | None = None) -> list[Review]:
        """What was decided of calls beyond caps, and what is to be decided, the latest last. Blocks.

        Args:
            state: "pending", "approved" or "refused" alone.

        Raises:
            ValueError: There is no such state.
        """
        state = None if state is None else read_word("state", state, get_args(ReviewState))
        now = clock.wall()
        found = [one for user in self._records.users() for one in self._records.user(user).reviews]
        found = [one for one in found if one.state != "pending" or one.is_open(now)]
        return sorted((one for one in found if state in {None, one.state}), key=lambda one: one.at)

    def approve(self, user: object, unit: str, more: float | None = None, *, by: str = "") -> Review:
        """Allow a user so many units more until the period ends. Blocks.

        Args:
            user, unit: The user that has the cap, and what it counts.
            more: Units; what was asked for last unless given.
            by: The name of the person that decides; it is recorded.

        Raises:
            ValueError: There is no pending review, and no `more`; or the user has no such cap.
        """
        allowed = None if more is None or is_bool(more) else amount(more)
        if more is not None and not allowed:
            raise ValueError(f"more must be a finite number of units above 0, not {repr_of(more)}")
        return self._decided(user, unit, allowed, by)

    def refuse(self, user: object, unit: str, *, by: str = "") -> Review:
        """Refuse a review: until the period ends no other is noted. Blocks. Arguments and errors: as in `approve`."""
        return self._decided(user, unit, 0.0, by)

    def _decided(self, user: object, unit: str, allowed: float | None, by: str) -> Review:
        name = read_user(user)
        kinds = self._known(name, anew=True).caps.get(unit, ())

        def put(record: UserRecord) -> UserRecord:
            now = clock.wall()
            cap = (kinds[0], period_of(kinds[0], now)[1]) if kinds else None
            return record.decided(unit, cap, allowed, by, now)

        review = self._records.change_user(name, put).reviews[-1]
        self._settle_conflict(name)
        return review

    # Administration

    def set(self, user: object, caps: GivenCaps | None = None, /, **more_caps: Any) -> None:
        """Give a user caps of their own for some units; other units stay as they are. Holds in all processes. Blocks.

        Args:
            user: The user that gets them.
            caps: As in the constructor; "unlimited": no cap. What was used stays used.
            more_caps: The same, by keyword.

        Raises:
            ValueError: A cap is wrong. UnknownUnit: There is no such unit.
        """
        name = read_user(user)
        own = read_caps(merge_given("caps", caps, more_caps), self._zone())
        if not own:
            raise ValueError('set() needs at least one cap, for example set("alice", requests="200/day")')
        check_units(own, self._units())
        self._records.change_user(name, lambda record: replace(record, own={**record.own, **own}))
        self._settle_conflict(name)

    def _zone(self) -> str:
        """The time zone of caps that are set as texts."""
        if self._tz is not None:
            return self._tz
        everybody = self._caps_for_everybody(clock.wall(), anew=True)
        zones = {cap.tz for kinds in everybody.values() for cap in kinds}
        return zones.pop() if len(zones) == 1 else "UTC"

    def unset(self, user: object) -> None:
        """Remove a user's own caps: those for everybody apply again. Blocks."""
        name = read_user(user)
        self._records.change_user(name, lambda record: replace(record, own={}))
        self._settle_conflict(name)

    def reset(self, user: object) -> bool:
        """Forget what a user has used; return whether there was anything. Blocks."""
        return self._records.reset(read_user(user))

    def of(self, user: object) -> list[Quota]:
        """The caps of a user, and how much is used of each. Blocks.

        What a permit of this process has just settled or given back may not be in the store yet.
        """
        name = read_user(user)
        return self._quotas_of(name, self._records.user(name))

    def last(self, user: object) -> list[Quota]:
        """The caps of a user, and how much was used of each when this process asked last.

        Does not ask the store; empty: this process has not asked yet.
        """
        name = read_user(user)
        known = self._users.get(name)
        if known is None:
            return []
        now = clock.wall()
        left = {(one.unit, one.limit): one.level for one in known.limiter.statistics().limits.values()}
        quotas = []
        for unit, kinds in sorted(known.caps.items()):
            for cap in kinds:
                limit = cap.limit(unit)
                begin, end = period_of(cap, now)
                used = max(0.0, limit.amount - left.get((unit, limit), limit.amount))
                quotas.append(Quota(name, unit, cap.period, cap.tz, cap.amount, used, end, begin))
        return quotas

    def all(self) -> list[Quota]:
        """All caps of all users that have used something in this period, or have caps of their own. Blocks."""
        return [quota for user in self._records.users() for quota in self._quotas_of(user, self._records.user(user))]

    def _units(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*UNITS, *self._caps_for_everybody(clock.wall(), anew=True))))

    def _quotas_of(self, user: str, record: UserRecord) -> list[Quota]:
        now = clock.wall()
        spent = {(one.unit, one.limit.period, one.limit.tz): one for one in self._records.spent(user)}
        extra = record.extra_at(now)
        quotas = []
        for unit, kinds in sorted(record.caps(self._caps_for_everybody(now), now).items()):
            for cap in kinds:
                found = spent.get((unit, cap.period, cap.tz))
                used = 0.0 if found is None else found.used
                begin, end = period_of(cap, now if found is None else found.resets_at - 1)
                quotas.append(
                    Quota(
                        user, unit, cap.period, cap.tz, cap.amount, used, end, begin, unit in record.own,
                        extra.get(CapKey(unit, cap.period, cap.tz), 0.0),
                    )
                )  # fmt: skip
        return quotas


class _User(NamedTuple):
    """The limiter of a user, with the caps that hold from the moment when they were read until they change."""

    limiter: Limiter
    caps: Caps
    read_at: float
    changes_at: float

    def is_fresh(self, now: float) -> bool:
        """Whether the caps need not be read again: also a clock that steps back makes them old."""
        return 0 <= now - self.read_at < _LOOK_AGAIN and now < self.changes_at


@dataclass(slots=True, eq=False, repr=False)
class _Charge:
    """What `quotas(user, ...)` is. Each time it is entered a call is charged."""

    _quotas: Quotas
    _user: str
    _cost: dict[str, Any]

    async def __aenter__(self) -> Permit:
        quotas, user = self._quotas, self._user
        for _ in range(_ROUNDS):
            known = quotas._users.get(user)
            if known is None or not known.is_fresh(clock.wall()):
                known = await to_thread.run_sync(quotas._known, user)
            try:
                return await known.limiter(self._cost, max_wait=0, flow=user).__aenter__()
            except (ConfigurationConflict, RateLimited, Unsatisfiable) as found:
                error = await to_thread.run_sync(quotas._refusal, user, self._cost, known, found)
            if error is not None:
                try:
                    answer = self._answer_to(error)
                    if inspect.isawaitable(answer):
                        answer = await answer
                    if not await to_thread.run_sync(quotas._note, error, answer):
                        raise error
                finally:
                    del error  # its traceback refers to this frame: no cycle
        raise self._unsettled()

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        """Nothing is held. What was charged stays charged."""

    def __enter__(self) -> Permit:
        quotas, user = self._quotas, self._user
        for _ in range(_ROUNDS):
            known = quotas._known(user)
            try:
                return known.limiter(self._cost, max_wait=0, flow=user).__enter__()
            except (ConfigurationConflict, RateLimited, Unsatisfiable) as found:
                error = quotas._refusal(user, self._cost, known, found)
            if error is not None:
                try:
                    answer = self._answer_to(error)
                    if inspect.isawaitable(answer):
                        if inspect.iscoroutine(answer):
                            answer.close()  # or Python warns that it was never awaited
                        raise ValueError(
                            "review= is an async function, and a thread cannot wait for it: use `async with`"
                        )
                    if not quotas._note(error, answer):
                        raise error
                finally:
                    del error
        raise self._unsettled()

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        """Nothing is held. What was charged stays charged."""

    def _answer_to(self, error: QuotaExceeded) -> Any:
        """What the review says of a refused call, perhaps to be awaited; None: it goes to the queue."""
        review = self._quotas.review
        try:
            if review is None:
                raise error
            return None if review == "queue" else review(error)
        finally:
            del error

    def _unsettled(self) -> RateLimited:
        return RateLimited(
            f"the caps of {self._user!r:.200} change faster than a call can be charged: try again",
            retry_after=1.0,
            blocked_by="quota",
        )


def _units(answer: Any, missing: float) -> float:
    """How many units more the answer of a review allows."""
    if answer is None:
        return 0.0
    if is_bool(answer):
        return missing if answer else 0.0
    units = amount(answer)
    if units is None:
        raise ValueError(f"a review must return True, False, or a number of units more, not {repr_of(answer)}")
    return units


def read_user(user: object) -> str:
    """A user's name; ValueError where it is none, or one that no store can keep. Bytes, as of a header, are UTF-8."""
    if isinstance(user, bytes):
        user = user.decode(errors="surrogateescape")
    text = "" if user is None else text_of(user)
    if not text or len(text) > 1_000:
        raise ValueError(
            f"a user must have a name of 1 to 1,000 characters, not {'none' if not text else f'{len(text):,}'}: "
            "every call must say whose it is"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the user {text!r:.200} has a lone surrogate in the name, which no store can keep") from None
    return text
