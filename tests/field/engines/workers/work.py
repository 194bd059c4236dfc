"""What the workers of an engine do. A module, so that workers import it."""

from __future__ import annotations

import time

CALL = 0.02
"""Seconds that a call takes."""


def fetch(limiter, number):
    """As in docs/many-machines.md; and a call takes its time."""
    with limiter:
        time.sleep(CALL)
        return number


async def ask(prompt):
    """What `Ask` of docs/many-machines.md calls."""
    import anyio

    await anyio.sleep(CALL)
    return prompt
