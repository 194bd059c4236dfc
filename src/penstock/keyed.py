"""A limiter per key.

    per_user = Keyed(requests=per_minute(60), tokens=per_day(50_000))
    async with per_user["alice"](tokens=5): ...

    @per_user(key=lambda user, *_: user, tokens=count)    # a decorator, with the key out of the call's arguments
    async def answer(user, prompt): ...

`per_user["alice"]` is a limiter, made anew at each use. What a key has used is kept until its limits are whole again,
and then forgotten, as a key that was never seen is in the same state. A key that is paused is kept until the pause
ends, and one whose limits were changed by `reconfigure` for good.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from sys import getrefcount
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from penstock import clock
from penstock._backends import backend_over, memory_store
from penstock._backends.base import LimiterInfo
from penstock._backends.key import Key
from penstock._backends.keyed import KeyStates
from penstock._call import Call, check_functions, decorated, show_call
from penstock._introspect import name_of, why_not_plain
from penstock._numbers import Seconds, read_flag
from penstock._text import label_of, name_of_key, repr_of, text_of, visible
from penstock._validation import LimitLike, check_findable, check_options, given_limits, merge_given, read_limits
from penstock.limiter import Limiter, key_limiters
from penstock.limits import Limit, show_limits

if TYPE_CHECKING:
    from penstock.stores.contract import Store
    from penstock.stores.memory import MemoryStore

__all__ = ["Keyed"]

_bare = object.__new__
F = TypeVar("F", bound=Callable[..., Any])
LimitsLike = Mapping[str, LimitLike | list[LimitLike] | tuple[LimitLike, ...]]


class Keyed:
    """A limiter per key, all with the same limits or with those that a function of the key returns.

    Args:
        limits: As for `Limiter`, as one mapping; or by keyword. Or a function of the key that returns its limits, as
            `{"requests": per_minute(60)}`. It is asked whenever a key is used that nothing holds, in the task or thread
            that uses it and with no lock held; where its answer has changed, what was used stays used. An error of its
            own passes through, and nothing has changed then.
        name: `Keyed` of one name share what their keys have used, as limiters of one name do. In memory the first of
            them is the fastest, and those with the same options as it. With a shared store the limiter of a key is
            called `name%:key`, which no other limiter can be.
        store, max_queue, ageing, flow_weights, enforce, on_event: As for `Limiter`.

    Safe to use from any number of tasks and threads. A key is anything hashable that equals itself; over a shared store
    keys are distinguished by `str(key)`.

    Raises:
        ValueError: A limit or an option is wrong.
    """

    __slots__ = ("__weakref__", "_fast", "_keys", "_limiter", "_name", "_new")

    _fast: KeyStates | None  # where a key is on the fast path until more is asked of it
    _new: type[Limiter]  # of its limiters

    def __init__(
        self,
        limits: Callable[[Any], LimitsLike] | LimitsLike | None = None,
        /,
        *,
        store: MemoryStore | Store | None = None,
        name: str | None = None,
        max_queue: int | None = None,
        ageing: Seconds = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Callable[[Any], object] | None = None,
        **more_limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...],
    ) -> None:
        limits_of = None if limits is None or isinstance(limits, Mapping) else limits
        if limits_of is not None and (more_limits or not callable(limits_of)):
            raise ValueError("Keyed needs either limits, or one function of the key that returns them")
        if limits_of is not None and (why := why_not_plain(limits_of)):
            raise ValueError(f"Keyed({name_of(limits_of)}): {why}")
        fixed = given_limits(None if limits_of else limits, more_limits)
        if limits_of is None and not fixed:
            raise ValueError("Keyed needs either limits, or one function of the key that returns them")
        name, seconds, weights = check_options(name, max_queue, ageing, flow_weights, on_event)
        memory = memory_store(store)
        self._fast, self._new = None, Limiter
        enforce = read_flag("enforce", enforce)
        options = {"max_queue": max_queue, "on_event": on_event, "enforce": enforce}
        self._keys: _LocalKeys | _SharedKeys
        if memory is None:
            shared = {"ageing": seconds, "flow_weights": weights, **options}
            self._keys = _SharedKeys(store, name, fixed, limits_of, shared)
        else:
            like = LimiterInfo(None, max_queue, on_event, enforce=enforce)
            states = KeyStates(memory, fixed or None, seconds, weights, like, Call.of)
            if name is not None:
                states = _kept_keys(name, states)
            self._keys = _LocalKeys(states, limits_of, like)
            if states.fast and states.like.options() == like.options():
                self._fast, self._new = states, key_limiters(states.plan())
        self._limiter = self._keys.limiter
        self._name = name

    def __getitem__(self, key: Hashable) -> Limiter:
        """The limiter of `key`. Cheap: made anew, with all that the key has used. Its counts of calls begin at 0.

        Raises:
            ValueError: The key is not hashable, or does not equal itself (NaN). Or the function of the key returned no
                limits, or a wrong one.
        """
        states = self._fast
        if key.__class__ is not str:
            check_findable("a key", key)
            if states is not None and states.plain and key.__class__ is not int:
                states.take_any_key()
        if states is None:
            return self._limiter(key)
        states.uses += 1
        if states.uses >= states.sweep_at or states.dead:
            states.sweep()
        limiter = _bare(self._new)
        limiter._backend = limiter._info = limiter._calls = Key(states, key)
        limiter._quick = states.quick
        limiter._own = None
        return limiter

    def __call__(
        self,
        cost: Mapping[str, Any] | None = None,
        /,
        *,
        key: Callable[..., Hashable],
        settle: Callable[[Any], Mapping[str, float]] | None = None,
        max_wait: Any = None,
        priority: Any = 0,
        flow: Any = None,
        block: bool = False,
        **costs: Any,
    ) -> Callable[[F], F]:
        """A decorator: each call of the function is charged on the limiter of its key.

        Args:
            cost: Amount per unit, as one mapping; or by keyword. Each may be a function of the call's arguments.
            key: A function of the call's arguments: of those that it names, or of the first ones.
            settle, max_wait, priority, flow, block: As in `Limiter.__call__`.
            costs: Amount per unit.

        Raises:
            CostError: The cost is wrong.
        """
        if not callable(key):
            raise ValueError(
                f"key= must be a function of the call's arguments that returns the key, not {repr_of(key)}"
            )
        terms = {"max_wait": max_wait, "priority": priority, "flow": flow, "block": block}
        amounts = merge_given("costs", cost, costs)
        check_functions(settle, {"key": key, **terms, **amounts})
        return _Decorator(self, key, amounts, settle, terms)

    def __reduce__(self) -> Any:
        return _made_again, (self._keys.recipe(),)

    def __repr__(self) -> str:
        return f"Keyed({visible(self._name) + ': ' if self._name else ''}{self._keys})"

    # Without this, Python would ask for the limiters of 0, 1, 2… for ever, to iterate, or to see whether a key is among
    # them.
    __iter__ = None

    def __len__(self) -> int:
        """How many keys have a limit that is not whole, as far as that is known.

        Over a shared store: how many are held here.
        """
        return len(self._keys)


@dataclass(slots=True, eq=False, repr=False)
class _Decorator:
    """What `per_user(key=..., tokens=...)` is: a decorator, and a layer of pipelines."""

    _keyed: Keyed
    _key: Callable[..., Hashable]
    _costs: Mapping[str, Any]
    _settle: Callable[[Any], Mapping[str, float]] | None
    _options: dict[str, Any]

    _penstock_kind = "limiter"

    def __call__(self, function: F, /) -> F:
        keyed = self._keyed

        def call_of(key: Hashable, costs: Mapping[str, float]) -> Call:
            return keyed[key]._call_of(costs)

        return decorated(function, call_of, self._costs, self._settle, self._options, keyed._name, self._key)

    def __repr__(self) -> str:
        options = {name: value or None for name, value in self._options.items()}
        return show_call(repr(self._keyed), self._costs, {"key": self._key, "settle": self._settle, **options})


def _made_again(recipe: dict[str, Any]) -> Keyed:
    """A `Keyed` that was pickled: its store keeps what was used."""
    return Keyed(recipe.pop("limits"), **recipe)


@dataclass(slots=True, eq=False)
class _LocalKeys:
    """Keys in this process."""

    _states: KeyStates
    _limits_of: Callable[[Any], LimitsLike] | None
    _like: LimiterInfo

    def recipe(self) -> dict[str, Any]:
        raise TypeError(
            "what these keys have used lives in the memory of one process and cannot be pickled: make "
            "a Keyed in each process, or give it a name= and a store= that processes share (SQLiteStore, RedisStore)"
        )

    def __len__(self) -> int:
        return len(self._states)

    def __str__(self) -> str:
        return _shown(self._states.limits, self._limits_of)

    def limiter(self, key: Hashable) -> Limiter:
        states = self._states
        states.uses += 1
        if states.uses >= states.sweep_at or states.dead:
            states.sweep()
        # Asked without the lock: the function is the user's, and may take locks of its own, or its time.
        limits = None if self._limits_of is None or states.is_live(key) else _limits_for(self._limits_of, key)
        like = self._like
        return Limiter.over(
            states.backend(key, limits), LimiterInfo(label_of(key), like.max_queue, like.on_event, enforce=like.enforce)
        )


@dataclass(slots=True, eq=False)
class _SharedKeys:
    """Keys whose limits are in a shared store. Here there is something for a key only while its limiter is held."""

    _store: Any
    _name: str | None
    _fixed: dict[str, tuple[Limit, ...]]
    _limits_of: Callable[[Any], LimitsLike] | None
    _options: dict[str, Any]
    _limiters: WeakValueDictionary[str, Limiter] = field(default_factory=WeakValueDictionary)

    def __post_init__(self) -> None:
        # Finds now what is wrong with the limits, without asking a store.
        self._backend(self._name, self._fixed or read_limits({"requests": "1/s"}))

    def __len__(self) -> int:
        return len(self._limiters)

    def __str__(self) -> str:
        return _shown(self._fixed, self._limits_of)

    def recipe(self) -> dict[str, Any]:
        limits: Any = self._limits_of or {unit: list(kinds) for unit, kinds in self._fixed.items()}
        return {"limits": limits, "name": self._name, "store": self._store, **self._options}

    def limiter(self, key: Hashable) -> Limiter:
        text = text_of(key)
        limiter = self._limiters.get(text)
        if limiter is not None:
            return limiter
        # Asked without the lock: the function is the user's, and may take locks of its own, or its time.
        wanted = self._fixed if self._limits_of is None else _limits_for(self._limits_of, key)
        options = self._options
        with self._store.lock:
            limiter = self._limiters.get(text)
            if limiter is None:
                name = name_of_key(str(self._name), text)
                info = LimiterInfo(name, options["max_queue"], options["on_event"], enforce=True)
                limiter = self._limiters[text] = Limiter.over(self._backend(name, wanted, of_key=True), info)
            return limiter

    def _backend(self, name: str | None, limits: dict[str, tuple[Limit, ...]], *, of_key: bool = False) -> Any:
        """The backend over these limits; where they are the answer of a function, they replace those that there are."""
        options = self._options
        return backend_over(
            self._store,
            name,
            limits,
            options["ageing"],
            options["flow_weights"],
            None,
            enforce=options["enforce"],
            replaces=self._limits_of is not None,
            of_key=of_key,
        )


def _shown(limits: Mapping[str, tuple[Limit, ...]] | None, limits_of: Callable[[Any], LimitsLike] | None) -> str:
    return show_limits(limits or {}) if limits_of is None else name_of(limits_of)


def _limits_for(limits_of: Callable[[Any], LimitsLike], key: Hashable) -> dict[str, tuple[Limit, ...]]:
    answer: object = limits_of(key)
    limits = read_limits(merge_given("limits", answer, {}), by_keyword=False) if isinstance(answer, Mapping) else {}
    if not limits:
        raise ValueError(
            'the function of the key must return limits, as {"requests": per_minute(60)}, not '
            f"{repr_of(answer)} for {repr_of(key)}"
        )
    return limits


# The keys of one name in this process, which are kept until they are whole

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

    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """Those of every key; none where they are the answer of a function."""
        return self.states.limits or {}

    def whole(self, now: float) -> bool:
        """Whether no key has used anything, as far as a short look shows."""
        return self.states.is_whole()


_UNUSED = _NamedKeys(object())
_BY_ITS_NAME = getrefcount(_UNUSED.states)
"""References to keys that nothing but their name refers to."""


def _kept_keys(name: str, made: KeyStates) -> KeyStates:
    """The keys that are kept of a name; those that were `made` if there are none, or none of these limits any more.

    Raises:
        ConfigurationConflict: A `Keyed` of that name lives with other limits.
    """
    with made.store.lock:
        return _kept_states(name, made)


def _kept_states(name: str, made: KeyStates) -> KeyStates:
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
