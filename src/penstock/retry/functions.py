"""Retried calls of functions, async and plain: the two forms of one loop over attempts, and of the waits in it.

`call` decides whether there is another attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from inspect import CO_ITERABLE_COROUTINE
from types import CoroutineType, GeneratorType
from typing import Any

import anyio

from penstock._concurrency.tasks import cut_after, sleep
from penstock.retry.call import RetriedCall, Sent

PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})
"""Types of results that cannot be unfinished: asking about the others takes longer than all the rest."""

Unfinished = Callable[[RetriedCall, Sent, Any], Any]
"""Is given a call, its function and arguments, and a result. Returns what the caller gets instead, or None: the result
itself."""


def is_awaitable(result: object) -> bool:
    """Return whether `await result` works. It looks at the type, as `await` does: some proxies claim any attribute."""
    return hasattr(type(result), "__await__") or (
        isinstance(result, GeneratorType) and bool(result.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    )


async def call_async(
    call: RetriedCall, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, begun: bool = False
) -> Any:
    """Make the attempts of an async function, or of a plain one that does not block.

    `begun`: the first attempt has begun already, in a plain function whose result is to be awaited.
    """
    policy = call.policy
    try:
        while True:
            try:
                if begun:
                    call.enter()
                else:
                    call.begin()
                if policy.attempt_timeout is None:
                    result = fn(*args, **kwargs)
                    if type(result) is CoroutineType or is_awaitable(result):
                        result = await result
                else:
                    result = await _in_time(call, fn, args, kwargs)
            except BaseException as error:
                delay = call.failed(error, (fn, args, kwargs))
                if delay is None:
                    raise
                result = None
            else:
                call.leave()
                if policy.on_result is None:
                    call.succeeded()
                    return result
                delay = call.judged(result, (fn, args, kwargs))
                if delay is None:
                    return result
            begun = False
            if not await wait(call, delay):
                return call.outcome(result)
    finally:
        if call.running:
            call.leave()  # a signal handler has raised as an attempt ended


async def _in_time(call: RetriedCall, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One attempt, cut after `attempt_timeout`."""
    with cut_after(call.policy.seconds_per_attempt):
        result = fn(*args, **kwargs)
        return await result if is_awaitable(result) else result
    raise call.timed_out()


def call_sync(
    call: RetriedCall,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    begun: bool = False,
    unfinished: Unfinished | None = None,
) -> Any:
    """Make the attempts of a function, in a thread that may block.

    `begun`: the first attempt has begun already. `unfinished` may replace a result whose work is not done yet.
    """
    policy = call.policy
    call.in_loop = False
    try:
        while True:
            try:
                if begun:
                    call.enter()
                else:
                    call.begin()
                result = fn(*args, **kwargs)
            except BaseException as error:
                delay = call.failed(error, (fn, args, kwargs))
                if delay is None:
                    raise
                result = None
            else:
                call.leave()
                if (
                    type(result) not in PLAIN
                    and unfinished is not None
                    and (instead := unfinished(call, (fn, args, kwargs), result)) is not None
                ):
                    return instead
                if policy.on_result is None:
                    call.succeeded()
                    return result
                delay = call.judged(result, (fn, args, kwargs))
                if delay is None:
                    return result
            begun = False
            if not wait_sync(call, delay):
                return call.outcome(result)
    finally:
        if call.running:
            call.leave()  # as in `call_async`


async def wait(call: RetriedCall, delay: float) -> bool:
    """Wait `delay` seconds; return whether there may be an attempt after it."""
    try:
        if call.doomed:
            # A deadline that is due but has not struck yet strikes while we sleep.
            await anyio.sleep_forever()
        await sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()


def wait_sync(call: RetriedCall, delay: float) -> bool:
    """Block the thread for `delay` seconds; return whether there may be an attempt after it."""
    try:
        if delay > 0:
            time.sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()
