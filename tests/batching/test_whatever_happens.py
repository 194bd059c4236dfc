"""Each caller gets its own result or error, whatever happens."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, per_minute, testing
from penstock.batching import Batcher

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Happening:
    arrives: float
    leaves: float | None
    cost: int
    poison: bool


happenings = st.lists(
    st.builds(
        Happening,
        arrives=st.sampled_from([0, 0, 0, 0.5, 1, 1.5, 3]),
        leaves=st.one_of(st.none(), st.sampled_from([0, 0.25, 0.5, 1, 1.5, 2])),
        cost=st.integers(0, 5),
        poison=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    happenings=happenings,
    max_items=st.integers(1, 6),
    max_delay=st.sampled_from([0, 0.5, 1]),
    seconds=st.sampled_from([0, 1]),
    limited=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_each_gets_its_own_result_or_error_and_nothing_is_lost_or_sent_twice(
    backend, happenings, max_items, max_delay, seconds, limited, seed
):
    """Random arrivals, costs, failures and departures. An item is sent again only as part of a half."""
    calls = []
    results = {}
    shuffle = random.Random(seed)

    async def send(items):
        calls.append(frozenset(item for item, _ in items))
        await anyio.sleep(seconds)
        if any(happening.poison for _, happening in items):
            raise ValueError(sorted(item for item, happening in items if happening.poison))
        entries = [(position, item) for position, (item, _) in enumerate(items)]
        shuffle.shuffle(entries)
        return entries

    async def main():
        limiter = Limiter(requests=per_minute(40), tokens=per_minute(200)) if limited else None
        batcher = Batcher(
            send,
            max_items=max_items,
            max_cost={"tokens": 10},
            max_delay=max_delay,
            cost=lambda pair: {"tokens": pair[1].cost},
            index=lambda entry: entry[0],
            limiter=limiter,
        )

        async def call(item, happening):
            await anyio.sleep(happening.arrives)
            with anyio.move_on_after(math.inf if happening.leaves is None else happening.leaves):
                try:
                    results[item] = (await batcher((item, happening)))[1]
                except ValueError as error:
                    results[item] = error
                return
            results[item] = "left"

        async with anyio.create_task_group() as tasks:
            for item, happening in enumerate(happenings):
                tasks.start_soon(call, item, happening)
        if limiter is not None:
            assert limiter.statistics().waiting == 0

    testing.run(main, backend=backend)

    for item, happening in enumerate(happenings):
        if results[item] == "left" and happening.leaves is not None:
            continue
        if happening.poison:
            assert results[item].args == ([item],)
        else:
            assert results[item] == item
    for call in calls:
        assert 1 <= len(call) <= max_items
        assert sum(happenings[item].cost for item in call) <= 10
    # An item's calls are nested: each is a part of a half of the one before.
    for item in range(len(happenings)):
        mine = [call for call in calls if item in call]
        for before, after in pairwise(mine):
            assert after < before
            assert len(after) <= math.ceil(len(before) / 2)
