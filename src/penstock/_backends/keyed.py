"""The limits of many keys: a million of them cost what a million tuples cost, and idle keys nothing.

What a key has used is a tuple with a number per bucket, the bucket's `tat`. A call that need not wait reads and writes
that tuple and makes nothing else (`fast_path.prepare_key`). Only where more is asked, a wait, a refund, a forecast, the
key gets limits of its own, *materialised* as a `LocalBackend`, for as long as something holds them. Then they are
packed again; and once they are whole, the key is forgotten, as a key that was never seen is in the same state.

A permit of the fast path remembers the `tat` after its charge. So the scale of a key's `tat` must not change under it:
a bucket that was given something back is packed with its offset. When such a key is forgotten, a new one begins without
an offset; until the old `tat` has passed, the moment is kept, and permits of before it give nothing back, as the limits
were whole since.

All of it is done with the lock held, which keeps out other threads, but for the fast path of plain keys, and no signal
handler or finaliser of this one. They run where a call ends or begins. So what a key has used is at every such moment
in one of `live`, `known`, `old` and `moving`, and a change that was prepared is made only if nothing has happened to
the key since: looked at and made with no call in between. The fast path is itself such a block, so it needs no lock as
long as all keys are plain: strings and whole numbers, whose comparison is no call.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from itertools import islice
from operator import gt
from typing import Any
from weakref import ref

from penstock import clock
from penstock._backends import fast_path
from penstock._backends.base import HAS_GIL, Binding, Caller, Charge, Grant, Request, words_of
from penstock._backends.charges import ChargePlan
from penstock._backends.held_places import expired, warn_of_expired
from penstock._backends.limit_set import LimitSet
from penstock._backends.local import LocalBackend
from penstock._backends.queue import WaitQueue
from penstock._core.turns import LimitState
from penstock._validation import RESERVED, exact_costs, is_plain
from penstock.errors import CostError
from penstock.limits import Limit
from penstock.stores.memory import MemoryStore

Limits = dict[str, tuple[Limit, ...]]
States = dict[str, tuple[LimitState, ...]]

SWEEP = 20
"""Uses after which three times as many keys are looked at, whether they can be forgotten."""

PROBE = 64
"""Uses after which a few keys are looked at, where nearly none of those looked at last could be forgotten."""


class _Life(ref[LimitSet]):
    """The limits of a key while something holds them. Their states outlive them here until they are packed."""

    __slots__ = ("key", "states")

    key: Hashable
    states: States

    @classmethod
    def of(cls, part: LimitSet, ended: Callable[[Any], None], key: Hashable) -> _Life:
        life = cls(part, ended)
        life.key = key
        life.states = part.states
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
        dead: Keys whose limits nothing holds any more, to be packed.
        moving: What was taken out of `old` to be looked at.
        new: What a key has used that was never seen, on the fast path.
        plain: Whether all keys so far are compared without a call of Python's.
        quick: What calls of keys are made of, for the limiters above.
        uses: How often keys were used; at `sweep_at` some of them are looked at.
        known, old: What keys have used whose limits are not: a tuple of numbers, a list of what meters packed where
            that is not all, or the states themselves where the limits are not the usual ones. `old` is being looked
            through.
        fast: Whether calls may take the fast path: only buckets, all enforced.
    """

    __slots__ = (
        "_ageing", "_forgotten", "_pattern", "_rates", "_usual", "_weights", "_yields", "call_of", "charges", "dead",
        "fast", "known", "like", "limits", "live", "moving", "new", "old", "plain", "quick", "store", "sweep_at",
        "uses",
    )  # fmt: skip

    def __init__(
        self,
        store: MemoryStore,
        limits: Limits | None,
        ageing: float,
        weights: Mapping[Hashable, float] | None,
        like: Caller,
        call_of: Callable[[Binding], Any],
    ) -> None:
        self.store = store
        self.like = like
        self.call_of = call_of
        self._ageing = ageing
        self._weights = weights
        self.limits = limits
        self._pattern = None if limits is None else LimitSet(limits, WaitQueue(), None)
        self._usual = [] if self._pattern is None else [state.limit for state in self._pattern.all_states()]
        self.fast = like.enforce and self._pattern is not None and fast_path.fits_keys(self._pattern.all_states())
        self.live: dict[Hashable, _Life] = {}
        self.known: dict[Hashable, Any] = {}
        self.old: dict[Hashable, Any] = {}
        self.moving: list[tuple[Hashable, Any]] = []
        self.dead: deque[_Life] = deque()
        self.plain: bool = HAS_GIL
        self.charges: dict[Any, Charge] = {}
        self.quick: dict[Any, Any] = {}
        self.new = fast_path.new_key(self.pattern_states()) if self.fast else ()
        buckets: list[Any] = self.pattern_states() if self.fast else []
        self._rates = tuple([state.meter.rate for state in buckets])
        self._forgotten: dict[Hashable, tuple[float, float]] = {}  # when it was, and until when that matters
        self.uses = 0
        self.sweep_at = SWEEP
        self._yields = True  # whether an eighth of the keys that were looked at last was forgotten

    def __len__(self) -> int:
        """How many keys have a limit that is not whole, as far as that is known without looking at all of them."""
        return len(self.known) + len(self.old) + len(self.live)

    def pattern_states(self) -> list[LimitState]:
        """The limits that every key has, in their order."""
        return [] if self._pattern is None else self._pattern.all_states()

    def plan(self) -> ChargePlan:
        """What costs of every key are charged on."""
        assert self._pattern is not None, "limits are fixed"
        return ChargePlan([self._pattern])

    def take_any_key(self) -> None:
        """From now on keys are compared by Python: charge them with the lock held."""
        with self.store.lock:
            self.plain = False
            self.charges.clear()
            self.quick.clear()

    def sweep(self) -> None:
        """Now and then: pack the limits of keys that nothing holds any more, and forget others."""
        with self.store.lock:
            self._put_one_away()
            self._put_one_away()
            if self.uses >= self.sweep_at:
                # What has little to forget is looked at less often: with a million keys each look is one at memory far
                # away. As soon as an eighth of those looked at is whole, all are looked at, faster than new ones can
                # come.
                looked, forgotten = self._forget(3 * SWEEP if self._yields else PROBE // 16)
                self._yields = forgotten * 8 >= looked
                self.sweep_at = self.uses + (SWEEP if self._yields else PROBE)

    def _put_one_away(self) -> None:
        dead = self.dead
        if dead:
            self._put_away(life := dead[0])
            if dead and dead[0] is life:
                dead.popleft()

    def backend(self, key: Hashable, limits: Limits | None = None) -> LocalBackend:
        """The limits of a key, materialised; `limits` where they are those of a function."""
        with self.store.lock:
            return LocalBackend(self.store, (self._part_of(key, limits),))

    def _part_of(self, key: Hashable, limits: Limits | None) -> LimitSet:
        while True:
            life = self.live.get(key)
            part = life() if life is not None else None
            if part is None:
                part = self._materialise(key, life, limits)
            if part is not None:
                return part

    def is_live(self, key: Hashable) -> bool:
        """Whether the limits of a key are materialised."""
        life = self.live.get(key)
        return life is not None and life() is not None

    def _materialise(self, key: Hashable, life: _Life | None, limits: Limits | None) -> LimitSet | None:
        """Give a key limits of its own; None if a signal handler or a finaliser has used the key in the meantime."""
        wanted = limits if self.limits is None else self.limits
        assert wanted is not None, "limits are fixed, or the answer of a function"
        self._keep_what_moves()
        part = LimitSet(wanted, WaitQueue(self._ageing, self._weights), f"{key}")
        # If its holder is gone but what it used was not put away yet, that is the last word.
        kept = life.states if life is not None else self.known.get(key) or self.old.get(key)
        if isinstance(kept, dict):
            part.take_over(kept, clock.now(), keep_limits=self.limits is not None)
        elif kept is not None:
            for state, packed in zip(part.all_states(), kept, strict=True):
                state.meter.unpack(packed)
        new = _Life.of(part, self.dead.append, key)
        live, known, old = self.live, self.known, self.old
        # No call from here on, until it is in `live`.
        if (live[key] if key in live else None) is not life:  # noqa: SIM401
            return None
        if life is None and (known[key] if key in known else old[key] if key in old else None) is not kept:  # noqa: SIM401
            return None
        live[key] = new
        known.pop(key, None)
        old.pop(key, None)
        return part

    def _put_away(self, life: _Life) -> None:
        """Keep of a key that nothing holds only what it used, or nothing if it used nothing."""
        key, live, known = life.key, self.live, self.known
        if live.get(key) is not life:
            return  # it was materialised again in the meantime
        now = clock.now()
        states = _all(life.states)
        kept: Any = life.states
        if [state.limit for state in states] == self._usual and not _paused(states, now):
            packed = [state.meter.pack() for state in states]
            if None not in packed:
                kept = tuple(packed) if all(type(used) is float for used in packed) else packed
        whole = self._whole(kept, now)
        if whole and type(kept) is not tuple:
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
            warn_of_expired(expired(_all(kept), now), f"{key}")
        if not self.fast:
            return
        packed = [state.meter.pack() for state in _all(kept)] if isinstance(kept, dict) else kept
        until = now
        for rate, used in zip(self._rates, packed, strict=True):
            until = max(until, (used[0] if isinstance(used, tuple) else used) / rate)
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
        if self.fast and moving:
            self._drop_the_whole(moving, moving[-1], now)
            moving = self.moving
        # A handler may come after the condition of a loop as well as before it: both look once.
        while (item := moving[-1] if moving else None) is not None:
            key, kept = item
            if not (self.fast and type(kept) is tuple) and self._whole(kept, now):
                if type(kept) is not tuple:
                    self._note_forgotten(key, kept, now)
            elif moving and moving[-1] is item:
                self.known.setdefault(key, kept)
            if moving and moving[-1] is item:
                del moving[-1]
        if not self.old:
            self.old = {}  # an emptied dict keeps its room
        return looked, looked - (len(self.known) - kept_before)

    def _drop_the_whole(self, moving: list[tuple[Hashable, Any]], last: tuple[Hashable, Any], now: float) -> None:
        """Drop all keys that are whole again and were kept as numbers, which nearly all are, in one step."""
        full = [now * rate for rate in self._rates]
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

    def _whole(self, kept: Any, now: float) -> bool:
        """Whether the limits of a key are whole again, so that it equals one never seen."""
        if self.fast and type(kept) is tuple:
            return not any(tat > now * rate for tat, rate in zip(kept, self._rates, strict=True))
        if isinstance(kept, dict):
            states = _all(kept)
            usual = self.limits is None or [state.limit for state in states] == self._usual
            if not usual or _paused(states, now):
                return False
            packed: Any = [None] * len(states)  # each has its own
        else:
            assert self._pattern is not None, "only usual limits are packed"
            states, packed = self._pattern.all_states(), kept
        lead = clock.wall() - now
        for state, used in zip(states, packed, strict=True):
            meter = state.meter
            if meter.calendar:
                meter.follow(lead)  # type: ignore[attr-defined]  # calendars have it
            packed_as = meter.pack() if used is None else used  # its own
            if not (meter.idle(now) if packed_as is None else meter.idle_as(packed_as, now)):
                return False
        return True

    def charge(self, cost: Mapping[str, float]) -> Charge:
        """What a cost is charged on the fast path, of any key; CostError: wrong, or more than the usual limits hold."""
        plain = RESERVED.isdisjoint(cost)  # else the words are those of another call: `per_user[key](flow="alice")`
        try:
            charge = self.charges.get(words_of(cost)) if plain else None
        except Exception:
            if is_plain((*cost.values(),)):
                raise
            charge = None  # something that cannot be looked up, as an array of one number
        if charge is None:
            locked = not self.plain
            charge = Charge(cost, self.plan().charges(cost), fast_path.look_closer)
            fast_path.prepare_key(charge, self.pattern_states(), locked=locked)
            if len(self.charges) >= 1_000:
                self.charges.clear()
            if plain and locked is not self.plain:  # else another thread has brought a key that is not plain
                self.charges[words_of(exact_costs(cost))] = charge
        return charge


class _OfTheLimits:
    """What a key does not answer by itself: its limits do, materialised. A `__getattr__` would slow down the rest."""

    def __set_name__(self, _: type[Key], name: str) -> None:
        self._name = name

    def __get__(self, key: Key, _: type[Key]) -> Any:
        return getattr(key.itself(), self._name)


class Key(Caller):
    """One key, as caller and as backend.

    The fast path it takes by itself; for everything else the key's limits are materialised.

    It is made at every use of a key, so it is one object: the caller, the backend, and (`get`) the calls that the key's
    limiter has made before.
    """

    __slots__ = ("_real", "key", "states")

    joint = False
    request_type = Request
    enforce = True  # only then there is a fast path

    @property
    def name(self) -> str:  # type: ignore[override]
        """The key, as events and errors show it."""
        return f"{self.key}"

    @property
    def max_queue(self) -> int | None:  # type: ignore[override]
        """As for all keys."""
        return self.states.like.max_queue

    def __init__(self, states: KeyStates, key: Hashable) -> None:
        self.on_event = states.like.on_event
        self.granted = self.refused = self.cancelled = self.would_refuse = 0
        self.states = states
        self.key = key
        self._real: LocalBackend | None = None

    def get(self, words: tuple[Any, ...]) -> Any:
        """The call of a cost that some key has been charged before, for this key; None if there is none."""
        states = self.states
        charge = states.charges.get(words)
        if charge is None or self._real is not None:
            return None
        binding = Binding(self, self)
        binding.charge = charge
        return states.call_of(binding)

    @property
    def store(self) -> MemoryStore:
        return self.states.store

    def itself(self) -> LocalBackend:
        """The key's limits, materialised for as long as this backend lives."""
        real = self._real
        if real is None:
            real = self._real = self.states.backend(self.key)
        return real

    def bind(self, caller: Caller, cost: Mapping[str, float]) -> Binding:
        """Bind a cost: for the fast path while nothing more was asked of this key."""
        if self._real is None and not self.states.is_live(self.key):
            try:
                charge = self.states.charge(cost)
            except CostError:  # this key's limits may have been raised; and their errors name the key
                return self.itself().bind(caller, cost)
            binding = Binding(self, caller)
            binding.charge = charge
            return binding
        return self.itself().bind(caller, cost)

    def current(self, _: Binding) -> bool:
        """Never: a call that the fast path has no answer for is bound to the limits themselves."""
        self.itself()
        return False

    def _adopt(self, grant: Grant) -> LocalBackend:
        """Let the key's limits have a grant of the fast path."""
        real, binding = self.itself(), grant.binding
        if binding is not None:
            at = grant.granted_at
            states = real.plan().states
            amounts = dict(zip([id(state) for state in self.states.pattern_states()], states, strict=True))
            charges = tuple([(amounts[id(state)], amount) for state, amount in binding.charge.charges])
            over = self.states.whole_since(self.key, at)
            receipts = [
                (state.meter, (-math.inf if over else receipt, at))
                for (state, _), receipt in zip(charges, grant.receipts, strict=True)
            ]
            grant.of(real, binding.caller, charges, receipts, at)
        return real

    plan = _OfTheLimits()
    parts = _OfTheLimits()
    enter = _OfTheLimits()
    advance = _OfTheLimits()
    leave = _OfTheLimits()
    hand_over = _OfTheLimits()
    pause = _OfTheLimits()
    resume = _OfTheLimits()
    reconfigure = _OfTheLimits()
    snapshot = _OfTheLimits()
    waiting = _OfTheLimits()
    level = _OfTheLimits()
    refresh = _OfTheLimits()
    recipe = _OfTheLimits()
    joined = _OfTheLimits()

    def cost(self, grant: Grant) -> dict[str, float]:
        binding = grant.binding
        return dict(binding.charge.full_cost) if binding is not None else self._adopt(grant).cost(grant)

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None:
        self._adopt(grant).settle(grant, true_cost)

    def cancel(self, grant: Grant) -> bool:
        return self._adopt(grant).cancel(grant)

    def close(self, grant: Grant) -> None:
        self._adopt(grant).close(grant)

    def postpone(self, grant: Grant, travel: float) -> None:
        self._adopt(grant).postpone(grant, travel)

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:
        self._adopt(grant).lose(grant, where)

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        real = self.itself()
        return real.forecast(real.bind(binding.caller, binding.charge.cost))

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        real = self.itself() if grant is None else self._adopt(grant)
        real.observe(remaining, reset, grant)


def _all(states: States) -> list[LimitState]:
    return [state for of_unit in states.values() for state in of_unit]


def _paused(states: list[LimitState], now: float) -> bool:
    return any(state.paused_until > now for state in states)
