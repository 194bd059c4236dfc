"""Places: held, given back, and back by themselves after their time to live."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import in_flight
from penstock._core.places import Places


def test_places_are_held_until_given_back_and_no_time_frees_them():
    places = Places(in_flight(3))
    first = places.charge_if_ready(2, 0.0)
    assert first is not None
    assert places.held
    assert (places.level(0.0), places.used(0.0), places.idle(0.0)) == (1, 2, False)
    assert places.charge_if_ready(2, 1e9) is None
    assert places.ready_at(2, 1e9) == math.inf
    assert places.ready_at(1, 5.0) == 5.0
    places.give_back(1, first, 1e9)
    assert places.level(1e9) == 2
    places.give_back(5, first, 1e9)
    assert places.level(1e9) == 3, "never more than it holds"
    assert places.idle(1e9)
    assert not places._holds, "without a time to live there is nothing to remember"


def test_of_new_places_no_holder_is_known_and_none_is_lost():
    places = Places(in_flight(3))
    assert (places.last_hold, places.lost, places.orphans) == (None, [], [])
    hold = places.charge(2, 0.0)
    assert (hold.amount, hold.where, hold.holder) == (2, None, None)


def test_a_glance_takes_nothing_back():
    """A signal handler may look in the middle of anything."""
    places = Places(in_flight(3, ttl=10))
    places.charge(2, 0.0)
    assert places.glance(11.0) == 1
    assert places.level(11.0) == 3


def test_a_place_comes_back_when_its_time_to_live_has_passed():
    places = Places(in_flight(3, ttl=10))
    first, second = places.charge(2, 0.0), places.charge(1, 4.0)
    assert places.ready_at(1, 5.0) == 10.0
    assert places.ready_at(2, 5.0) == 10.0
    assert places.ready_at(3, 5.0) == 14.0
    assert places.ready_at(4, 5.0) == math.inf, "more than there are"
    assert places.charge_if_ready(1, 9.999) is None
    assert places.level(10.0) == 2
    places.give_back(2, first, 11.0)
    assert places.level(11.0) == 2, "its time had passed: it holds nothing any more"
    places.give_back(1, second, 11.0)
    assert places.level(11.0) == 3
    assert places.idle(11.0)


def test_ready_after_is_ready_at_with_the_other_charged_first_and_charges_nothing():
    places = Places(in_flight(4, ttl=10))
    places.charge(2, 0.0)
    assert places.ready_after(1, 1, 1.0) == 1.0
    assert places.ready_after(1, 2, 1.0) == 10.0
    assert places.ready_after(3, 2, 1.0) == math.inf
    assert places.used(1.0) == 2


def test_changes_keep_what_is_held():
    places = Places(in_flight(4))
    receipt = places.charge(3, 0.0)
    assert places.change(in_flight(2), 1.0)
    assert places.level(1.0) == -1
    assert places.ready_at(1, 1.0) == math.inf
    assert places.change(in_flight(5, ttl=10), 2.0)
    later = places.charge(2, 2.0)
    assert later.until == 12.0
    assert receipt.until == math.inf, "what was promised at its grant holds for it"
    assert places.level(12.0) == 2
    places.give_back(3, receipt, 13.0)
    assert places.idle(13.0)


def test_a_shorter_time_to_live_passes_before_a_longer_one_given_earlier():
    places = Places(in_flight(4, ttl=100))
    places.charge(1, 0.0)
    places.change(in_flight(4, ttl=5), 1.0)
    places.charge(2, 1.0)
    assert places.ready_at(2, 2.0) == 6.0
    assert places.ready_at(4, 2.0) == 100.0
    assert places.level(6.0) == 3


def test_what_is_put_away_holds_nothing_and_hearsay_changes_nothing():
    places = Places(in_flight(4, ttl=5))
    places.charge(3, 0.0)
    places.lower_to(0, 0.0)
    assert places.level(0.0) == 1
    places.unpack(Places(in_flight(4)).pack())
    assert places.level(0.0) == 4
    assert places.level(50.0) == 4, "the time to live of what was forgotten frees nothing"


@given(
    n=st.integers(1, 6),
    ttl=st.none() | st.just(10.0),
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 4.0, 10.0]), st.sampled_from(["take", "back"]), st.integers(1, 6)),
        max_size=50,
    ),
)
def test_never_more_are_held_than_there_are_places_and_none_is_lost(n, ttl, steps):
    """Against a list of who holds what until when."""
    places, now = Places(in_flight(n, ttl=ttl)), 0.0
    holds: list[list] = []  # amount, until, receipt
    for gap, kind, wanted in steps:
        now += gap
        amount = min(wanted, n)
        holds = [hold for hold in holds if hold[1] > now and hold[0]]
        if kind == "take":
            free = n - sum(hold[0] for hold in holds)
            receipt = places.charge_if_ready(amount, now)
            assert (receipt is not None) == (amount <= free)
            if receipt is not None:
                holds.append([amount, math.inf if ttl is None else now + ttl, receipt])
        elif holds:
            hold = holds[amount % len(holds)]
            places.give_back(amount, hold[2], now)
            hold[0] -= min(amount, hold[0])
        held = sum(hold[0] for hold in holds)
        assert places.used(now) == held
        assert places.level(now) == n - held
        assert places.idle(now) == (held == 0)
        for more in range(1, n + 1):
            freed = sorted((until, part) for part, until, _ in holds)
            expected = now
            over = held + more - n
            for until, part in freed:
                if over > 0:
                    over -= part
                    expected = until
            assert places.ready_at(more, now) == expected


def test_holds_past_their_time_to_live_are_among_the_lost_and_those_given_back_are_not():
    places = Places(in_flight(4, ttl=10))
    back, part, lost = (places.charge(amount, 0.0) for amount in (1, 2, 1))
    assert lost.where is None
    places.give_back(1, back, 1.0)
    places.give_back(1, part, 1.0)
    assert places.level(9.0) == 2
    assert places.lost == []
    assert places.level(10.0) == 4
    assert places.lost == [part, lost]
    assert [hold.amount for hold in places.lost] == [0, 0]


@given(
    steps=st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.7, 1.1]), st.integers(0, 9)), max_size=60),
    ttl=st.sampled_from([None, 5.0]),
)
def test_fractions_of_places_come_back_whole(steps, ttl):
    """Sums of fractions leave a little behind: with that held for ever, all places at once were never free again."""
    places = Places(in_flight(3, ttl=ttl))
    held = []
    for number, (amount, which) in enumerate(steps):
        receipt = places.charge_if_ready(amount, number / 10)
        if receipt is not None:
            held.append((amount, receipt))
        elif held:
            places.give_back(*held.pop(which % len(held)), number / 10)
    for amount, receipt in held:
        places.give_back(amount, receipt, 7.0)
    assert places.idle(7.0)
    assert places.charge_if_ready(3, 7.0) is not None


def test_fractions_of_places_add_up_to_all_of_them():
    for amount, parts in [(3, [0.3] * 10), (3.3, [1.1, 2.2]), (1.1, [0.7, 0.4])]:
        places = Places(in_flight(amount))
        assert all(places.charge_if_ready(part, 0.0) is not None for part in parts)
        assert places.charge_if_ready(0.001, 0.0) is None
    places = Places(in_flight(3))
    assert places.ready_at(3 * (1 + 1e-9), 0.0) == 0.0, "that much is forgiven"
    assert places.ready_at(3 * (1 + 2e-9), 0.0) == math.inf


@pytest.mark.parametrize("before", ["nothing", "a call without a place", "a word of the store's that nobody has one"])
def test_where_nobody_has_a_place_nothing_is_left_of_fractions(before):
    """0.1 + 0.2 − 0.1 − 0.2 is not 0."""
    places = Places(in_flight(3))
    if before == "a call without a place":
        places.charge(0.0, 0.0)
    elif before != "nothing":
        places.unpack(0.0)
    receipts = [(amount, places.charge(amount, 0.0)) for amount in (0.1, 0.2)]
    for amount, receipt in receipts:
        places.give_back(amount, receipt, 0.0)
    assert places.used(0.0) == 0


def test_places_that_others_have_are_not_free_when_the_last_one_here_is():
    places = Places(in_flight(3))
    places.unpack(2.0)
    receipt = places.charge(1, 0.0)
    assert places.level(0.0) == 0
    places.give_back(1, receipt, 0.0)
    assert places.used(0.0) == 2


def test_places_that_are_held_must_be_kept_as_they_are():
    for ttl, taken, packed in ((None, 0, 0.0), (None, 2, None), (5, 0, 0.0), (5, 2, None)):
        places = Places(in_flight(4, ttl=ttl))
        places.charge(taken, 0.0)
        assert places.pack() == packed


def test_what_no_permit_can_give_back_any_more_is_free_once_it_was_taken_away():
    places = Places(in_flight(4))
    lost, also_lost, held = (places.charge(amount, 0.0) for amount in (1, 2, 1))
    places.orphans += [lost, also_lost]
    places.free_orphans()
    assert (places.level(0.0), places.orphans) == (3, [])
    places.give_back(1, held, 0.0)
    assert places.idle(0.0)
