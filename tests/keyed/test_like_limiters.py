"""A `Keyed` behaves as a dict of limiters does that never forgets: the same answers, to any calls in any order."""

from __future__ import annotations

import random

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, calendar, in_flight, sliding, testing

UNITS = ("requests", "tokens", "calls", "images")
STEPS = 120


def draw_limit(draw):
    amount, period = draw.choice([1, 3, 10]), draw.choice([1, 7, 60])
    return draw.choice(
        [
            Rate(amount + draw.choice([0, 0.5]), period, burst=draw.choice([None, 1, 2, 5.5])),
            Rate(amount, period, overdraft=True),
            sliding(amount, period),
            calendar(amount, draw.choice(["minute", "hour", 10])),
            in_flight(amount, ttl=draw.choice([None, 5])),
        ]
    )


def is_held(limit):
    return hasattr(limit, "ttl")


class Both:
    """The same calls on keys and on limiters."""

    def __init__(self, draw, limits):
        self.draw = draw
        self.limits = limits
        keyed = Keyed(limits) if draw.random() < 0.7 else Keyed(lambda _: limits)
        limiters = {key: Limiter(limits) for key in "ab"}
        self.sides = [keyed, limiters]
        organisation = {"requests": Rate(50, 60, default=0), "dollars": Rate(5, 1, default=0)}
        self.organisations = [Limiter(organisation), Limiter(organisation)]
        self.permits = []

    def compare(self, act, *, joint=False):
        """What `act` returns for both: a pair, of which no side may say anything that the other does not."""
        key = self.draw.choice("ab")
        answers = []
        for side, organisation in zip(self.sides, self.organisations, strict=True):
            limiter = organisation & side[key] if joint else side[key]
            answers.append(act(limiter))
        return answers

    def acquire(self):
        cost = {unit: self.draw.choice([0, 1, 1, 2, 0.5, 1.7]) for unit in self.limits if self.draw.random() < 0.8}
        keys, limiters = self.compare(lambda limiter: granted(limiter, cost), joint=self.draw.random() < 0.4)
        if keys[0] is None or limiters[0] is None:
            assert keys == pytest.approx(limiters, abs=2e-6), cost
        else:
            self.permits.append((keys[0], limiters[0]))

    def go_on(self):
        """End a permit, settle it, or tell it what the server said."""
        if not self.permits:
            return
        index = self.draw.randrange(len(self.permits))
        word = self.draw.choice(["cancel", "close", "settle", "observe"])
        amounts = {unit: self.draw.choice([0, 0.5, 2]) for unit, limit in self.limits.items() if not is_held(limit)}
        for permit in self.permits[index]:
            if word == "settle":
                permit.settle({unit: amounts[unit] for unit in permit.cost if unit in amounts})
            elif word == "observe":
                permit.observe(remaining=amounts)
            else:
                getattr(permit, word)()
        if word in {"cancel", "close"}:
            del self.permits[index]

    def pause(self):
        seconds = self.draw.choice([0.5, 3])
        self.compare(lambda limiter: limiter.pause(seconds))

    def resume(self):
        self.compare(lambda limiter: limiter.resume())

    def look(self):
        for read in (levels, lambda limiter: waits(limiter, self.limits)):
            keys, limiters = self.compare(read)
            assert keys == pytest.approx(limiters, abs=1e-5)


def granted(limiter, cost):
    """The permit, or None with when to come back and whether a pause is why."""
    try:
        return (limiter.acquire_nowait(cost),)
    except RateLimited as refused:
        return None, refused.retry_after, refused.blocked_by == "pause"
    except ValueError:  # more than the limits ever hold, or a unit missing
        return None, -1, False


def levels(limiter):
    return [limit.level for limit in limiter.statistics().limits.values()]


def waits(limiter, limits):
    return limiter.forecast(dict.fromkeys(limits, 1)).wait


@pytest.mark.filterwarnings("ignore:a permit of .* was not closed within its time to live")
@pytest.mark.parametrize("seed", range(60))
def test_any_calls_in_any_order_get_the_same_answers(seed):
    draw = random.Random(seed)
    limits = {unit: draw_limit(draw) for unit in draw.sample(UNITS, draw.randint(1, 3))}
    with testing.manual_clock() as now:
        both = Both(draw, limits)
        for _ in range(STEPS):
            act = draw.choices(
                [both.acquire, both.go_on, both.pause, both.resume, both.look, None], [10, 4, 2, 1, 2, 4]
            )[0]
            if act is None:
                now.advance(draw.choice([0.1, 0.5, 1, 3, 10, 61, 3_600]))
            else:
                act()
            if draw.random() < 0.1 and not any(map(is_held, limits.values())):
                both.permits.clear()  # then nothing holds the keys
