"""What a limiter over a store must keep when limits change or the store is closed, and which calls it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import anyio
import pytest

from penstock import (
    ConfigurationConflict,
    Limiter,
    Rate,
    RateLimited,
    StoreError,
    Unsatisfiable,
    WouldBlockEventLoop,
    calendar,
    in_flight,
    per_second,
    sliding,
    unlimited,
)
from penstock.limits import Limit
from penstock.stores.contract import Store
from penstock.testing.store_contract._stores import SOON, StoreTests


class ChangeContract(StoreTests):
    """New limits reach every process, and a closed store leaves no call waiting."""

    @pytest.mark.anyio
    async def test_new_limits_reach_every_process(self, stores: Callable[..., Store]) -> None:
        """And a process that begins with the old ones is told."""
        mine, theirs = (Limiter(requests=per_second(0.01, burst=2), name="x", store=stores()) for _ in range(2))
        for _ in range(2):
            await theirs.acquire()
        await mine.refresh()
        mine.reconfigure(requests=per_second(100, burst=100))
        with anyio.fail_after(SOON):
            await mine.acquire(requests=50)
            await theirs.refresh()
            await theirs.acquire(requests=50)
        assert theirs.limits["requests"][0] == per_second(100, burst=100)
        late = Limiter(requests=per_second(0.01, burst=2), name="x", store=stores())
        with pytest.raises(ConfigurationConflict, match=r"100/s there, requests=0\.01/s burst 2 here"):
            await late.acquire()

    @pytest.mark.anyio
    async def test_limits_that_are_equal_are_the_same_in_every_process(self, stores: Callable[..., Store]) -> None:
        """However their numbers are written."""
        mine, theirs = stores(), stores()
        equal: dict[str, tuple[Limit | str, Limit]] = {
            "rate": ("60/min", Rate(60.0, 60, 60.0)),
            "fraction": ("0.5/s burst 2", Rate(0.5, timedelta(seconds=1), 2.0)),
            "window": (sliding(5, 10), sliding(5.0, timedelta(seconds=10))),
            "period": (calendar(5, 3600), calendar(5.0, timedelta(hours=1))),
            "places": (in_flight(5, ttl=10), in_flight(5.0, ttl=10.0)),
        }
        for name, (one, other) in equal.items():
            await Limiter(requests=one, name=name, store=mine).acquire()
            await Limiter(requests=other, name=name, store=theirs).acquire()

    @pytest.mark.anyio
    async def test_a_waiter_for_more_than_the_new_limits_hold_is_told(self, stores: Callable[..., Store]) -> None:
        """Instead of waiting for ever."""
        limiter = Limiter(requests=per_second(1, burst=10), name="x", store=stores())
        await limiter.acquire(requests=10)
        with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the group is what raises
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: limiter.acquire(requests=1))
                tasks.start_soon(lambda: limiter.acquire(requests=9))
                await anyio.sleep(0.05)
                limiter.reconfigure(requests=per_second(100, burst=5))
        assert caught.group_contains(Unsatisfiable)

    @pytest.mark.anyio
    async def test_a_call_on_limits_that_another_process_has_replaced_is_charged_on_the_new_ones(
        self, stores: Callable[..., Store]
    ) -> None:
        """Also the very call by which a process hears of them.

        One that they can never hold is told, and none slips through.
        """
        limits: dict[str, Limit] = {"requests": per_second(0.01, burst=20), "tokens": unlimited}
        mine, theirs = (Limiter(limits, name="x", store=stores()) for _ in range(2))
        for limiter in (mine, theirs):
            await limiter.acquire(tokens=1)
        mine.reconfigure(requests=per_second(0.01, burst=5), tokens=per_second(0.01, burst=5))
        await mine.acquire(tokens=1, requests=0)
        with anyio.fail_after(SOON):
            with pytest.raises(Unsatisfiable):
                await theirs.acquire(tokens=0, requests=10)
            await theirs.acquire(tokens=4, requests=0)
            with pytest.raises(RateLimited):
                await mine.acquire(tokens=1, requests=0, max_wait=0)

    @pytest.mark.anyio
    @pytest.mark.parametrize("after", [unlimited, per_second(0.01, burst=50)], ids=["no limit", "one of two"])
    async def test_what_is_given_back_to_a_limit_that_is_gone_goes_to_no_other(
        self, stores: Callable[..., Store], after: Limit
    ) -> None:
        """Though its place among the limits is that of another now, or nobody's."""
        limits: dict[str, Limit | str | list[Limit | str] | tuple[Limit | str, ...]] = {
            "requests": per_second(0.01, burst=10),
            "tokens": [per_second(0.01, burst=50), per_second(0.01, burst=90)],
            "words": per_second(0.01, burst=10),
        }
        limiter = Limiter(limits, name="x", store=stores())
        await limiter.acquire(requests=5, tokens=20, words=5)
        permit = await limiter.acquire(requests=5, tokens=20, words=5)
        limiter.reconfigure(tokens=after)
        permit.cancel()
        await limiter.acquire(requests=5, tokens=0, words=5)
        for unit in ("requests", "words"):
            cost = {"requests": 0, "tokens": 0, "words": 0, unit: 1}
            with pytest.raises(RateLimited):
                await limiter.acquire(cost, max_wait=0)

    @pytest.mark.anyio
    async def test_what_cannot_be_done_is_said(self, stores: Callable[..., Store]) -> None:
        """With the way out."""
        store = stores()
        limiter = Limiter(requests=per_second(5), name="x", store=store)
        with pytest.raises(WouldBlockEventLoop, match="max_wait=0"):
            limiter.acquire_nowait()
        with pytest.raises(WouldBlockEventLoop, match="async with"), limiter:
            pass
        with pytest.raises(ValueError, match="needs a name="):
            Limiter(requests=per_second(5), store=store)
        with pytest.raises(ValueError, match="brace"):
            Limiter(requests=per_second(5), name="a{b}", store=store)
        with pytest.raises(Unsatisfiable):
            await limiter.acquire(requests=6)

    @pytest.mark.anyio
    async def test_a_closed_store_begins_anew_when_it_is_used(self, stores: Callable[..., Store]) -> None:
        """Closing sends what was still to be said."""
        store = stores()
        limiter = Limiter(calls=in_flight(1), name="x", store=store)
        permit = await limiter.acquire()
        permit.close()
        store.close()
        again = Limiter(calls=in_flight(1), name="x", store=stores())
        async with again:
            pass
        with anyio.fail_after(SOON):
            async with limiter:
                pass

    @pytest.mark.anyio
    async def test_waiters_are_told_when_the_store_is_closed(self, stores: Callable[..., Store]) -> None:
        """With a reservation, or in the queue behind it; and a store may be closed twice, and used again."""
        store = stores()
        limiter = Limiter(requests=per_second(0.1, burst=1), name="x", store=store)
        await limiter.acquire()
        told = []

        async def wait() -> None:
            with pytest.raises(StoreError, match="was closed"):
                await limiter.acquire()
            told.append(True)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.sleep(0.05)
            store.close()
            store.close()
        assert len(told) == 3
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)
        store.close()
