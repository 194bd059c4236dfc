"""Limiter: several limits, charged together or not at all.

The face that users see. It turns what they write into bindings (`_backends.base`), calls (`_call`) and permits
(`permit`); its backend decides. There is one class, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import lru_cache, reduce
from operator import and_
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from penstock import _log
from penstock._backends import backend_over, joined
from penstock._backends.alike import known_by, remember
from penstock._backends.base import HAS_GIL, Backend, LimiterInfo, cost_key, joined_info
from penstock._backends.charges import ChargePlan, joint_name
from penstock._backends.key import Key, joint_states
from penstock._backends.local import LocalBackend
from penstock._backends.wait import PLAIN, WaitOptions, answer, emit_grant, wait
from penstock._call import (
    OPTIONS,
    SIGNATURE,
    Call,
    CallByArguments,
    Cost,
    Entered,
    NeitherCostNorFunction,
    Settle,
    show_limiter,
)
from penstock._call_method import are_parameters, calls_of_units, quick_key_of
from penstock._frozen import FrozenDict
from penstock._numbers import Number, Seconds, read_flag, read_seconds
from penstock._text import is_name_of_key, repr_of
from penstock._validation import (
    RESERVED,
    LimitLike,
    check_options,
    exact_costs,
    exact_heard,
    given_limits,
    is_plain,
    merge_given,
    read_flow,
    read_limits,
    read_pause,
    read_priority,
)
from penstock.errors import CostError
from penstock.events import LimiterEvent, Observed, Paused, Reconfigured, Resumed, emit
from penstock.limits import Limit
from penstock.permit import Permit, WatchedPermit, permits_of
from penstock.statistics import Forecast, LimitStatistics, Statistics

if TYPE_CHECKING:
    from penstock.stores.contract import Store
    from penstock.stores.memory import MemoryStore

__all__ = ["Limiter"]

F = TypeVar("F", bound=Callable[..., Any])
Limits = LimitLike | list[LimitLike] | tuple[LimitLike, ...]

_USUAL = 0  # the priority of a call that says nothing of it: by identity, as a user's number may refuse to compare


class Limiter:
    """Several limits that are charged together, or not at all.

    One limit, or a list of them, per unit; the units are yours to name:

        Limiter(requests=per_minute(3_500), tokens=["90k/min", "2M/day"], calls=in_flight(64))

    `limiter(tokens=5)` is an async context manager, a context manager for threads, and a decorator; `limiter` by itself
    is a call with the default costs. `requests`, and a unit whose limit is `in_flight`, cost 1 unless given.

    **Order.** Higher `priority` first; a waiter's priority rises by one for every `ageing` seconds. Within a priority
    flows share by dominant-resource fairness; within a flow it is first come, first served. A later call passes an
    earlier one only where that cannot delay it.

    **Sharing.** A limiter may be made at import time and used in any number of event loops, of asyncio and trio, and
    threads, at the same time. **Cancellation** at any await charges nothing; the next in the queue moves up. A call
    that need not wait does not yield to the event loop.

    Args:
        limits: Per unit a `Limit`, a string such as "90k/min", or a list of them. By keyword, or as one mapping: for
            units whose names are keywords here, and for type checkers.
        name: The name in errors and events. Limiters of one name in one store share their state. It stays until all
            their limits are full again, even when no limiter of that name exists any more.
        store: Where the state lives; this process unless given.
        max_queue: Most calls that may wait, 0 or more; `QueueFull` beyond that. None: any number.
        ageing: Seconds in the queue, above 0, after which a waiter's priority rises by one; `math.inf`: never.
        flow_weights: Weights of flows, above 0; 1 unless given. A flow of weight 2 gets twice the share.
        enforce: False is a rehearsal: all calls go through and are charged; `statistics().would_refuse` counts those
            that would have waited, or could never go. `on_event` then gets `Refused`, and after it `Granted`.
        on_event: A function that is called with a frozen record (`penstock.events`) of each event.
        lease: With a shared store: seconds or a timedelta, above 0, for which a process may hold quota and grant from
            it by itself.

    Raises:
        ValueError: A limit, or one of the numbers, is wrong, or a unit has the name of a keyword.
        ConfigurationConflict: The store has a limiter of that name with other limits.
    """

    # Units that the fast path knows as parameters have a subclass with a `__call__` of these units: see `_face_of`.

    __slots__ = ("__weakref__", "_backend", "_calls", "_info", "_joints", "_own", "_quick")

    _penstock_kind = "limiter"

    _backend: Backend
    _info: LimiterInfo
    _calls: Any  # by what was given: a dict, or for a key what has a `get`; a call that holds something is copied
    _joints: dict[Any, Any]  # with the limiters of keys: what all keys have in common
    _own: Call | None  # of `limiter` by itself
    _quick: dict[Any, Any]  # what `_calls` has too, as the `__call__` of its units looks it up
    _units: ClassVar[tuple[str, ...]] = ()  # that are parameters of its `__call__`
    _sole: ClassVar[str | None] = None  # the one of them that must be given

    def __init__(
        self,
        limits: Mapping[str, Limits] | None = None,
        /,
        *,
        name: str | None = None,
        store: MemoryStore | Store | None = None,
        max_queue: int | None = None,
        ageing: Seconds = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Callable[[LimiterEvent], object] | None = None,
        lease: Seconds | None = None,
        **more_limits: Limits,
    ) -> None:
        name, seconds, weights = check_options(name, max_queue, ageing, flow_weights, on_event)
        wanted = given_limits(limits, more_limits)
        if not wanted:
            raise ValueError("a limiter needs at least one limit, for example Limiter(requests=per_minute(60))")
        info = LimiterInfo(name, max_queue, on_event, enforce=read_flag("enforce", enforce))
        self._begin(backend_over(store, name, wanted, seconds, weights, lease, enforce=info.enforce), info)

    def _begin(self, backend: Backend, info: LimiterInfo) -> None:
        self._backend = backend
        self._info = info
        self._calls, self._quick = {}, {}
        self._own = None
        self._joints = {}
        plan = backend.plan()
        if type(self) is Limiter:  # a subclass of a user's stays what it is
            self.__class__ = _face_of(tuple(plan.units), tuple(plan.defaults))

    @classmethod
    def over(cls, backend: Backend, info: LimiterInfo) -> Limiter:
        """A limiter over a backend. Internal."""
        limiter = object.__new__(cls)
        limiter._begin(backend, info)
        return limiter

    @property
    def name(self) -> str | None:
        """What it is called in errors and events."""
        return self._info.name

    @property
    def joint(self) -> bool:
        """Whether it was made of several limiters, by `&`."""
        return len(self._backend.limit_sets) > 1

    @property
    def store(self) -> Any:
        """Where the state lives."""
        return self._backend.store

    # What users call

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(
        self,
        cost: Mapping[str, Cost] | None = None,
        /,
        *,
        settle: Settle | None = None,
        max_wait: Seconds | None = None,
        priority: int | Callable[..., int] = 0,
        flow: Hashable | Callable[..., Hashable] = None,
        block: bool = False,
        **costs: Cost,
    ) -> Call: ...

    def __call__(self, given: Any = None, /, **options: Any) -> Any:
        """A call of that cost: to enter with `async with` or `with`, or to decorate functions with.

        Args:
            given: What to decorate, in the form `@limiter`; or the cost as one mapping, `limiter({"tokens": 5})`.
            settle: In a decorator: a function of the result that returns the true cost, as `{"tokens": 123}`, or None
                to leave the charge as it is. If it raises, the error is logged and the caller gets the result.
            max_wait: Longest wait, in seconds or as a timedelta, 0 or more. A longer one is refused at once.
            priority: A whole number; higher goes first.
            flow: The flow that the call belongs to.
            block: Whether `with` may block the event loop of this thread, as in a notebook.
            costs: Amount per unit.

        In a decorator the costs, `max_wait`, `priority` and `flow` may be functions of the call's arguments: of those
        that they name, or of the first ones.

        Raises:
            MissingUnit, UnknownUnit, CostError: The cost is wrong.
        """
        if given is None or (given.__class__ is dict and not options and RESERVED.isdisjoint(given)):
            given = options if given is None else given
            key = (*given.items(),)[0] if len(given) == 1 else (*given.items(),)
            call = known_by(self._calls, key) or self._of_one(key)
            if call is None:
                return self._make_call(given, remembered=True)
            return call if not call._binding.charge.held else Call.of(call._binding, call._options)
        if isinstance(given, Mapping):
            return self._make_call(options, given)
        if not callable(given) and not isinstance(given, classmethod):
            raise NeitherCostNorFunction(
                f"a limiter is called with costs, limiter(tokens=5), or with a function to decorate: not with "
                f"{repr_of(given)}"
            )
        if options:
            raise TypeError("options come first, the function second: @limiter(tokens=5), limiter(tokens=5)(function)")
        return self._own_call()(given)

    def _make_call(
        self, options: dict[str, Any], cost: Mapping[str, Any] | None = None, *, remembered: bool = False
    ) -> Call:
        """The call of options that were not given before. `remembered`: it is found by them from now on."""
        said = {word: options[word] for word in RESERVED & options.keys()}
        how: dict[str, Any] = {**OPTIONS, **said}
        settle = how.pop("settle")
        costs = merge_given("costs", cost, {unit: amount for unit, amount in options.items() if unit not in said})
        if settle is not None or any(map(callable, (*costs.values(), *how.values()))):
            return CallByArguments(self._call_of, costs, settle, how)
        call = Call.of(self._backend.bind(self._info, costs), WaitOptions.read(**how) if said else PLAIN)
        if remembered:
            # Costs that cannot change, and are found by any number that equals them.
            exact = {**options, **exact_costs(costs)}
            self._remember(cost_key(exact), quick_key_of(self._units, self._sole, exact), call)
        return call if not call._binding.charge.held else Call.of(call._binding, call._options)

    def _of_one(self, key: tuple[Any, ...]) -> Call | None:
        """The call of one unit's amount that was not given before; None where it is no plain number, or not all."""
        unit, amount = key if len(key) == 2 else ("", None)
        if (type(amount) is not int and type(amount) is not float) or unit in RESERVED:
            return None
        call = Call.of(self._backend.bind(self._info, {unit: amount}))
        quick_key = amount if unit == self._sole else quick_key_of(self._units, self._sole, {unit: amount})
        self._remember(key, quick_key, call)
        return call

    def _remember(self, key: Any, quick_key: Any, call: Call) -> None:
        """Remember a call by what was given; a limiter per key remembers, for all keys, what is the same for all."""
        binding = call._binding
        try:
            if isinstance(self._calls, dict):
                remember(self._calls, key, call)
            if quick_key is not None and binding.backend is self._backend:
                made = call if isinstance(self._calls, dict) else (binding.charge, type(call), call._options)
                remember(self._quick, quick_key, made)
        except Exception:
            if is_plain(key):
                raise  # else it cannot be looked up, as an array of one number

    def _call_of(self, costs: Mapping[str, Any]) -> Call:
        """The call of these costs, none of which is a function."""
        key = (*costs.items(),)[0] if len(costs) == 1 else (*costs.items(),)
        plain = RESERVED.isdisjoint(costs)  # else the key is that of another call: `limiter(flow="alice")`
        call: Call | None = (known_by(self._calls, key) or self._of_one(key)) if plain else None
        if call is None:
            if any(map(callable, costs.values())):
                raise CostError("a cost may be a function of the call's arguments in a decorator only")
            call = Call.of(self._backend.bind(self._info, costs))
            if plain:
                exact = exact_costs(costs)
                self._remember(cost_key(exact), quick_key_of(self._units, self._sole, exact), call)
        return call

    async def acquire(
        self,
        cost: Mapping[str, Number] | None = None,
        /,
        *,
        max_wait: Seconds | None = None,
        priority: int = 0,
        flow: Hashable = None,
        **costs: Number,
    ) -> Permit:
        """Wait for our turn, charge `cost`, and return the permit.

        The permit must be ended where the limiter has `in_flight` limits: `with await limiter.acquire():`, or
        `permit.close()`. Cancelling charges nothing; the next in the queue moves up.

        Args:
            cost: Amount per unit, as one mapping; or by keyword.
            max_wait: Longest wait, in seconds or as a timedelta, 0 or more. A longer one is refused at once, not after
                the time is up; so is one that would pass the deadline of the enclosing anyio cancel scope.
            priority: A whole number; higher goes first.
            flow: The flow that the call belongs to, such as a user; flows share fairly.
            costs: Amount per unit, as named in the constructor; `requests` is 1 unless given.

        Raises:
            RateLimited: The turn would come after `max_wait`. `retry_after` says when it would.
            QueueFull: It would have to wait, no longer than `max_wait`, and as many as `max_queue` allows are waiting.
            Unsatisfiable: `cost` is above what a limit can ever hold, so no wait would do.
            MissingUnit, UnknownUnit, CostError: The cost is wrong.
        """
        plain = max_wait is None and priority is _USUAL and flow is None
        options = PLAIN if plain else WaitOptions.read(max_wait, priority, flow, block=False)
        call = self._call_of(costs if cost is None else merge_given("costs", cost, costs))
        binding = call._binding
        charge = binding.charge
        permit = WatchedPermit() if charge.watched else Permit()
        try:
            if not charge.grant(binding, permit):
                bound = binding.current()
                permit = await wait(bound, permits_of(bound), options)
            elif binding.info.on_event is not None:
                emit_grant(binding, 0.0, permit, options.flow)
        except BaseException:
            permit._undo()
            raise
        return permit

    def acquire_nowait(
        self, cost: Mapping[str, Number] | None = None, /, *, priority: int = 0, flow: Hashable = None, **costs: Number
    ) -> Permit:
        """Charge `cost` and return the permit, if that can be done now.

        Raises:
            RateLimited: It cannot, or it would delay others that wait. `retry_after` says when it could.
            WouldBlockEventLoop: The limiter has a shared store, whose answer takes a moment: `await
                acquire(max_wait=0)`.
            Unsatisfiable, MissingUnit, UnknownUnit, CostError: As in `acquire`.
        """
        priority, flow = read_priority(priority), read_flow(flow)
        call = self._call_of(merge_given("costs", cost, costs))
        binding = call._binding
        permit = permits_of(binding)()
        try:
            if not binding.charge.grant(binding, permit):
                bound = binding.current()
                permit = answer(bound, permits_of(bound), WaitOptions(None, priority, flow))
            elif binding.info.on_event is not None:
                emit_grant(binding, 0.0, permit, flow)
        except BaseException:
            permit._undo()
            raise
        return permit

    async def refresh(self) -> None:
        """Ask a shared store for its state, which `statistics` and `forecast` then show.

        A limiter of this process is always up to date.

        Raises:
            StoreError: It does not answer.
        """
        await self._backend.refresh()

    def forecast(self, cost: Mapping[str, Number] | None = None, /, **costs: Number) -> Forecast:
        """How long a call of that cost would wait if it came now. Charges nothing.

        Over a shared store: by what the store answered last.

        Raises:
            Unsatisfiable, MissingUnit, UnknownUnit, CostError: As in `acquire`.
        """
        call = self._call_of(merge_given("costs", cost, costs))
        return Forecast(*self._backend.forecast(call._binding.current()))

    def statistics(self) -> Statistics:
        """What was granted and refused so far, and how full each limit is now.

        Over a shared store: as it answered last.
        """
        now = self._backend.snapshot()
        limits: dict[str, LimitStatistics] = {}
        for label, state, level in now.levels:
            while label in limits:  # parts of a joint limiter may have promised just the same
                label += "'"  # noqa: PLW2901 - until it is free
            limits[label] = LimitStatistics(state.unit, state.limit, level, state.limit.capacity)
        info = self._info
        return Statistics(
            granted=info.granted,
            refused=info.refused,
            cancelled=info.cancelled,
            would_refuse=info.would_refuse,
            waiting=now.waiting,
            in_flight=now.in_flight,
            paused_for=now.paused_for,
            limits=FrozenDict(limits),
        )

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """What is promised now, per unit."""
        units = self._backend.plan().units
        return FrozenDict({unit: tuple(state.limit for state in states) for unit, states in units.items()})

    def pause(self, seconds: Seconds, *units: str) -> None:
        """Let no call through for so long; a pause is never shortened by another, only by `resume`.

        Calls that cost nothing at all go through.

        Args:
            seconds: From now; 0 or more, finite. Or a timedelta.
            units: Only calls that cost one of these. Default: all.

        Raises:
            ValueError: `seconds` is negative or not finite. UnknownUnit: The limiter has no such unit.
        """
        length = read_pause(seconds)
        self._backend.plan().check(units)
        self._backend.pause(length, units)
        _log.paused(self.name, length, units)
        if self._info.on_event is not None:
            emit(self._info.on_event, Paused(self.name, length, units))

    def resume(self, *units: str) -> None:
        """Lift the pauses, also those that a wrong header has caused. Waiters whose turn has come go at once.

        Args:
            units: Only the pauses of these. Default: all.

        Raises:
            UnknownUnit: The limiter has no such unit.
        """
        self._backend.plan().check(units)
        self._backend.resume(units)
        _log.paused(self.name, None, units)
        if self._info.on_event is not None:
            emit(self._info.on_event, Resumed(self.name, units))

    def reconfigure(self, limits: Mapping[str, Limits] | None = None, /, **more_limits: Limits) -> None:
        """Replace the limits of these units, live. What was used stays used; every waiter is decided again.

        A waiter for more than the new limits can ever hold gets `Unsatisfiable`. Joint limiters see the change too.

        Args:
            limits: As in the constructor, as one mapping; or by keyword.
            more_limits: As in the constructor.

        Raises:
            UnknownUnit: The limiter has no such unit.
            ValueError: A limit is wrong. Nothing has changed then.
        """
        wanted = read_limits(merge_given("limits", limits, more_limits), by_keyword=False)
        self._backend.plan().check(wanted)
        self._backend.reconfigure(wanted)
        if self._info.on_event is not None:
            emit(self._info.on_event, Reconfigured(self.name, wanted))

    def observe(
        self, *, remaining: Mapping[str, Number] | None = None, reset: Mapping[str, Number | Seconds] | None = None
    ) -> None:
        """Say what the server says is left now. Only ever lowers a level; raising it would break what was promised.

        If a unit has several limits, the number is taken for the one with the smallest capacity. To reconcile with the
        answer to a certain call, use `permit.observe`, which knows what was sent since.

        Args:
            remaining: Units left, per unit.
            reset: Seconds until the limit is whole again, per unit; used where `remaining` does not name the unit, and
                of rates only. If it is longer than an empty limit needs, nothing is left.

        Raises:
            UnknownUnit: The limiter has no such unit.
            CostError: Not a number, negative or infinite; nothing has changed then.
        """
        left = exact_heard("what remains of", remaining)
        resets = exact_heard("the seconds until the reset of", reset, read_seconds)
        self._backend.observe(left, resets, None)
        if self._info.on_event is not None:
            emit(self._info.on_event, Observed(self.name, left, resets))

    def __and__(self, other: Limiter) -> Limiter:
        """A limiter over both sets of limits: one atomic decision, one queue.

        Each limiter takes the units that it has limits for. From now on both share one queue, with all limiters that
        either was joined with.

        Raises:
            ValueError: They live in different shared stores, or only one of them enforces its limits; or one lives in a
                shared store, and the other has more than places in this process.
        """
        if not isinstance(other, Limiter):
            return NotImplemented
        mine, theirs = self._info, other._info
        limiter, key = (self, theirs) if type(theirs) is Key else (other, mine)
        if type(key) is Key and type(limiter._backend) is LocalBackend:
            states = joint_states(limiter._backend, limiter._info, key, limiter._joints, key_limiters, limiter is self)
            if states is not None:
                joint: Limiter = object.__new__(states.new)
                joint._backend = joint._info = joint._calls = Key(states, key.key)
                joint._quick, joint._own = states.quick, None
                return joint
        if mine.enforce is not theirs.enforce:
            real, rehearsal = (self, other) if mine.enforce else (other, self)
            raise ValueError(
                f"{rehearsal!r} is a rehearsal (enforce=False) and {real!r} is not, "
                "so they cannot be decided together: enter one after the other, or give both the same enforce="
            )
        try:
            backend = joined(self._backend, other._backend)
        except ValueError as error:
            raise ValueError(f"{self!r} and {other!r}: {error}") from None
        return Limiter.over(backend, joined_info(mine, theirs, joint_name(self.name, other.name)))

    # The limiter by itself is its own call, with nothing given.
    def _own_call(self) -> Call:
        own = self._own
        if own is None:
            own = Call.of(self._backend.bind(self._info, {}))
            with self._backend.store.lock:  # one for all threads that come here at once: it knows what they entered
                own = self._own = self._own or own
        return own

    def __aenter__(self) -> Coroutine[Any, Any, Permit]:
        return self._own_call().__aenter__()

    def __aexit__(self, kind: object, error: object, trace: object, /) -> Coroutine[Any, Any, None]:
        own: Any = self._own
        entered = own._entered
        try:
            return own.__aexit__(kind, error, trace)  # type: ignore[no-any-return]
        except BaseException:  # a signal handler has raised, perhaps at its beginning
            if own._entered is entered and entered.__class__ is not Entered:
                self.__exit__(kind, error, trace)
            raise

    def __enter__(self) -> Permit:
        return self._own_call().__enter__()

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        own: Any = self._own
        permit = None if own is None else own._entered
        if permit.__class__ is Entered or (permit is not None and not HAS_GIL):
            own.__exit__(kind, error, trace)
        elif permit is not None:
            own._entered = None  # no call comes before, so no exception of a signal handler
            permit._end()

    def __repr__(self) -> str:
        return show_limiter(self._info, self._backend.plan().units)

    def __reduce__(self) -> Any:
        return _made_again, (self._backend.recipe(self._info),)

    def __deepcopy__(self, _: Any = None) -> Limiter:
        try:
            return _made_again(self._backend.recipe(self._info))  # over a shared store, which keeps one state for both
        except TypeError:
            raise TypeError(
                f"{self!r} cannot be copied: a copy would grant the same quota once more. "
                "Share the limiter itself; or make another one, with a name= for both to share one state"
            ) from None

    __copy__ = __deepcopy__


Limiter.__call__.__signature__ = SIGNATURE  # type: ignore[attr-defined]  # what `help` and editors show


def _made_again(recipe: list[dict[str, Any]]) -> Limiter:
    """A limiter that was pickled: by its name, limits and store, which keeps what was used."""
    return reduce(and_, [_one_made_again(**each) for each in recipe])


def _one_made_again(*, name: str, max_queue: int | None, on_event: Any, **options: Any) -> Limiter:
    backend = backend_over(name=name, enforce=True, of_key=is_name_of_key(name), **options)
    return Limiter.over(backend, LimiterInfo(name, max_queue, on_event, enforce=True))


@lru_cache(256)
def _face_of(units: tuple[str, ...], with_default: tuple[str, ...], *, of_key: bool = False) -> type[Limiter]:
    """The class of limiters with these units, some of which have a default."""
    if not are_parameters(units):
        return Limiter
    must = [unit for unit in units if unit not in with_default]
    sole = must[0] if len(must) == 1 else None
    call = calls_of_units(units, sole, {"general": Limiter.__call__}, of_key=of_key)
    call.__doc__ = Limiter.__call__.__doc__
    call.__signature__ = Limiter.__call__.__signature__  # type: ignore[attr-defined]
    body = {"__slots__": (), "__doc__": Limiter.__doc__, "__module__": __name__, "__qualname__": "Limiter"}
    return type("Limiter", (Limiter,), {**body, "__call__": call, "_units": units, "_sole": sole})


def key_limiters(plan: ChargePlan) -> type[Limiter]:
    """The class of the limiters of keys. Internal: `Keyed` makes them, of a key that is backend, info and calls."""
    return _face_of(tuple(plan.units), tuple(plan.defaults), of_key=True)
