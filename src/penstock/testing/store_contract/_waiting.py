"""What a limiter over a store must keep while calls wait: moments, order, pauses, and calls that give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio
import pytest

from penstock import Limiter, QueueFull, RateLimited, calendar, clock, per_minute, per_second
from penstock.stores.contract import Store
from penstock.testing.store_contract._stores import LATE, SOON, StoreTests, measured


class WaitingContract(StoreTests):
    """A call waits for its turn, no longer, and leaves nothing behind when it gives up."""

    @pytest.mark.anyio
    async def test_after_the_time_it_was_told_a_call_is_granted(self, stores: Callable[..., Store]) -> None:
        """`retry_after` is neither too short nor too long."""
        limiter = Limiter(requests=per_second(10, burst=1), name="x", store=stores())
        with pytest.raises(RateLimited) as caught:  # noqa: PT012
            while True:  # on a busy machine, the time of the first turns may pass before the next call
                await limiter.acquire(max_wait=0)
        assert 0 < caught.value.retry_after <= 0.1
        await anyio.sleep(caught.value.retry_after)
        await limiter.acquire(max_wait=0)

    @pytest.mark.anyio
    async def test_order_is_that_of_arrival_and_priority_goes_first(self, stores: Callable[..., Store]) -> None:
        """Among waiters; the head of the queue may have its reservation already."""
        limiter = Limiter(requests=per_second(20, burst=1), name="x", store=stores())
        await limiter.acquire()
        turns: list[tuple[float, str]] = []
        came: dict[str, float] = {}

        async def wait(name: str, priority: int) -> None:
            came[name] = clock.now()
            permit = await limiter.acquire(priority=priority)
            turns.append((permit.granted_at, name))  # on a busy machine two may wake up together, in any order

        async with anyio.create_task_group() as tasks:
            for name, priority in [("1st", 0), ("2nd", 0), ("3rd", 0), ("4th", 0), ("vip", 1), ("5th", 0)]:
                tasks.start_soon(wait, name, priority)
                await anyio.sleep(0.001)
        order = [name for _, name in sorted(turns)]
        assert [name for name in order if name != "vip"] == ["1st", "2nd", "3rd", "4th", "5th"]
        # Those that were granted while it was on its way: the head, and what it found under way.
        vip = next(at for at, name in turns if name == "vip")
        assert len([at for at, _ in turns if came["vip"] < at < vip]) <= 3

    @pytest.mark.anyio
    async def test_a_waiter_that_gives_up_hands_its_turn_on(self, stores: Callable[..., Store]) -> None:
        """The next waiter is granted when the one that left would have been."""
        limiter = Limiter(requests=per_second(5, burst=1), name="x", store=stores())
        # The store's clock began with the first grant, which was at some moment after this one.
        begin = time.monotonic()
        await limiter.acquire()
        first = time.monotonic()
        moments: list[float] = []

        async def wait() -> None:
            await limiter.acquire()
            moments.append(time.monotonic())

        async with anyio.create_task_group() as tasks, anyio.create_task_group() as impatient:
            impatient.start_soon(limiter.acquire)
            await anyio.sleep(0.05)
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            impatient.cancel_scope.cancel()
        assert moments[0] - begin >= 0.2 - 0.001
        assert moments[0] - first < 0.2 + LATE
        assert limiter.statistics().waiting == 0

    @pytest.mark.anyio
    async def test_giving_up_with_nobody_behind_gives_back(self, stores: Callable[..., Store]) -> None:
        """The next call finds the bucket as if no call had waited."""
        limiter = Limiter(requests=per_second(0.1, burst=2), name="x", store=stores())
        await limiter.acquire()
        await limiter.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: limiter.acquire(requests=2))
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
        await anyio.sleep(0.05)
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(max_wait=0)
        assert caught.value.retry_after <= 10 + 9  # a reservation was out for 20 s, and took 10 s with it at most

    @pytest.mark.anyio
    @pytest.mark.parametrize("where", ["here", "in another process"])
    @pytest.mark.parametrize("how", ["cancelled", "settled", "of a calendar", "other limits"])
    async def test_what_is_given_back_is_for_those_that_wait(
        self, stores: Callable[..., Store], where: str, how: str
    ) -> None:
        """And not only at the moment that they were told, which is most of a minute away, or a month."""
        limit = calendar(10, "month") if how == "of a calendar" else per_minute(10)
        mine = Limiter(tokens=limit, name="x", store=stores())
        theirs = mine if where == "here" else Limiter(tokens=limit, name="x", store=stores())
        permit = await theirs.acquire(tokens=10)
        await mine.refresh()  # it knows the limits before they change

        async def wait(granted: anyio.Event) -> None:
            await mine.acquire(tokens=4)
            granted.set()

        async with anyio.create_task_group() as tasks:
            waiting = [anyio.Event(), anyio.Event()]
            for granted in waiting:
                tasks.start_soon(wait, granted)
            await anyio.sleep(0.05)
            if how == "other limits":
                theirs.reconfigure(tokens=per_minute(1_000_000))
            elif how == "settled":
                permit.settle(tokens=2)
            else:
                permit.cancel()
            with anyio.fail_after(SOON):
                for granted in waiting:
                    await granted.wait()

    @pytest.mark.anyio
    async def test_a_pause_holds_everybody_in_every_process(self, stores: Callable[..., Store]) -> None:
        """Also the holder of a reservation for a moment within it; and a shorter pause does not end it."""
        mine, theirs = (Limiter(requests=per_second(20, burst=1), name="x", store=stores()) for _ in range(2))
        await theirs.acquire()
        begin = time.monotonic()
        mine.pause(0.4)
        mine.pause(0.1)
        await mine.refresh()
        paused = time.monotonic()
        await theirs.acquire()
        assert time.monotonic() - begin >= 0.4 - 0.01
        assert time.monotonic() - paused < 0.4 + LATE

    @pytest.mark.anyio
    async def test_a_pause_is_lifted_for_everybody(self, stores: Callable[..., Store]) -> None:
        """Also for the waiter whose turn was at its end, in the process that lifts it and in others."""
        mine, theirs = (Limiter(requests=per_second(1000, burst=10), name="x", store=stores()) for _ in range(2))
        mine.pause(60.0)
        await mine.refresh()
        with pytest.raises(RateLimited) as caught:
            await theirs.acquire(max_wait=0)
        assert caught.value.blocked_by == "pause"
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(SOON):
                tasks.start_soon(mine.acquire)
                await anyio.sleep(0.05)
                mine.resume()
                await mine.acquire()
                await theirs.acquire()

    @pytest.mark.anyio
    async def test_too_long_a_wait_is_refused_at_once(self, stores: Callable[..., Store]) -> None:
        """By max_wait, by the enclosing deadline, by the length of the queue."""
        limiter = Limiter(requests=per_second(0.01, burst=1), name="x", max_queue=1, store=stores())
        await limiter.acquire()
        with measured() as watch:
            with pytest.raises(RateLimited) as caught:
                await limiter.acquire(max_wait=5)
            assert caught.value.retry_after == pytest.approx(100, rel=0.1)
            with anyio.move_on_after(5), pytest.raises(RateLimited):
                await limiter.acquire()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(limiter.acquire)
                await anyio.sleep(0.05)
                with pytest.raises(QueueFull):
                    await limiter.acquire()
                tasks.cancel_scope.cancel()
        assert watch.seconds < 0.05 + LATE

    @pytest.mark.anyio
    async def test_flows_share_and_nobody_starves(self, stores: Callable[..., Store]) -> None:
        """A flow of one gets as much as a flow of twenty."""
        limiter = Limiter(requests=per_second(100, burst=1), name="x", store=stores())
        got = {"busy": 0, "quiet": 0}

        async def work(flow: str) -> None:
            while True:
                await limiter.acquire(flow=flow)
                got[flow] += 1
                if sum(got.values()) == 40:
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for flow in ["busy"] * 20 + ["quiet"] * 4:
                tasks.start_soon(work, flow)
        assert got["quiet"] >= 0.6 * got["busy"]

    def test_threads_without_an_event_loop_wait_too(self, stores: Callable[..., Store]) -> None:
        """In one queue with all others."""
        limiter = Limiter(requests=per_second(50, burst=1), name="x", store=stores())
        moments: list[float] = []

        def work() -> None:
            with limiter:
                moments.append(time.monotonic())

        threads = [threading.Thread(target=work) for _ in range(5)]
        begin = time.monotonic()  # and not the first moment: a thread may wake up long after it was granted
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 4 / 50 - 0.001 <= max(moments) - begin < 4 / 50 + LATE

    def test_one_limiter_serves_one_loop_after_another(self, stores: Callable[..., Store]) -> None:
        """As a limiter made at import time does."""
        limiter = Limiter(requests=per_second(1000), name="x", store=stores())

        async def main() -> None:
            async with limiter:
                pass

        for _ in range(3):
            anyio.run(main)
        anyio.run(main, backend="trio")
        assert limiter.statistics().granted == 4

    @pytest.mark.anyio
    async def test_cancelled_at_any_moment_nothing_is_lost(self, stores: Callable[..., Store]) -> None:
        """Hundreds of calls that give up at random: in the end everything is back but what was granted, and never more.

        A bucket remembers its latest 32 refunds one by one; what it has to forget of more may cost a unit here and
        there.
        """
        limiter = Limiter(requests=per_second(0.001, burst=1000), name="x", store=stores())
        granted = 0

        async def cancel_soon(scope: anyio.CancelScope, seconds: float) -> None:
            await anyio.sleep(seconds)
            scope.cancel()

        async def work(number: int) -> None:
            nonlocal granted
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cancel_soon, scope, (number % 7) * 0.0004)
                    await limiter.acquire()
                    granted += 1
                    tasks.cancel_scope.cancel()

        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for number in range(30):
                    tasks.start_soon(work, number)
        await anyio.sleep(0.05)
        await limiter.refresh()
        level = limiter.statistics().limits["requests"].level
        assert level <= 1000 - granted + 0.1
        assert level >= 1000 - granted - 3.1
        assert limiter.statistics().waiting == 0
