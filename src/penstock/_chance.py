"""Chance of our own, drawn from the system.

Never the module `random`, which programs seed. Processes that seed it alike, as the ranks of a training run do, would
be one process to a store, and back off in step after an outage. And what they draw of it themselves does not depend on
what penstock does.
"""

from __future__ import annotations

from random import SystemRandom

CHANCE = SystemRandom()
