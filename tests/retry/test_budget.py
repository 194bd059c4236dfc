"""Budgets: an outage is not multiplied, and whoever calls rarely can still retry."""

from __future__ import annotations

import math
import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.budget import RatioCredit, TokenCredit
from penstock.events import GaveUp
from penstock.retry import Budget, Retry, constant
from penstock.testing import manual_clock

# ----------------------------------------------------------------------------------------------------------------------
# The arithmetic

steps = st.lists(st.tuples(st.sampled_from(["call", "spend"]), st.floats(0, 30)), max_size=150)


@given(steps, st.floats(0, 2), st.floats(0, 20), st.floats(0.1, 20))
def test_retries_stay_below_ratio_times_calls_plus_floor_per_second(trace, ratio, floor, ttl):
    """In any span of T seconds: retries ≤ ratio · (calls in it and a ttl before) + floor · T + max(1, floor)."""
    credit, now = RatioCredit(ratio, floor, ttl), 0.0
    calls, retries = [], []
    for what, gap in trace:
        now += gap
        if what == "call":
            credit.called(now)
            calls.append(now)
        elif credit.spend(now, timed_out=False) is not None:
            retries.append(now)
    free = max(1.0, floor) if floor else 0.0
    for i, since in enumerate(retries):
        for j, until in enumerate(retries[i:], 1):
            earning = sum(since - ttl <= call <= until for call in calls)
            assert j <= ratio * earning + floor * (until - since) + free + 1e-6


@given(steps, st.floats(0, 2), st.floats(0, 20), st.floats(0.1, 20))
def test_what_is_left_can_be_spent_and_no_more(trace, ratio, floor, ttl):
    credit, now = RatioCredit(ratio, floor, ttl), 0.0
    for what, gap in trace:
        now += gap
        if what == "call":
            credit.called(now)
        left = credit.left(now)
        if what == "spend":
            assert (credit.spend(now, timed_out=False) is not None) == (left >= 1)


def test_ten_calls_at_a_tenth_are_one_retry():
    """Though ten times 0.1 is a little less than 1 in floating point."""
    credit = RatioCredit(0.1, 0, 10)
    for _ in range(9):
        credit.called(0.0)
    assert credit.spend(0.0, timed_out=False) is None
    credit.called(0.0)
    assert credit.spend(0.0, timed_out=False) == 1
    assert credit.spend(0.0, timed_out=False) is None


def test_what_a_call_earned_is_lost_after_the_ttl():
    credit = RatioCredit(1, 0, 10)
    credit.called(0.0)
    assert credit.left(9.99) == 1
    assert credit.left(10) == 0


def test_calls_that_are_rare_live_on_the_floor():
    credit = RatioCredit(0, 0.5, 10)  # one retry every two seconds
    assert [credit.spend(t, timed_out=False) is not None for t in (0, 0, 1, 2, 3, 4, 100, 100)] == [
        True, False, False, True, False, True, True, False,
    ]  # fmt: skip


def test_a_clock_that_begins_anew_begins_the_budget_anew():
    """A budget at module level lives through many tests, each with a virtual time of its own."""
    credit = RatioCredit(1, 1, 10)
    credit.called(1000.0)
    assert credit.left(1000) == 2
    assert credit.spend(1000.0, timed_out=False)
    assert credit.spend(1000.0, timed_out=False)
    assert credit.spend(1000.0, timed_out=False) is None
    assert credit.left(0.0) == 1


@given(st.lists(st.sampled_from(["retry", "timeout", "success", "after retry"]), max_size=300))
def test_the_pot_never_overflows_and_never_owes(trace):
    credit, paid = TokenCredit(50, 5, 10, 1), None
    for what in trace:
        if what == "success":
            credit.succeeded(None)
        elif what == "after retry":
            credit.succeeded(paid)
        else:
            paid = credit.spend(0.0, timed_out=what == "timeout")
            assert paid in {None, 5 if what == "retry" else 10}
        assert 0 <= credit._tokens <= 50


def test_the_published_numbers_of_the_pot():
    """500 tokens: 100 retries or 50 after timeouts; a success puts back what its last retry took, else 1."""
    assert _spend_all(Budget.tokens()) == 100
    assert _spend_all(Budget.tokens(), timed_out=True) == 50
    budget = Budget.tokens()
    _spend_all(budget)
    budget.succeeded(5)
    assert budget.left == 1
    assert budget.spend() == 5
    for _ in range(4):
        budget.succeeded()
    assert budget.left == 0
    budget.succeeded()
    assert budget.left == 1


def _spend_all(budget, **how):
    count = 0
    while budget.spend(**how) is not None:
        count += 1
    return count


def test_threads_share_a_budget_to_the_last_retry():
    """Eight threads cannot spend one retry twice."""
    budget, spent = Budget(ratio=1, floor=0), []
    with manual_clock():
        for _ in range(1000):
            budget.called()
        threads = [threading.Thread(target=lambda: spent.append(_spend_all(budget))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(spent) == 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Budget(ratio=-1),
            "Budget(ratio=-1): retries per call, 0 or more and finite; 0.2 allows one for five calls",
        ),
        (lambda: Budget(floor=math.inf), "Budget(floor=inf): free retries per second, 0 or more and finite"),
        (lambda: Budget(ttl=0), "Budget(ttl=0): seconds or a timedelta, above 0 and finite"),
        (lambda: Budget.tokens(retry=0), "Budget.tokens(retry=0): a number of tokens, above 0 and finite"),
        (
            lambda: Budget.tokens(success=-1),
            "Budget.tokens(success=-1): tokens that a first success gives back, 0 or more and finite",
        ),
    ],
    ids=["ratio", "floor", "ttl", "tokens", "success"],
)
def test_a_wrong_number_is_refused_where_it_is_written(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_a_budget_shows_its_numbers():
    assert repr(Budget()) == "Budget(ratio=0.2, floor=10, ttl=10)"
    assert repr(Budget.tokens()) == "Budget.tokens(capacity=500, retry=5, timeout=10, success=1)"


# ----------------------------------------------------------------------------------------------------------------------
# In a policy


@pytest.mark.anyio
async def test_an_outage_is_not_multiplied(virtual_time):
    """200 calls against a dead server: 1,200 attempts without a budget, 240 and the floor's share with one."""

    async def attempts_with(budget):
        retry = Retry(on=OSError, attempts=6, within=None, backoff=constant(1), budget=budget)
        count = 0

        async def call():
            nonlocal count
            count += 1
            raise OSError

        async def client():
            with pytest.raises(OSError):
                await retry.call(call)

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(client)
        return count

    assert await attempts_with(None) == 1200
    assert await attempts_with(Budget(ratio=0.2, floor=0)) == 240
    assert 240 < await attempts_with(Budget(ratio=0.2, floor=10)) <= 240 + 10 * 6
    assert await attempts_with(Budget.tokens()) == 300


@pytest.mark.anyio
async def test_a_spent_budget_gives_up_at_once_and_says_so(virtual_time):
    events = []
    budget = Budget(ratio=0, floor=0)
    retry = Retry(on=OSError, budget=budget, on_event=events.append)

    async def fail():
        raise OSError("down")

    with pytest.raises(OSError) as caught:
        await retry.call(fail)
    assert virtual_time.now() == 0
    assert caught.value.__notes__[0].endswith("Budget(ratio=0, floor=0, ttl=10) has no retry left")
    assert isinstance(events[-1], GaveUp)
    assert events[-1].reason == "budget"


@pytest.mark.anyio
async def test_policies_share_a_budget(virtual_time):
    """Two policies of one service draw from one account, and successes of either refill it."""
    budget = Budget.tokens(capacity=10, retry=5, timeout=10)
    reads = Retry(on=OSError, attempts=2, backoff=constant(0), budget=budget)
    writes = Retry(on=OSError, attempts=2, backoff=constant(0), budget=budget)
    calls = 0

    async def fail():
        nonlocal calls
        calls += 1
        raise TimeoutError("slow") if calls == 1 else OSError("down")

    for retry in (reads, writes):
        with pytest.raises(OSError):
            await retry.call(fail)
    assert calls == 3  # one retry at the price of a timeout emptied the pot for both

    failed_once = False

    async def recover():
        nonlocal failed_once
        if not failed_once:
            failed_once = True
            raise OSError
        return "ok"

    async def succeed():
        return "ok"

    for _ in range(5):
        await writes.call(succeed)
    assert budget.left == 1
    assert await reads.call(recover) == "ok"
    assert budget.left == 1
