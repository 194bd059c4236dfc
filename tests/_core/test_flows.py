"""Turns with plain numbers: how far a flow may go before others, what is remembered of it, and of whom no more.

That flows share fairly, with decisions and processes, is in tests/stores/test_flows.py.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.flows import AGAIN, ALONE, FLOWS, FORGET, GRACE, LATE, LEAD, FlowTurn, kept, leave

# An entry: whose it is, of which flow (0: it is one), what it has had, and how far ahead its last admission is;
# seconds.


def test_where_nobody_else_waits_there_is_no_bound():
    entries = []
    turn = FlowTurn(entries, 1.0, 0.0, 4.0)
    assert (turn.room, turn.back, turn.inverse) == (math.inf, 0.0, 0.25)
    turn.took(12.0, 0.5)
    turn.close()
    assert entries == [[1.0, 0.0, 3.0, 0.5]], "by its weight"
    again = FlowTurn(entries, 1.0, 0.0, 1.0)
    assert (again.room, again.back) == (math.inf, 0.0)


def test_a_flow_may_go_as_far_as_the_one_that_has_had_least_and_the_lead():
    """Of those who wait; and it is known when that one asks again."""
    entries = [[1.0, 0.0, 7.0, 0.25], [2.0, 0.0, 5.0, 0.5], [3.0, 0.0, 6.0, 0.75], [4.0, 0.0, 5.5, 0.1]]
    turn = FlowTurn(entries, 4.0, 0.0, 1.0)
    assert (turn.room, turn.back) == (5.0 + LEAD - 5.5, 0.5)
    assert len(entries) == 4
    turn.took(2.0, 0.05)
    turn.close()
    assert entries[3] == [4.0, 0.0, 7.5, 0.1], "no nearer than what it was granted before"
    turn = FlowTurn(entries, 4.0, 0.0, 1.0)
    turn.took(0.75, 0.3)
    turn.took(0.25, 0.2)
    turn.close()
    assert entries[3] == [4.0, 0.0, 8.5, 0.3]
    FlowTurn(entries, 4.0, 0.0, 1.0).close()
    assert entries[3] == [4.0, 0.0, 8.5, 0.3], "nothing was granted"
    FlowTurn(entries, 4.0, 0.0, 1.0, ahead=0.4).close()
    assert entries[3] == [4.0, 0.0, 8.5, 0.4], "it waits behind others of its process"


def test_a_newcomer_begins_where_the_one_is_that_has_had_least():
    entries = [[1.0, 0.0, 7.0, 0.25], [2.0, 0.0, 5.0, 0.5]]
    turn = FlowTurn(entries, 9.0, 0.0, 1.0)
    assert (turn.room, turn.back) == (pytest.approx(LEAD), 0.5)
    turn.took(1.0, 0.0)
    turn.close()
    assert entries[2] == [9.0, 0.0, 6.0, 0.0]
    first = []
    FlowTurn(first, 9.0, 0.0, 1.0, ahead=0.0).close()
    assert first == [[9.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("ahead", "counts"), [(-0.9 * GRACE, True), (-GRACE, False), (0.0, True), (-1.0, False)])
def test_a_flow_waits_until_a_moment_after_its_last_admission(ahead, counts):
    """Until its process has asked for the next. Its tag goes on meanwhile."""
    turn = FlowTurn([[1.0, 0.0, 5.0, ahead], [2.0, 0.0, 5.0, 0.0]], 2.0, 0.0, 1.0)
    assert turn.room == (pytest.approx(max(0.0, -ahead) + LEAD) if counts else math.inf)
    assert turn.back == (ahead if counts else 0.0)


@pytest.mark.parametrize(
    ("mine", "away", "tag"),
    [(5.0, 0.25, 5.25), (5.0, 3.0, 6.0), (7.0, 3.0, 7.0), (5.0, 0.0, 5.0), (6.0, 0.5, 6.0)],
    ids=["a while", "for long", "who is ahead", "just now", "at the least"],
)
def test_a_flow_that_was_away_has_no_credit_for_it_and_does_not_fall_behind(mine, away, tag):
    """Its tag goes on with the time, up to that of the one that has had least; who is ahead stays ahead."""
    entries = [[1.0, 0.0, 6.0, 0.5], [2.0, 0.0, mine, -away]]
    FlowTurn(entries, 2.0, 0.0, 1.0)
    assert entries[1][2] == tag
    alone = [[2.0, 0.0, mine, -away]]
    FlowTurn(alone, 2.0, 0.0, 1.0)
    assert alone[0][2] == mine, "nobody is there to fall behind"


def test_a_flow_that_asks_twice_in_one_batch_was_not_away_between():
    entries = [[1.0, 0.0, 6.0, 0.5]]
    FlowTurn(entries, 2.0, 0.0, 1.0)
    entries[0][2] = 9.0
    FlowTurn(entries, 2.0, 0.0, 1.0)
    assert entries[1][2] == 6.0


def test_members_of_a_flow_share_what_it_has_and_other_flows_are_none_of_their_business():
    """A member may go as far as both its flow and itself may."""
    flows = [[1.0, 0.0, 5.0, 0.1], [2.0, 0.0, 4.0, 0.2]]
    members = [[11.0, 1.0, 3.0, 0.3], [12.0, 1.0, 2.5, 0.4], [11.0, 2.0, 0.0, 0.5], [12.0, 0.0, 50.0, 0.6]]
    entries = [*flows, *members]
    turn = FlowTurn(entries, 1.0, 11.0, 1.0)
    assert (turn.room, turn.back) == (4.0 + LEAD - 5.0, 0.2), "the flow is further ahead"
    members[0][2] = 4.0
    turn = FlowTurn(entries, 1.0, 11.0, 1.0)
    assert (turn.room, turn.back) == (2.5 + LEAD - 4.0, 0.4), "the member is"
    turn.took(1.0, 0.7)
    turn.close()
    assert entries == [
        [1.0, 0.0, 6.0, 0.7],
        [2.0, 0.0, 4.0, 0.2],
        [11.0, 1.0, 5.0, 0.7],
        [12.0, 1.0, 2.5, 0.4],
        [11.0, 2.0, 0.0, 0.5],
        [12.0, 0.0, 50.0, 0.6],
    ]
    newcomer = FlowTurn(entries, 2.0, 13.0, 1.0)
    newcomer.took(1.0, 0.0)
    newcomer.close()
    assert entries[6:] == [[13.0, 2.0, 1.0, 0.0]], "a new member of another flow begins where those of that flow are"


def test_of_equals_the_first_says_when_it_asks_again():
    turn = FlowTurn([[1.0, 0.0, 5.0, 0.1], [2.0, 0.0, 5.0, 0.2], [3.0, 0.0, 5.0, 0.3]], 3.0, 0.0, 1.0)
    assert turn.back == 0.1


def test_a_flow_that_is_ahead_is_told_to_come_again_when_the_other_has_caught_up():
    """Or asks again, whichever is later; within a millisecond and a twentieth of a second."""
    entries = [[1.0, 0.0, 5.0, 0.01], [2.0, 0.0, 5.0, 0.0]]

    def again_after(spent, back=0.01):
        turn = FlowTurn([list(entry) for entry in entries], 2.0, 0.0, 1.0)
        turn.took(spent, 0.0)
        turn.back = back
        assert turn.is_over == (spent > LEAD)
        return turn.again()

    assert again_after(LEAD + 0.03) == pytest.approx(0.03)
    assert again_after(LEAD + 0.005) == 0.01
    assert again_after(9.0) == AGAIN[1] == 0.05
    assert again_after(LEAD - 0.001, back=-1.0) == AGAIN[0] == 0.001
    turn = FlowTurn(entries, 2.0, 0.0, 1.0)
    turn.took(9.0, 0.0)
    turn.again()
    turn.close()
    assert entries[1] == [2.0, 0.0, 14.0, AGAIN[1] + LATE], "until then it counts as waiting"


TAGS = st.lists(st.integers(0, 400), min_size=2, max_size=8)


@given(tags=TAGS)
def test_somebody_can_always_go(tags):
    """Whoever has had least of those who wait; and nobody who is ahead of that one by more than the lead."""
    entries = [[float(key), 0.0, tag / 100, 0.0] for key, tag in enumerate(tags, 1)]
    for key, tag in enumerate(tags, 1):
        others = min(other for at, other in enumerate(tags, 1) if at != key)
        assert FlowTurn(entries, float(key), 0.0, 1.0).room == pytest.approx((others - tag) / 100 + LEAD)
    assert max(FlowTurn(entries, float(key), 0.0, 1.0).room for key in range(1, len(tags) + 1)) >= LEAD * 0.999


def test_what_is_given_back_is_taken_from_the_flow_and_its_member_and_from_nobody_else():
    """And neither is waited for."""
    entries = [
        [1.0, 0.0, 5.0, 0.5],
        [7.0, 1.0, 3.0, 0.5],
        [8.0, 1.0, 3.0, 0.5],
        [7.0, 2.0, 3.0, 0.5],
        [7.0, 0.0, 3.0, 0.5],
        [1.0, 7.0, 3.0, 0.5],
        [2.0, 0.0, 3.0, 0.5],
    ]
    before = [list(entry) for entry in entries]
    leave(entries, 1.0, 7.0, 0.25)
    assert entries == [[1.0, 0.0, 4.75, 0.0], [7.0, 1.0, 2.75, 0.0], *before[2:]]
    leave(entries, 2.0, 0.0, 1.0)
    assert entries[6] == [2.0, 0.0, 2.0, 0.0]
    entries[6][3] = -0.5
    leave(entries, 2.0, 0.0, 1.0)
    assert entries[6] == [2.0, 0.0, 1.0, -0.5], "who was away stays away"


def test_what_is_a_second_ago_is_forgotten():
    entries = [[1.0, 0.0, 5.0, -FORGET], [2.0, 0.0, 5.0, -0.999 * FORGET], [3.0, 0.0, 5.0, 0.5]]
    assert kept(entries) == entries[1:]


def test_of_too_many_flows_those_are_kept_that_wait_and_have_had_least():
    """Whoever waits comes before whoever does not, however little that one has had."""
    away = [[float(key), 0.0, key / 1000, -GRACE] for key in range(1, 11)]
    there = [[float(key), 0.0, key / 10, -0.9 * GRACE] for key in range(100 + FLOWS - 4, 100, -1)]
    entries = [*away[5:], *there, *away[:5]]
    found = kept(entries)
    assert len(found) == FLOWS
    assert found == [*reversed(there), *away[:4]]
    few = [*away[5:], *there[: FLOWS - 5]]
    assert kept(few) == few, "as they are, where there is room for all"
    assert kept([*few, away[0]]) != [*few, away[0]]


def test_of_too_many_flows_those_are_kept_before_any_member():
    """Without its flow a member's entry says nothing."""
    flows = [[float(key), 0.0, 9.0, 0.5] for key in range(1, 6)]
    members = [[float(key), 1.0, key / 1000, 0.5] for key in range(10, 10 + FLOWS - 3)]
    assert kept([*members, *flows]) == [*flows, *members[: FLOWS - 5]]


def test_a_turn_that_went_to_others_counts_for_the_member_that_gave_it_up():
    """Its flow has had no more; where there is no member, the flow itself gave it up."""
    entries = [[1.0, 0.0, 5.0, 0.1], [11.0, 1.0, 3.0, 0.3]]
    FlowTurn(entries, 1.0, 11.0, 1.0).passed(0.25)
    assert entries == [[1.0, 0.0, 5.0, 0.1], [11.0, 1.0, 3.25, 0.3]]
    FlowTurn(entries, 1.0, 0.0, 1.0).passed(0.5)
    assert entries == [[1.0, 0.0, 5.5, 0.1], [11.0, 1.0, 3.25, 0.3]]


@pytest.mark.parametrize(
    ("member", "booked", "begins"),
    [
        (0.0, (9.0, 3.0), [9.0]),  # behind its own bookings, whatever the others have had
        (11.0, (9.0, 4.0), [5.0, 4.0]),  # with members: no later than the flow that has had least
        (11.0, (3.0, 4.0), [3.0, 4.0]),
        (11.0, (math.inf, math.inf), [5.0, 2.0]),
    ],
    ids=["a flow", "with a member", "with a member, earlier", "nothing booked"],
)
def test_a_newcomer_begins_where_the_bookings_of_its_flow_begin(member, booked, begins):
    entries = [[2.0, 0.0, 5.0, 0.5], [12.0, 1.0, 2.0, 0.5]]
    turn = FlowTurn(entries, 1.0, member, 1.0, booked)
    assert [entry[2] for entry in entries[2:]] == begins
    assert turn.key == 1.0


def test_a_turn_tells_how_far_its_flow_and_its_member_are():
    """With what the batch has taken; a flow without members has no second number."""
    entries = [[1.0, 0.0, 5.0, 0.1], [11.0, 1.0, 3.0, 0.3]]
    turn = FlowTurn(entries, 1.0, 11.0, 1.0)
    turn.took(0.5, 0.0)
    assert turn.starts() == (5.5, 3.5)
    alone = FlowTurn(entries, 1.0, 0.0, 1.0)
    alone.took(0.25, 0.0)
    assert alone.starts() == (5.25, ALONE)
