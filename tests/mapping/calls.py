"""What the tests of amap call and read, and what they wait for."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest


async def sleep(seconds):
    await anyio.sleep(seconds)
    return seconds


class Calls:
    """An async function that counts what runs. Sleeps for its item, and doubles it."""

    def __init__(self, seconds=None, bad=()):
        self.seconds = seconds
        self.bad = set(bad)
        self.begun = []
        self.running = self.most = self.cancelled = 0

    async def __call__(self, item):
        self.begun.append(item)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(item if self.seconds is None else self.seconds)
            if item in self.bad:
                raise KeyError(item)
            return 2 * item
        except BaseException as error:
            self.cancelled += not isinstance(error, Exception)
            raise
        finally:
            self.running -= 1


class Source:
    """Numbers, as a generator of either kind, that says how far it was read and whether it was closed."""

    def __init__(self, count, seconds=0.0, fails_at=None):
        self.count = count
        self.seconds = seconds
        self.fails_at = fails_at
        self.read = 0
        self.closed = False

    def __iter__(self):
        return self.sync()

    def sync(self):
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise OSError("cannot read on")
                self.read += 1
                yield number
        finally:
            self.closed = True

    async def asynchronous(self):
        try:
            for number in range(self.count):
                await anyio.sleep(self.seconds)
                if number == self.fails_at:
                    raise OSError("cannot read on")
                self.read += 1
                yield number
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            finally:
                self.closed = True

    def of(self, kind):
        return {"iterable": lambda: self, "generator": self.sync, "async generator": self.asynchronous}[kind]()


every_kind_of_source = pytest.mark.parametrize("kind", ["iterable", "generator", "async generator"])


async def collect(results, received):
    """What was received stays, also when an error follows."""
    async for result in results:
        received.append(result)


async def settled():
    """Let everything that can run now run."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
