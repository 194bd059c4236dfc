"""Random numbers that no program can seed: they are drawn from the system.

The module `random` is not used, because programs seed it. Processes that seed it alike, as the ranks of a training run
do, would look like one process to a store, and would back off in step after an outage. And what a program draws from
`random` must not depend on what penstock does.
"""

from __future__ import annotations

from random import SystemRandom

CHANCE = SystemRandom()
