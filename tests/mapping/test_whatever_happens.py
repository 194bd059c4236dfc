"""amap: each result comes once, and the bounds always hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import testing
from penstock.mapping import amap
from tests.mapping.calls import Source

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Step:
    seconds: float
    fails: bool


steps = st.builds(Step, seconds=st.sampled_from([0, 0, 0.5, 1, 3]), fails=st.sampled_from([False] * 6 + [True]))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    plan=st.lists(steps, max_size=30),
    in_flight=st.integers(1, 8),
    ordered=st.booleans(),
    return_errors=st.booleans(),
    kind=st.sampled_from(["iterable", "generator", "async generator"]),
    pauses=st.sampled_from([0, 0.25, 2]),
    leaves_after=st.one_of(st.none(), st.integers(0, 30)),
    deadline=st.sampled_from([math.inf, math.inf, 2.25, 5]),
)
def test_each_result_comes_once_and_the_bounds_always_hold(
    backend, plan, in_flight, ordered, return_errors, kind, pauses, leaves_after, deadline
):
    source = Source(len(plan), seconds=0.1)
    running, received, failed, done = set(), [], None, False

    async def call(item):
        assert len(running) < in_flight
        running.add(item)
        try:
            await anyio.sleep(plan[item].seconds)
            if plan[item].fails:
                raise KeyError(item)
            return item
        finally:
            running.remove(item)

    async def main():
        nonlocal failed, done
        with anyio.move_on_after(deadline):
            try:
                async with amap(
                    call, source.of(kind), in_flight=in_flight, ordered=ordered, return_errors=return_errors
                ) as results:
                    if leaves_after != 0:
                        async for result in results:
                            received.append(result if isinstance(result, int) else result.args[0])
                            await anyio.sleep(pauses)
                            assert source.read - len(received) <= 2 * in_flight
                            if len(received) == leaves_after:
                                break
                        else:
                            done = True
            except KeyError as error:
                failed = error.args[0]
            assert not running
        assert not running

    testing.run(main, backend=backend)
    assert source.closed or source.read == 0
    assert len(set(received)) == len(received)
    if ordered:
        assert received == list(range(len(received)))
    if done:
        assert sorted(received) == list(range(len(plan)))
    if failed is not None:
        assert plan[failed].fails
        assert not return_errors
    if done and not return_errors:
        assert not any(step.fails for step in plan)
