"""What is learned of a server's charges from requests that left together."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.llm.learning.charge_factor import ChargeFactor, Crowd
from penstock.llm.learning.server_estimate import ServerEstimate
from penstock.llm.learning.stated_limit import StatedLimit
from penstock.llm.learning.traffic import Departure, Traffic


@given(
    costs=st.lists(st.integers(1, 1_000), min_size=2, max_size=50),
    factor=st.floats(0.01, 1_000),
    seed=st.integers(0, 2**32),
)
def test_the_bound_holds_in_whatever_order_a_crowd_arrives(costs, factor, seed):
    order = random.Random(seed)
    arriving = [Departure(number, 0.0, float(cost), 0.0) for number, cost in enumerate(costs)]
    order.shuffle(arriving)
    left, answers = 1e9, []
    for departure in arriving:
        left -= factor * departure.cost
        answers.append((departure, left))
    order.shuffle(answers)  # they come back in an order of their own
    crowd = Crowd()
    for departure, remaining in answers:
        crowd.hear(departure, remaining)
    assert crowd.least_factor * (1 - 1e-6) <= factor
    if len(costs) > 20 and max(costs) < 4 * min(costs):  # and that is close
        assert crowd.least_factor >= 0.7 * factor


def test_a_bound_raises_what_is_grossly_too_low_and_leaves_the_rest_to_samples():
    factor = ChargeFactor()
    factor.raise_to(1.4)
    assert factor.value == 1.0
    for expected in (4.0, 16.0, 36.0):  # no bound makes it more than four times as large
        factor.raise_to(36.0)
        assert factor.value == expected
    factor.raise_to(2.0)
    assert factor.value == 36.0


def test_requests_that_cost_nothing_teach_nothing():
    crowd = Crowd()
    for number in range(5):
        crowd.hear(Departure(number, 0.0, 0.0, 0.0), 100.0 - number)
    assert crowd.least_factor == 0.0


@pytest.mark.parametrize("window", [10.0, 60.0])
def test_requests_that_always_leave_together_teach_what_they_are_charged(window):
    """A window that is stated by what is left of it alone; each request is charged 36 times what was thought."""
    limit, cost, charged = 100_000.0, 7.0, 252.0
    traffic, order = Traffic(), random.Random(1)
    traffic.waiting += cost
    first = traffic.left(cost, 0.0)
    estimate = ServerEstimate(traffic, StatedLimit(limit, 60.0, limit - charged, sure=False), False)
    estimate.begin(first, 0.1, cautious=True)
    traffic.arrived(first)
    now, begins, left, used, sent, refused = 0.1, 0.0, limit - charged, [], 0, 0
    while now < 300.0:
        crowd = []
        while len(crowd) < 200 and estimate.ready_at(cost, now) <= now:
            traffic.waiting += cost
            crowd.append(traffic.left(cost, now))
            estimate.charge(cost, now)
        if not crowd:
            now = min(max(now + 0.01, estimate.ready_at(cost, now)), 300.0)
            continue
        if now >= begins + window:
            used.append(limit - left)
            begins, left = now, limit
        answers = []
        for departure in sorted(crowd, key=lambda each: each.number + order.uniform(0, 10)):
            refused += left < charged
            left = max(0.0, left - charged)
            answers.append((departure, left))
        sent += len(crowd)
        now += 0.1
        for departure, remaining in sorted(answers, key=lambda each: each[0].number + order.uniform(0, 10)):
            traffic.arrived(departure)
            departure.charged_at = now
            estimate.heard(departure, StatedLimit(limit, 60.0, remaining, sure=False), now)
    assert estimate.factor == pytest.approx(36.0, rel=0.1)
    assert refused <= 0.01 * sent
    assert sum(used[1:]) >= 0.9 * limit * len(used[1:])


@pytest.mark.parametrize("seed", range(60))
def test_whatever_a_server_tells_of_whichever_requests_it_refuses_is_heard(seed):
    """Levels and resets that contradict each other; a crowd of which all were refused."""
    chance = random.Random(seed)
    traffic, limit, per = Traffic(), chance.choice([1.0, 10.0, 100.0, 1e5]), chance.choice([1.0, 60.0, 86_400.0])

    def stated():
        level, reset = chance.choice([0.0, limit, limit * chance.random(), 1e15]), chance.choice([None, 0.0, per])
        return StatedLimit(chance.choice([limit, 2 * limit]), per, level, reset, sure=chance.random() < 0.5)

    traffic.waiting += 1
    first = traffic.left(1.0, 0.0)
    estimate = ServerEstimate(traffic, stated(), chance.random() < 0.5)
    estimate.begin(first, 0.1, cautious=True)
    traffic.arrived(first)
    now = 0.1
    for _ in range(60):
        ready = estimate.ready_at(1.0, now)
        assert math.isfinite(ready)
        now = max(now, ready)
        crowd = []
        while len(crowd) < 8 and estimate.ready_at(1.0, now) <= now:
            traffic.waiting += 1
            crowd.append(traffic.left(1.0, now))
            estimate.charge(1.0, now)
        now += chance.random()
        for departure in chance.sample(crowd, len(crowd)):
            if chance.random() < 0.3:
                traffic.refused(departure)
            traffic.arrived(departure)
            departure.charged_at = now
            estimate.heard(departure, stated(), now)


def test_what_a_request_takes_by_itself_is_more_than_was_left_when_it_was_refused():
    """The factor holds what others take meanwhile, too: of that nothing is known by itself."""
    charges = ChargeFactor()
    charges.learn(50_000.0, 1_000.0, least=0.0, one_below=0.0)
    assert charges.value == 4.0
    charges.was_too_little(500.0, 1_000.0)
    assert charges.alone == 1.0
    charges.was_too_little(3_000.0, 1_000.0)
    assert charges.alone == 3.0
    charges.was_too_little(200_000.0, 1_000.0)  # another limit refused it
    assert charges.alone == 3.0
