"""The one wait loop, for tasks and for threads: wait for a backend's answer, and emit the events of a call.

What the answer is, the backend decides; how a task or thread sleeps is in `_concurrency.parking`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import inf
from typing import Any, NamedTuple, TypeVar

from anyio.lowlevel import checkpoint

from penstock import _log
from penstock._backends.base import Binding, Grant, Request
from penstock._concurrency.parking import Parker, ThreadParker, here, loop_running_here
from penstock._numbers import read_flag
from penstock._turn import NOTHING, turn_here
from penstock._validation import read_flow, read_priority, read_wait
from penstock.errors import PenstockError, RateLimited, WouldBlockEventLoop
from penstock.events import Refused, Withdrawn, emit, granted

G = TypeVar("G", bound=Grant)


class WaitOptions(NamedTuple):
    """How a call waits. A value, shared by all calls that say the same."""

    max_wait: float | None = None
    priority: int = 0
    flow: Hashable = None
    block: bool = False

    @classmethod
    def read(cls, max_wait: Any, priority: Any, flow: Any, *, block: bool) -> WaitOptions:
        return cls(read_wait(max_wait), read_priority(priority), read_flow(flow), block=read_flag("block", block))


PLAIN = WaitOptions()
"""The options of a call that gives none."""


async def wait(binding: Binding, new: Callable[[], G], options: WaitOptions) -> G:
    """Wait as this task for its turn; return the grant, a new one made by `new`, or raise the backend's answer.

    `fast_path` has the same in the methods that it writes: a coroutine less for each of many waiters.
    """
    request = grant = None  # the grant is made at the end: it would be one object more for each of many waiters
    try:
        parker = here()
        if options is PLAIN and turn_here() is NOTHING:  # as most
            request = binding.backend.request_type(binding, parker, None, parker.time_left())
        else:
            request = request_of(binding, parker, options)
        if request.time_left == -inf:
            await checkpoint()  # the scope is cancelled already: say so, and not that it is too late
        seconds = binding.backend.enter(request)
        while True:  # no condition at the top: see `tests/test_guards.py`
            if seconds is None:
                break
            await request.parker.park(seconds)
            seconds = binding.backend.advance(request)
        grant = new()
        if request.error is not None or binding.info.on_event is not None:
            fill_in(binding, request, grant, options.flow)
        else:
            binding.backend.hand_over(request, grant)
    except BaseException as error:
        give_up(binding, request, grant, error, options.flow)
        raise
    return grant


def wait_in_thread(binding: Binding, new: Callable[[], G], options: WaitOptions) -> G:
    """`wait`, as this thread; WouldBlockEventLoop if it runs an event loop, unless that is allowed."""
    if options.block or not loop_running_here():
        return answer(binding, new, options, ThreadParker())
    try:
        return answer(binding, new, options)
    except RateLimited as error:
        if options.max_wait == 0:
            raise
        message = (
            f"{error}: waiting here would block the running event loop. Use `async with`, "
            "run this function in a thread (for example with anyio.to_thread.run_sync), "
            "or allow it with block=True, as in a notebook"
        )
    raise WouldBlockEventLoop(message)


def answer(binding: Binding, new: Callable[[], G], options: WaitOptions, parker: Any = None) -> G:
    """The grant for which this thread parks; without a parker a grant now, or RateLimited."""
    request = grant = None
    try:
        if parker is None:
            request = binding.backend.request_type(binding, None, 0.0, inf, options.priority, options.flow)
        else:
            request = request_of(binding, parker, options)
        seconds = binding.backend.enter(request)
        while True:  # as in `wait`
            if seconds is None:
                break
            parker.park_thread(seconds)
            seconds = binding.backend.advance(request)
        grant = new()
        fill_in(binding, request, grant, options.flow)
    except BaseException as error:
        give_up(binding, request, grant, error, options.flow)
        raise
    return grant


def request_of(binding: Binding, parker: Parker, options: WaitOptions) -> Request:
    """The request of a call; what it leaves open is as `penstock.turn` says here."""
    turn = turn_here()
    if turn is NOTHING:
        return binding.backend.request_type(
            binding, parker, options.max_wait, parker.time_left(), options.priority, options.flow
        )
    return binding.backend.request_type(
        binding,
        parker,
        turn.max_wait if options.max_wait is None else options.max_wait,
        parker.time_left(),
        options.priority or turn.priority or 0,
        turn.flow if options.flow is None else options.flow,
    )


def fill_in(binding: Binding, request: Request, grant: Grant, flow: Hashable) -> None:
    """Let a grant be that of a request which has its answer; or raise that."""
    if request.error is not None:
        raise request.error
    binding.backend.hand_over(request, grant)
    if binding.info.on_event is not None:
        emit_grant(binding, grant.granted_at - request.arrived, grant, flow)


def give_up(
    binding: Binding, request: Request | None, grant: Grant | None, error: BaseException, flow: Hashable
) -> None:
    """Leave no trace of a call that ends with this error: the backend's answer, a cancellation, a signal handler's."""
    if grant is not None:
        grant.void()
    if request is not None:
        if error is request.error:
            request.error = None  # the error's traceback leads back to the request
        else:
            binding.backend.leave(request)
    _emit_failure(binding, error, flow)


LOOP = {
    "here": here,
    "PLAIN": PLAIN,
    "NOTHING": NOTHING,
    "turn_here": turn_here,
    "request_of": request_of,
    "inf": inf,
    "checkpoint": checkpoint,
    "fill_in": fill_in,
    "give_up": give_up,
}
"""What `wait` is made of, by name."""


def emit_grant(binding: Binding, waited: float, grant: Grant, flow: Hashable) -> None:
    info = binding.info
    assert info.on_event is not None, "callers have looked"
    whose = turn_here().flow if flow is None else flow
    waited = waited if waited > 0.0 else 0.0
    emit(info.on_event, granted(info.name, binding.charge.full_cost, waited, whose, id(grant)))


def _emit_failure(binding: Binding, error: BaseException, flow: Hashable) -> None:
    info, charge = binding.info, binding.charge
    if isinstance(error, RateLimited):
        _log.refused(info.name, charge.cost, error.retry_after, error.blocked_by)
        if info.on_event is not None:
            whose = turn_here().flow if flow is None else flow
            emit(info.on_event, Refused(info.name, charge.full_cost, error.retry_after, error.blocked_by, whose))
    elif info.on_event is not None and not isinstance(error, PenstockError):
        emit(info.on_event, Withdrawn(info.name, charge.full_cost))
