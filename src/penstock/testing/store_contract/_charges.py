"""What a limiter over a store must keep: what is charged, settled, held and given back, in every process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio
import pytest

from penstock import Keyed, Limiter, RateLimited, calendar, in_flight, per_second, sliding, unlimited
from penstock.stores.contract import Store
from penstock.testing.store_contract._stores import LATE, SOON, StoreTests, measured


class ChargeContract(StoreTests):
    """A call is charged on all its limits or on none, once, and for every process."""

    @pytest.mark.anyio
    async def test_a_burst_goes_at_once_and_the_next_waits_its_time(self, stores: Callable[..., Store]) -> None:
        """Never early; late only by the machine."""
        limiter = Limiter(requests=per_second(20, burst=3), name="x", store=stores())
        with measured() as watch:
            for _ in range(7):
                async with limiter:
                    pass
        assert 0.2 - 0.001 <= watch.seconds < 0.2 + LATE

    @pytest.mark.anyio
    async def test_two_processes_share_one_limit(self, stores: Callable[..., Store]) -> None:
        """What both were granted is at most burst + rate × time, and both go on being granted."""
        burst = 50  # spent at once, so that what flows in while a busy machine stalls this test is kept, and not lost
        limiters = [Limiter(requests=per_second(200, burst=burst), name="x", store=stores()) for _ in range(2)]
        granted = [0, 0]
        enough = anyio.Event()

        async def work(process: int) -> None:
            while True:
                async with limiters[process]:
                    granted[process] += 1
                if sum(granted) >= 60 and min(granted) >= 10:
                    enough.set()

        begin = time.monotonic()
        await limiters[0].acquire(requests=burst)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for process in [0, 1] * 8:
                    tasks.start_soon(work, process)
                await enough.wait()
                tasks.cancel_scope.cancel()
        assert sum(granted) <= 200 * (time.monotonic() - begin) + 1

    @pytest.mark.anyio
    async def test_all_limits_or_none(self, stores: Callable[..., Store]) -> None:
        """A call that one limit refuses leaves the others alone."""
        limiter = Limiter(
            requests=per_second(0.01, burst=5), tokens=per_second(0.01, burst=10), name="x", store=stores()
        )
        await limiter.acquire(tokens=8)
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(tokens=5, max_wait=0)
        assert caught.value.blocked_by == "tokens"
        assert caught.value.retry_after == pytest.approx(300, rel=0.02)
        await limiter.refresh()
        assert limiter.statistics().limits["requests"].level == pytest.approx(4, abs=0.1)

    @pytest.mark.anyio
    async def test_a_window_slides_and_a_day_ends(self, stores: Callable[..., Store]) -> None:
        """Sliding windows and calendars are counted too."""
        limiter = Limiter(requests=sliding(3, 0.3), tokens=calendar(10, "month"), name="x", store=stores())
        with measured() as watch:
            for _ in range(4):
                await limiter.acquire(tokens=2)
        assert 0.3 - 0.001 <= watch.seconds < 0.3 + LATE
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(tokens=3, max_wait=0)
        assert caught.value.blocked_by == "tokens"

    @pytest.mark.anyio
    async def test_a_window_by_the_clock_ends_at_a_multiple_of_its_length(self, stores: Callable[..., Store]) -> None:
        """However much of it has passed when it is used first, and in the store's own time."""
        limiter = Limiter(requests=calendar(3, 0.4), name="x", store=stores())
        with measured() as watch:
            for _ in range(10):
                await limiter.acquire()
        assert 0.8 - 0.001 <= watch.seconds < 1.2 + LATE

    @pytest.mark.anyio
    async def test_the_true_cost_is_settled_down_and_up(self, stores: Callable[..., Store]) -> None:
        """Down at once and safely, up as a debt that later calls wait for."""
        limiter = Limiter(tokens=per_second(0.01, burst=100), name="x", store=stores())
        permit = await limiter.acquire(tokens=80)
        permit.settle(tokens=30)
        assert permit.cost == {"tokens": 30}
        await limiter.refresh()
        assert limiter.statistics().limits["tokens"].level == pytest.approx(70, abs=0.1)
        permit.settle(tokens=130)
        await limiter.refresh()
        assert limiter.statistics().limits["tokens"].level == pytest.approx(-30, abs=0.1)
        permit.settle(tokens=10)
        await limiter.refresh()
        assert limiter.statistics().limits["tokens"].level == pytest.approx(90, abs=0.1)

    @pytest.mark.anyio
    async def test_a_call_that_was_never_sent_gives_everything_back(self, stores: Callable[..., Store]) -> None:
        """Once: cancelling again gives nothing more back."""
        limiter = Limiter(tokens=per_second(0.01, burst=100), name="x", store=stores())
        permit = await limiter.acquire(tokens=80)
        permit.cancel()
        permit.cancel()
        assert permit.cost == {}
        await limiter.acquire(tokens=100, max_wait=0)

    @pytest.mark.anyio
    async def test_places_are_held_until_the_permit_ends(self, stores: Callable[..., Store]) -> None:
        """In any process."""
        mine, theirs = (Limiter(calls=in_flight(2), name="x", store=stores()) for _ in range(2))
        async with mine:
            permit = await theirs.acquire()
            with pytest.raises(RateLimited) as caught:
                await mine.acquire(max_wait=0)
            assert (caught.value.retry_after, caught.value.blocked_by) == (math.inf, "calls")
            permit.close()
            with anyio.fail_after(SOON):
                async with mine:
                    pass

    @pytest.mark.anyio
    async def test_places_of_a_silent_process_come_back(self, stores: Callable[..., Store]) -> None:
        """After their time to live, and not before."""
        limiter = Limiter(calls=in_flight(1, ttl=0.3), name="x", store=stores())
        with measured() as watch:
            await limiter.acquire()
            await limiter.acquire()
        assert 0.3 - 0.001 <= watch.seconds < 0.3 + LATE

    @pytest.mark.anyio
    async def test_unlimited_is_never_charged(self, stores: Callable[..., Store]) -> None:
        """A unit without a limit may cost anything; one that gets a limit later is counted from then on."""
        limiter = Limiter(requests=per_second(0.01, burst=2), tokens=unlimited, name="x", store=stores())
        permit = await limiter.acquire(tokens=1e9)
        permit.settle(tokens=1e12)
        await limiter.refresh()
        assert limiter.statistics().limits["requests"].level == pytest.approx(1, abs=0.1)
        limiter.reconfigure(tokens=per_second(0.01, burst=5))
        await limiter.acquire(tokens=5)
        with pytest.raises(RateLimited):
            await limiter.acquire(tokens=1, requests=0, max_wait=0)
        free = Limiter(tokens=unlimited, name="free", store=stores())
        await free.acquire(tokens=5)
        await free.refresh()
        assert free.statistics().granted == 1

    @pytest.mark.anyio
    async def test_what_the_server_says_lowers_the_level_for_all(self, stores: Callable[..., Store]) -> None:
        """Never raises it; and a word about an earlier call does not forget what went since."""
        mine, theirs = (Limiter(tokens=per_second(0.01, burst=100), name="x", store=stores()) for _ in range(2))
        permit = await mine.acquire(tokens=10)
        await theirs.acquire(tokens=20)
        permit.observe(remaining={"tokens": 50})
        await mine.refresh()
        await theirs.refresh()
        assert theirs.statistics().limits["tokens"].level == pytest.approx(30, abs=0.1)
        mine.observe(remaining={"tokens": 90})
        await mine.refresh()
        assert mine.statistics().limits["tokens"].level == pytest.approx(30, abs=0.1)

    @pytest.mark.anyio
    async def test_every_key_has_limits_of_its_own(self, stores: Callable[..., Store]) -> None:
        """The same in every process."""
        mine, theirs = (Keyed(requests=per_second(0.01, burst=2), name="users", store=stores()) for _ in range(2))
        await mine["alice {1}"].acquire(requests=2)
        await theirs["bob"].acquire(requests=2)
        with pytest.raises(RateLimited):
            await theirs["alice {1}"].acquire(max_wait=0)

    @pytest.mark.anyio
    async def test_joined_limiters_are_one_decision(self, stores: Callable[..., Store]) -> None:
        """Both or neither."""
        store = stores()
        org = Limiter(requests=per_second(0.01, burst=3), name="org", store=store)
        user = Limiter(tokens=per_second(0.01, burst=10), name="user", store=store)
        both = org & user
        await both.acquire(tokens=6)
        with pytest.raises(RateLimited):
            await both.acquire(tokens=6, max_wait=0)
        await org.refresh()
        assert org.statistics().limits["requests"].level == pytest.approx(2, abs=0.1)

    @pytest.mark.anyio
    async def test_a_joint_limiter_tells_its_limits_of_one_unit_apart(self, stores: Callable[..., Store]) -> None:
        """In what it refuses and in what it shows."""
        store = stores()
        org = Limiter(requests=per_second(0.01, burst=3), name="org", store=store)
        user = Limiter(requests=per_second(0.01, burst=2), name="user", store=store)
        both = org & user
        await both.acquire(requests=2)
        with pytest.raises(RateLimited) as refused:
            await both.acquire(requests=1, max_wait=0)
        assert refused.value.blocked_by == "requests (0.01/s burst 2)"
        levels = {label: limit.level for label, limit in both.statistics().limits.items()}
        expected = {"requests (0.01/s burst 3)": 1, "requests (0.01/s burst 2)": 0}
        assert levels == pytest.approx(expected, abs=0.1)
