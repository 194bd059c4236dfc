"""How many requests a server works on at once, out of what it refuses."""

from __future__ import annotations

import pytest

from penstock.llm.learning.places import AGREE, RAREST_LOOK, Places


def agreed(others: int = 10) -> Places:
    """What refusals agree on, one after the other."""
    places = Places()
    for _ in range(AGREE + 1):
        places.refused(others, said=False)
        for _ in range(max(2, others)):
            places.admitted(others - 1)
    return places


def test_a_refusal_that_says_so_is_believed_at_once():
    """As many as were under way are known to be too many."""
    places = Places()
    assert places.refused(7, said=True)
    assert places.most == 7


def test_a_number_that_is_named_is_never_exceeded_by_what_was_under_way():
    """Of a bunch, those that will be refused too are thought to be under way."""
    places = Places()
    assert places.refused(199, said=True, named=3)
    assert places.most == 3


def test_of_a_bunch_that_is_refused_the_last_one_tells():
    """The first of them do not know of the others yet."""
    places = Places()
    for others in (30, 22, 10, 14):
        assert places.refused(others, said=True)
    assert places.most == 10


@pytest.mark.parametrize("others", [1, 2, 10, 100])
def test_refusals_that_agree_need_no_words(others):
    """A rate does not refuse again and again with the same number under way."""
    assert agreed(others).most == others


def test_refusals_of_one_bunch_agree_by_chance():
    """Nothing was admitted in between."""
    places = Places()
    assert not any(places.refused(10, said=False) for _ in range(3 * AGREE))
    assert places.most is None


def test_a_request_that_was_admitted_beside_more_tells_that_it_is_a_rate():
    """Whatever was refused before."""
    places = Places()
    for _ in range(3 * AGREE):
        assert not places.refused(10, said=False)
        for _ in range(10):
            places.admitted(11)
    assert places.most is None


def test_what_was_concluded_is_dropped_when_far_fewer_are_refused():
    """It is a rate after all. What a refusal said is not dropped: others use places too."""
    places = agreed(10)
    assert not places.refused(5, said=False)
    assert places.most is None
    places.refused(10, said=True)
    assert places.refused(5, said=False)
    assert places.most == 5


def test_one_place_is_left_where_others_use_all():
    """It never stops: whoever sends nothing hears nothing."""
    places = Places()
    places.refused(0, said=True)
    assert places.most == 1


def answers(places: Places) -> int:
    """How many until it wants to look."""
    count = 0
    while not places.wants_more:
        places.admitted(0)
        count += 1
    return count


def test_where_more_are_there_it_goes_up_faster_and_faster():
    """One, two, four more."""
    places = Places()
    places.refused(10, said=True)
    seen = []
    for _ in range(4):
        answers(places)
        places.look(all_taken=True)
        seen.append(places.most)
    assert seen == [11, 13, 17, 25]


def test_looks_in_vain_become_rare():
    """Each is a refusal; so there are fewer than three in a thousand in the end."""
    places = Places()
    places.refused(10, said=True)
    waits = []
    for _ in range(10):
        waits.append(answers(places))
        places.look(all_taken=True)
        assert places.refused(10, said=True)
        assert places.most == 10
    assert waits[:3] == [10, 20, 40]
    assert waits[-1] == RAREST_LOOK


def test_nothing_is_looked_for_above_a_number_that_is_named_but_rarely():
    """It may be raised."""
    places = Places()
    places.refused(10, said=True, named=10)
    assert answers(places) == RAREST_LOOK


def test_nobody_looks_for_more_where_those_there_are_were_not_needed():
    """It would prove nothing."""
    places = Places()
    places.refused(10, said=True)
    answers(places)
    places.look(all_taken=False)
    assert places.most == 10
    assert not places.wants_more
