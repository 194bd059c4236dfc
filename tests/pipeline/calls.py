"""Calls for the layers to stand around: one that fails, one that answers, and one that hangs."""

from __future__ import annotations

import anyio.lowlevel


def raises(error):
    """A function that raises this error in each call."""

    async def fail(*_args):
        raise error

    return fail


async def echo(value):
    await anyio.lowlevel.checkpoint()
    return value


async def stuck(*_args):
    await anyio.sleep_forever()
