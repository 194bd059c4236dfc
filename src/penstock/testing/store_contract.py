"""What every shared store must keep, as tests that run on yours.

    # test_my_store.py, with pytest and anyio's plugin
    from penstock.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda **options: MyStore(tmp_path / "state", **options)

Every call of `make_store` returns a store object of its own over the same state, as another process would have it. The
tests run in real time, since a store's clock is its own; they wait some tenths of a second each. What they
say about time is exact where it is a promise (never early), and generous where a busy machine may be late.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from penstock import (
    ConfigurationConflict,
    Keyed,
    Limiter,
    QueueFull,
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
from penstock._core import ledger
from penstock.limits import Limit
from penstock.stores.contract import Batch, Store, Terms

__all__ = ["StoreContract"]

LATE = 1.0
"""Seconds by which a busy machine may be late."""


class StoreContract:
    """Subclass it with a fixture `make_store`: a function of options that returns a store over one and the same state."""

    @pytest.fixture
    def stores(self, make_store: Callable[..., Store]) -> Iterator[Callable[..., Store]]:
        """`make_store`, with everything closed in the end."""
        made: list[Store] = []

        def make(**options: Any) -> Store:
            made.append(make_store(**options))
            return made[-1]

        yield make
        for store in made:
            store.close()

    # The call itself

    def _terms(self, *limits: Limit, name: str = "contract", place_ttl: float = 60.0) -> Terms:
        return Terms(name, {f"unit{index}": (limit,) for index, limit in enumerate(limits)}, place_ttl)

    def _decide(self, store: Store, terms: Terms, *operations: float, owner: float = 7.0) -> Any:
        self._number = getattr(self, "_number", 0) + 1
        return store.decide(Batch([terms], [float(x) for x in operations], owner, self._number, time.time() * 1e6))

    def test_a_full_bucket_of_ten_grants_ten(self, stores: Callable[..., Store]) -> None:
        """Not nine and not eleven, however they are spread over calls."""
        terms = self._terms(per_second(1e-3 * 10, burst=10))
        request = (ledger.ACQUIRE, 0, 1, 1, 0, 1)
        store = stores()
        first = self._decide(store, terms, *request * 4)
        second = self._decide(store, terms, *request * 7)
        waits = [first.verdicts[2 * i] for i in range(4)] + [second.verdicts[2 * i] for i in range(7)]
        assert waits[:10] == [0.0] * 10
        assert -1 - waits[10] == pytest.approx(100, rel=0.05)

    def test_state_is_shared_and_outlives_the_store_object(self, stores: Callable[..., Store]) -> None:
        """What one used, the next finds used."""
        terms = self._terms(per_second(1e-3, burst=5))
        one = stores()
        self._decide(one, terms, ledger.ACQUIRE, 0, 1, 1, 0, 5)
        one.close()
        reply = self._decide(stores(), terms, ledger.ACQUIRE, 0, 1, 1, 0, 1, owner=8.0)
        assert reply.verdicts[0] < -1

    def test_other_terms_under_the_same_name_are_found_out(self, stores: Callable[..., Store]) -> None:
        """And nothing is decided."""
        store = stores()
        mine, theirs = self._terms(per_second(5)), self._terms(per_second(6))
        self._decide(store, mine, ledger.ACQUIRE, 0, 1, 1, 0, 1)
        reply = self._decide(store, theirs, ledger.ACQUIRE, 0, 1, 1, 0, 1)
        assert reply.others == {"contract": mine.text}
        assert list(reply.verdicts) == []

    def test_the_time_of_the_store_does_not_stand_still(self, stores: Callable[..., Store]) -> None:
        """It is in microseconds, and near the wall clock."""
        store, terms = stores(), self._terms(per_second(5))
        before = self._decide(store, terms).now
        time.sleep(0.01)
        after = self._decide(store, terms).now
        assert 0.01e6 <= after - before < LATE * 1e6
        assert abs(after / 1e6 - time.time()) < 3600
        assert after == math.floor(after)

    def test_changed_terms_keep_what_was_used(self, stores: Callable[..., Store]) -> None:
        """Counted for the new limits from then on."""
        store = stores()
        before, after = self._terms(per_second(1e-3, burst=10)), self._terms(per_second(1e-3, burst=20))
        self._decide(store, before, ledger.ACQUIRE, 0, 1, 1, 0, 8)
        store.change(after)
        reply = self._decide(store, after)
        assert reply.states[1] == pytest.approx(8, abs=0.01)

    # The limiter in front of it

    @contextmanager
    def _measured(self) -> Iterator[list[float]]:
        begin = time.monotonic()
        span = [0.0]
        yield span
        span[0] = time.monotonic() - begin

    @pytest.mark.anyio
    async def test_a_burst_goes_at_once_and_the_next_waits_its_time(self, stores: Callable[..., Store]) -> None:
        """Never early; late only by the machine."""
        limiter = Limiter(requests=per_second(20, burst=3), name="x", store=stores())
        with self._measured() as span:
            for _ in range(7):
                async with limiter:
                    pass
        assert 0.2 - 0.001 <= span[0] < 0.2 + LATE

    @pytest.mark.anyio
    async def test_two_processes_share_one_limit(self, stores: Callable[..., Store]) -> None:
        """What both were granted is at most burst + rate × time, and all of it is used."""
        burst = 50  # spent at once, so that what flows in while a busy machine stalls this test is kept, and not lost
        limiters = [Limiter(requests=per_second(200, burst=burst), name="x", store=stores()) for _ in range(2)]
        granted = []

        async def work(limiter: Limiter) -> None:
            while True:
                async with limiter:
                    granted.append(time.monotonic())

        begin = time.monotonic()
        await limiters[0].acquire(requests=burst)
        async with anyio.create_task_group() as tasks:
            for limiter in limiters * 8:
                tasks.start_soon(work, limiter)
            await anyio.sleep(0.4)
            tasks.cancel_scope.cancel()
        span = time.monotonic() - begin
        assert len(granted) <= 200 * span + 1
        assert len(granted) >= 0.6 * 200 * 0.4

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
        """Of those who wait, that is; the first of the line may have its reservation already."""
        limiter = Limiter(requests=per_second(20, burst=1), name="x", store=stores())
        await limiter.acquire()
        turns: list[tuple[float, str]] = []

        async def wait(who: str, priority: int) -> None:
            permit = await limiter.acquire(priority=priority)
            turns.append((permit.granted_at, who))  # on a busy machine two may wake up together, in any order

        async with anyio.create_task_group() as tasks:
            for who, priority in [("1st", 0), ("2nd", 0), ("3rd", 0), ("4th", 0), ("vip", 1), ("5th", 0)]:
                tasks.start_soon(wait, who, priority)
                await anyio.sleep(0.001)
        order = [who for _, who in sorted(turns)]
        assert [who for who in order if who != "vip"] == ["1st", "2nd", "3rd", "4th", "5th"]
        assert order.index("vip") <= 3

    @pytest.mark.anyio
    async def test_whoever_gives_up_hands_its_turn_on(self, stores: Callable[..., Store]) -> None:
        """The next is granted when the one who left would have been."""
        limiter = Limiter(requests=per_second(5, burst=1), name="x", store=stores())
        begin = (
            time.monotonic()
        )  # the store's clock began with the first grant, which was at some moment after this one
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
        """Whoever comes next finds the bucket as if nobody had waited."""
        limiter = Limiter(requests=per_second(1, burst=2), name="x", store=stores())
        await limiter.acquire()
        await limiter.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: limiter.acquire(requests=2))
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
        await anyio.sleep(0.05)
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(max_wait=0)
        assert caught.value.retry_after <= 1.0 + 0.9  # a reservation was out for 2 s, and took 1 s with it at most

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
        """Once."""
        limiter = Limiter(tokens=per_second(0.01, burst=100), name="x", store=stores())
        permit = await limiter.acquire(tokens=80)
        permit.cancel()
        permit.cancel()
        assert permit.cost == {}
        await limiter.acquire(tokens=100, max_wait=0)

    @pytest.mark.anyio
    async def test_places_are_held_until_the_permit_ends(self, stores: Callable[..., Store]) -> None:
        """By whoever has them, in any process."""
        mine, theirs = (Limiter(calls=in_flight(2), name="x", store=stores()) for _ in range(2))
        async with mine:
            permit = await theirs.acquire()
            with pytest.raises(RateLimited) as caught:
                await mine.acquire(max_wait=0)
            assert (caught.value.retry_after, caught.value.blocked_by) == (math.inf, "calls")
            permit.close()
            with anyio.fail_after(LATE):
                async with mine:
                    pass

    @pytest.mark.anyio
    async def test_places_of_a_silent_process_come_back(self, stores: Callable[..., Store]) -> None:
        """After their time to live, and not before."""
        limiter = Limiter(calls=in_flight(1, ttl=0.3), name="x", store=stores())
        with self._measured() as span:
            await limiter.acquire()
            await limiter.acquire()
        assert 0.3 - 0.001 <= span[0] < 0.3 + LATE

    @pytest.mark.anyio
    async def test_a_window_slides_and_a_day_ends(self, stores: Callable[..., Store]) -> None:
        """Sliding windows and calendars are counted too."""
        limiter = Limiter(requests=sliding(3, 0.3), tokens=calendar(10, "month"), name="x", store=stores())
        with self._measured() as span:
            for _ in range(4):
                await limiter.acquire(tokens=2)
        assert 0.3 - 0.001 <= span[0] < 0.3 + LATE
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(tokens=3, max_wait=0)
        assert caught.value.blocked_by == "tokens"

    @pytest.mark.anyio
    async def test_a_pause_holds_everybody_in_every_process(self, stores: Callable[..., Store]) -> None:
        """Also those who have a reservation for a moment within it; and a shorter one does not end it."""
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
        """Also for those who had a turn at its end, in the process that lifts it and in others."""
        mine, theirs = (Limiter(requests=per_second(1000, burst=10), name="x", store=stores()) for _ in range(2))
        mine.pause(60.0)
        await mine.refresh()
        with pytest.raises(RateLimited) as caught:
            await theirs.acquire(max_wait=0)
        assert caught.value.blocked_by == "pause"
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(LATE + 1):
                tasks.start_soon(mine.acquire)
                await anyio.sleep(0.05)
                mine.resume()
                await mine.acquire()
                await theirs.acquire()

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
    async def test_new_limits_reach_every_process(self, stores: Callable[..., Store]) -> None:
        """And a process that begins with the old ones is told."""
        mine, theirs = (Limiter(requests=per_second(0.01, burst=2), name="x", store=stores()) for _ in range(2))
        for _ in range(2):
            await theirs.acquire()
        await mine.refresh()
        mine.reconfigure(requests=per_second(100, burst=100))
        with anyio.fail_after(LATE + 1):
            await mine.acquire(requests=50)
            await theirs.refresh()
            await theirs.acquire(requests=50)
        assert theirs.limits["requests"][0] == per_second(100, burst=100)
        late = Limiter(requests=per_second(0.01, burst=2), name="x", store=stores())
        with pytest.raises(ConfigurationConflict, match=r"100/s there, requests=0\.01/s burst 2 here"):
            await late.acquire()

    @pytest.mark.anyio
    async def test_who_waits_for_more_than_the_new_limits_hold_is_told(self, stores: Callable[..., Store]) -> None:
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
        """Also the very call by which a process hears of them: one that they can never hold is told, and none slips through."""
        limits: dict[str, Limit] = {"requests": per_second(0.01, burst=20), "tokens": unlimited}
        mine, theirs = (Limiter(limits, name="x", store=stores()) for _ in range(2))
        for limiter in (mine, theirs):
            await limiter.acquire(tokens=1)
        mine.reconfigure(requests=per_second(0.01, burst=5), tokens=per_second(0.01, burst=5))
        await mine.acquire(tokens=1, requests=0)
        with anyio.fail_after(LATE + 1):
            with pytest.raises(Unsatisfiable):
                await theirs.acquire(tokens=0, requests=10)
            await theirs.acquire(tokens=4, requests=0)
            with pytest.raises(RateLimited):
                await mine.acquire(tokens=1, requests=0, max_wait=0)

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
    async def test_too_long_a_wait_is_refused_at_once(self, stores: Callable[..., Store]) -> None:
        """By max_wait, by the enclosing deadline, by the length of the line."""
        limiter = Limiter(requests=per_second(0.1, burst=1), name="x", max_queue=1, store=stores())
        await limiter.acquire()
        with self._measured() as span:
            with pytest.raises(RateLimited) as caught:
                await limiter.acquire(max_wait=5)
            assert caught.value.retry_after == pytest.approx(10, rel=0.1)
            with anyio.move_on_after(5), pytest.raises(RateLimited):
                await limiter.acquire()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(limiter.acquire)
                await anyio.sleep(0.05)
                with pytest.raises(QueueFull):
                    await limiter.acquire()
                tasks.cancel_scope.cancel()
        assert span[0] < 0.05 + LATE

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

    def test_threads_without_an_event_loop_wait_too(self, stores: Callable[..., Store]) -> None:
        """In one line with everybody else."""
        limiter = Limiter(requests=per_second(50, burst=1), name="x", store=stores())
        moments: list[float] = []

        def work() -> None:
            with limiter:
                moments.append(time.monotonic())

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 4 / 50 - 0.02 <= max(moments) - min(moments) < 4 / 50 + LATE

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

        A bucket remembers its latest 32 refunds one by one; what it has to forget of more may cost a unit here and there.
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
        with anyio.fail_after(LATE):
            async with limiter:
                pass

    @pytest.mark.anyio
    async def test_who_waits_when_the_store_is_closed_is_told(self, stores: Callable[..., Store]) -> None:
        """With a reservation, or in the line behind it; and a store may be closed twice, and used again."""
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

    def test_store_errors_are_of_one_kind(self) -> None:
        """Whatever goes wrong with a store is a `StoreError`."""
        assert issubclass(StoreError, Exception)
