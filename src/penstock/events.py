"""Records of what happened. Nothing in here acts on them.

Each is a frozen value that is handed to the hook that was given (`Limiter(on_event=…)`, `Retry(on_event=…)`) at the
moment it happens. A hook runs in the task or thread that made the call and should be quick. What it raises is logged
and goes no further: watching a call must not break it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import BuiltinMethodType, MethodType
from typing import Any, Literal, TypeVar

from penstock._interruptions import is_an_interruption

__all__ = [
    "Answered",
    "AttemptStarted",
    "GaveUp",
    "Granted",
    "LimiterEvent",
    "Observed",
    "Paused",
    "Reason",
    "Reconfigured",
    "Refused",
    "Resumed",
    "RetryEvent",
    "RetryScheduled",
    "ServiceEvent",
    "Settled",
    "StoreLost",
    "StoreRecovered",
    "Succeeded",
    "Withdrawn",
    "emit",
]

Reason = Literal["attempts", "within", "deadline", "hint", "budget", "unretryable", "nested", "stream", "consumed"]
"""Why there is no further attempt.

`attempts`, `within`: that bound of the policy. `deadline`: the wait would pass the deadline of an enclosing cancel
scope. `hint`: the server asked for a longer wait than `max_hint` or the time left. `budget`: it has no retry left.
`unretryable`: `on` said no. `nested`: an outer policy is in charge. `stream`: an item was handed out already, and there
is no `resume`. `consumed`: an argument of the call can be read once only, and was.
"""


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An attempt begins.

    Attributes:
        name: The function called, or "block" in the loop form.
        idempotency_key: Of the call: the same in all events of one call, and nowhere else.
        number: Which attempt it is, from 1.
    """

    name: str
    idempotency_key: str
    number: int


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """An attempt failed, and there will be another.

    Attributes:
        name, idempotency_key: As in `AttemptStarted`.
        number: The attempt that failed, from 1.
        error: What it raised; None if `on_result` refused its result.
        delay: Seconds until the next attempt.
        hint: Seconds the server asked for, if it did. `delay` is never shorter.
    """

    name: str
    idempotency_key: str
    number: int
    error: Exception | None
    delay: float
    hint: float | None


@dataclass(frozen=True, slots=True)
class GaveUp:
    """An attempt failed, and there will be no other: the error, or the refused result, goes to the caller.

    Attributes:
        name, idempotency_key: As in `AttemptStarted`.
        attempts: How many there were.
        error: What the last one raised; None if `on_result` refused its result.
        reason: Which bound ended it.
        elapsed: Seconds since the first attempt began.
        hint: Seconds the server asked for, if it did.
    """

    name: str
    idempotency_key: str
    attempts: int
    error: Exception | None
    reason: Reason
    elapsed: float
    hint: float | None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The call succeeded.

    Attributes:
        name, idempotency_key: As in `AttemptStarted`.
        attempts: How many it took.
        elapsed: Seconds since the first attempt began.
    """

    name: str
    idempotency_key: str
    attempts: int
    elapsed: float


@dataclass(frozen=True, slots=True)
class Granted:
    """A call was charged, after `waited` seconds in the queue.

    Attributes:
        limiter: The limiter's name, here and below.
        cost: Amount per unit.
        waited: Seconds.
        flow: The flow that the call belongs to: as it says, or the `penstock.turn` that it is made in.
        call: A number that all events of one permit have in common, here and below. Other permits may have it later. 0:
            none was granted.
    """

    limiter: str | None
    cost: Mapping[str, float]
    waited: float
    flow: Hashable = None
    call: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Refused:
    """A call was refused with "not now".

    With `enforce=False` it would have been refused, and `Granted` follows; `retry_after` may be `inf`.
    """

    limiter: str | None
    cost: Mapping[str, float]
    retry_after: float
    blocked_by: str
    flow: Hashable = None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A permit was cancelled, or a waiter left the queue: everything is given back."""

    limiter: str | None
    cost: Mapping[str, float]
    call: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Settled:
    """The true cost of a call is known: `cost` has the amount per unit."""

    limiter: str | None
    cost: Mapping[str, float]
    call: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request to a service is over: of a client that `limit_client` made, or of a run.

    Attributes:
        limiter, flow, call: As in `Granted`; where the limiter tells the same listener of its grant, both are about one
            request.
        model: Which was asked; None: the request names none.
        cost: What it was charged, as estimated, per unit.
        usage: What the service says that it took: `input_tokens` and `output_tokens`, and `cached_tokens` where there
            are some that were paid for and are in neither; empty: it did not say.
        waited: Seconds in the queue.
        elapsed: Seconds from the grant to the end of the answer.
        status: Of the answer; 0: it was sent, and there is none.
    """

    limiter: str | None
    model: str | None
    cost: Mapping[str, float]
    usage: Mapping[str, float]
    waited: float
    elapsed: float
    status: int
    flow: Hashable = None
    call: int = field(default=0, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Paused:
    """No call gets through for `seconds`, or none that costs one of `units`, if any are named."""

    limiter: str | None
    seconds: float
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """Pauses were lifted; only those of `units`, if any are named."""

    limiter: str | None
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the server said, per unit: units left, and seconds until the limit is whole again."""

    limiter: str | None
    remaining: Mapping[str, float]
    reset: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """These units have other limits now."""

    limiter: str | None
    limits: Mapping[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class StoreLost:
    """A shared store has not answered for as long as its `patience`.

    Attributes:
        store: Which, as it shows itself.
        reason: What happened instead of an answer.
        on_outage: What happens until it answers: "raise", "share" or "open".
    """

    store: str
    reason: str
    on_outage: str


@dataclass(frozen=True, slots=True)
class StoreRecovered:
    """A shared store that did not answer answers again."""

    store: str


LimiterEvent = Granted | Refused | Withdrawn | Settled | Paused | Resumed | Observed | Reconfigured
ServiceEvent = Answered | Reconfigured
RetryEvent = AttemptStarted | RetryScheduled | GaveUp | Succeeded

_Event = TypeVar("_Event")


class _Granted:
    """What a `Granted` is while it is made: its attributes can be set."""

    __slots__ = ("call", "cost", "flow", "limiter", "waited")


def granted(limiter: str | None, cost: Mapping[str, float], waited: float, flow: Hashable, call: int) -> Granted:
    """A `Granted`, in a quarter of the time: a frozen dataclass sets each of its attributes by a call."""
    event: Any = _Granted()
    event.limiter = limiter
    event.cost = cost
    event.waited = waited
    event.flow = flow
    event.call = call
    event.__class__ = Granted
    return event  # type: ignore[no-any-return]  # that is what it is now


def emit(hook: Callable[[_Event], object], event: _Event) -> None:
    """Hand `event` to `hook`; log what the hook raises, under the name "penstock", and go on."""
    try:
        hook(event)
    except Exception as raised:
        if is_an_interruption(raised):
            raise
        import logging  # 5 ms that only a failing hook needs

        with suppress(Exception):  # of a filter or handler of the user's
            logging.getLogger("penstock").exception("the event hook %r failed on %r", hook, event)


class _Hooks:
    """The hooks of both limiters of a joint one: each is called once for an event, however often it was joined."""

    __slots__ = ("hooks",)

    def __init__(self, hooks: tuple[Callable[[Any], object], ...]) -> None:
        self.hooks = hooks

    def __call__(self, event: Any) -> None:
        for hook in self.hooks:
            emit(hook, event)


def joined_hook(*given: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """One hook for all that were given, or None."""
    single = [hook for one in given if one is not None for hook in (one.hooks if isinstance(one, _Hooks) else (one,))]
    # A method is another object whenever it is looked up; a hook that is a list besides equals others that are empty.
    apart = {hook if isinstance(hook, MethodType | BuiltinMethodType) else id(hook): hook for hook in single}
    hooks = tuple(apart.values())
    return _Hooks(hooks) if len(hooks) > 1 else hooks[0] if hooks else None
