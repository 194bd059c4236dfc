"""What calls on keys give back. Whole costs are settled and cancelled in the numbers of a key, without its meters."""

from __future__ import annotations

import random

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, UnknownUnit, testing

LIMITS = {"requests": Rate(60, 60), "tokens": [Rate(90, 60, burst=100), Rate(1_000, 3_600)]}

KEYS = pytest.mark.parametrize("key", ["alice", ("alice", 1)], ids=["a plain key", "a key that Python compares"])


class Both:
    """The same calls on a key and on a limiter."""

    def __init__(self, key="alice", limits=LIMITS):
        self.key = key
        self.per_user = Keyed(limits)
        self.limiter = Limiter(limits)

    def acquire(self, **cost):
        return self.per_user[self.key].acquire_nowait(cost), self.limiter.acquire_nowait(cost)

    def levels(self):
        return [
            [limit.level for limit in limiter.statistics().limits.values()]
            for limiter in (self.per_user[self.key], self.limiter)
        ]

    def in_numbers(self):
        """Whether what the key has used is numbers, and no meters."""
        states = self.per_user._keys._states
        return type({**states.old, **states.known}.get(self.key)) is tuple


def say(permit, word):
    if word is None:
        permit.cancel()
    else:
        permit.settle(word)


@KEYS
@pytest.mark.parametrize("age", [0, 3, 100])
@pytest.mark.parametrize("word", [{"tokens": 2}, {"tokens": 0}, {"tokens": 30}, {"requests": 0, "tokens": 25}, None])
def test_a_call_that_is_settled_leaves_what_a_limiter_has(key, age, word):
    """One call after the other: none of them takes a meter, also where a limit was not full before."""
    with testing.manual_clock() as now:
        both = Both(key)
        for _ in range(3):
            permits = both.acquire(tokens=10)
            now.advance(age)
            for permit in permits:
                say(permit, word)
            assert both.in_numbers()
            assert permits[0].cost == permits[1].cost
            del permits
        keys, limiters = both.levels()
        assert keys == pytest.approx(limiters, abs=1e-6)


@pytest.mark.parametrize("first", [{"tokens": 2}, {"tokens": 30}], ids=["down", "up"])
@pytest.mark.parametrize("then", [{"tokens": 5}, {"tokens": 40}, {"tokens": 0.5}, None])
@pytest.mark.parametrize("between", [0, 1], ids=["at once", "after another call"])
def test_the_last_word_counts(first, then, between):
    with testing.manual_clock() as now:
        both = Both()
        permits = both.acquire(tokens=10)
        for permit in permits:
            permit.settle(first)
        now.advance(1)
        others = [both.acquire(tokens=3) for _ in range(between)]
        for permit in permits:
            say(permit, then)
            permit.close()
        keys, limiters = both.levels()
        assert keys == pytest.approx(limiters, abs=1e-6)
        assert len(others) == between


def test_calls_at_a_time_are_settled_each_by_its_own_charge():
    """With another call open, or after it, a key needs meters: these know what may still be given back."""
    with testing.manual_clock() as now:
        both = Both()
        early, late = both.acquire(tokens=40), both.acquire(tokens=40)
        now.advance(2)
        for permits, true in ((early, 10), (late, 50), (early, 20)):
            for permit in permits:
                permit.settle(tokens=true)
            keys, limiters = both.levels()
            assert keys == pytest.approx(limiters, abs=1e-6)


def test_a_word_that_is_wrong_changes_nothing():
    both = Both()
    permit, _ = both.acquire(tokens=10)
    with pytest.raises(UnknownUnit, match="alice"):
        permit.settle(tokens=5, tonkens=1)
    with pytest.raises(ValueError, match="tokens"):
        permit.settle(requests=0, tokens=-1)
    assert permit.cost == {"requests": 1, "tokens": 10}


def test_a_unit_that_was_not_charged_is_charged_when_it_is_settled():
    with testing.manual_clock():
        both = Both()
        for permit in both.acquire(tokens=0):
            permit.settle(tokens=25)
        keys, limiters = both.levels()
        assert keys == pytest.approx(limiters, abs=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_no_key_has_more_than_a_limiter_would_have_left(seed):
    """Any calls, several of them open: a key forgets more of what could come back than a limiter does, and never
    less."""
    draw = random.Random(seed)
    limits = {
        unit: Rate(draw.choice([1, 3, 10, 20]), draw.choice([1, 7, 60]), burst=draw.choice([None, 5, 20]))
        for unit in draw.sample(["requests", "tokens", "calls"], draw.randint(1, 3))
    }
    with testing.manual_clock() as now:
        both, open_ = Both(limits=limits), []
        for _ in range(120):
            if draw.random() < 0.6:
                try:
                    open_.append(both.acquire(**{unit: draw.choice([1, 1, 2, 3]) for unit in limits}))
                except (RateLimited, ValueError):
                    pass
            if open_ and draw.random() < 0.8:
                index = -1 if draw.random() < 0.9 else draw.randrange(len(open_))
                word = draw.choice([{unit: draw.choice([0, 1, 2, 4]) for unit in limits}, None])
                for permit in open_[index]:
                    say(permit, word)
                if draw.random() < 0.8:
                    del open_[index]
            if draw.random() < 0.4:
                now.advance(draw.choice([0.1, 0.5, 1, 3, 10, 61]))
            if draw.random() < 0.05:
                keys, limiters = both.levels()
                assert all(mine <= theirs + 1e-5 for mine, theirs in zip(keys, limiters, strict=True))


def test_a_call_that_costs_nothing_can_be_settled_and_cancelled():
    with testing.manual_clock():
        per_user = Keyed(tokens=Rate(60, 60))
        per_user["alice"].acquire_nowait(tokens=10)
        free = per_user["alice"].acquire_nowait(tokens=0)
        free.settle(tokens=5)
        assert free.cost == {"tokens": 5}
        per_user["alice"].acquire_nowait(tokens=0).cancel()
        assert per_user["alice"].statistics().limits["tokens"].level == 45
