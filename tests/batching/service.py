"""A service that answers lists of items, and callers of a batcher."""

from __future__ import annotations

import anyio


class Service:
    """Answers a list of items with `("got", item)` for each, after `seconds`. Poisonous items fail the whole call."""

    def __init__(self, seconds=0.0, poison=(), error=ValueError):
        self.seconds = seconds
        self.poison = set(poison)
        self.error = error
        self.calls = []
        self.times = []
        self.began = self.cancelled = 0

    async def __call__(self, items):
        self.calls.append(list(items))
        self.times.append(anyio.current_time())
        self.began += 1
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.cancelled += 1
            raise
        if bad := self.poison.intersection(items):
            raise self.error(f"cannot take {sorted(bad)}")
        return [("got", item) for item in items]


async def outcomes(call, items):
    """What each of the items came to, all called at the same moment: a result or an exception."""
    results = [None] * len(items)

    async def one(position, item):
        try:
            results[position] = await call(item)
        except Exception as error:
            results[position] = error

    async with anyio.create_task_group() as tasks:
        for position, item in enumerate(items):
            tasks.start_soon(one, position, item)
    return results


def got(items):
    return [("got", item) for item in items]


class Callers:
    """Starts callers one by one, cancels some, and notes what came of each."""

    def __init__(self, batcher, tasks):
        self.batcher = batcher
        self.tasks = tasks
        self.scopes = {}
        self.results = {}

    def start(self, item):
        self.scopes[item] = anyio.CancelScope()
        self.tasks.start_soon(self._call, item)

    async def _call(self, item):
        with self.scopes[item]:
            try:
                self.results[item] = await self.batcher(item)
            except Exception as error:
                self.results[item] = error
        self.results.setdefault(item, "cancelled")

    def cancel(self, item):
        self.scopes[item].cancel()
