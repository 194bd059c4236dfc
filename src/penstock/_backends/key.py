"""One key: its backend, which is also its `LimiterInfo`. `keyed` keeps what keys have used."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from penstock._backends import key_numbers
from penstock._backends.alike import Alike, charge_of
from penstock._backends.base import Binding, Charge, Grant, LimiterInfo, Request, joined_info
from penstock._backends.charges import ChargePlan, joint_name
from penstock._backends.keyed import KeyStates, Materialised, charge_closer
from penstock._backends.local import LocalBackend
from penstock._core.bucket import Bucket
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter
from penstock._core.places import Places
from penstock._text import label_of
from penstock.errors import CostError
from penstock.stores.memory import MemoryStore

_MOST_KNOWN = 64
"""Kinds of keys that a limiter remembers being joined with."""


class _OfTheLimits:
    """What a key does not answer by itself: its limits do, materialised. A `__getattr__` would slow down the rest."""

    def __set_name__(self, _: type[Key], name: str) -> None:
        self._name = name

    def __get__(self, key: Key, _: type[Key]) -> Any:
        return getattr(key.itself(), self._name)


class Key(LimiterInfo):
    """One key, as a backend and as its own `LimiterInfo`.

    What need not wait, and what goes on with its grants, it decides by the limits that all keys share
    (`KeyStates.run`). For everything else the key's own limits are materialised.

    It is made at every use of a key, so it is one object: the info, the backend, and (`get`) the calls that the key's
    limiter has made before.
    """

    __slots__ = ("_real", "key", "states")

    request_type = Request
    enforce = True  # only then there is a fast path

    @property
    def name(self) -> str | None:  # type: ignore[override]
        """The key, as events and errors show it."""
        return self.states.name_of(self.key)

    @property
    def max_queue(self) -> int | None:  # type: ignore[override]
        return self.states.like.max_queue

    def __init__(self, states: KeyStates | JointStates, key: Hashable) -> None:
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

    def bind(self, info: LimiterInfo, cost: Mapping[str, float]) -> Binding:
        """Bind a cost: for the fast path while nothing more was asked of this key."""
        if self._real is None and not self.states.keys.is_live(self.key):
            try:
                charge = self.states.charge(cost)
            except CostError:  # this key's limits may have been raised; and their errors name the key
                return self.itself().bind(info, cost)
            binding = Binding(self, info)
            binding.charge = charge
            return binding
        return self.itself().bind(info, cost)

    def current(self, _: Binding) -> bool:
        """Never: a call that the fast path has no answer for is bound to the limits themselves."""
        self.itself()
        return False

    # Of a grant. It is charged on the limits that keys share, until the key's own are needed.

    def _let(self, decide: str, grant: Grant, *args: Any) -> Any:
        """Let the limits of this key decide over a grant: the shared ones, or its own if they are materialised."""
        if self._real is None:
            try:
                return self.states.keys.run(self.key, self._let_shared, decide, grant, *args)
            except (Materialised, CostError):  # the key's own limits may be others, and their errors name the key
                pass
        return getattr(self._adopt(grant), decide)(grant, *args)

    def _let_shared(self, decide: str, grant: Grant, *args: Any) -> Any:
        grant.receipts = [
            self._receipt(state, state, *receipt) for (state, _), receipt in zip(*grant.charged(), strict=True)
        ]
        return getattr(self.states.shared, decide)(grant, *args)

    def _receipt(self, shared: LimitState, state: LimitState, meter: Meter, receipt: Any) -> tuple[Meter, Any]:
        """A receipt, of the meter that counts for a limit now: another one, if the key was packed in the meantime."""
        if not self.states.keys.shares(shared):
            return meter, receipt
        if type(meter) is Bucket:
            if self.states.keys.whole_since(self.key, receipt[1]):
                receipt = -math.inf, receipt[1]
            return state.meter if type(state.meter) is Bucket else meter, receipt
        return state.meter if type(meter) is Places is type(state.meter) else meter, receipt

    def _adopt(self, grant: Grant) -> LocalBackend:
        """Let the key's own limits have a grant."""
        real = self.itself()
        if grant.binding is not None or grant.backend is self:
            own = self.states.own_of(real)
            both = [
                ((own[state], amount), self._receipt(state, own[state], *receipt))
                for (state, amount), receipt in zip(*grant.charged(), strict=True)
                if state in own
            ]
            grant.charges, grant.receipts, grant.backend = (
                tuple([charged for charged, _ in both]), [receipt for _, receipt in both], real
            )  # fmt: skip
        return real

    def cost(self, grant: Grant) -> dict[str, float]:
        binding = grant.binding
        if binding is not None and not (grant.ended and binding.charge.held):
            return dict(binding.charge.full_cost)
        assert self.states.shared is not None, "only then there are keys"
        return self.states.shared.cost(grant)

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None:
        if not self._by_numbers(key_numbers.settle, grant, true_cost):
            self._let("settle", grant, true_cost)

    def cancel(self, grant: Grant) -> bool:
        cancelled: bool = self._by_numbers(key_numbers.cancel, grant) or self._let("cancel", grant)
        return cancelled

    def _by_numbers(self, decide: Callable[..., bool], *args: Any) -> bool:
        """Let `decide` over a grant, where the key may be kept as numbers; False: it is not, or that takes meters."""
        states = self.states
        if self._real is not None or not isinstance(states, KeyStates) or states.new is None:
            return False
        with states.store.lock:
            return decide(states, self.key, self, *args)

    def close(self, grant: Grant) -> None:
        if not grant.held:
            grant.ended = True
        elif not grant.ended and not self._free(grant):
            self._let("close", grant)

    def _free(self, grant: Grant) -> bool:
        states = self.states
        return self._real is None and isinstance(states, KeyStates) and states.free(self.key, grant)

    def postpone(self, grant: Grant, travel: float) -> None:
        self._let("postpone", grant, travel)

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:
        try:
            self.states.keys.run(self.key, self._let_shared, "close", grant)  # none waits for its places
        except Materialised:
            self._adopt(grant).lose(grant, where)

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        (self.itself() if grant is None else self._adopt(grant)).observe(remaining, reset, grant)

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        real = self.itself()
        return real.forecast(real.bind(binding.info, binding.charge.cost))

    # What the key's own limits answer

    plan = _OfTheLimits()
    limit_sets = _OfTheLimits()
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


class JointStates:
    """Limits of this process and those of a key: `organisation & per_user[key]`, for all keys.

    A key is charged on both at once as it is on its own limits alone; see `KeyStates`.

    Attributes:
        keys: What keeps what the keys have used.
        like: Options of the joint limiters.
        shared: The former limits, with those that all keys share.
        charges, call_of, quick: As of `KeyStates`.
        new: The class of the joint limiters; for the layers above.
    """

    __slots__ = (
        "_alike", "_clearance", "_first", "_plain", "_sets", "call_of", "charges", "keys", "like", "new", "quick",
        "shared",
    )  # fmt: skip

    def __init__(self, backend: LocalBackend, keys: KeyStates, like: LimiterInfo, *, first: bool) -> None:
        assert keys.shared is not None, "keys that are charged by the limits that they share"
        self.keys = keys
        self.like = like
        self.call_of = keys.call_of
        self.charges: dict[Any, Charge] = {}
        self.quick: dict[Any, Any] = {}
        self.new: Any = None
        self._sets = backend.sets  # not the backend, which may keep these states
        self._first = first
        self._clearance = backend.queue.clearance
        self._alike = Alike(self._clearance)
        self._plain = keys.plain
        sets = (*backend.sets, *keys.shared.sets)
        # In the order of the limiters, with the queue of those that are no key's.
        self.shared = LocalBackend(
            keys.store, sets if first else (*keys.shared.sets, *backend.sets), queue=backend.queue
        )

    @property
    def store(self) -> MemoryStore:
        return self.keys.store

    def current(self) -> bool:
        """Whether the charges are still right."""
        return self._clearance is self.shared.queue.clearance and self._plain is self.keys.plain

    def name_of(self, key: Hashable) -> str | None:
        """What the joint limiter of a key is called in events and errors."""
        name = label_of(key)
        return joint_name(self.like.name, name) if self._first else joint_name(name, self.like.name)

    def backend(self, key: Hashable) -> LocalBackend:
        """The limits of a key, materialised, and the others."""
        others, own = LocalBackend(self.keys.store, self._sets), self.keys.backend(key)
        return others.joined(own) if self._first else own.joined(others)

    def own_of(self, backend: LocalBackend) -> dict[LimitState, LimitState]:
        (limit_set,) = [limit_set for limit_set in backend.sets if limit_set not in self._sets]
        others = {state: state for of in self._sets for state in of.all_states()}
        return {**others, **self.keys.own_in(limit_set)}

    def charge(self, cost: Mapping[str, float]) -> Charge:
        return charge_of(self.charges, cost, self._charge_of)

    def _charge_of(self, cost: Mapping[str, float]) -> Charge:
        charge = self._alike.charge(cost)
        if charge is None:
            charge = Charge(cost, self.shared.plan().charges(cost, unlimited=True), charge_closer)
            charge.clearance = self._clearance
            self._alike.add(self.keys.prepared(charge, joint=True))
        return charge


def joint_states(
    backend: LocalBackend,
    info: LimiterInfo,
    key: Key,
    known: dict[Any, JointStates],
    new: Callable[[ChargePlan], Any],
    first: bool,
) -> JointStates | None:
    """What decides for a limiter and that of a key together: one of those that the limiter knows, or a new one.

    `new`: makes the class of the joint limiters. `first`: whether the key comes second. None: they have to be joined,
    key by key.
    """
    keys = key.states
    if isinstance(keys, JointStates):
        return None
    joint = known.get((keys, first))
    if joint is None or not joint.current():
        if not info.enforce or not backend.fast or backend.store is not keys.store:
            return None
        both = (info, keys.like) if first else (keys.like, info)
        joint = JointStates(backend, keys, joined_info(*both, info.name), first=first)
        joint.new = new(joint.shared.plan())
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[keys, first] = joint
    return joint
