"""One key: the caller and the backend of a limiter per key. See `keyed`, which keeps what keys have used."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from penstock._backends.base import Binding, Caller, Grant, Request
from penstock._backends.keyed import KeyStates, Materialised
from penstock._backends.local import LocalBackend
from penstock._core.bucket import Bucket
from penstock._core.meter import Meter
from penstock._core.places import Places
from penstock._core.turns import LimitState
from penstock.errors import CostError
from penstock.stores.memory import MemoryStore


class _OfTheLimits:
    """What a key does not answer by itself: its limits do, materialised. A `__getattr__` would slow down the rest."""

    def __set_name__(self, _: type[Key], name: str) -> None:
        self._name = name

    def __get__(self, key: Key, _: type[Key]) -> Any:
        return getattr(key.itself(), self._name)


class Key(Caller):
    """One key, as caller and as backend.

    What need not wait, and what goes on with its grants, it decides by the limits that all keys share
    (`KeyStates.run`). For everything else the key's own limits are materialised.

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

    # Of a grant. It is charged on the limits that keys share, until the key's own are needed.

    def _let(self, decide: str, grant: Grant, *args: Any) -> Any:
        """Let the limits of this key decide over a grant: the shared ones, or its own if they are materialised."""
        if self._real is None:
            try:
                return self.states.run(self.key, self._let_shared, decide, grant, *args)
            except Materialised:
                pass
            except CostError:  # by its own limits, which may be others: and the error names the key
                pass
        return getattr(self._adopt(grant), decide)(grant, *args)

    def _let_shared(self, decide: str, grant: Grant, *args: Any) -> Any:
        grant.charged()
        grant.receipts = [self._receipt(state, *receipt) for (state, _), receipt in zip(*grant.charged(), strict=True)]
        return getattr(self.states.shared, decide)(grant, *args)

    def _receipt(self, state: LimitState, meter: Meter, receipt: Any) -> tuple[Meter, Any]:
        """A receipt, of the meter that counts for a limit now: another one, if the key was packed in the meantime."""
        if type(meter) is Bucket:
            if self.states.whole_since(self.key, receipt[1]):
                receipt = -math.inf, receipt[1]
            return state.meter if type(state.meter) is Bucket else meter, receipt
        return state.meter if type(meter) is Places is type(state.meter) else meter, receipt

    def _adopt(self, grant: Grant) -> LocalBackend:
        """Let the key's own limits have a grant."""
        real = self.itself()
        if grant.binding is not None or grant.backend is self:
            own = self.states.own_of(real)
            both = [
                ((own[state], amount), self._receipt(own[state], *receipt))
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
        self._let("settle", grant, true_cost)

    def cancel(self, grant: Grant) -> bool:
        cancelled: bool = self._let("cancel", grant)
        return cancelled

    def close(self, grant: Grant) -> None:
        if not grant.held:
            grant.ended = True
        elif not grant.ended:
            self._let("close", grant)

    def postpone(self, grant: Grant, travel: float) -> None:
        self._let("postpone", grant, travel)

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:
        try:
            self.states.run(self.key, self._let_shared, "close", grant)  # none waits for its places
        except Materialised:
            self._adopt(grant).lose(grant, where)

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        if grant is None:
            self.itself().observe(remaining, reset, None)
        elif not self.states.whole_since(self.key, grant.granted_at):  # else what was sent since is not known
            self._adopt(grant).observe(remaining, reset, grant)

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        real = self.itself()
        return real.forecast(real.bind(binding.caller, binding.charge.cost))

    # What the key's own limits answer

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
