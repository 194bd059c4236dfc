"""The rules of bookings, one by one: which of them a request waits for, and what becomes of those that are kept."""

from __future__ import annotations

import math

import pytest

from penstock._core.bookings import (
    AMOUNTS,
    EXPIRED,
    LATE,
    MOST,
    Asker,
    add,
    before,
    delays,
    drop,
    level_of,
    mine,
    starts,
    taken,
)
from penstock._core.flows import ALONE, LEAD

AGEING = 30.0


def booked(number=1.0, due=1.0, *amounts, priority=0.0, waited=0.0, key=0.0, start=0.0, member=ALONE, share=0.0):
    return [number, due, priority, waited, AGEING, key, start, member, share, *(amounts or (1.0,))]


def asker(priority=0.0, waited=0.0, share=0.0, key=0.0, start=0.0, member=ALONE):
    one = Asker(priority, waited, AGEING, share)
    one.key, one.start, one.member_start = key, start, member
    return one


def numbers(found):
    return [booking[0] for booking in found]


def waits(booking, one, *, claims):
    """Whether a request waits for a booking."""
    return bool(before([booking], one, claims=claims))


def order(booking, one):
    """-1: the booking goes first; 1: the request; 0: the moments decide, as between equals."""
    return {(True, True): -1, (True, False): 0, (False, False): 1}[
        waits(booking, one, claims=False), waits(booking, one, claims=True)
    ]


def test_a_newcomer_waits_for_its_equals_and_a_claim_only_for_those_that_are_more_urgent():
    all_three = [booked(1, 3.0, priority=-1), booked(2, 2.0), booked(3, 1.0, priority=1)]
    assert numbers(before(all_three, asker(), claims=False)) == [3, 2]
    assert numbers(before(all_three, asker(), claims=True)) == [3]


def test_those_that_are_late_are_waited_for_a_moment_and_not_longer():
    assert waits(booked(1, -LATE), asker(), claims=False)
    assert not waits(booked(1, -LATE - 1e-6), asker(), claims=False)
    assert not waits(booked(1, -LATE - 1e-6, priority=5), asker(), claims=True)


def test_those_that_are_kept_as_one_come_first_and_no_claim_waits_for_them():
    kept = booked(0, 9.0, priority=5)
    assert numbers(before([booked(1, 2.0), kept], asker(), claims=False)) == [0, 1]
    assert not waits(kept, asker(), claims=True)


def test_a_level_is_the_priority_and_one_for_each_whole_time_of_ageing():
    assert [level_of(2, waited, 30) for waited in (0, 29.9, 30, 59.9, 60)] == [2, 2, 3, 3, 4]
    assert level_of(-1, 30 * (1 - 1e-12), 30) == 0, "sums of floats"


def test_waiting_makes_up_for_priority_and_passes_no_equal():
    assert order(booked(priority=1), asker(waited=29.9)) == -1
    assert order(booked(priority=1), asker(waited=30)) == 0
    assert order(booked(priority=1), asker(waited=60)) == 1
    assert order(booked(priority=-1, waited=60), asker()) == -1
    assert order(booked(waited=300), asker()) == order(booked(), asker(waited=300)) == 0


@pytest.mark.parametrize("sides", [(0.0, 0.0), (2.0, 0.5)], ids=repr)
def test_processes_without_a_flow_pass_each_other_when_they_are_a_call_of_each_apart(sides):
    mine_, theirs = sides
    apart = LEAD + mine_ + theirs

    def between(gap):
        """The booking's process has had so much more than the request's."""
        return order(booked(key=1, start=10 + gap, share=theirs), asker(key=2, start=10, share=mine_))

    assert [between(gap) for gap in (apart + 1e-6, apart - 1e-6, 0.0, -apart + 1e-6, -apart - 1e-6)] == [1, 0, 0, 0, -1]


def test_exactly_a_call_apart_the_moments_decide():
    assert order(booked(key=1, start=LEAD), asker(key=2)) == 0
    assert order(booked(key=1), asker(key=2, start=LEAD)) == 0


def test_where_its_flow_is_not_known_a_request_is_one_without_a_flow():
    one = asker(priority=2, waited=7.0, share=0.5, key=9.0, start=8.0, member=6.0).without_flow()
    assert (one.priority, one.waited, one.ageing, one.share) == (2, 7.0, AGEING, 0.5)
    assert (one.key, one.start, one.member_start) == (0, 0, ALONE)


def test_flows_with_names_pass_each_other_when_they_are_half_a_call_apart():
    def between(gap, mine_=0.01, theirs=0.02):
        ours = asker(key=2, start=10, member=3, share=mine_)
        return order(booked(key=1, start=10 + gap, member=3, share=theirs), ours)

    assert [between(gap) for gap in (0.0101, 0.0099, 0.0, -0.0049, -0.0051)] == [1, 0, 0, 0, -1]
    assert [between(gap, 9, 9) for gap in (LEAD + 1e-6, LEAD - 1e-6, -LEAD + 1e-6, -LEAD - 1e-6)] == [1, 0, 0, -1]
    alone = asker(key=2, start=10, share=0.01)
    assert order(booked(key=1, start=10.0101, member=3, share=0.02), alone) == 1, "one of them has a name"


def test_members_of_one_flow_are_compared_by_what_each_of_them_has_had():
    def between(gap, start=0.0):
        ours = asker(key=1, member=10, share=0.5)
        return order(booked(key=1, start=start, member=10 + gap, share=0.25), ours)

    apart = LEAD + 0.75
    assert [between(gap) for gap in (apart + 1e-6, apart - 1e-6, -apart + 1e-6, -apart - 1e-6)] == [1, 0, 0, -1]
    assert between(0, start=99.0) == 0, "where the flow stands is the same for both"


def test_a_charge_delays_a_booking_only_where_it_has_not_flowed_in_again_by_then():
    bucket = (0.0, 1.0, 10.0)  # empty of debt, 1 a second, 10 at once
    assert delays([booked(1, 0.0, 10.0)], AMOUNTS, bucket, 1.0, 0.0)
    assert not delays([booked(1, 0.0, 9.0)], AMOUNTS, bucket, 1.0, 0.0), "there is enough for both"
    assert not delays([booked(1, 1.0, 10.0)], AMOUNTS, bucket, 1.0, 0.0), "it is back by then"
    assert delays([booked(1, 0.9, 10.0)], AMOUNTS, bucket, 1.0, 0.0)
    assert not delays([], AMOUNTS, bucket, 10.0, 0.0)


def test_what_is_owed_flows_away_before_the_charge_and_before_the_booking():
    bucket = (4.0, 1.0, 10.0)
    assert not delays([booked(1, 3.0, 5.0)], AMOUNTS, bucket, 4.0, 0.0)
    assert delays([booked(1, 3.0, 5.1)], AMOUNTS, bucket, 4.0, 0.0)
    nearly_empty = (1.0, 1.0, 10.0)
    assert not delays([booked(1, 3.0, 7.5)], AMOUNTS, nearly_empty, 4.0, 0.0)
    assert delays([booked(1, 3.0, 7.5)], AMOUNTS, nearly_empty, 4.0, 2.0), "charged later, less of it is back by then"
    assert delays([booked(1, 1.0, 5.0)], AMOUNTS, bucket, 4.0, 2.0), "a booking is due no sooner than the charge"
    assert not delays([booked(1, 1.0, 4.0)], AMOUNTS, bucket, 4.0, 2.0)


def test_the_faster_a_limit_is_the_sooner_a_charge_is_back():
    bucket = (2.0, 4.0, 10.0)
    assert not delays([booked(1, 1.5, 10.0)], AMOUNTS, bucket, 4.0, 0.0)
    assert delays([booked(1, 1.4, 10.0)], AMOUNTS, bucket, 4.0, 0.0)
    assert not delays([booked(1, 1.5, 10.0)], AMOUNTS, bucket, 4.0, 0.5), "nothing is owed half a second from now"
    assert delays([booked(1, 1.4, 10.0)], AMOUNTS, bucket, 4.0, 0.5)
    assert not delays([booked(1, 0.5, 6.0), booked(2, 2.0, 6.0)], AMOUNTS, bucket, 4.0, 0.0)
    assert delays([booked(1, 0.5, 6.0), booked(2, 2.0, 6.1)], AMOUNTS, bucket, 4.0, 0.0)


def test_several_bookings_need_what_they_take_together():
    bucket = (0.0, 1.0, 10.0)
    pair = [booked(1, 0.0, 5.0), booked(2, 0.0, 5.0)]
    assert delays(pair, AMOUNTS, bucket, 1.0, 0.0)
    assert not delays([booked(1, 0.0, 4.0), booked(2, 0.0, 5.0)], AMOUNTS, bucket, 1.0, 0.0)
    assert not delays([booked(1, 0.0, 4.0), booked(2, 2.0, 7.0)], AMOUNTS, bucket, 1.0, 0.0)
    assert delays([booked(1, 0.0, 4.0), booked(2, 2.0, 7.1)], AMOUNTS, bucket, 1.0, 0.0)
    merged = [booked(0, 50.0, 10.0)]
    assert delays(merged, AMOUNTS, bucket, 1.0, 0.0), "it is unknown when the first of those kept as one comes"


def test_each_limit_is_looked_at_by_itself():
    found = [booked(1, 0.0, 10.0, 0.0), booked(2, 0.0, 0.0, 3.0)]
    bucket = (0.0, 1.0, 10.0)
    assert delays(found, AMOUNTS, bucket, 1.0, 0.0)
    assert not delays(found, AMOUNTS + 1, bucket, 7.0, 0.0)
    assert delays(found, AMOUNTS + 1, bucket, 7.1, 0.0)
    assert taken(found, AMOUNTS) == 10
    assert taken([*found, booked(3, 0.0, 1.0, 4.0)], AMOUNTS + 1) == 7
    assert taken([], AMOUNTS) == 0


def test_half_a_microsecond_of_the_rate_delays_nobody():
    bucket = (0.0, 1e6, 10.0)
    assert not delays([booked(1, 0.0, 10.0)], AMOUNTS, bucket, 0.4, 0.0)
    assert delays([booked(1, 0.0, 10.0)], AMOUNTS, bucket, 0.6, 0.0)
    assert not delays([booked(1, 0.0, 1.0), booked(2, 0.0, 9.6)], AMOUNTS, bucket, 0.4, 0.0), "it is late anyway"


def test_a_claim_takes_its_own_booking_out():
    row = [booked(1, 1.0), booked(2, 2.0), booked(3, 3.0)]
    assert mine(row, 2.0, 2.0, [1.0])[0] == 2
    assert numbers(row) == [1, 3]
    assert mine(row, 9.0, 2.0, [1.0]) is None
    drop(row, 3.0)
    drop(row, 7.0)
    assert numbers(row) == [1]


def test_a_claim_takes_its_amounts_out_of_those_that_are_kept_as_one():
    row = [booked(1, 1.0, 1.0, 1.0), booked(0, 5.0, 4.0, 2.0)]
    assert mine(row, 8.0, 5.0 + EXPIRED + 1e-6, [1.0, 1.0]) is None, "it is later than the last of them"
    assert mine(row, 8.0, 5.0 + EXPIRED, [1.0, 1.0]) is row[1]
    assert row[1][AMOUNTS:] == [3.0, 1.0]
    mine(row, 9.0, 5.0, [1.0, 2.0])
    assert row[1][AMOUNTS:] == [2.0, 0.0], "never less than nothing"
    assert mine(row, 10.0, 5.0, [2.0, 0.0]) is not None
    assert numbers(row) == [1], "nothing is left of them"


def test_beyond_the_most_the_least_urgent_are_kept_as_one():
    row = []
    for number in range(1, MOST):
        add(row, booked(number, number, 1.0, priority=1))
    add(row, booked(500, 50.0, 2.0, priority=-1, waited=3.0, start=7.0))
    assert len(row) == MOST
    add(row, booked(501, 60.0, 3.0, priority=-2, waited=5.0, start=6.0))
    assert len(row) == MOST
    kept = next(booking for booking in row if not booking[0])
    assert kept[:4] == [0.0, 60.0, -1, 5.0], "the latest moment, the highest priority, the longest wait"
    assert (kept[6], kept[AMOUNTS]) == (6.0, 5.0), "the least that a flow has had, and all amounts"
    add(row, booked(502, 9.0, 4.0, 0.5, priority=-3, start=8.0)[: AMOUNTS + 1])
    assert len(row) == MOST
    assert [booking for booking in row if not booking[0]] == [kept]
    assert (kept[1], kept[2], kept[3], kept[6], kept[AMOUNTS]) == (60.0, -1, 5.0, 6.0, 9.0)
    assert sum(booking[AMOUNTS] for booking in row) == MOST - 1 + 9


def test_of_one_level_the_one_that_is_due_last_is_the_least_urgent():
    row = [booked(number, number) for number in range(1, MOST + 1)]
    add(row, booked(900, 0.5))
    kept = next(booking for booking in row if not booking[0])
    assert kept[1] == MOST
    assert {MOST, MOST - 1}.isdisjoint(numbers(row))
    assert kept[AMOUNTS] == 2


def test_a_flow_that_comes_anew_begins_where_the_least_served_stands():
    row = [booked(1, key=1, start=5, member=2), booked(2, key=2, start=3, member=4), booked(3, key=0, start=1)]
    assert starts(row, 9.0, alone=False) == (3, math.inf)
    assert starts(row, 1.0, alone=False) == (3, 2), "a member begins with the last one of its flow"
    assert starts([*row, booked(4, key=1, start=5, member=7)], 1.0, alone=False) == (3, 7)
    assert starts([], 9.0, alone=False) == (math.inf, math.inf)


def test_a_process_without_a_flow_begins_with_those_that_came_last():
    row = [booked(1, key=1, start=5), booked(2, key=2, start=3)]
    assert starts(row, 9.0, alone=True) == (5, math.inf)
    assert starts([booked(1, key=1, start=ALONE)], 9.0, alone=True) == (math.inf, math.inf)
    assert starts([], 9.0, alone=True) == (math.inf, math.inf)
