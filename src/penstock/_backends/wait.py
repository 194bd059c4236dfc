"""How a task or a thread waits for a backend's answer: the one wait loop, in its two forms."""

from __future__ import annotations

import math
from collections.abc import Hashable

import anyio.lowlevel

from penstock._backends.base import Backend, Binding, Grant, Request
from penstock._concurrency.parking import Parker, ThreadParker, here, loop_running_here
from penstock.errors import RateLimited, WouldBlockEventLoop

__all__ = ["answer_at_once", "wait", "wait_in_thread"]


async def wait(
    backend: Backend, binding: Binding, grant: Grant, max_wait: float | None, priority: int, flow: Hashable
) -> Request:
    """Wait as this task until `grant` is filled in.

    Raises:
        PenstockError: The backend's answer.
    """
    parker = here()
    time_left = parker.time_left()
    if time_left == -math.inf:
        await anyio.lowlevel.checkpoint()  # the scope is cancelled already: say so, and not that it is too late
    request = Request(binding, grant, parker, max_wait, time_left, priority, flow)
    try:
        seconds = backend.enter(request)
        while seconds is not None:
            await parker.park(seconds)
            seconds = backend.advance(request)
    except BaseException:
        backend.leave(request)
        raise
    if request.error is not None:
        raise request.take_error()
    return request


def wait_in_thread(
    backend: Backend,
    binding: Binding,
    grant: Grant,
    max_wait: float | None,
    priority: int,
    flow: Hashable,
    *,
    block: bool = False,
) -> Request:
    """Wait as this thread until `grant` is filled in.

    Raises:
        WouldBlockEventLoop: It would have to wait, and this thread runs an event loop; unless `block` allows that.
        PenstockError: The backend's answer.
    """
    if not block and loop_running_here():
        try:
            return answer_at_once(backend, binding, grant, priority, flow)
        except RateLimited as late:
            message = (
                f"{late}: waiting here would block the running event loop. Use `async with`, run this function in a thread (for example "
                "with anyio.to_thread.run_sync), or allow it with block=True (notebooks)"
            )
        raise WouldBlockEventLoop(message)
    parker = ThreadParker()
    request = Request(binding, grant, parker, max_wait, math.inf, priority, flow)
    try:
        seconds = backend.enter(request)
        while seconds is not None:
            parker.park_thread(seconds)
            seconds = backend.advance(request)
    except BaseException:
        backend.leave(request)
        raise
    if request.error is not None:
        raise request.take_error()
    return request


def answer_at_once(
    backend: Backend, binding: Binding, grant: Grant, priority: int = 0, flow: Hashable = None
) -> Request:
    """Fill in `grant` now, or raise."""
    no_parker: Parker | None = None
    request = Request(binding, grant, no_parker, 0.0, math.inf, priority, flow)
    try:
        backend.enter(request)
    except BaseException:
        backend.leave(request)
        raise
    if request.error is not None:
        raise request.take_error()
    return request
