"""The keys of one name in this process: kept until they are whole, whether or not a `Keyed` of that name is alive.

Finding them by their name is left to the store, and what a key has used to `keyed`.
"""

from __future__ import annotations

from sys import getrefcount
from typing import Any, cast

from penstock import clock
from penstock._backends.keyed import KeyStates, Limits

__all__ = ["kept_keys"]

_KIND = "Keyed"
"""What names of keys are kept apart by from those of limiters."""


class _NamedKeys:
    """The keys of a name, as a store keeps them."""

    __slots__ = ("states",)

    def __init__(self, states: Any) -> None:
        self.states: KeyStates = states

    @property
    def users(self) -> bool:
        """Whether a `Keyed`, a limiter of a key or a permit of one refers to them."""
        return getrefcount(self.states) > _BY_ITS_NAME

    def limits(self) -> Limits:
        """Those of every key; none where they are the answer of a function."""
        return self.states.limits or {}

    def whole(self, now: float) -> bool:
        """Whether no key has used anything, as far as a short look shows."""
        return self.states.is_whole()


_UNUSED = _NamedKeys(object())
_BY_ITS_NAME = getrefcount(_UNUSED.states)
"""References to keys that nothing but their name refers to."""


def kept_keys(name: str, made: KeyStates) -> KeyStates:
    """The keys that are kept of a name; those that were `made` if there are none, or none of these limits any more.

    Raises:
        ConfigurationConflict: A `Keyed` of that name lives with other limits.
    """
    with made.store.lock:
        return _kept(name, made)


def _kept(name: str, made: KeyStates) -> KeyStates:
    limits = made.limits or {}
    while True:
        found: _NamedKeys | None = made.store.find(name, limits, clock.now(), _KIND)
        if found is None:
            found = cast("_NamedKeys", made.store.keep(name, _NamedKeys(made), _KIND))
        elif found.limits() != limits:
            made.take_over(found.states)
            found.states = made
        if found.limits() == limits:
            return found.states
