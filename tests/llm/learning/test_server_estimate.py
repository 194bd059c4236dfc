"""What is thought of a server's limit, from its answers: numbers and times in, bounds out."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.llm.learning.server_estimate import ServerEstimate
from penstock.llm.learning.stated_limit import Kind, StatedLimit
from penstock.llm.learning.traffic import HEADROOM, DepartureBucket, Traffic

LIMIT, PER = 300_000.0, 60.0
RATE = LIMIT / PER


@dataclass
class Bucket:
    capacity: float
    rate: float
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self):
        self.level = self.capacity

    def refill(self, now):
        self.level = min(self.capacity, self.level + self.rate * (now - self.at))
        self.at = now


class Client:
    """One who sends, and hears what is stated at once."""

    def __init__(self, limit=LIMIT, per=PER, remaining=None, reset=None, *, requests=False):
        self.limit, self.per = limit, per
        self.traffic = Traffic()
        first = self.leave(0, 0.0)
        stated = StatedLimit(limit, per, limit if remaining is None else remaining, reset)
        self.estimate = ServerEstimate(self.traffic, stated, requests)
        self.estimate.begin(first, 0.0, cautious=False)

    def leave(self, cost, now):
        self.traffic.waiting += cost
        departure = self.traffic.left(cost, now)
        if hasattr(self, "estimate"):
            self.estimate.charge(cost, now)
        return departure

    def hear(self, departure, remaining, now, *, limit=None, reset=None):
        self.estimate.heard(departure, StatedLimit(limit or self.limit, self.per, remaining, reset), now)


def test_what_was_on_its_way_when_a_request_left_is_not_in_its_snapshot_where_answers_are_charged():
    traffic = Traffic(charged_late=True)
    first, second, third, fourth = (traffic.left(cost, at) for at, cost in enumerate((1.0, 20.0, 300.0, 4_000.0)))
    first.charged_at = 2.5
    assert traffic.uncharged(second) == 1
    assert traffic.uncharged(third) == 21
    assert traffic.uncharged(fourth) == 320  # the first was charged before the fourth left


def test_what_was_sent_long_ago_takes_no_memory_where_a_server_tells_nothing():
    """Nobody asks then what it has charged; what is still under way is remembered."""
    traffic = Traffic(charged_late=True)
    first = traffic.left(10, 0.0)
    for moment in range(60_000):
        traffic.arrived(traffic.left(1, 1 + moment / 1000))
    assert len(traffic._uncharged) <= len(traffic._log) + 1 <= 20_001
    assert traffic._uncharged[0] is first


@pytest.mark.parametrize("charges", [0.2, 0.7, 1.0, 1.15, 2.0, 20.0])
def test_the_factor_is_what_the_server_charges_over_what_we_estimate(charges):
    client, level = Client(), LIMIT
    cost = {0.2: 30_000, 20.0: 1_000}.get(charges, 10_000)
    for number in range(80):
        departure = client.leave(cost, number + 1.0)
        level = min(LIMIT, level + RATE * (number > 0)) - cost * charges
        client.hear(departure, max(0, math.floor(level)), number + 1.0)
        level = max(level, 0)
        if level < cost * charges:
            break
    assert client.estimate.factor == pytest.approx(charges, rel=0.1)


def test_a_stranger_is_part_of_the_factor():
    client, level = Client(), LIMIT
    for second in range(60):
        departure = client.leave(5_000, float(second))
        level = level + RATE * (second > 0) - 5_000 - 2_500  # somebody else takes half as much
        client.hear(departure, math.floor(level), float(second))
    assert client.estimate.factor == pytest.approx(1.5, rel=0.05)


def test_only_what_is_newer_in_send_order_counts():
    """Answers overtake each other; the older of two says nothing."""
    client = Client()
    first, second = client.leave(1_000, 1.0), client.leave(1_000, 1.1)
    client.hear(second, 298_000, 2.0)
    before = client.estimate.level(2.0)
    client.hear(first, 1, 2.0)
    assert client.estimate.level(2.0) == before


def test_what_left_since_is_subtracted_and_what_was_refilled_is_added():
    client = Client()
    client.leave(197_000, 0.5)
    answered = client.leave(1_000, 1.0)
    client.leave(2_000, 1.5)
    client.hear(answered, 104_500, 2.0)
    kept = HEADROOM * RATE + 0.02 * 2_000
    assert client.estimate.level(2.0) == pytest.approx(104_500 + RATE - 2_000 - kept)
    client.traffic.waiting += 500
    assert client.estimate.level(2.0) == pytest.approx(104_500 + RATE - 2_000 - kept - 1.04 * 500)


def test_too_high_is_corrected_at_once_and_too_low_by_and_by():
    client = Client()
    client.hear(client.leave(50_000, 1.0), 150_000, 1.1)  # somebody else took as much
    assert client.estimate.level(1.1) <= 150_500
    answered = client.leave(1_000, 1.5)
    client.leave(100, 1.6)  # something is on its way, so there is reason to be careful
    before = client.estimate.level(1.6)
    client.hear(answered, 290_000, 1.6)
    assert before + 5_000 < client.estimate.level(1.6) < before + 35_000  # a tenth of the gap, and what was in reserve


def test_with_nothing_on_its_way_too_low_is_corrected_at_once():
    client = Client()
    client.hear(client.leave(1_000, 1.0), 50_000, 1.1)
    client.hear(client.leave(1_000, 1.5), 200_000, 1.6)
    assert client.estimate.level(1.6) > 195_000


@pytest.mark.parametrize(("limit", "remaining", "reset", "capacity"), [(1200, 39, 0.05, 40), (1200, 1199, 0.05, 1200)])
def test_a_burst_below_the_limit_is_seen_in_the_first_answer(limit, remaining, reset, capacity):
    """`remaining + reset × rate` is all there ever is at once."""
    assert Client(limit, 60, remaining, reset).estimate.capacity == pytest.approx(capacity, abs=1)


@pytest.mark.parametrize(("limit", "remaining", "reset"), [(60, 59, 60), (1440, 1439, 60), (60, 30, 45)])
def test_a_reset_that_no_bucket_would_have_tells_a_window(limit, remaining, reset):
    estimate = Client(limit, 60, remaining, reset, requests=True).estimate
    assert estimate.kind is Kind.WINDOW
    assert estimate.level(reset - 1) <= remaining
    assert estimate.level(reset + 1) == limit


def test_more_than_any_refill_could_bring_tells_a_window():
    client = Client(remaining=300_000)
    for second in range(1, 59):
        client.hear(client.leave(5_000, second), 300_000 - 5_000 * second, second + 0.5)
    client.hear(client.leave(5_000, 61), 295_000, 61.5)
    assert client.estimate.kind is Kind.WINDOW
    client.hear(client.leave(290_000, 70), 5_000, 71)
    assert client.estimate.level(100) <= 5_000
    assert client.estimate.level(122) == LIMIT


def test_a_wait_that_no_bucket_would_ask_for_tells_a_window():
    client = Client(600, 60, 500, requests=True)
    departure = client.leave(1, 20.0)
    client.estimate.refused(departure, 0, 40.0)
    assert client.estimate.kind is Kind.WINDOW
    assert client.estimate.ready_at(1, 21.0) == pytest.approx(60 + HEADROOM)


def test_a_window_that_nothing_dates_begins_with_the_first_request_after_the_last_one():
    """And not whole periods after the first one, at which there may be none yet."""
    client = Client(100.0, 60.0, remaining=99, requests=True)
    departure = client.leave(1, 1.7)
    client.estimate.refused(departure, 0, 60.0)  # so it lasts until 61.7 at most
    for ready_at, leaves_at in ((61.7, 73.0), (133.0, 140.0)):
        assert client.estimate.ready_at(1.0, leaves_at - 15.0) == pytest.approx(ready_at + HEADROOM)
        for _ in range(100):
            client.leave(1, leaves_at)
    assert client.estimate.ready_at(1.0, 141.0) == pytest.approx(200.0 + HEADROOM)


def test_what_is_overtaken_by_a_later_answer_takes_its_part_of_a_window_all_the_same():
    """A new connection may wait for seconds to be accepted, while others are used again."""
    client = Client(100.0, 60.0, remaining=99, requests=True)
    client.estimate.refused(client.leave(1, 1.7), 0, 60.0)
    for number in range(60):
        last = client.leave(1, 73.0 + number)
    client.hear(last, 70, 132.9)  # 30 of those that left before it are not there yet
    assert client.estimate.level(132.9) <= 40


def test_a_window_that_came_sooner_than_that_begins_by_the_clock_though_nobody_sends():
    client = Client(100.0, 60.0, remaining=50, requests=True)
    client.hear(client.leave(1, 20.0), 40, 20.0)
    client.hear(client.leave(1, 30.0), 99, 30.0)  # half a minute after the first
    assert client.estimate.kind is Kind.WINDOW
    for _ in range(100):
        client.leave(1, 130.0)
    assert client.estimate.ready_at(1.0, 131.0) == pytest.approx(150.0 + HEADROOM)


def test_a_window_that_is_refused_where_it_was_thought_to_begin_begins_later():
    """Seen after a pause, it began anywhere in it. Crowds were refused window after window, each a moment too early."""
    client = Client(200.0, 1.0, remaining=150, requests=True)
    for at, remaining in ((0.9, 20), (1.05, 199), (2.4, 20)):
        client.hear(client.leave(1, at), remaining, at + 0.05)
    client.hear(client.leave(1, 3.88), 199, 3.95)  # of the second from 3 on, and taken for one that began at 3.88
    assert client.estimate.kind is Kind.WINDOW
    for _ in range(100):
        last = client.leave(1, 4.93)
    client.traffic.refused(last)
    client.hear(last, 0, 5.1)
    assert client.estimate.ready_at(1.0, 5.2) == pytest.approx(5.1 + 1.0 + 0.05, abs=0.02)


def test_a_window_that_begins_with_a_request_may_begin_as_late_as_its_answer_is_there():
    """What is on its way for half a second is not early a window later; if it is, that window explains the refusal."""
    client = Client(100.0, 60.0, remaining=50, requests=True)
    client.hear(client.leave(1, 20.0), 40, 20.5)
    client.hear(client.leave(1, 30.0), 99, 30.5)
    assert client.estimate.kind is Kind.WINDOW
    for _ in range(100):
        client.leave(1, 31.0)
    ready = client.estimate.ready_at(1.0, 32.0)
    assert ready == pytest.approx(90.0 + 0.5 + HEADROOM)
    client.estimate.level(ready)
    assert client.estimate.explains(client.leave(1, ready), None, ready + 0.5)


@pytest.mark.parametrize("began", [3.755, 195.9])
def test_when_a_window_is_said_to_be_over_it_is(began):
    """Floats do not add up: a moment too early, what leaves would be charged to the last one."""
    client = Client(100.0, 60.0, remaining=99, requests=True)
    departure = client.leave(1, began)
    client.estimate.refused(departure, 0, 60.0)
    ready = client.estimate.ready_at(1.0, began + 1.0)
    assert client.estimate.level(ready) > 99


@given(
    st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 100.0), st.booleans()), max_size=40),
    st.floats(0.1, 1_000.0),
)
@example([(19.125, 0.0, False)], 1.0)
def test_a_window_is_waited_for_until_it_begins_and_owes_nothing_then(answers, cost):
    """Whatever contradictory answers left owing in one window: the next has all that it can have. What left within the
    headroom after its beginning is waited for as long again: it may have been counted in either."""
    client, now = Client(100.0, 10.0, remaining=60, reset=9.0, requests=True), 0.0
    for gap, left, stated in answers:
        now += gap
        departure = client.leave(30.0, now)
        if stated:
            client.hear(departure, left, now, reset=9.0)
    estimate = client.estimate
    if estimate.kind is not Kind.WINDOW:
        return  # little was left when it should have begun, so it is none
    for moment in (now, now + 1.0, now + 35.0):
        estimate.level(moment)
        ready = estimate.ready_at(cost, moment)
        assert ready <= max(moment, estimate.boundary + estimate.per + 2 * HEADROOM)
        assert estimate.ready_at(cost, ready) <= ready + 1e-6


@pytest.mark.parametrize("reset", [None, 30.0])
def test_what_is_kept_back_for_what_no_answer_confirms_never_takes_all_of_it(reset):
    """A server that tells its limit once and never again is used for ever, and at more than a trickle."""
    client, now = Client(remaining=LIMIT - 1_000, reset=reset), 0.0
    for _ in range(1_000):
        now = client.estimate.ready_at(LIMIT / 4, now)
        client.leave(LIMIT / 4, now)
    assert now < 1_000 * PER


def test_answers_that_only_a_bucket_gives_take_a_window_back():
    client = Client(600, 60, 599, 60, requests=True)
    assert client.estimate.kind is Kind.WINDOW
    departure = client.leave(100, 5.0)
    client.estimate.heard(departure, StatedLimit(600, 60, 450, 15.0, fits=True), 6.0)
    assert client.estimate.kind is Kind.BUCKET


@pytest.mark.parametrize("limit", [150_000, 600_000])
def test_a_changed_limit_is_adopted_with_what_its_answer_tells(limit):
    client = Client()
    client.hear(client.leave(100_000, 10.0), 40_000, 11.0, limit=limit)
    assert client.estimate.level(11.0) == pytest.approx(40_000 + limit / 60, rel=0.05)
    assert (client.estimate.limit, client.estimate.rate) == (limit, limit / 60)


def test_nothing_that_the_server_would_take_is_too_large():
    """Each of our tokens counts as two, and the request is of four fifths of the limit: it waits for a full bucket."""
    client, level = Client(), LIMIT
    for second in range(40):
        departure = client.leave(5_000, float(second))
        level = min(LIMIT, level + RATE * (second > 0)) - 10_000
        client.hear(departure, math.floor(level), float(second))
    assert client.estimate.factor > 1.8
    assert client.estimate.ready_at(0.8 * LIMIT, 40.0) < 40 + 65


@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.floats(1.0, 30_000.0), st.floats(0.3, 3.0), st.booleans()),
        min_size=5,
        max_size=60,
    )
)
def test_whatever_is_heard_the_estimate_stays_a_number_and_never_stops_for_ever(events):
    client, now = Client(), 0.0
    server = Bucket(LIMIT, RATE)
    for gap, cost, charges, stated in events:
        now += gap
        departure = client.leave(cost, now)
        server.refill(now)
        server.level -= cost * charges
        if stated:
            client.hear(departure, max(0, math.floor(server.level)), now)
        level = client.estimate.level(now)
        assert math.isfinite(level)
        assert level <= client.estimate.capacity
    ready = client.estimate.ready_at(100, now)
    assert now <= ready < now + 3_600
    assert client.estimate.ready_at(100, ready + 1e-6) <= ready + 1e-3


def test_a_bucket_is_as_empty_as_the_latest_departure_makes_it():
    """A first request that takes a second to connect costs that second's refill, and no more."""
    prompt, late = DepartureBucket(20, 2.0), DepartureBucket(20, 2.0)
    for bucket, left in ((prompt, 0.0), (late, 1.0)):
        bucket.charge(20, left)
    assert prompt.level(1.5) == 3.0 - HEADROOM * 2
    assert late.level(1.5) == 1.0 - HEADROOM * 2


@pytest.mark.parametrize(
    ("capacity", "rate", "kept"), [(20, 2.0, 19.5), (2, 10.0, 1.0), (1, 10.0, 1.0), (60, 1.0, 59.75)]
)
def test_headroom_never_takes_more_than_half_of_a_bucket_or_its_last_unit(capacity, rate, kept):
    """A leaky bucket holds one at a time; to hold less would mean never."""
    assert DepartureBucket(capacity, rate).level(0.0) == kept


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 3.0), st.floats(0.1, 5.0)), max_size=40))
def test_what_the_departure_bucket_allows_a_server_with_the_same_bucket_admits(requests):
    """However late requests leave."""
    bucket, waiting = DepartureBucket(10.0, 1.0), 0.0
    leaving, now, server = [], 0.0, Bucket(10.0, 1.0)

    def leave(until):
        nonlocal waiting
        while leaving and leaving[0][0] <= until:
            at, cost = heapq.heappop(leaving)
            waiting -= cost
            bucket.charge(cost, at)
            server.refill(at)
            assert server.level >= cost - 1e-6
            server.level -= cost

    for gap, delay, cost in requests:
        now += gap
        leave(now)
        if bucket.level(now) - waiting >= cost:
            waiting += cost
            heapq.heappush(leaving, (now + delay, cost))
    leave(math.inf)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.3, 2.0, 30.0]), st.floats(0.0, HEADROOM), st.sampled_from([1.0, 0.5, 2.0])
        ),
        max_size=60,
    )
)
def test_what_may_leave_at_once_is_admitted_however_long_the_way_takes(requests):
    """Up to the headroom, and overtaking each other. All of a full bucket may go: nothing of it is kept back."""
    bucket, server = DepartureBucket(2.0, 0.1), Bucket(2.0, 0.1)
    on_their_way, now = [], 100.0

    def arrive(until):
        while on_their_way and on_their_way[0][0] <= until:
            at, cost = heapq.heappop(on_their_way)
            server.refill(at)
            assert server.level >= cost - 1e-6
            server.level -= cost

    for gap, way, cost in requests:
        now += gap
        arrive(now)
        if max(bucket.level(now), bucket.room) >= cost:
            bucket.charge(cost, now)
            heapq.heappush(on_their_way, (now + way, cost))
    arrive(math.inf)


def test_all_of_a_full_bucket_may_leave_at_once_and_is_full_again_later():
    """Of two requests a minute the second one was kept for a quarter of a second, though nobody had asked for it."""
    bucket = DepartureBucket(2, 2 / 60)
    assert bucket.room == 2
    bucket.charge(1, 100.0)
    assert bucket.room == 1
    assert bucket.level(100.0) < 1
    bucket.charge(1, 100.0)
    assert bucket.room == 0
    bucket.charge(1, 160.0 + HEADROOM)  # as full as it can be seen to be
    assert bucket.room == 1


def test_a_limit_that_changes_counts_what_left_before_and_may_arrive_after():
    """Of a burst that left at once, the last is admitted early: its answer knows nothing of the others."""
    traffic = Traffic()
    estimate = ServerEstimate(traffic, StatedLimit(100.0, 60.0, 99.0, None, sure=False), charges_refused=True)
    traffic.waiting = 1.0
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=False)
    traffic.waiting = 80.0
    burst = [traffic.left(1.0, 1.0) for _ in range(80)]
    estimate.heard(burst[-1], StatedLimit(100.0, 10.0, 96.0, 0.4, sure=True, fits=True), 1.1)
    assert estimate.level(1.1) < 25.0


def test_a_bucket_that_holds_less_than_its_limit_refills_by_the_minute_all_the_same():
    """600 a minute, 15 at once: `14 left, all of it in 100 ms` would fit a limit of 600 in a tenth of a second."""
    traffic = Traffic()
    estimate = ServerEstimate(traffic, StatedLimit(600.0, 60.0, 14.0, 0.1), charges_refused=True)
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=False)
    departures = [traffic.left(1.0, 0.0) for _ in range(10)]
    for _ in departures:
        estimate.charge(1.0, 0.0)
    estimate.heard(departures[-1], StatedLimit(600.0, 60.0, 4.0, 1.1), 0.1)
    assert (estimate.per, estimate.capacity) == (60.0, 15.0)
    there = estimate.level(0.1)
    assert estimate.level(0.6) == pytest.approx(there + 5.0)


def test_a_reset_that_would_also_be_that_of_a_faster_limit_changes_nothing_once_the_bucket_is_known_to_hold_less():
    """5 left of 15, of 600 a minute: 990 ms, as a bucket of 600 a second would tell with 5 left."""
    traffic = Traffic()
    estimate = ServerEstimate(traffic, StatedLimit(600.0, 60.0, 14.0, 0.1), charges_refused=True)
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=False)
    departure = traffic.left(1.0, 0.1)
    estimate.charge(1.0, 0.1)
    estimate.heard(departure, StatedLimit(600.0, 1.0, 5.0, 0.99, fits=True), 0.2)
    assert (estimate.per, estimate.capacity) == (60.0, 15.0)


@pytest.mark.parametrize("reset", [None, 1.0])
def test_a_bucket_is_thought_to_hold_no_more_than_was_ever_left(reset):
    """A reset in whole seconds says no more than none."""
    stated = StatedLimit(600.0, 60.0, 14.0, reset, sure=reset is None, step=1.0)
    estimate = ServerEstimate(Traffic(), stated, charges_refused=True)
    first = estimate.traffic.left(1.0, 0.0)
    estimate.begin(first, 0.0, cautious=False)
    assert estimate.level(100.0) <= 15.1


def test_refused_requests_are_charged_no_more_than_there_was():
    """Of fifteen that were sent at once to a bucket with five left, ten were refused: it is empty, and no emptier."""
    traffic = Traffic()
    estimate = ServerEstimate(traffic, StatedLimit(600.0, 60.0, 599.0), charges_refused=True)
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=False)
    answered = traffic.left(1.0, 1.0)
    for index in range(15):
        traffic.left(1.0, 1.0).refused = index >= 5
    estimate.heard(answered, StatedLimit(600.0, 60.0, 5.0), 1.1)
    assert estimate.level(2.1) > 0.0


def test_a_limit_of_unknown_period_is_spent_as_far_as_answers_tell_and_no_further():
    """Its reset says that all comes back in seven seconds, or that one does: count on nothing before it is seen."""
    traffic = Traffic()
    estimate = ServerEstimate(traffic, StatedLimit(100.0, 60.0, 99.0, 7.0, sure=False, step=1.0), charges_refused=True)
    traffic.waiting = 1.0
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=True)
    sent = 0
    while estimate.ready_at(1.0, 1.0) <= 1.0:
        traffic.waiting = 1.0
        departure = traffic.left(1.0, 1.0)
        estimate.charge(1.0, 1.0)
        sent += 1
        estimate.heard(departure, StatedLimit(100.0, 60.0, 99.0 - sent, 6.0, sure=False, step=1.0), 1.0)
    assert 80 <= sent < 99
    assert 1.0 < estimate.ready_at(1.0, 1.0) <= 7.1


def test_a_sample_that_begins_in_a_burst_is_not_believed_if_it_says_that_requests_cost_next_to_nothing():
    """Of a hundred that left at once, the first to leave was admitted last: its snapshot has seen all of them."""
    client = Client()
    burst = [client.leave(1_000, 1.0) for _ in range(100)]
    client.hear(burst[0], 200_000, 1.1)
    client.hear(client.leave(1_000, 2.0), 204_000, 2.1)
    assert client.estimate.factor == 1.0


def test_what_is_charged_over_the_estimate_has_a_reserve_from_the_first_sample_on():
    """Twice as much on average may be five times as much for the next request, as `max_tokens` is."""
    client = Client()
    client.hear(client.leave(20_000, 1.0), 260_000, 1.1)
    assert client.estimate.factor > 1.5
    assert client.estimate.level(1.1) < 260_000 - HEADROOM * RATE - 0.03 * LIMIT


def guessed(limit, charges_refused=True):
    """An estimate of a limit of which no answer tells period or reset, and how one more leaves that is answered."""
    traffic = Traffic(waiting=1.0)
    estimate = ServerEstimate(traffic, StatedLimit(limit, 60.0, limit - 1, sure=False), charges_refused)
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=False)

    def ask(now, left):
        traffic.waiting += 1.0
        departure = traffic.left(1.0, now)
        estimate.charge(1.0, now)
        departure.charged_at = now
        estimate.heard(departure, StatedLimit(limit, 60.0, left, sure=False), now)

    return estimate, ask


def test_a_refill_that_no_answer_has_shown_is_not_counted_on():
    """A window that tells neither its length nor its end is no bucket, however long it takes to use it up."""
    estimate, ask = guessed(400.0)
    now, sent = 0.0, 1
    while (now := max(now + 0.02, estimate.ready_at(1.0, now + 0.02))) < 30.0:
        sent += 1
        ask(now, 400.0 - sent)
    assert 370 <= sent <= 400


def test_a_refill_that_an_answer_has_shown_is_counted_on():
    estimate, ask = guessed(400.0)
    now, level, sent = 0.0, 399.0, 1
    while (later := max(now + 0.02, estimate.ready_at(1.0, now + 0.02))) < 60.0:
        level, now, sent = min(400.0, level + 400 / 60 * (later - now)) - 1.0, later, sent + 1
        assert level >= 0
        ask(now, math.floor(level))
    assert sent >= 0.95 * (400 + 400)


def test_a_window_of_guessed_length_is_looked_at_before_it_should_end():
    """It was asked to stay away for eight seconds; that the next one ends a minute later nobody said."""
    estimate, ask = guessed(100.0)
    for number in range(98):
        ask(2.0, 98.0 - number)
    estimate.traffic.waiting = 1.0
    departure = estimate.traffic.left(1.0, 2.1)
    departure.refused = True
    estimate.refused(departure, 0.0, 8.0)
    assert estimate.kind is Kind.WINDOW
    now = 10.5
    sent = 0
    while sent < 150 and now < 60.0:
        now = max(now + 0.01, estimate.ready_at(1.0, now))
        window = int((now - 10.1) // 10)
        mine = sum(10.1 + 10 * window <= each.at for each in estimate.traffic.between(10.0, now))
        if mine < 100:
            ask(now, 99.0 - mine)
            sent += 1
    assert sent == 150  # a second window's within the minute
    assert estimate.kind is not Kind.WINDOW or estimate.per != 60.0


@pytest.mark.parametrize("quiet", [0.0, 8.0])
def test_more_than_a_minutes_limit_ever_admits_is_no_minutes_limit(quiet):
    """A window of ten seconds slides, of which answers tell what is left alone: by and by, or much after a while."""
    estimate, ask = guessed(100.0)
    for number in range(1, 640):
        now = number / 10 + (quiet if number > 620 else 0.0)
        ask(now, 100.0 - sum(1 for _ in estimate.traffic.between(now - 10.0, now)) - 1)
    assert (estimate.kind, estimate.per) == (Kind.SLIDING, 10.0)


@pytest.mark.parametrize("pause", [50.0, 70.0, 120.0])
def test_what_came_back_while_nobody_asked_tells_no_length(pause):
    """A window of ten seconds, all of it taken at once, looks after a pause as one of a minute would."""
    estimate, ask = guessed(100.0)
    for number in range(99):
        ask(number / 100, 98.0 - number)
    began = now = pause
    left, admitted = 100, 0
    while now < pause + 120:
        now = max(now + 0.01, estimate.ready_at(1.0, now) if admitted >= 100 else now)
        if now >= began + 10:
            began, left = now, 100
        admitted += left > 0
        left = max(0, left - 1)
        ask(now, float(left))
    assert admitted > 0.8 * 12 * 100


@given(
    st.sampled_from([None, 1.0, 7.0, 45.0]),
    st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 100.0), st.booleans()), min_size=3, max_size=40),
)
def test_whatever_is_told_without_a_period_something_leaves_within_minutes(reset, answers):
    traffic, now = Traffic(waiting=1.0), 0.0
    estimate = ServerEstimate(
        traffic, StatedLimit(100.0, 60.0, 99.0, reset, sure=False, step=1.0), charges_refused=True
    )
    estimate.begin(traffic.left(1.0, 0.0), 0.0, cautious=True)
    for gap, left, refused in answers:
        now += gap
        traffic.waiting = 1.0
        departure = traffic.left(1.0, now)
        estimate.charge(1.0, now)
        departure.refused, departure.charged_at = refused, now
        estimate.heard(departure, StatedLimit(100.0, 60.0, 0.0 if refused else left, reset, sure=False, step=1.0), now)
        if refused:
            estimate.refused(departure, 0.0, 5.0)
    for _ in range(100):
        ready = estimate.ready_at(1.0, now)  # moments of looks, which may move
        if ready <= now:
            break
        now = ready
    assert estimate.ready_at(1.0, now) <= now


def test_who_gets_least_of_a_shared_limit_need_not_wait_until_what_others_take_is_there_too():
    """A hundredth of the use: a request of 1,000 seems to take 100,000."""
    client = Client()
    client.estimate._charges.value = 100.0
    assert client.estimate.need(1_000.0) <= 2 * 1_000.0 + 0.02 * LIMIT
    refused = client.leave(10_000.0, 1.0)
    client.traffic.refused(refused)
    client.hear(refused, 90_000.0, 1.1)  # by itself it does take more than that
    assert client.estimate.need(10_000.0) > 90_000.0


def test_what_others_used_up_is_not_kept_back_for_the_first_burst():
    traffic = Traffic()
    traffic.waiting = 30_000.0
    departures = [traffic.left(10_000.0, at) for at in (0.0, 1.0, 2.0)]
    estimate = ServerEstimate(traffic, StatedLimit(LIMIT, PER, LIMIT), False)
    estimate.begin(departures[0], 0.1, cautious=True)
    for departure, remaining in zip(departures[1:], (250_000.0, 20_000.0), strict=True):
        estimate.charge(10_000.0, departure.at)
        estimate.heard(departure, StatedLimit(LIMIT, PER, remaining), departure.at + 0.1)
    assert estimate.ready_at(1_000.0, 2.1) < 2.1 + 5.0
