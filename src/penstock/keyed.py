"""A limiter per key.

    per_user = Keyed(requests=per_minute(60), tokens=per_day(50_000))
    async with per_user["alice"](tokens=5): ...

`per_user["alice"]` is a limiter for as long as somebody holds it, waits in its line or has a permit of it. After that, all that
remains of the key is a number per limit; and once its limits are whole again, nothing at all, as a key that was never seen is
in the same state. So a million keys cost what a million tuples cost, and idle keys nothing. A key that is paused is kept until
the pause ends, and one whose limits were changed by `reconfigure` for good.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any
from weakref import ref

from penstock import clock
from penstock._core.turns import LimitState
from penstock._gate import Gate, Part
from penstock._validation import LimitLike, read_limits
from penstock.limiter import Limiter
from penstock.limits import Limit
from penstock.stores.memory import MemoryStore

__all__ = ["Keyed"]

_Limits = dict[str, tuple[Limit, ...]]
_Slots = dict[str, tuple[LimitState, ...]]


class _Life(ref[Part]):
    """A key's part while it lives. Its states outlive it here until what they know is put away."""

    __slots__ = ("key", "states")

    key: Hashable
    states: _Slots

    @classmethod
    def of(cls, part: Part, ended: Callable[[Any], None], key: Hashable) -> _Life:
        life = cls(part, ended)
        life.key = key
        life.states = part.states
        return life


class Keyed:
    """A limiter per key, all with the same limits or with those that a function of the key returns.

    Args:
        limits_of: A function of the key that returns its limits, as `{"requests": per_minute(60)}`. It is asked whenever a key
            that nobody holds is used, in the task or thread that uses it and with no lock held; where its answer has changed, what
            was used stays used. An error of its own passes through, and nothing has changed then.
        options: As for `Limiter`: `max_queue`, `ageing`, `flow_weights`, `enforce`, `on_event`, `store`; and the limits.

    Safe to use from any number of tasks and threads. A key is anything hashable that equals itself.
    """

    __slots__ = (
        "_ageing", "_dead", "_fixed", "_known", "_limits_of", "_live", "_old", "_pattern", "_probes", "_store", "_usual_limits",
        "_weights",
    )  # fmt: skip

    def __new__(cls, *_: Any, store: Any = None, **__: Any) -> Keyed:
        """A `Keyed` of the kind that `store` needs."""
        if store is None or isinstance(store, MemoryStore):
            return object.__new__(cls)
        # By name, as in `Limiter.__new__`.
        kind: type[Keyed] = importlib.import_module("penstock._shared").SharedKeyed
        return object.__new__(kind)

    def __init__(
        self,
        limits_of: Callable[[Any], Mapping[str, LimitLike | list[LimitLike]]] | None = None,
        /,
        *,
        store: MemoryStore | None = None,
        max_queue: int | None = None,
        ageing: float = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Callable[[Any], object] | None = None,
        **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...],
    ) -> None:
        if (limits_of is None) == (not limits):
            raise ValueError("Keyed needs either limits, or one function of the key that returns them")
        # A limiter that nobody calls: it finds now what is wrong, and is the pattern of all others.
        self._pattern = Limiter(
            store=store,
            max_queue=max_queue,
            ageing=ageing,
            flow_weights=flow_weights,
            enforce=enforce,
            on_event=on_event,
            **(limits or {"requests": "1/s"}),  # type: ignore[arg-type]  # mypy tries them on the options too
        )
        self._store = self._pattern.store
        self._ageing = ageing
        self._weights = dict(flow_weights or {})
        self._limits_of = limits_of
        self._fixed: _Limits = read_limits(limits)
        self._probes = self._pattern.parts[0].all_states()
        self._usual_limits = [state.limit for state in self._probes]
        self._live: dict[Hashable, _Life] = {}
        # Of a key that nobody holds: a number (or what its meter packs) per limit; or its states, where that is not all.
        self._known: dict[Hashable, tuple[Any, ...] | _Slots] = {}
        self._old: dict[Hashable, tuple[Any, ...] | _Slots] = {}
        self._dead: deque[_Life] = deque()

    def __getitem__(self, key: Hashable) -> Limiter:
        """The limiter of `key`. Cheap: made anew if nobody holds it, with all that the key has used.

        Raises:
            ValueError: The key is not hashable, or does not equal itself (NaN). Or `limits_of` returned no limits, or a wrong one.
        """
        limits = self._fixed
        while True:
            with self._store.lock:
                for _ in range(min(2, len(self._dead))):
                    self._put_away(self._dead.popleft())
                self._forget_two()
                try:
                    life = self._live.get(key)
                except TypeError as error:
                    raise ValueError(f"a key must be hashable, such as a string or a tuple, not {key!r}") from error
                part = life() if life is not None else None
                if part is None and limits:
                    part = self._revive(key, life, limits)
                if part is not None:
                    return Limiter.over(part, self._pattern, f"{key}")
            # Asked without the lock: the function is the user's, and may take locks of its own, or its time.
            limits = self._limits_for(key)

    # Without this, Python would ask for the limiters of 0, 1, 2… for ever, to iterate, or to see whether a key is among them.
    __iter__ = None

    def __len__(self) -> int:
        """How many keys have a limit that is not whole, as far as that is known without looking at all of them."""
        return len(self._known) + len(self._old) + len(self._live)

    def _revive(self, key: Hashable, life: _Life | None, limits: _Limits) -> Part:
        _check_key(key)
        gate = Gate(self._ageing, self._weights)
        if self._limits_of is None:
            part = Part.like(self._pattern.parts[0], gate, f"{key}")
        else:
            part = Part(limits, gate, f"{key}")
            part.version += 1  # unlike the pattern's: its limiters must look for themselves
        # If its holder is gone but what it used was not put away yet, that is the last word.
        kept = life.states if life is not None else self._known.pop(key, None) or self._old.pop(key, None)
        if isinstance(kept, dict):
            part.take_over(kept, clock.now(), keep_limits=self._limits_of is None)
        elif kept is not None:
            for state, value in zip(part.all_states(), kept, strict=True):
                state.meter.unpack(value)
        self._live[key] = _Life.of(part, self._dead.append, key)
        return part

    def _limits_for(self, key: Hashable) -> _Limits:
        assert self._limits_of is not None, "else there are fixed limits"
        _check_key(key)
        answer: object = self._limits_of(key)
        limits = read_limits(answer) if isinstance(answer, Mapping) else {}
        if not limits:
            raise ValueError(
                f'the function of the key must return limits, as {{"requests": per_minute(60)}}, not {answer!r} for {key!r}'
            )
        return limits

    def _put_away(self, life: _Life) -> None:
        """Keep of a key that nobody holds only what it used, or nothing if it used nothing."""
        if self._live.get(life.key) is not life:
            return  # somebody came for it in the meantime
        del self._live[life.key]
        now = clock.now()
        states = _all(life.states)
        packed: list[Any] = [None]
        if self._usual(states) and not _paused(states, now):
            packed = [state.meter.pack() for state in states]
        kept = tuple(packed) if None not in packed else life.states
        if not self._whole(kept, now):
            self._known[life.key] = kept

    def _forget_two(self) -> None:
        """Look at two keys that were put away long ago: drop those whose limits are whole, keep the others for the next round.

        Two per use, so that the work is spread, and all keys are looked at in turn.
        """
        if not self._old:
            if not self._known:
                return
            self._old, self._known = self._known, {}
        now = clock.now()
        for _ in range(min(2, len(self._old))):
            key, kept = self._old.popitem()
            if not self._whole(kept, now):
                self._known[key] = kept
        if not self._old:
            self._old = {}  # an emptied dict keeps its room

    def _whole(self, kept: tuple[Any, ...] | _Slots, now: float) -> bool:
        """Whether the limits of a key that nobody holds are whole again, so that it equals one never seen."""
        if isinstance(kept, dict):
            states = _all(kept)
            if _paused(states, now) or not (self._usual(states) or self._limits_of is not None):
                return False
            packed: Iterable[Any] = [None] * len(states)  # each has its own
        else:
            states, packed = self._probes, kept
        for state, used in zip(states, packed, strict=True):
            meter = state.meter
            if meter.calendar:
                meter.follow(clock.wall() - now)  # type: ignore[attr-defined]
            if not (meter.idle(now) if used is None else meter.idle_as(used, now)):
                return False
        return True

    def _usual(self, states: list[LimitState]) -> bool:
        """Whether these are the limits that all keys have, so that a tuple without them tells all."""
        return self._limits_of is None and [state.limit for state in states] == self._usual_limits


def _check_key(key: Hashable) -> None:
    if key != key:  # noqa: PLR0124 - every such key would be a new one, and limit nothing
        raise ValueError(f"a key must equal itself, which {key!r} does not: it would not be found again")


def _all(states: _Slots) -> list[LimitState]:
    return [state for of_unit in states.values() for state in of_unit]


def _paused(states: list[LimitState], now: float) -> bool:
    # A third of the time that `any` takes, which is seen at every use of a key.
    return max([state.paused_until for state in states]) > now
