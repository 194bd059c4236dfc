"""What `limiter(...)` is: an async context manager, a context manager for threads, and a decorator in one.

A `Call` is no permit: a permit exists once something was granted. Entering a call charges it, by the fast path of its
binding if no call waits (`_backends.fast_path`), else by the wait loop (`_backends.wait`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Hashable, Mapping
from functools import lru_cache, wraps
from inspect import Parameter, Signature
from types import coroutine
from typing import Any, NoReturn, TypeVar, cast

from penstock import _log
from penstock._arguments import of_call
from penstock._backends import fast_path
from penstock._backends.base import HAS_GIL, Binding, LimiterInfo
from penstock._backends.wait import LOOP, PLAIN, WaitOptions, emit_grant, wait, wait_in_thread
from penstock._concurrency.parking import is_over, who_am_i
from penstock._interruptions import is_an_interruption
from penstock._introspect import check_answer, decorable_kind, name_of, why_not_plain
from penstock._numbers import Number
from penstock._run_inside import run_inside
from penstock._text import PLAIN as PLAIN_TYPES
from penstock._text import repr_of, visible
from penstock._user_errors import add_notes
from penstock._validation import RESERVED, merge_given
from penstock.errors import CostError
from penstock.limits import show_limits
from penstock.permit import EnteredPermit, Permit

F = TypeVar("F", bound=Callable[..., Any])
Settle = Callable[[Any], Mapping[str, Number]]
Cost = Number | Callable[..., Number]


OPTIONS = {"settle": None, "max_wait": None, "priority": 0, "flow": None, "block": False}
"""Options of a call beside its cost, and what they are unless given."""

SIGNATURE = Signature(
    [
        Parameter("self", Parameter.POSITIONAL_ONLY),
        Parameter("given", Parameter.POSITIONAL_ONLY, default=None),
        *(Parameter(word, Parameter.KEYWORD_ONLY, default=default) for word, default in OPTIONS.items()),
        Parameter("costs", Parameter.VAR_KEYWORD),
    ]
)
"""Of what makes calls."""


class NeitherCostNorFunction(CostError, TypeError):  # noqa: N818 - as all of ours
    """What a limiter was called with is neither a cost nor a function to decorate."""


class Entered:
    """The permits of an object that is entered more than once at a time: leaving ends the one that was entered last.

    Where it was entered in another task (a fixture, an exit stack) one permit is as good as another, as all cost the
    same.

    Attributes:
        first: The permit of the first entry, which is nearly always the only one: its task or thread is not looked up.
    """

    __slots__ = ("_permits", "first")

    def __init__(self) -> None:
        self.first: Permit | None = None
        self._permits: dict[object, list[Permit]] = {}  # the others, by the task or thread that entered

    def add(self, permit: Permit) -> None:
        me = who_am_i()
        mine = self._permits.get(me)
        if mine is None:
            self._permits[me] = [permit]
        else:
            mine.append(permit)

    def forget(self, permit: Permit) -> None:
        """An exception came after `add`, or in it: this task, or thread, has not entered."""
        if self.first is permit:
            self.first = None
            return
        mine = self._permits.get(who_am_i())
        if mine and mine[-1] is permit:
            mine.pop()

    def leave(self, *, alike: bool) -> Permit | None:
        """This task, or thread, leaves: return the permit that ends, if there is one.

        `alike`: all that entered have a permit here. Else this one may have none, and that of another task or thread is
        taken only if that is over, and cannot leave by itself.
        """
        permits, me = self._permits, who_am_i()
        mine = permits.get(me)
        if not mine:
            first = self.first
            if first is not None:
                self.first = None  # no call comes between, so no other caller takes it too
                return first
            # The last entry; a copy, as other threads come and go.
            others = [*permits.items()][::-1]
            me, mine = next(((who, theirs) for who, theirs in others if theirs and (alike or is_over(who))), (me, None))
        if not mine:
            return None
        permit = mine.pop()  # if an exception keeps it from being closed, it closes itself
        if not mine:
            permits.pop(me, None)
        return permit


@coroutine
def _finished() -> Generator[None, None, None]:
    """Nothing: a generator that has ended can be awaited again and again, and returns None at once."""
    yield from ()


DONE = cast("Coroutine[Any, Any, None]", _finished())
"""Awaited, it is done: what `__aexit__` returns, which never waits, and so needs no coroutine of its own."""
next(cast("Generator[None, None, None]", DONE), None)


class Call:
    """What `limiter(...)` is: an async context manager, a context manager for threads, and a decorator.

    It charges nothing by itself. `async with limiter(tokens=5) as permit:` waits for its turn and yields the permit.
    """

    # Of the shapes that the fast path knows there are subclasses, with methods of that shape: see `_class_for`.

    __slots__ = ("_binding", "_entered", "_options")

    _penstock_kind = "limiter"

    _binding: Binding
    _options: WaitOptions
    _entered: Permit | Entered | None  # the permit that holds places, nearly always the only one; or all of them

    @staticmethod
    def of(binding: Binding, options: WaitOptions = PLAIN) -> Call:
        """A call of a cost that is bound. Internal."""
        charge = binding.charge
        asks = charge.grant is fast_path.look_closer and not charge.held
        call = _AskingCall() if asks else _class_for(charge.shape)()
        call._binding = binding
        call._options = options
        call._entered = None
        return call

    async def __aenter__(self) -> Permit:
        binding = self._binding
        charge = binding.charge
        held = charge.held
        kind = EnteredPermit if held else Permit
        if charge.grant is not fast_path.look_closer:
            permit = kind()
            try:
                if charge.grant(binding, permit):
                    if held:
                        self._note(permit)
                    if binding.info.on_event is not None:
                        emit_grant(binding, 0.0, permit, self._options.flow)
                    return permit
            except BaseException:
                self._withdraw(permit)
                raise
            del permit  # it would be one object more for each of many waiters
        binding = binding.current()
        granted = await wait(binding, kind, self._options)
        if (binding.charge.held or granted.charges is not binding.charge.charges) and granted.held:
            self._note_or_undo(granted)
        return granted

    def __aexit__(self, kind: object, error: object, trace: object, /) -> Coroutine[Any, Any, None]:
        if self._entered is not None:
            self._leave()
        return DONE

    def __enter__(self) -> Permit:
        binding = self._binding
        permit = EnteredPermit() if binding.charge.held else Permit()
        try:
            if not binding.charge.grant(binding, permit):
                permit = wait_in_thread(binding.current(), EnteredPermit, self._options)
            elif binding.info.on_event is not None:
                emit_grant(binding, 0.0, permit, self._options.flow)
            if permit.held:  # the limits may have changed while it waited
                self._note(permit)
        except BaseException:
            self._withdraw(permit)
            raise
        return permit

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        entered: Any = self._entered
        if entered.__class__ is Entered:
            self._leave()
        elif entered is not None:
            self._entered = None  # no call comes before, so no exception of a signal handler
            entered._end()

    def _note(self, permit: Permit) -> None:
        """Remember a permit that holds places until the call is left."""
        entered: Any = self._entered
        if entered is None and self._binding.later is None:
            self._entered = permit
            return
        if entered.__class__ is not Entered:
            several = Entered()
            entered = self._entered  # no call comes from this look to the last assignment, so nothing comes between
            if entered.__class__ is not Entered:
                several.first = entered
                self._entered = entered = several
        entered.add(permit)

    def _note_or_undo(self, permit: Permit) -> None:
        permit.__class__ = EnteredPermit
        try:
            self._note(permit)
        except BaseException:
            self._withdraw(permit)
            raise

    def _withdraw(self, permit: Permit) -> None:
        """An exception came while the call was being entered: it is not."""
        if self._entered is permit:
            self._entered = None
        elif isinstance(self._entered, Entered):
            self._entered.forget(permit)
        permit._undo()

    def _leave(self) -> None:
        permit: Any = self._entered
        if permit.__class__ is Entered:
            permit = permit.leave(alike=self._binding.later is None)
        else:
            self._entered = None
        if permit is not None:
            permit._end()

    def __call__(self, function: F, /) -> F:
        """Decorate `function`: every call is charged first. See `Limiter.__call__`."""
        binding, options = self._binding, self._options

        def enter(_: Any, __: Any) -> Call:
            return Call.of(binding, options)

        return run_inside(function, enter, enter)

    def _shown(self) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Its cost and its options, as given."""
        options = self._options
        shown = {"max_wait": options.max_wait, "priority": options.priority or None, "flow": options.flow}
        return self._binding.charge.cost, shown

    def __repr__(self) -> str:
        binding = self._binding
        return show_call(show_limiter(binding.info, binding.backend.plan().units), *self._shown())

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled or copied: "
            "share it, as it may be entered by any number of tasks, or call the limiter again"
        )


def with_lock(kind: type[Call]) -> None:
    """Let calls note what has entered, and find what leaves, with the lock held: without the GIL no block is one step.

    As one call may be entered by several threads at once, and a permit that is not noted gives its places back.
    """
    for name in ("_note", "_withdraw", "_leave", "__exit__"):
        setattr(kind, name, _locked(getattr(kind, name)))


def _locked(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def locked(self: Call, *given: object) -> None:
        with self._binding.backend.store.lock:
            method(self, *given)

    return locked


if not HAS_GIL:
    with_lock(Call)


class _AskingCall(Call):
    """A call that holds nothing and always asks its backend, as those of stores do: to enter it is to wait."""

    __slots__ = ()

    __aenter__ = fast_path.enter_by_waiting({"Permit": Permit, **LOOP})


_AskingCall.__name__ = _AskingCall.__qualname__ = "Call"


@lru_cache(256)
def _class_for(shape: str) -> type[Call]:
    """The class of the calls whose charge is of that shape."""
    if not shape:
        return Call
    names = {"Permit": Permit, "EnteredPermit": EnteredPermit, "emit_grant": emit_grant, "DONE": DONE, **LOOP}
    body = {"__slots__": (), "__doc__": Call.__doc__, "__module__": __name__, "__qualname__": "Call"}
    return type("Call", (Call,), {**body, **fast_path.enter_and_leave(shape, names)})


def show_call(limiter: str, cost: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """A call as its `repr` shows it: what is called, the cost, and the options that were given."""
    # A unit that is called like an option, or is no identifier, can be given in a mapping only.
    whole = any(unit in RESERVED or not unit.isidentifier() for unit in cost)
    named = options if whole else {**cost, **options}
    parts = [repr(dict(cost))] if whole else []
    parts += [
        f"{key}={getattr(value, '__qualname__', repr(value))}" for key, value in named.items() if value is not None
    ]
    return f"{limiter}({', '.join(parts)})"


def show_limiter(info: LimiterInfo, units: Mapping[str, Any]) -> str:
    text = show_limits({unit: [state.limit for state in states] for unit, states in units.items()})
    return f"Limiter({visible(info.name) + ': ' if info.name else ''}{text})"


class CallByArguments(Call):
    """A call whose cost, priority, flow or settlement are functions of the decorated function's arguments or result."""

    __slots__ = ("_call_of", "_cost", "_functions", "_settle")

    def __init__(
        self,
        call_of: Callable[[Mapping[str, float]], Call],
        cost: Mapping[str, Any],
        settle: Settle | None,
        options: Mapping[str, Any],
    ) -> None:
        self._call_of = call_of
        self._cost = cost
        self._settle = settle
        self._functions = options  # max_wait, priority, flow and block, each a value or a function
        self._entered = None
        check_functions(settle, {**options, **cost})
        # What is a function is checked when it has answered, the rest now.
        plain = {name: None if callable(value) else value for name, value in options.items()}
        self._options = WaitOptions.read(
            plain["max_wait"], plain["priority"] or 0, plain["flow"], block=plain["block"] or False
        )
        self._binding = call_of({unit: 0 if callable(value) else value for unit, value in cost.items()})._binding

    async def __aenter__(self) -> Permit:
        self._refuse_to_be_entered()
        return await super().__aenter__()

    def __enter__(self) -> Permit:
        self._refuse_to_be_entered()
        return super().__enter__()

    def _refuse_to_be_entered(self) -> None:
        for option, value in (*self._cost.items(), *self._functions.items()):
            if callable(value):
                raise CostError(
                    f"{option}={name_of(value)} is a function of the call's arguments: "
                    "use it in a decorator, not in `with`"
                )
        raise CostError(
            f"settle={name_of(self._settle)} is a function of the call's result: use it in a decorator, and "
            "permit.settle(...) in `with`"
        )

    def __call__(self, function: F, /) -> F:
        """Decorate `function`: every call is charged first. See `Limiter.__call__`."""
        name, call_of = self._binding.info.name, self._call_of
        return decorated(function, lambda _, costs: call_of(costs), self._cost, self._settle, self._functions, name)

    def _shown(self) -> tuple[Mapping[str, Any], dict[str, Any]]:
        options = {name: value or None for name, value in self._functions.items()}
        return self._cost, {"settle": self._settle, **options}


def check_functions(settle: Any, others: Mapping[str, Any]) -> None:
    """Refuse functions of a call that would have to be awaited, and a `settle=` that is none."""
    if settle is not None and not callable(settle):
        raise CostError(f"settle= must be a function of the result that returns the true cost, not {repr_of(settle)}")
    for given, function in (("settle", settle), *others.items()):
        if callable(function) and (why := why_not_plain(function)):
            raise CostError(f"{given}={name_of(function)}: {why}")


def decorated(
    function: F,
    call_of: Callable[[Any, Mapping[str, float]], Call],
    cost: Mapping[str, Any],
    settle: Settle | None,
    options: Mapping[str, Any],
    limiter: str | None,
    key: Callable[..., Hashable] | None = None,
) -> F:
    """Decorate a function: each call costs what `cost` says of its arguments, at the limiter of its key."""
    kind = decorable_kind(function)
    owner = f"limiter {limiter} of {name_of(function)}" if limiter else f"limiter of {name_of(function)}"
    if settle is not None and kind not in {"async", "sync"}:
        raise CostError(
            "settle= needs a result, and a generator or a context manager has none: settle inside, on the permit of "
            "`with limiter(...)`"
        )
    fixed_costs = {unit: amount for unit, amount in cost.items() if not callable(amount)}
    asked = [(unit, _chosen(unit, value, function, owner)) for unit, value in cost.items() if callable(value)]
    words = {name: _chosen(name, value, function, owner) for name, value in options.items()}
    fixed = None if any(map(callable, words.values())) else WaitOptions.read(**words)
    plain = fixed == PLAIN
    key_of = _chosen("key", key, function, owner)

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        whose = None if key_of is None else key_of(args, kwargs)
        costs = fixed_costs.copy()
        for unit, answer in asked:
            costs[unit] = answer(args, kwargs)
        said = (
            {} if fixed else {name: value(args, kwargs) if callable(value) else value for name, value in words.items()}
        )
        try:
            call = call_of(whose, costs)
            if plain and not call._binding.charge.held:
                return call
            return Call.of(call._binding, fixed or WaitOptions.read(**said))
        except ValueError as error:
            error.add_note(f"penstock: it is what the {owner} worked out of the arguments of a call")
            raise

    if settle is None:
        return run_inside(function, enter, enter)
    return run_inside(function, enter, enter, seen=lambda permit, result: _settle(permit, settle, result, owner))


def _chosen(option: str, value: Any, function: Callable[..., Any], owner: str) -> Any:
    """A value, or a function of a call's arguments as a function of `(args, kwargs)`."""
    if not callable(value):
        return value
    answer_to = of_call(option, value, function)

    def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = answer_to(args, kwargs)
        except Exception as error:
            add_notes(error, f"penstock: raised by {option}={name_of(value)} of the {owner}, asked about a call")
            raise
        if type(result) not in PLAIN_TYPES:
            check_answer(owner, option, result)
        return result

    return answer


def _settle(permit: Permit, settle: Settle, result: Any, owner: str) -> None:
    """Settle a call by its result. What goes wrong is logged: the result was paid for, and must reach the caller."""
    try:
        true_cost = settle(result)
        check_answer(owner, "settle", true_cost)
        permit.settle(merge_given("costs", true_cost, {}))
    except Exception as raised:
        if is_an_interruption(raised):
            raise
        message = "settle=%s of the %s failed on its result: the call stays charged as it was"
        _log.broken("penstock", message, name_of(settle), owner)
