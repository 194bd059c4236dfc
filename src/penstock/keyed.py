"""A limiter per key.

    per_user = Keyed(requests=per_minute(60), tokens=per_day(50_000))
    async with per_user["alice"](tokens=5): ...

`per_user["alice"]` is a limiter for as long as somebody holds it, waits in its line or has a permit of it. After that, all that
remains of the key is a number per limit; and once its limits are whole again, nothing at all, as a key that was never seen is
in the same state. So a million keys cost what a million tuples cost, and idle keys nothing.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import ref

from penstock import clock
from penstock._core.meter import Meter
from penstock._gate import Gate, Part
from penstock._given import LimitLike, read_limits
from penstock.limiter import Limiter
from penstock.limits import Limit
from penstock.stores.memory import MemoryStore

__all__ = ["Keyed"]

_Limits = dict[str, tuple[Limit, ...]]


class _Life(ref[Part]):
    """A key's part while it lives. Its meters outlive it here until what they know is put away."""

    __slots__ = ("key", "limits", "meters")

    key: Hashable
    limits: _Limits
    meters: list[Meter]

    @classmethod
    def of(cls, part: Part, ended: Callable[[Any], None], key: Hashable, limits: _Limits) -> _Life:
        life = cls(part, ended)
        life.key = key
        life.limits = limits
        life.meters = [slot.meter for slot in part.all_slots()]
        return life


class Keyed:
    """A limiter per key, all with the same limits or with those that a function of the key returns.

    Args:
        limits_of: A function of the key that returns its limits, as `{"requests": per_minute(60)}`. It is asked whenever a key
            that nobody holds is used; where its answer has changed, what was used stays used.
        options: As for `Limiter`: `max_waiting`, `ageing`, `flow_weights`, `enforce`, `on_event`, `store`; and the limits.

    Safe to use from any number of tasks and threads.
    """

    __slots__ = (
        "_ageing", "_dead", "_fixed", "_known", "_limits_of", "_live", "_old", "_pattern", "_probes", "_store", "_weights",
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
        max_waiting: int | None = None,
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
            max_waiting=max_waiting,
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
        self._probes = [slot.meter for slot in self._pattern.parts[0].all_slots()]
        self._live: dict[Hashable, _Life] = {}
        self._known: dict[Hashable, tuple[Any, ...] | tuple[_Limits, list[Meter]]] = {}
        self._old: dict[Hashable, Any] = {}
        self._dead: deque[_Life] = deque()

    def __getitem__(self, key: Hashable) -> Limiter:
        """The limiter of `key`. Cheap: made anew if nobody holds it, with all that the key has used."""
        with self._store.lock:
            for _ in range(min(2, len(self._dead))):
                self._put_away(self._dead.popleft())
            self._forget_two()
            life = self._live.get(key)
            part = life() if life is not None else None
            if part is None:
                part = self._revive(key, life)
            return Limiter.over(part, self._pattern, f"{key}")

    def __len__(self) -> int:
        """How many keys have a limit that is not whole, as far as that is known without looking at all of them."""
        return len(self._known) + len(self._old) + len(self._live)

    def _revive(self, key: Hashable, life: _Life | None) -> Part:
        gate = Gate(self._ageing, self._weights)
        if self._limits_of is None:
            limits = self._fixed
            part = Part.like(self._pattern.parts[0], gate, f"{key}")
        else:
            limits = read_limits(self._limits_of(key))
            part = Part(limits, gate, f"{key}")
        if life is not None:  # its holder is gone, but what it used was not put away yet
            part.take_over(life.limits, life.meters, clock.now())
        else:
            kept = self._known.pop(key, None) or self._old.pop(key, None)
            if kept is not None:
                self._unpack(part, kept)
        self._live[key] = _Life.of(part, self._dead.append, key, limits)
        return part

    def _put_away(self, life: _Life) -> None:
        """Keep of a key that nobody holds only what it used, or nothing if it used nothing."""
        if self._live.get(life.key) is not life:
            return  # somebody came for it in the meantime
        del self._live[life.key]
        now = clock.now()
        wall = clock.wall() - now
        for meter in life.meters:
            if meter.calendar:
                meter.follow(wall)  # type: ignore[attr-defined]
        if all(meter.idle(now) for meter in life.meters):
            return
        packed = [meter.pack() for meter in life.meters] if self._limits_of is None else [None]
        self._known[life.key] = tuple(packed) if None not in packed else (life.limits, life.meters)

    def _unpack(self, part: Part, kept: Any) -> None:
        if kept and isinstance(kept[0], dict):
            part.take_over(kept[0], kept[1], clock.now())
        else:
            for slot, value in zip(part.all_slots(), kept, strict=True):
                slot.meter.unpack(value)

    def _forget_two(self) -> None:
        """Look at two keys that were put away long ago: drop those whose limits are whole, keep the others for the next round.

        Two per use, so that the work is spread, and all keys are looked at in turn.
        """
        old = self._old
        if not old:
            if len(self._known) < 2:
                return
            old = self._old = self._known
            self._known = {}
        now = clock.now()
        for _ in range(min(2, len(old))):
            key, kept = old.popitem()
            if not self._whole(kept, now):
                self._known[key] = kept

    def _whole(self, kept: Any, now: float) -> bool:
        """Whether the limits of a key that was put away are whole again, so that it equals one never seen."""
        if kept and isinstance(kept[0], dict):
            return all(meter.idle(now) for meter in kept[1])
        for probe, value in zip(self._probes, kept, strict=True):
            probe.unpack(value)
            if not probe.idle(now):
                return False
        return True
