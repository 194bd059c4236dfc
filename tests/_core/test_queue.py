"""The order of those who wait, case by case. Against a model, whatever happens: test_queue_model.py."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.queue import Queue, Waiter
from tests._core.queues import Counted, check_books


def test_a_waiter_that_is_charged_anew_stands_in_the_queue_once():
    """Also who keeps its limits, in the queue where others change theirs; each change of a limiter's limits may do
    this."""
    requests, tokens, more = Counted(), Counted(), Counted()
    queue = Queue(10.0)
    small = [Waiter(((requests, 1.0),)) for _ in range(5)]
    large = [Waiter(((requests, 1.0), (tokens, 3.0)), 1) for _ in range(5)]
    for at, waiter in enumerate(itertools.chain(*zip(small, large, strict=True))):
        queue.join(waiter, float(at))
    queue.recharge({tokens: (tokens, more)})
    queue.recharge({more: ()})
    queue.recharge({tokens: (more,)})
    assert sorted(w.number for w in queue) == list(range(1, 11))
    assert [requests.queued, tokens.queued, more.queued] == [10.0, 0.0, 15.0]
    assert [waiter for _, waiter in queue.heads(9.0)] == [large[0], small[0]]
    assert [waiter for _, waiter in queue.heads(10.0)] == [small[0], large[0]], "it has risen when its time had come"
    order = []
    while len(queue):
        order.append(queue.heads(10.0)[0][1])
        queue.take(order[-1])
    assert order == [small[0], *large, *small[1:]]


def test_several_taken_and_restored_in_any_order_stand_as_before():
    limit = Counted()
    queue = Queue(math.inf)
    waiter = [Waiter(((limit, 1.0),)) for _ in range(6)]
    for one in waiter:
        queue.join(one, 0.0)
    for one in waiter[:4]:
        queue.take(one)
    for index in (2, 0, 3, 1):
        queue.restore(waiter[index])
    for one in waiter:
        assert queue.heads(0.0)[0][1] is one
        queue.take(one)
    queue.restore(waiter[3])
    queue.restore(waiter[5])
    queue.restore(waiter[4])
    assert [queue.heads(0.0)[0][1], queue.take(waiter[3])[1]] == [waiter[3], waiter[4]]
    assert limit.queued == 2.0
    check_books(queue)


@pytest.mark.parametrize(("priority", "flow"), [(0, ""), (1, ""), (0, "another")])
def test_a_waiter_is_alone_in_its_shape_until_another_comes(priority, flow):
    """Whatever the other's level and flow, and though one goes for a moment and comes back."""
    limit = Counted()
    queue = Queue(math.inf)
    charges = ((limit, 1.0),)
    one, other, more = Waiter(charges, 0, ""), Waiter(charges, priority, flow), Waiter(charges, 0, "")
    queue.join(one, 0.0)
    (shape,) = queue.shapes()
    assert shape.alone()
    queue.join(other, 0.0)
    assert not shape.alone()
    queue.join(more, 0.0)
    assert not shape.alone()
    queue.take(one)
    queue.restore(one)
    assert not shape.alone()
    check_books(queue)


def test_one_that_has_risen_to_others_is_alone_when_they_have_gone():
    """Else its shape would sleep until there is enough for its own amount, though another asks for less."""
    limit = Counted()
    queue = Queue(10.0)
    late, *others = (Waiter(((limit, 1.0),), priority) for priority in (0, 1, 1))
    for waiter, moment in zip((late, *others), (0.0, 5.0, 5.0), strict=True):
        queue.join(waiter, moment)
    (shape,) = queue.shapes()
    assert queue.first(10.0) is late
    assert not shape.alone()
    for waiter in others:
        queue.leave(waiter)
    assert shape.alone()


def test_restored_waiters_age_as_if_they_had_never_left():
    limit = Counted()
    queue = Queue(10.0)
    low, high = Waiter(((limit, 1.0),), 0), Waiter(((limit, 1.0),), 1)
    queue.join(low, 0.0)
    queue.take(low)
    queue.restore(low)
    queue.join(high, 9.0)
    assert queue.heads(9.5)[0][1] is high
    assert queue.heads(10.0)[0][1] is low
    assert queue.heads(18.9)[0][1] is low
    assert queue.heads(19.0)[0][1] is high
    assert (low.level, high.level) == (1, 2)


def test_by_default_a_call_has_priority_0_and_rises_after_30_seconds():
    limit = Counted()
    queue = Queue()
    low, high = Waiter(((limit, 1.0),)), Waiter(((limit, 1.0),), 1)
    queue.join(low, 0.0)
    queue.join(high, 29.0)
    assert (low.priority, low.level) == (0, 0)
    assert queue.heads(29.999)[0][1] is high
    assert queue.heads(30.0)[0][1] is low


def test_ageing_raises_one_level_for_every_span_and_then_arrival_decides():
    limit = Counted()
    queue = Queue(10.0)
    low = Waiter(((limit, 1.0),), 0)
    queue.join(low, 0.0)
    for second in range(1, 30):
        queue.join(Waiter(((limit, 1.0),), 2), float(second))
    assert queue.heads(19.999)[0][1].number == 2
    assert queue.heads(20.0)[0][1].number == 2, "it is on level 2 now, and number 2, of second 1, on level 3"
    assert low.level == 2
    assert queue.heads(1_000.0)[0][1] is not low
    assert low.level == 100
    same = Queue(10.0)
    low, high = Waiter(((limit, 1.0),), 0), Waiter(((limit, 1.0),), 1)
    same.join(low, 0.0)
    same.join(high, 5.0)
    assert [same.heads(at)[0][1] for at in (5.0, 9.9, 10.0, 14.9, 15.0, 20.0)] == [high, high, low, low, high, low]


@given(
    costs=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=30, max_size=60),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
)
def test_flows_that_always_wait_get_equal_dominant_shares_by_weight(costs, weights):
    """Dominant-resource fairness: whoever has had least of what it needs most is next, so nobody is a call ahead for
    long."""
    tokens, requests = Counted(10.0), Counted(1.0)
    queue = Queue(math.inf, dict(enumerate(weights)))
    had = [{tokens: 0.0, requests: 0.0} for _ in weights]
    for of_flows in costs:
        for flow, cost in enumerate(of_flows):
            charges = ((tokens, float(cost)), (requests, 1.0)) if flow else ((tokens, 10.0 * cost), (requests, 1.0))
            queue.join(Waiter(charges, 0, flow), 0.0)
    largest = [max(9 / w if flow == 0 else 1 / w for w in [weight]) for flow, weight in enumerate(weights)]
    left = [len(costs)] * 3
    while min(left):
        _, waiter = queue.heads(0.0)[0]
        queue.take(waiter)
        left[waiter.flow] -= 1
        for limit, amount in waiter.charges:
            had[waiter.flow][limit] += amount / limit.throughput / weights[waiter.flow]
        shares = [max(of_flow.values()) for of_flow in had]
        for one, other in itertools.permutations(range(3), 2):
            assert shares[one] - shares[other] <= largest[one] + 1e-9


def test_a_flow_that_was_away_has_earned_no_credit_and_owes_what_it_had():
    limit = Counted()
    queue = Queue(math.inf)
    one = lambda flow: Waiter(((limit, 1.0),), 0, flow)  # noqa: E731
    queue.join(one("away"), 0.0)
    for _ in range(20):
        queue.join(one("busy"), 0.0)
    for _ in range(11):
        queue.take(queue.heads(0.0)[0][1])
    for _ in range(6):
        queue.join(one("away"), 0.0)
        queue.join(one("new"), 0.0)
    turns = []
    for _ in range(9):
        turns.append(queue.heads(0.0)[0][1].flow)
        queue.take(queue.heads(0.0)[0][1])
    assert sorted(turns[:3]) == sorted(turns[3:6]) == sorted(turns[6:]) == ["away", "busy", "new"]


def test_a_large_call_is_paid_for_before_the_flow_has_its_next_turn():
    limit = Counted()
    queue = Queue(math.inf)
    for amount, flow in [(10.0, "whale"), (10.0, "whale"), *[(1.0, "minnow")] * 12]:
        queue.join(Waiter(((limit, amount),), 0, flow), 0.0)
    turns = []
    while len(queue):
        turns.append(queue.heads(0.0)[0][1].flow)
        queue.take(queue.heads(0.0)[0][1])
    assert turns == ["whale", *["minnow"] * 10, "whale", *["minnow"] * 2]


def test_flows_that_are_gone_are_forgotten():
    """A flow per request, as some will use it, costs no memory for ever; who owes most is remembered longest."""
    limit = Counted()
    queue = Queue(math.inf)
    queue.join(Waiter(((limit, 50.0),), 0, "whale"), 0.0)
    queue.join(Waiter(((limit, 1.0),), 0, "other"), 0.0)
    queue.take(queue.heads(0.0)[0][1])
    for i in range(10_000):
        queue.join(Waiter(((limit, 1.0),), 0, i), 0.0)
        queue.take(queue.heads(0.0)[0][1])
        assert len(queue._flows) <= 64 + 2 * 501
    queue.join(Waiter(((limit, 1.0),), 0, "whale"), 0.0)
    queue.join(Waiter(((limit, 1.0),), 0, 1), 0.0)
    assert queue.heads(0.0)[0][1].flow != "whale"
    served = Queue(math.inf)
    for i in range(500):
        served.join(Waiter(((limit, 1.0),), 0, i % 2), 0.0)
        served.join(Waiter(((limit, 1.0),), 0, f"once {i}"), 0.0)
        for _ in range(2):
            served.take(served.heads(0.0)[0][1])
    assert len(served._flows) <= 1_002


def test_flows_that_owe_nothing_are_forgotten_first():
    """Who came and left without a turn has had no more than anybody: 64 flows are the most that are known at a time."""
    limit = Counted()
    queue = Queue(math.inf)
    for i in range(1_000):
        waiter = Waiter(((limit, 1.0),), 0, i)
        queue.join(waiter, 0.0)
        queue.leave(waiter)
        assert len(queue._flows) <= 64
    assert len(queue._flows) > 1, "not all at each arrival"


def test_of_those_that_owe_the_500_that_owe_most_are_remembered():
    """All who wait are known, and of those who are away whoever had most."""
    limit = Counted()
    queue = Queue(math.inf)
    for i in range(1_100):
        queue.join(Waiter(((limit, 1_000.0 + i),), 0, i), 0.0)
    queue.join(Waiter(((limit, 1.0),), 0, "waits"), 0.0)
    while len(queue) > 1:
        queue.take(min((w for w in queue if w.flow != "waits"), key=lambda w: w.number))
    queue._sweep()
    assert set(queue._flows) == {*range(600, 1_100), "waits"}
    assert queue._flows["waits"].count == 1
    assert queue._sweep_at == 64 + 2 * 501


def test_queued_ahead_is_what_goes_before_and_asks_for_the_same():
    tokens, requests, other = Counted(), Counted(), Counted()
    queue = Queue(math.inf)
    queue.join(Waiter(((tokens, 5.0), (requests, 1.0))), 0.0)
    queue.join(Waiter(((other, 7.0),)), 0.0)
    queue.join(Waiter(((requests, 1.0),), 3), 0.0)
    me = Waiter(((tokens, 2.0), (requests, 1.0)))
    queue.join(me, 0.0)
    assert queue.queued_ahead(me) == {tokens: 5.0, requests: 2.0}
    urgent = Waiter(((tokens, 2.0), (requests, 1.0)), 2)
    queue.join(urgent, 0.0)
    assert queue.queued_ahead(urgent) == {tokens: 0.0, requests: 1.0}
    equal = Waiter(((requests, 1.0),), 3)
    queue.join(equal, 0.0)
    assert queue.queued_ahead(equal) == {requests: 1.0}
    alone = Queue(math.inf)
    for amount in (1.0, 2.0, 4.0):
        last = Waiter(((other, amount),))
        alone.join(last, 0.0)
    assert alone.queued_ahead(last)[other] == other.queued - 4.0


def test_with_nobody_left_the_sums_are_nought_again():
    limit = Counted()
    queue = Queue(math.inf)
    waiter = [Waiter(((limit, 0.1 * i),)) for i in range(30)]
    for one in waiter:
        queue.join(one, 0.0)
    for one in waiter:
        queue.leave(one)
    assert limit.queued == 0.0
    assert queue.heads(0.0) == []
    assert list(queue) == []


def test_equals_share_a_tuple_and_strangers_do_not_get_their_place():
    """The shape of the last who came is remembered; it must not be when that shape has gone."""
    limit, other = Counted(), Counted()
    queue = Queue(math.inf)
    charges = ((limit, 1.0),)
    queue.join(Waiter(((other, 1.0),)), 0.0)
    first = Waiter(charges)
    queue.join(first, 0.0)
    queue.leave(first)
    queue.heads(0.0)  # sweeps the empty shape
    again = Waiter(charges)
    assert queue.join(again, 0.0)
    assert again in [waiter for _, waiter in queue.heads(0.0)]


@pytest.mark.parametrize("flows", [1, 50])
def test_ten_thousand_leave_and_come_back_in_the_order_of_a_sorted_list(flows):
    """Whoever comes back comes last; what those who left leave behind is swept away in time."""
    luck = random.Random(flows)
    limit = Counted()
    charges = ((limit, 1.0),)
    queue = Queue(math.inf)
    everybody = [Waiter(charges, 0, luck.randrange(flows)) for _ in range(10_000)]
    for waiter in everybody:
        queue.join(waiter, 0.0)
    for _ in range(20_000):
        index = luck.randrange(10_000)
        queue.leave(everybody[index])
        if luck.random() < 0.7:
            everybody[index] = Waiter(charges, 0, everybody[index].flow)
            queue.join(everybody[index], 0.0)
    check_books(queue)
    waiter = sorted((w for w in everybody if w.subqueue is not None), key=lambda w: w.number)
    assert len(queue) == len(waiter) == limit.queued
    left = {flow: [w for w in waiter if w.flow == flow] for flow in range(flows)}
    had = dict.fromkeys(range(flows), 0)
    for _ in range(len(waiter)):
        flow = min((f for f in left if left[f]), key=lambda f: (had[f], left[f][0].number))
        head = queue.heads(0.0)[0][1]
        assert head is left[flow].pop(0)
        had[flow] += 1
        queue.take(head)


@pytest.mark.parametrize(("waiter", "stay"), [(70, 64), (130, 65), (200, 100)])
@pytest.mark.parametrize("strays", [0, 30])
def test_what_is_gone_is_swept_when_it_is_more_than_64_and_more_than_half(waiter, stay, strays):
    """Not at each leaving: that would take the whole subqueue's time for every waiter that gives up."""
    limit = Counted()
    queue = Queue(10.0)
    early = [Waiter(((limit, 1.0),), 0) for _ in range(strays)]
    for one in early:
        queue.join(one, 0.0)
    late = [Waiter(((limit, 1.0),), 1) for _ in range(waiter - strays)]
    for one in late:
        queue.join(one, 5.0)
    queue.heads(10.0)  # the early ones rise into the subqueue of the others
    subqueue = late[0].subqueue
    assert [len(subqueue.run), len(subqueue.strays), subqueue.gone] == [waiter - strays, strays, 0]
    leaving = [*late[1:], *early[::-1]]
    for one in leaving[:stay]:
        queue.leave(one)
        assert len(subqueue.run) + len(subqueue.strays) == waiter
    queue.leave(leaving[stay])
    assert len(subqueue.run) + len(subqueue.strays) == waiter - stay - 1
    check_books(queue)
    left = sorted(queue, key=lambda w: w.number)
    for one in left:
        assert queue.heads(10.0)[0][1] is one
        queue.take(one)


@pytest.mark.parametrize(("waiters", "stay"), [(70, 64), (130, 65), (200, 100)])
def test_those_that_left_a_level_are_swept_when_they_are_more_than_64_and_more_than_half(waiters, stay):
    """Also of several flows, and behind one that waits for ever."""
    limit, queue = Counted(), Queue(math.inf)
    all_of_them = [Waiter(((limit, 1.0),), 0, number % 3) for number in range(waiters)]
    for one in all_of_them:
        queue.join(one, 0.0)
    level = all_of_them[0].subqueue.level
    for one in all_of_them[1 : stay + 1]:
        queue.leave(one)
        assert len(level.joined) == waiters
    queue.leave(all_of_them[stay + 1])
    assert list(level.joined) == [all_of_them[0], *all_of_them[stay + 2 :]]
    assert level.gone == 0
    check_books(queue)


def test_a_call_that_comes_and_goes_leaves_nothing_behind_though_somebody_always_waits():
    """A saturated limiter's queue is never empty, for days; what it holds is those who wait."""
    limit, other = Counted(), Counted()
    charges = ((limit, 1.0),)
    for ageing in (10.0, math.inf):
        queue, now = Queue(ageing), 0.0
        for i in range(3_000):
            queue.join(Waiter(charges, 0, i % 2 if i > 1_000 else None), now)
            if i % 3 == 0:
                queue.join(Waiter(((other, 1.0),), 5), now)
                queue.take(queue.heads(now)[0][1])
            if len(queue) > 4:
                head = queue.heads(now)[0][1]
                queue.take(head)
                queue.restore(head)
                queue.take(head)
            now += 0.1
        assert len(queue) <= 5
        levels = [level for shape in queue._shapes.values() for level in shape.levels.values()]
        held = sum(len(level.joined) + len(level.risen) + len(level.heap) for level in levels)
        assert held <= 20 * len(queue)


def test_a_call_that_comes_when_all_before_it_have_left_is_the_first_of_its_shape():
    queue, rate, place = Queue(), Counted(), Counted()
    queue.join(Waiter(((place, 1),)), 0.0)  # somebody else waits, so that the queue is not empty
    probe = Waiter(((rate, 1),))
    assert queue.join(probe, 0.0)
    queue.leave(probe)
    assert queue.join(Waiter(((rate, 1),)), 0.0)
    assert not queue.join(Waiter(((rate, 1),)), 0.0)


def test_a_call_that_has_not_joined_stands_nowhere():
    waiter = Waiter(())
    assert (waiter.number, waiter.subqueue, waiter.flow, waiter.receipts) == (0, None, None, None)


def test_a_flow_that_was_forgotten_while_its_call_was_out_is_known_again():
    """A store may take its time to say that there is no turn, and a thousand flows may have come and gone."""
    limit = Counted()
    queue = Queue(math.inf)
    out, other = Waiter(((limit, 1.0),), 0, "out"), Waiter(((limit, 1.0),), 0, "other")
    queue.join(out, 0.0)
    queue.take(out)
    queue._flows.clear()
    queue.restore(out)
    queue.join(other, 0.0)
    assert set(queue._flows) == {"out", "other"}
    assert [queue._flows[name].count for name in ("out", "other")] == [1, 1]
    queue.take(queue.heads(0.0)[0][1])
    queue.join(Waiter(((limit, 1.0),), 0, "out"), 0.0)
    assert queue.heads(0.0)[0][1] is other
    check_books(queue)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_due_before_a_call_is_what_has_a_turn_before_it(seed):
    """Flows, weights, levels and shapes, after a life of some length: whoever came last counts what then goes before
    it."""
    luck = random.Random(seed)
    limits = [Counted(1.0), Counted(4.0)]
    shapes = [((limits[0], 2.0),), ((limits[0], 0.25), (limits[1], 8.0)), ((limits[0], 1.0), (limits[1], 0.5))]
    queue = Queue(math.inf, {"a": 2.0, "b": 0.5})
    for now in range(60):
        queue.join(
            Waiter(luck.choice(shapes), luck.choice([0, 0, 0, 1]), luck.choice(["a", "b", "c", None])), float(now)
        )
        if luck.random() < 0.4:
            queue.take(queue.heads(now)[0][1])
    me = Waiter(luck.choice(shapes), luck.choice([0, 1]), luck.choice(["a", "b", "c", "new"]))
    queue.join(me, 60.0)
    assert queue.shared()
    due = queue.due_before(me)
    before = dict.fromkeys(due, 0.0)
    while (first := queue.heads(60.0)[0][1]) is not me:
        for limit, amount in first.charges:
            if limit in before:
                before[limit] += amount
        queue.take(first)
    assert due == pytest.approx(before)


def test_a_line_is_shared_while_calls_of_two_flows_wait():
    queue, limit = Queue(), Counted()
    alice, bob = (Waiter(((limit, 1.0),), 0, flow) for flow in ("alice", "bob"))
    queue.join(alice, 0.0)
    assert not queue.shared()
    queue.join(bob, 0.0)
    assert queue.shared()
    queue.leave(alice)
    assert not queue.shared()


def test_a_line_that_takes_in_another_knows_all_that_is_asked_for():
    """The last to leave the other queue cleared the sums, with what those before it asked for in this one."""
    mine, theirs = Queue(), Queue()
    tokens, requests = Counted(), Counted()
    mine.join(Waiter(((Counted(), 1.0),)), 0.0)
    waiters = [Waiter(((tokens, 2.0), (requests, amount))) for amount in (3.0, 5.0)]
    for moment, waiter in enumerate(waiters):
        theirs.join(waiter, float(moment))
    assert mine.take_in(theirs) == waiters
    assert (len(mine), len(theirs), [waiter.arrived for waiter in waiters]) == (3, 0, [0.0, 1.0])
    assert (tokens.queued, requests.queued) == (4.0, 8.0)
    for waiter in waiters:
        mine.leave(waiter)
    assert (tokens.queued, requests.queued) == (0.0, 0.0)


def test_a_waiter_whose_time_to_rise_is_off_by_a_rounding_error_does_not_hang_the_queue():
    """`entered ≤ now − 7.7`, and yet `(now − entered) // 7.7` is 0: it rose by no level, for ever."""
    limit = Counted()
    queue = Queue(7.7)
    waiter = Waiter(((limit, 1.0),))
    queue.join(waiter, 243.46496119770245)
    assert queue.heads(251.16496119770244) == [((-1, 0.0, 1), waiter)]


def test_a_flow_that_was_forgotten_and_comes_back_to_its_old_place_is_counted_and_charged():
    """Its old subqueue still stood in the level, and belonged to a flow that nobody knew any more."""
    limit = Counted()
    queue = Queue(math.inf)
    stays = Waiter(((limit, 1.0),), 0, "stays")
    queue.join(stays, 0.0)
    gone = Waiter(((limit, 1.0),), 0, "back")
    queue.join(gone, 0.0)
    queue.leave(gone)
    queue._sweep()
    assert not queue.waits("back")
    back = Waiter(((limit, 1.0),), 0, "back")
    queue.join(back, 0.0)
    check_books(queue)
    queue.take(back)
    assert not queue.waits("back")
    check_books(queue)


def test_a_queue_that_was_cut_short_begins_anew_with_those_that_wait():
    """Everybody stands as before, whatever an exception has left half done; and flows keep what they have had."""
    limit, other = Counted(), Counted()
    queue = Queue(10.0)
    served = Waiter(((limit, 3.0),), 0, "a")
    calls = [Waiter(((limit, 2.0), (other, 1.0)), priority, flow) for priority, flow in ((0, "a"), (0, "b"), (1, "a"))]
    for waiter in (served, *calls):
        queue.join(waiter, 5.0)
    queue.take(served)
    before = [waiter for _, waiter in queue.heads(5.0)]
    limit.queued, other.queued, queue.count, calls[0].subqueue.flow.count = 7.5, 99.0, 42, 8
    calls[1].subqueue = None
    assert queue.rebuild(reversed(calls)) is queue
    check_books(queue)
    assert [waiter for _, waiter in queue.heads(5.0)] == before == [calls[2]]
    assert (len(queue), limit.queued, other.queued) == (3, 6.0, 3.0)
    queue.take(calls[2])
    assert queue.waits("a")
    assert queue.heads(5.0)[0][1] is calls[1], "the other flow has had more"
    assert (calls[0].level, calls[0].arrived) == (0, 5.0)
    assert queue.heads(15.0)[0][1] is calls[1]
    assert calls[0].level == calls[1].level == 1, "they age as before"
    elsewhere = Queue(10.0).rebuild([calls[0]])
    assert elsewhere.waits("a")
    check_books(elsewhere)


def test_the_first_of_a_flow_is_the_most_urgent_of_those_that_need_the_same():
    limit, other = Counted(), Counted()
    queue = Queue(math.inf)
    charges = ((limit, 1.0),)
    assert queue.first_of("a", charges) is None
    calls = [Waiter(charges, priority, flow) for priority, flow in ((2, "b"), (0, "a"), (1, "a"), (1, "a"))]
    for waiter in (*calls, Waiter(((other, 1.0),), 3, "a")):
        queue.join(waiter, 0.0)
    assert queue.first_of("a", ((limit, 9.0),)) is calls[2]
    assert queue.first_of("b", charges) is calls[0]
    assert queue.first_of("c", charges) is None
    for left, first in ((calls[2], calls[3]), (calls[3], calls[1]), (calls[1], None)):
        queue.leave(left)
        assert queue.first_of("a", charges) is first


def test_kinds_of_calls_that_nobody_waits_for_are_forgotten():
    """At 64, and then at twice as many as were in use and 64."""
    queue, known = Queue(math.inf), []
    for _ in range(3):
        queue.join(Waiter(((Counted(), 1.0),)), 0.0)
    for _ in range(300):
        waiter = Waiter(((Counted(), 1.0),))
        queue.join(waiter, 0.0)
        queue.leave(waiter)
        known.append(queue.shape_count)
    assert max(known[:62]) == 64
    assert max(known) == 64 + 2 * 3


def test_a_call_that_is_charged_nothing_stands_in_the_queue_as_others_do():
    queue = Queue(math.inf)
    waiter = Waiter(())
    assert queue.join(waiter, 0.0)
    assert queue.heads(0.0)[0][1] is waiter
