"""A function that fails so many times, for the tests of retries."""

from __future__ import annotations

import anyio

from penstock.retry import constant


class Flaky:
    """Fails `times` times with `error`, then answers; remembers when it was called."""

    def __init__(self, times, error=ConnectionError, virtual_time=None):
        self.left, self.error, self.time, self.at = times, error, virtual_time, []

    def sync(self, *_args):
        if self.time is not None:
            self.at.append(self.time.now())
        else:
            self.at.append(len(self.at))
        if self.left > 0:
            self.left -= 1
            raise self.error() if isinstance(self.error, type) else self.error
        return "reply"

    async def __call__(self, *args):
        await anyio.lowlevel.checkpoint()
        return self.sync(*args)


EVERY_SECOND = constant(1)
