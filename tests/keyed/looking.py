"""What the tests of keys share."""

from __future__ import annotations

import gc


def look_at_all(per_user, generation=2):
    """Use another key until all that nobody holds have been looked at twice; not even an error's traceback holds
    one."""
    gc.collect(generation)
    for _ in range(64 * (len(per_user) // 32 + 3)):
        per_user["another"]


def level(limiter, unit="requests"):
    return limiter.statistics().limits[unit].level
