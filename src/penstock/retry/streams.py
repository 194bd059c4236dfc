"""Retried async generators: until their first item, and after it only with `resume`.

`call` decides whether there is another attempt.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from penstock._concurrency.tasks import cut_after
from penstock._introspect import name_of
from penstock.retry.call import RetriedCall
from penstock.retry.functions import wait
from penstock.retry.settings import RetrySettings

Resume = Callable[..., AsyncIterator[Any]]
"""`resume(last, *args, **kwargs)`: an async iterator over the items after `last`."""


def retried_stream(
    policy: RetrySettings, fn: Callable[..., AsyncGenerator[Any, Any]], resume: Resume | None
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Decorate an async generator function."""
    name = name_of(fn)

    @functools.wraps(fn)
    async def retried(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        stream = _Stream(RetriedCall(policy, name), fn, args, kwargs, resume)
        try:
            more = await stream.advance(None)
            while more:
                try:
                    sent = yield stream.item
                except GeneratorExit:
                    stream.call.succeeded()  # the caller needs no more items
                    raise
                except BaseException as thrown:  # noqa: BLE001 - an error of the source, not of ours
                    more = await stream.throw(thrown)
                else:
                    more = await stream.advance(sent)
        finally:
            stream.call.leave()
            await _close(stream.source)

    return retried


class _Stream:
    """The attempts of one async generator.

    Attributes:
        item: The last item.
        source: The generator of this attempt.
    """

    __slots__ = ("_args", "_begun", "_fn", "_handed_out", "_kwargs", "_resume", "call", "item", "source")

    def __init__(
        self,
        call: RetriedCall,
        fn: Callable[..., AsyncGenerator[Any, Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resume: Resume | None,
    ) -> None:
        self.call = call
        self.item: Any = None
        self.source: AsyncIterator[Any] = fn(*args, **kwargs)
        self._fn, self._args, self._kwargs = fn, args, kwargs
        self._resume = resume
        self._begun = self._handed_out = False  # the first item of this attempt came; any item did

    async def advance(self, sent: Any) -> bool:
        """Get the next item; return whether there is one."""
        call = self.call
        while True:
            # While a failure would be retried here, inner policies make one attempt; after that they retry.
            ours = self._resume is not None or not self._handed_out
            try:
                if not self._begun:
                    call.begin()
                elif ours:
                    call.enter()
                self.item = await self._next(sent)
            except StopAsyncIteration:
                call.leave()
                call.succeeded()
                return False
            except BaseException as error:
                delay = call.failed(error, (self._fn, self._args, self._kwargs), repeatable=ours)
                if delay is None:
                    raise
            else:
                call.leave()
                self._begun = self._handed_out = True
                return True
            await _close(self.source)
            if not await wait(call, delay):
                raise call.last_error()
            self._start_over()
            sent = None

    async def throw(self, error: BaseException) -> bool:
        """Throw what the caller threw into the source, as @asynccontextmanager does; return whether an item came."""
        try:
            if not isinstance(self.source, AsyncGenerator):
                raise error
            try:
                self.item = await self.source.athrow(error)
            except StopAsyncIteration:
                self.call.succeeded()
                return False
            return True
        finally:
            del error  # its traceback refers to this frame if it comes back: no cycle

    async def _next(self, sent: Any) -> Any:
        policy = self.call.policy
        if self._begun or policy.attempt_timeout is None:
            return await _next_of(self.source, sent)
        with cut_after(policy.seconds_per_attempt) as scope:
            return await _next_of(self.source, sent)
        assert scope.cancelled_caught
        raise self.call.timed_out()

    def _start_over(self) -> None:
        if self._handed_out and self._resume is not None:
            self.source = self._resume(self.item, *self._args, **self._kwargs)
        else:
            self.source = self._fn(*self._args, **self._kwargs)
        self._begun = False


async def _next_of(source: AsyncIterator[Any], sent: Any) -> Any:
    if sent is not None and isinstance(source, AsyncGenerator):
        return await source.asend(sent)
    return await source.__anext__()


async def _close(source: AsyncIterator[Any]) -> None:
    if isinstance(source, AsyncGenerator):
        await source.aclose()
