"""The limits of many keys: a million of them cost what a million tuples cost, and idle keys nothing.

What a key has used is kept in the smallest of three forms:

- a tuple with a number per bucket, the bucket's `tat`, and the number of charges that may still be settled. A call of
  whole units reads and writes that tuple and makes nothing else (`fast_path.prepare_key`); so does its settlement where
  no other charge is open, and its cancellation where none came since (`key_numbers`);
- a list of its meters, where that is not enough: fractions, places, windows, what was given back. A call that need not
  wait charges them where they are. For what goes on afterwards (settle, cancel, close) one limit set, which all keys
  share, is given the meters of the key (`run`). Meters are packed when the key was not used for a while;
- limits of its own, *materialised* as a `LocalBackend`, while something needs them: a waiter, a pause, a forecast.

Once its limits are whole the key is forgotten, as a key that was never seen is in the same state.

A permit remembers the `tat` after its charge. So the scale of a key's `tat` must not change under it: a bucket that was
given something back is packed with its offset. When such a key is forgotten, a new one begins without an offset; until
the old `tat` has passed, the moment is kept, and permits of before it give nothing back, as the limits were whole
since.

All of it is done with the lock held, which keeps out other threads, but for the fast path of plain keys, and no signal
handler or finaliser of this one. They run where a call ends or begins. So what a key has used is at every such moment
in one of `live`, `known`, `old` and `moving`, and a change that was prepared is made only if nothing has happened to
the key since: looked at and made with no call in between. The fast path is itself such a block, so it needs no lock as
long as all keys are plain: strings and whole numbers, whose comparison is no call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import islice
from operator import gt
from sys import getrefcount
from typing import Any, TypeVar
from weakref import ref

from penstock import clock
from penstock._backends import fast_path
from penstock._backends.alike import Alike, charge_of
from penstock._backends.base import HAS_GIL, Binding, Charge, Clearance, Grant, LimiterInfo
from penstock._backends.charges import ChargePlan
from penstock._backends.held_places import expired, note_holder, warn_of_expired
from penstock._backends.limit_set import LimitSet
from penstock._backends.local import LocalBackend, charge_now
from penstock._backends.queue import WaitQueue
from penstock._core.bucket import Bucket
from penstock._core.limit_state import LimitState, meter_for
from penstock._core.meter import Meter
from penstock._core.places import Places
from penstock._text import label_of
from penstock.limits import Limit
from penstock.stores.memory import MemoryStore

Limits = dict[str, tuple[Limit, ...]]
States = dict[str, tuple[LimitState, ...]]
R = TypeVar("R")

SWEEP = 20
"""Uses after which three times as many keys are looked at, whether they can be forgotten."""

PROBE = 64
"""Uses after which a few keys are looked at, where nearly none of those looked at last could be forgotten."""

_MANY = 1_000_000
"""How many charges of a key may be open where that is not known."""


class Materialised(Exception):  # noqa: N818 - a signal: no error
    """The limits of this key are materialised, or this thread is in the middle of a decision: ask the limits."""


class _Packed(tuple[Any, ...]):
    """What the meters of a key packed, where that is not a number each."""

    __slots__ = ()


class _Life(ref[LimitSet]):
    """The limits of a key while something holds them. Their states outlive them here until they are packed."""

    __slots__ = ("key", "states")

    key: Hashable
    states: States

    @classmethod
    def of(cls, limit_set: LimitSet, ended: Callable[[Any], None], key: Hashable) -> _Life:
        life = cls(limit_set, ended)
        life.key = key
        life.states = limit_set.states
        return life


class KeyStates:
    """What each key has used of its limits.

    These are the same for all keys, or those that a function of the key returns.

    Attributes:
        live: Keys whose limits are materialised.
        like: Options of the keys' limiters.
        limits: Those of every key; None where a function of the key says which.
        call_of: Makes the call of a binding.
        charges: Costs that some key has been charged, worked out once.
        clearance: Permission to charge the meters of keys without the lock.
        dead: Keys whose limits nothing holds any more, to be packed.
        meters, rates: Of the limits that keys share: meters that nothing charges; and how fast their buckets fill,
            where keys may be numbers.
        moving: What was taken out of `old` to be looked at.
        new: What a key has used that was never seen, as numbers; None where it cannot be numbers.
        plain: Whether all keys so far are compared without a call of Python's.
        quick: What calls of keys are made of, for the limiters above.
        uses: How often keys were used; at `sweep_at` some of them are looked at.
        known, old: What keys have used whose limits are not: a tuple of numbers, a list of meters, what they packed,
            or the states themselves where the limits are not the usual ones. `old` is being looked through.
        shared: The limits that are given the meters of one key after another.
        fast: Whether keys are charged without limits of their own: all enforced, and no place with a time to live.
    """

    __slots__ = (
        "_ageing", "_alike", "_calendars", "_forgotten", "_lent", "_makers", "_pattern", "_running",
        "_states", "_usual", "_weights", "_yields", "call_of", "charges", "clearance", "dead", "fast", "known", "like",
        "limits", "live", "meters", "moving", "new", "old", "plain", "quick", "rates", "shared", "store", "sweep_at",
        "uses",
    )  # fmt: skip

    def __init__(
        self,
        store: MemoryStore,
        limits: Limits | None,
        ageing: float,
        weights: Mapping[Hashable, float] | None,
        like: LimiterInfo,
        call_of: Callable[[Binding], Any],
    ) -> None:
        self.store = store
        self.like = like
        self.call_of = call_of
        self._ageing = ageing
        self._weights = weights
        self.limits = limits
        self._pattern = None if limits is None else LimitSet(limits, WaitQueue(), None)
        self._states = [] if self._pattern is None else self._pattern.all_states()
        self.meters = [state.meter for state in self._states]  # the states are given those of keys
        self._makers = [
            meter.fresh if type(meter) is Bucket else partial(meter_for, state.limit)
            for state, meter in zip(self._states, self.meters, strict=True)
        ]
        self._calendars = any(meter.calendar for meter in self.meters)
        self._usual = [state.limit for state in self._states]
        self.fast = like.enforce and bool(self._states) and not any(getattr(each, "ttl", None) for each in self._usual)
        self.shared = None if self._pattern is None else LocalBackend(store, (self._pattern,))
        self._running = False  # whether the shared limits decide for a key
        self._lent = False  # whether they still have the meters of one
        self.clearance = Clearance()
        self._alike = Alike(self.clearance)
        self.live: dict[Hashable, _Life] = {}
        self.known: dict[Hashable, Any] = {}
        self.old: dict[Hashable, Any] = {}
        self.moving: list[tuple[Hashable, Any]] = []
        self.dead: deque[_Life] = deque()
        self.plain: bool = HAS_GIL
        self.charges: dict[Any, Charge] = {}
        self.quick: dict[Any, Any] = {}
        self.new = fast_path.new_key(self._states)
        self.rates = () if self.new is None else tuple([meter.rate for meter in self.meters])  # type: ignore[attr-defined]
        self._forgotten: dict[Hashable, tuple[float, float]] = {}  # when it was, and until when that matters
        self.uses = 0
        self.sweep_at = SWEEP
        self._yields = True  # whether an eighth of the keys that were looked at last was forgotten

    def __len__(self) -> int:
        """How many keys have a limit that is not whole, as far as that is known without looking at all of them."""
        return len(self.known) + len(self.old) + len(self.live)

    @property
    def keys(self) -> KeyStates:
        """Itself, as that of `JointStates`."""
        return self

    def own_of(self, backend: LocalBackend) -> dict[LimitState, LimitState]:
        """The limits that keys share, each with that of a key whose limits are materialised, if it still has one."""
        return self.own_in(backend.sets[0])

    def own_in(self, limit_set: LimitSet) -> dict[LimitState, LimitState]:
        """The same, of this limit set."""
        shared = {} if self._pattern is None else self._pattern.states
        own = limit_set.states
        pairs = [zip(states, own.get(unit, ()), strict=False) for unit, states in shared.items()]
        return {state: mine for of_unit in pairs for state, mine in of_unit}

    def name_of(self, key: Hashable) -> str | None:
        """What a key is called in events and errors."""
        return key if type(key) is str else label_of(key)

    def shares(self, state: LimitState) -> bool:
        """Whether a limit is one that keys share."""
        return state in self._states

    def plan(self) -> ChargePlan:
        """What costs of every key are charged on."""
        assert self.shared is not None, "limits are fixed"
        return self.shared.plan()

    def take_any_key(self) -> None:
        """From now on keys are compared by Python: charge them with the lock held."""
        with self.store.lock:
            self.plain = False
            self._forget_charges()

    def _forget_charges(self) -> None:
        self._alike = Alike(self.clearance)
        self.charges.clear()
        self.quick.clear()

    def sweep(self) -> None:
        """Now and then: pack the limits of keys that nothing holds any more, and forget others."""
        with self.store.lock:
            if self._running:
                return  # in a signal handler: the meters of the key that is being decided on stay where they are
            self._take_back_meters()
            self._put_one_away()
            self._put_one_away()
            if self.uses >= self.sweep_at:
                # What has little to forget is looked at less often: with a million keys each look is one at memory far
                # away. As soon as an eighth of those looked at is whole, all are looked at, faster than new ones can
                # come.
                looked, forgotten = self._forget(3 * SWEEP if self._yields else PROBE // 16)
                self._yields = forgotten * 8 >= looked
                self.sweep_at = self.uses + (SWEEP if self._yields else PROBE)

    def _take_back_meters(self) -> None:
        """Let no shared limit refer to a meter that could be packed."""
        if self._lent:
            self._lend(self.meters)
            self._lent = False

    def _put_one_away(self) -> None:
        dead = self.dead
        if dead:
            self._put_away(life := dead[0])
            if dead and dead[0] is life:
                dead.popleft()

    def is_whole(self) -> bool:
        """Whether no key has used anything, as far as a short look shows."""
        with self.store.lock:
            if self._running:
                return False
            self._take_back_meters()
            self._put_one_away()
            self._forget(PROBE)
            return len(self) == 0

    def take_over(self, other: KeyStates) -> None:
        """Go on from what keys have used of other limits, that nothing decides over any more. With the lock held."""
        other._keep_what_moves()
        for key in (*other.live, *other.known, *other.old):
            states = other._states_of(key)
            if self.limits is not None:
                limit_set = LimitSet(self.limits, WaitQueue(), None)
                limit_set.take_over(states, clock.now(), keep_limits=False)
                states = limit_set.states
            plain = self.fast and not _paused(_all(states), clock.now())
            self.known[key] = [state.meter for state in _all(states)] if plain else states

    def _states_of(self, key: Hashable) -> States:
        life = self.live.get(key)
        kept = self.known.get(key) or self.old.get(key) if life is None else life.states
        return kept if isinstance(kept, dict) else self._part_of(key, None).states

    def backend(self, key: Hashable, limits: Limits | None = None) -> LocalBackend:
        """The limits of a key, materialised; `limits` where they are those of a function."""
        with self.store.lock:
            return LocalBackend(self.store, (self._part_of(key, limits),))

    def _part_of(self, key: Hashable, limits: Limits | None) -> LimitSet:
        while True:
            life = self.live.get(key)
            limit_set = life() if life is not None else None
            if limit_set is None:
                limit_set = self._materialise(key, life, limits)
            if limit_set is not None:
                return limit_set

    def is_live(self, key: Hashable) -> bool:
        """Whether the limits of a key are materialised."""
        life = self.live.get(key)
        return life is not None and life() is not None

    def _materialise(self, key: Hashable, life: _Life | None, limits: Limits | None) -> LimitSet | None:
        """Give a key limits of its own; None if a signal handler or a finaliser has used the key in the meantime."""
        wanted = limits if self.limits is None else self.limits
        assert wanted is not None, "limits are fixed, or the answer of a function"
        self._keep_what_moves()
        limit_set = LimitSet(wanted, WaitQueue(self._ageing, self._weights), label_of(key))
        # If its holder is gone but what it used was not put away yet, that is the last word.
        kept = life.states if life is not None else self.known.get(key) or self.old.get(key)
        if isinstance(kept, dict):
            limit_set.take_over(kept, clock.now(), keep_limits=self.limits is not None)
        elif isinstance(kept, list):
            limit_set.take_meters(kept)
        elif kept is not None:
            for state, packed in zip(limit_set.all_states(), kept, strict=False):
                state.meter.unpack(packed)
        new = _Life.of(limit_set, self.dead.append, key)
        live, known, old = self.live, self.known, self.old
        # No call from here on, until it is in `live`.
        if (live[key] if key in live else None) is not life or (  # noqa: SIM401
            life is None and (known[key] if key in known else old[key] if key in old else None) is not kept  # noqa: SIM401
        ):
            return None
        live[key] = new
        known.pop(key, None)
        old.pop(key, None)
        return limit_set

    def _put_away(self, life: _Life) -> None:
        """Keep of a key that nothing holds only what it used, or nothing if it used nothing."""
        key, live, known = life.key, self.live, self.known
        if live.get(key) is not life:
            return  # it was materialised again in the meantime
        now = clock.now()
        states = _all(life.states)
        kept: Any = life.states
        if self.fast and [state.limit for state in states] == self._usual and not _paused(states, now):
            kept = [state.meter for state in states]
        whole = self._whole(kept, now)
        if whole:
            self._note_forgotten(key, kept, now)
        if key in live and live[key] is life:  # no call from here on
            if not whole:
                known[key] = kept
            elif key in known:  # an exception came when it was materialised
                del known[key]
            del live[key]

    def _note_forgotten(self, key: Hashable, kept: Any, now: float) -> None:
        """Remember for permits of before that the limits of a key were whole, until their receipts show it.

        Warns of places that came back by their time to live, that could not be warned of before.
        """
        if isinstance(kept, dict):
            warn_of_expired(expired(_all(kept), now), label_of(key))
        if not self.fast:
            return
        meters = [state.meter for state in _all(kept)] if isinstance(kept, dict) else kept
        until = now
        for meter, fresh in zip(meters, self.meters, strict=True):
            if type(fresh) is Bucket:
                tat = meter.tat if type(meter) is Bucket else meter[0] if meter.__class__ is tuple else meter
                if tat > now * fresh.rate:  # it was given something back
                    until = max(until, tat / fresh.rate)
        if until <= now:
            return  # nothing was given back, so the receipts of before are on the scale of a key that was never seen
        self._forgotten[key] = now, until
        if len(self._forgotten) % SWEEP == 0:
            for over in [key for key, times in list(self._forgotten.items()) if times[1] <= now]:
                self._forgotten.pop(over, None)

    def whole_since(self, key: Hashable, moment: float) -> bool:
        """Whether the limits of a key were whole at some time since `moment`, and are on another scale now."""
        times = self._forgotten.get(key)
        return times is not None and times[0] >= moment

    def _forget(self, most: int) -> tuple[int, int]:
        """Drop the whole ones of the keys put away long ago; return how many were looked at, and how many dropped."""
        self._keep_what_moves()  # if an exception has cut the last look short
        if not self.old:
            self.old, self.known = self.known, {}
        now = clock.now()
        moving = self.moving
        looked = min(most, len(self.old))
        kept_before = len(self.known)
        try:
            moving.extend(islice(iter(self.old.popitem, None), looked))  # in C: no signal handler comes between
        except KeyError:
            pass  # one came before, and has used them
        if self.new is not None and moving:
            self._drop_the_whole(moving, moving[-1], now)
            moving = self.moving
        # A handler may come after the condition of a loop as well as before it: both look once.
        while (item := moving[-1] if moving else None) is not None:
            key, kept = item
            if type(kept) is not tuple and self._whole(kept, now):
                self._note_forgotten(key, kept, now)
            else:
                kept = self._packed(kept) if isinstance(kept, list) else kept
                if moving and moving[-1] is item:
                    self.known.setdefault(key, kept)
            if moving and moving[-1] is item:
                del moving[-1]
        if not self.old:
            self.old = {}  # an emptied dict keeps its room
        return looked, looked - (len(self.known) - kept_before)

    def _drop_the_whole(self, moving: list[tuple[Hashable, Any]], last: tuple[Hashable, Any], now: float) -> None:
        """Drop all keys that are whole again and were kept as numbers, which nearly all are, in one step."""
        full = [now * rate for rate in self.rates]
        rest = [item for item in moving if item[1].__class__ is not tuple or any(map(gt, item[1], full))]
        if moving and moving[-1] is last:  # else a signal handler has put them back; no call until they are dropped
            self.moving = rest
            moving.clear()

    def _keep_what_moves(self) -> None:
        """Put what is being looked at where it is found, as an exception or a signal handler cuts the look short."""
        moving = self.moving
        while (item := moving[-1] if moving else None) is not None:
            self.known.setdefault(*item)
            if moving and moving[-1] is item:
                del moving[-1]

    def _packed(self, meters: list[Meter]) -> Any:
        """What meters have used, as small as possible; the meters themselves where one cannot be packed."""
        if _settled(meters):
            return meters
        for meter in meters:
            if isinstance(meter, Places):
                meter.free_orphans()
        packed = [meter.pack() for meter in meters]
        if None in packed:
            return meters
        numbers = self.new is not None and all(type(used) is float for used in packed)
        return (*packed, _MANY) if numbers else _Packed(packed)

    def _whole(self, kept: Any, now: float) -> bool:
        """Whether the limits of a key are whole again, so that it equals one never seen; of what is not numbers."""
        if isinstance(kept, _Packed):
            both = zip(_follow(self.meters, now), kept, strict=True)
            return all(meter.idle_as(packed, now) for meter, packed in both)
        if isinstance(kept, list):
            if self._calendars:
                _follow(kept, now)
            return not _settled(kept) and _all_idle(kept, now)
        states = _all(kept)
        usual = self.limits is None or [state.limit for state in states] == self._usual
        meters = _follow([state.meter for state in states], now)
        return usual and not _paused(states, now) and all(meter.idle(now) for meter in meters)

    # Of meters

    def meters_of(self, key: Hashable) -> list[Meter] | None:
        """The meters of a key, to be charged where they are; None if its limits are materialised, or not the usual."""
        with self.store.lock:
            life = self.live.get(key)
            if life is not None:
                if life() is not None:
                    return None
                self._put_away(life)
            if self.moving:
                self._keep_what_moves()
            meters = self._take_meters(key)
            return self.meters_of(key) if meters is None else meters or None

    def _take_meters(self, key: Hashable) -> list[Meter] | None:
        """Keep what a key has used as meters; none if it has limits of its own; None: it was used in the meantime."""
        kept = self.known.get(key)
        kept = self.old.get(key) if kept is None else kept
        if isinstance(kept, dict):
            return []
        meters = kept
        if not isinstance(kept, list):
            meters = [make() for make in self._makers]
            for meter, packed in zip(meters, kept or (), strict=False):
                meter.unpack(packed)
        live, known, old = self.live, self.known, self.old
        if key in live:  # no call from here on
            return []
        if (known[key] if key in known else old[key] if key in old else None) is not kept:  # noqa: SIM401
            return None
        known[key] = meters
        if key in old:
            del old[key]
        return meters

    def free(self, key: Hashable, grant: Grant) -> bool:
        """Give back the places of a key. None can wait for them, unless its limits are materialised: False then."""
        assert self.shared is not None, "only then there are keys"
        try:
            freed: bool = self.run(key, self.shared._decide, _free, self._states, grant)
        except Materialised:
            return False
        return freed

    def run(self, key: Hashable, act: Callable[..., R], *args: Any) -> R:
        """Run `act(*args)`, which decides over the shared limits, while these have the meters of a key."""
        with self.store.lock:
            if self._running or self.store.deciding:
                raise Materialised
            meters = self.known.get(key)
            if meters.__class__ is not list or key in self.live:
                meters = self.meters_of(key)
                if meters is None:
                    raise Materialised
            try:
                self._running = self._lent = True
                self.clearance.given = False
                self._lend(meters)
                return act(*args)
            finally:
                self._running = False
                self.clearance.given = True

    def _lend(self, meters: list[Meter]) -> None:
        """Give the shared limits these meters. The limits of the calendar among them hear of the wall clock."""
        for state, meter in zip(self._states, meters, strict=True):
            state.meter = meter
        if self._calendars:
            _follow(meters, clock.now())

    def charge(self, cost: Mapping[str, float]) -> Charge:
        """What a cost is charged, of any key; CostError: wrong, or more than the usual limits hold."""
        plain = self.plain
        charge = charge_of(self.charges, cost, self._charge_of)
        if self.plain is not plain:  # another thread has brought a key that is not
            self._forget_charges()
        return charge

    def _charge_of(self, cost: Mapping[str, float]) -> Charge:
        charge = self._alike.charge(cost)
        if charge is None:
            charge = Charge(cost, self.plan().charges(cost, unlimited=True), charge_closer)
            self._alike.add(self.prepared(charge))
        return charge

    def prepared(self, charge: Charge, *, joint: bool = False) -> Charge:
        """A charge with what it takes to charge a key, or others beside it."""
        numbers, locked = self.new is not None, not self.plain
        fast_path.prepare_key(charge, self._states, self.meters, joint=joint, numbers=numbers, locked=locked)
        return charge


def _free(_: WaitQueue, now: float, states: list[LimitState], grant: Grant) -> bool:
    """Give back places that a grant holds of these limits; False: of others' meters, or in another form."""
    if grant.binding is not None:
        return False
    meters = [state.meter for state in states]
    for meter, _ in grant.receipts:
        if meter.held and (type(meter) is not Places or meter not in meters):
            return False
    for meter, receipt in grant.receipts:
        if meter.held:
            meter.give_back(receipt.amount, receipt, now)
    grant.ended = True
    return True


def _all_idle(meters: list[Meter], now: float) -> bool:
    for meter in meters:  # noqa: SIM110 - a generator takes twice as long
        if not meter.idle(now):
            return False
    return True


def _all(states: States) -> list[LimitState]:
    return [state for of_unit in states.values() for state in of_unit]


def _paused(states: list[LimitState], now: float) -> bool:
    return any(state.paused_until > now for state in states)


def _settled(meters: list[Meter]) -> bool:
    """Whether there are permits that were settled: these refer to meters, which know what may still be given back."""
    return max(map(getrefcount, meters)) > _FROM_ITS_KEY


_FROM_ITS_KEY = max(map(getrefcount, [Meter()]))
"""References to a meter that nothing but its key refers to."""


def _follow(meters: list[Meter], now: float) -> list[Meter]:
    """Tell the limits of the calendar among these how far the wall clock is ahead."""
    lead = clock.wall() - now
    for meter in meters:
        if meter.calendar:
            meter.follow(lead)  # type: ignore[attr-defined]  # calendars have it
    return meters


def charge_closer(binding: Binding, grant: Grant) -> bool:
    """Charge a key in its meters, if nothing has to be waited for, and its limits are not materialised."""
    key: Any = binding.backend
    beside = binding.charge.clearance
    if beside is not None and not beside.given:
        return False
    try:
        charged: bool = key.states.keys.run(key.key, _charge_shared, key.states.shared, binding, grant)
    except Materialised:
        return False
    return charged


def _charge_shared(shared: LocalBackend, binding: Binding, grant: Grant) -> bool:
    if not shared._decide(charge_now, binding, grant):
        return False
    if binding.charge.held:
        note_holder(grant)
    return True
