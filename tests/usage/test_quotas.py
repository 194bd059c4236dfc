"""Caps per user: nobody waits, nothing is lost, everybody agrees."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import sqlite3
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import anyio
import pytest

from penstock import CostError, RateLimited, StoreError, UnknownUnit, calendar
from penstock.stores import SQLiteStore
from penstock.testing import manual_clock
from penstock.usage import Ledger, Quota, QuotaExceeded, Quotas
from penstock.usage import quotas as module
from tests.usage.readings import calls_of

BERLIN = "Europe/Berlin"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "quotas.db"


@pytest.fixture
def make(path):
    """Quotas over one file, each as if in a process of its own."""
    made = []

    def make(caps=None, **options):
        made.append(Quotas(path, caps, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def used(quotas, user, unit="requests"):
    return next(quota.used for quota in quotas.of(user) if quota.unit == unit)


def charge(quotas, user, **cost):
    with quotas(user, cost) as permit:
        return permit


async def spend_later(_):
    raise AssertionError("nobody awaits it")


def spend(quotas, user, count):
    """Charge `count` calls; return how many were refused."""
    refused = 0
    for _ in range(count):
        try:
            charge(quotas, user)
        except QuotaExceeded:
            refused += 1
    return refused


@pytest.mark.anyio
async def test_beyond_the_cap_a_call_is_refused_at_once(make):
    """With all that a user wants to know."""
    quotas = make({"requests": "2/day", "dollars": "20/month"}, tz=BERLIN)
    for _ in range(2):
        async with quotas("alice", dollars=2):
            pass
    with pytest.raises(
        QuotaExceeded, match=r"'alice' has used 2 of 2 requests a day and asks for 1: again at .* CES?T"
    ):
        await quotas.acquire("alice", dollars=2)
    with pytest.raises(QuotaExceeded) as caught:
        await quotas.acquire("bob", dollars=20.5)
    error = caught.value
    assert (error.user, error.unit, error.limit, error.used, error.asked) == ("bob", "dollars", 20, 0, 20.5)
    assert (error.period, error.tz, error.retry_after, error.review) == ("month", BERLIN, math.inf, None)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    async with quotas("bob", dollars=20):
        pass
    assert isinstance(error, RateLimited)


@pytest.mark.anyio
async def test_the_true_cost_is_settled_and_one_with_nothing_left_is_refused(make):
    """A call that says nothing of dollars is charged the least of them, so that a debt stops the next."""
    quotas = make({"dollars": "1/month"})
    async with quotas("alice") as permit:
        permit.settle(dollars=3)
    with pytest.raises(QuotaExceeded, match=r"has used \$3 of \$1 a month"):
        await quotas.acquire("alice")
    assert quotas.of("alice")[0].remaining == 0


@pytest.mark.anyio
async def test_all_caps_or_none(make):
    quotas = make({"requests": "5/day", "tokens": ["10/day", "30/month"]})
    with pytest.raises(QuotaExceeded, match="10 tokens a day"):
        await quotas.acquire("alice", tokens=11)
    assert [quota.used for quota in quotas.of("alice")] == [0, 0, 0]


def test_a_day_is_that_of_the_time_zone_with_23_hours_when_clocks_change(make):
    with manual_clock(datetime(2026, 3, 29, 0, 30, tzinfo=UTC)) as clock:  # 01:30 in Berlin, where 02:00 becomes 03:00
        quotas = make({"requests": "1/day"}, tz=BERLIN)
        charge(quotas, "alice")
        with pytest.raises(QuotaExceeded, match="2026-03-30 00:00 CEST") as caught:
            charge(quotas, "alice")
        assert caught.value.retry_after == pytest.approx(21.5 * 3_600, abs=1)
        clock.set_wall(datetime(2026, 3, 29, 21, 59, tzinfo=UTC))
        assert spend(quotas, "alice", 1) == 1
        clock.set_wall(datetime(2026, 3, 29, 22, 0, 1, tzinfo=UTC))
        assert spend(quotas, "alice", 2) == 1


def test_a_clock_that_stood_ahead_frees_nothing_and_stops_nobody_for_years(make):
    with manual_clock(datetime(2026, 5, 10, 12, tzinfo=UTC)) as clock:
        quotas = make({"requests": "2/day"})

        def refused_at(*moment, calls=3):
            clock.set_wall(datetime(*moment, tzinfo=UTC))
            return spend(quotas, "alice", calls)

        assert refused_at(2026, 5, 10, 12) == 1
        assert refused_at(2026, 5, 11, 12) == 1
        assert refused_at(2026, 5, 10, 13) == refused_at(2026, 5, 11, 13) == 3
        assert refused_at(2036, 5, 12, 12, calls=1) == 0
        assert refused_at(2026, 5, 12, 12) == 2
        assert quotas.of("alice")[0].resets_at == datetime(2026, 5, 13, tzinfo=UTC).timestamp()
        assert refused_at(2026, 5, 13, 12) == refused_at(2026, 5, 20, 12) == 1
        assert refused_at(2036, 5, 12, 13) == 2


def test_a_refusal_says_when_the_call_goes_though_a_clock_that_stood_ahead_has_seen_tomorrow_used_up(make):
    """It said midnight, when it was refused again."""
    with manual_clock(datetime(2026, 5, 11, 12, tzinfo=UTC)) as clock:
        quotas = make({"requests": "2/day"})
        spend(quotas, "alice", 2)
        clock.set_wall(datetime(2026, 5, 10, 12, tzinfo=UTC))
        with pytest.raises(QuotaExceeded, match="again at 2026-05-12 00:00 UTC") as caught:
            charge(quotas, "alice")
        assert caught.value.retry_after == pytest.approx(36 * 3_600)
        clock.advance(caught.value.retry_after - 1)
        assert spend(quotas, "alice", 1) == 1
        clock.advance(1)
        assert spend(quotas, "alice", 1) == 0


def test_parts_of_a_cent_are_counted_and_shown(make):
    """The call that is one too many was said to ask for $0, or that the caps change too fast."""
    quotas = make({"dollars": "1/day"})
    for _ in range(10):
        charge(quotas, "alice", dollars=0.1)
    with pytest.raises(QuotaExceeded, match=r"has used \$1 of \$1 a day and asks for \$0.0000000001: again at"):
        charge(quotas, "alice", dollars=1e-10)


def test_quotas_are_still_there_tomorrow(make):
    spend(make({"requests": "3/week"}), "alice", 2)
    assert spend(make({"requests": "3/week"}), "alice", 3) == 2
    assert make().all()[0] == make().of("alice")[0]


def test_quotas_that_are_opened_without_caps_have_those_of_the_store(make):
    make({"requests": "3/day", "images": "2/day"}, tz=BERLIN).of("alice")
    assert [(quota.unit, quota.limit, quota.tz) for quota in make().of("bob")] == [
        ("images", 2, BERLIN),
        ("requests", 3, BERLIN),
    ]


def test_a_change_holds_in_processes_that_run(make):
    """Up and down, and back to the caps for everybody."""
    one, other = make({"requests": "3/day"}), make()
    assert spend(one, "alice", 3) == 0
    other.set("alice", requests="5/day")
    assert spend(one, "alice", 3) == 1
    other.set("alice", requests="unlimited", tokens=calendar(15, "month"))
    assert spend(one, "alice", 9) == 0
    with pytest.raises(QuotaExceeded, match="has used 14 of 15 tokens a month and asks for 2"):
        charge(one, "alice", tokens=2)
    other.set("alice", requests="0/day")
    assert spend(one, "alice", 1) == 1
    other.unset("alice")
    assert [(quota.unit, quota.is_own) for quota in one.of("alice")] == [("requests", False)]


def test_a_users_own_caps_are_in_the_time_zone_of_all_others_unless_they_say_theirs(make):
    """Set by another process, or from a shell, a user's day began at another hour than before."""
    make({"requests": "3/day", "dollars": "9/month"}, tz=BERLIN).of("alice")
    make().set("alice", requests="5/day")
    make(tz="Asia/Tokyo").set("bob", requests="5/day")
    assert [make().of(user)[1].tz for user in ("alice", "bob")] == [BERLIN, "Asia/Tokyo"]
    make(name="other").set("carol", requests="5/day")
    assert make(name="other").of("carol")[0].tz == "UTC"


def test_a_cap_that_is_lowered_below_what_was_used_stops(make):
    quotas = make({"requests": "10/day"})
    spend(quotas, "alice", 5)
    make().set("alice", requests="3/day")
    assert spend(quotas, "alice", 1) == 1
    assert (used(quotas, "alice"), quotas.of("alice")[0].remaining) == (5, 0)


def test_a_larger_call_than_the_old_cap_is_let_through_after_a_raise(make):
    quotas = make({"tokens": "10/day"})
    charge(quotas, "alice", tokens=1)
    make().set("alice", tokens="100/day")
    charge(quotas, "alice", tokens=50)
    assert used(quotas, "alice", "tokens") == 51


def test_new_caps_for_everybody_hold_for_those_that_used_something(make):
    spend(make({"requests": "2/day"}), "alice", 2)
    assert spend(make({"requests": "4/day"}), "alice", 3) == 1


def test_a_reset_forgets_and_a_permit_from_before_gives_nothing_back(make):
    quotas = make({"tokens": "10/day"})
    permit = charge(quotas, "alice", tokens=10)
    assert make().reset("alice")
    charge(quotas, "alice", tokens=10)
    permit.settle(tokens=0)
    with pytest.raises(QuotaExceeded):
        charge(quotas, "alice", tokens=1)
    assert not quotas.reset("nobody")


@pytest.mark.parametrize("user", ["a b", "ü/€", "50%", "%7B{x}", "*", "new\nline", "' OR 1=1", "😀", "user/alice", 17])
def test_users_have_odd_names(make, user):
    """And are told apart by them."""
    quotas = make({"requests": "2/day"})
    assert spend(quotas, user, 3) == 1
    assert spend(quotas, f"{user}x", 1) == 0
    quotas.set(user, tokens="5/day")
    assert {quota.user for quota in quotas.all()} == {f"{user}", f"{user}x"}
    assert len([quota for quota in quotas.all() if quota.user == str(user)]) == 2


@pytest.mark.parametrize("user", [None, "", "x" * 1_001, "\ud800", b"", b"\xff"])
def test_a_call_says_whose_it_is(make, user):
    with pytest.raises(ValueError, match=r"a user must have a name|lone surrogate"):
        make({"requests": "2/day"})(user)


def test_a_name_out_of_a_header_is_that_name(make):
    """ASGI has headers as bytes."""
    quotas = make({"requests": "1/day"})
    assert [spend(quotas, user, 1) for user in ("Zoë", "Zoë".encode())] == [0, 1]


def test_a_unit_that_nobody_counts_is_an_error_and_one_without_a_cap_is_not(make):
    quotas = make({"requests": "2/day"})
    charge(quotas, "alice", tokens=5, dollars=1)
    with pytest.raises(UnknownUnit, match="token"):
        charge(quotas, "alice", token=5)
    with pytest.raises(CostError):
        charge(quotas, "alice", tokens=-5)
    with pytest.raises(UnknownUnit, match="quotas count no 'images'; they count requests, tokens, dollars"):
        quotas.set("alice", images="3/day")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ({"requests": "1/day"}, {"tz": "Nowhere/At_all"}, "unknown time zone"),
        (None, {"tz": "Nowhere/At_all"}, "unknown time zone"),
        ({"requests": "-3/day"}, {}, "cannot read '-3/day'"),
        ({"requests": "1/day"}, {"review": 5}, 'review= must be "queue"'),
        ({"requests": "1/day"}, {"name": "a/b"}, "has a slash"),
        ({"requests": "1/day"}, {"name": ""}, "needs a name"),
        ({"requests": "1/day"}, {"on_event": 3}, "on_event="),
        ({"requests": "1/day"}, {"on_event": spend_later}, "on_event=spend_later: it is called and not awaited"),
        ({"requests": "1/day"}, {"name": 5}, "name= must be a string, not 5"),
        ("100/day", {}, "caps are a mapping of units to caps"),
    ],
)
def test_what_is_wrong_is_said_when_it_is_written_down(path, arguments, options, words):
    with pytest.raises(ValueError, match=words):
        Quotas(path, arguments, **options)
    assert not path.exists()


def test_a_file_that_is_none_of_ours_is_left_alone(path, make):
    path.write_text("shopping list, which is no database at all, and long enough to be one" * 30)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no SQLite database"):
        charge(make({"requests": "1/day"}), "alice")
    assert path.read_bytes() == before


@pytest.mark.anyio
async def test_cancelled_calls_are_charged_or_not_and_never_in_between(make):
    """What is used afterwards is what permits were handed out for."""
    quotas = make({"requests": "40/day"})
    granted = []

    async def call(seconds):
        with anyio.move_on_after(seconds):
            granted.append(await quotas.acquire("alice"))

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(call, number * 0.0005)
    await granted[0]._decider().refresh() if granted else None
    with anyio.fail_after(30):
        while used(quotas, "alice") != len(granted):  # what was given back is on its way
            await anyio.sleep(0.01)


def test_threads_and_processes_share_a_cap_exactly(make):
    several = [make({"requests": "50/day"}) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        refused = sum(pool.map(lambda number: spend(several[number % 4], "alice", 10), range(8)))
    assert refused == 30
    assert used(several[0], "alice") == 50


@pytest.mark.anyio
async def test_a_function_decides_and_its_decisions_are_recorded(make):
    """False refuses, True lets this call through, a number allows so much more."""
    answers = [False, True, 5, 2]
    asked = []

    async def boss(error):
        asked.append((error.user, error.unit, error.missing))
        return answers.pop(0)

    quotas = make({"tokens": "10/day"}, review=boss)
    await quotas.acquire("alice", tokens=10)
    with pytest.raises(QuotaExceeded, match="a review has refused more") as caught:
        await quotas.acquire("alice", tokens=3)
    assert caught.value.review == "refused"
    await quotas.acquire("alice", tokens=3)
    await quotas.acquire("alice", tokens=2)  # 5 more
    await quotas.acquire("alice", tokens=3)
    with pytest.raises(QuotaExceeded):
        answers[:] = [False]
        await quotas.acquire("alice", tokens=1)
    assert asked[:3] == [("alice", "tokens", 3)] * 2 + [("alice", "tokens", 2)]
    with pytest.raises(ValueError, match="state must be one of 'pending', 'approved', 'refused', not 'open'"):
        quotas.reviews("open")
    states = [(one.state, one.allowed, one.by, one.calls) for one in quotas.reviews()]
    assert states == [("refused", 0, "boss", 1), ("approved", 8, "boss", 2), ("refused", 0, "boss", 1)]
    (quota,) = quotas.of("alice")
    assert (quota.limit, quota.extra, quota.used) == (18, 8, 18)


def test_a_function_may_decide_by_numpy(make):
    """Whose truth has an `__index__` too: True let one unit more through, where all that were missing were meant."""

    class bool_:  # noqa: N801 - as numpy calls its own
        def __index__(self):
            return 1

    charge(make({"tokens": "10/day"}, review=lambda _: bool_()), "alice", tokens=13)


def test_a_function_that_allows_too_little_is_asked_once(make):
    """It was asked eight times, and the caps were said to change too fast."""
    asked = []
    quotas = make({"tokens": "10/day"}, review=lambda error: asked.append(error) or 5)
    with pytest.raises(QuotaExceeded, match="a review has allowed more, but not so much") as caught:
        charge(quotas, "alice", tokens=20)
    assert (len(asked), caught.value.review, quotas.of("alice")[0].limit) == (1, "approved", 15)
    charge(quotas, "alice", tokens=15)


def test_a_function_may_leave_it_to_the_queue(make):
    quotas = make({"requests": "0/day"}, review=lambda _: None)
    with pytest.raises(QuotaExceeded, match="a review is pending"):
        charge(quotas, "alice")
    quotas.approve("alice", "requests")
    charge(quotas, "alice")


class Promise:
    """Can be awaited, and is no coroutine."""

    def __await__(self):
        yield


@pytest.mark.parametrize("kind", ["a coroutine", "another awaitable"])
def test_a_thread_cannot_wait_for_an_async_review_and_leaves_none_behind(make, recwarn, kind):
    async def boss_of_a_loop(_):
        return True

    boss = boss_of_a_loop if kind == "a coroutine" else lambda _: Promise()
    with pytest.raises(ValueError, match="review= is an async function, and a thread cannot wait for it"):
        charge(make({"requests": "0/day"}, review=boss), "alice")
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_what_was_allowed_ends_with_the_period(make):
    with manual_clock(datetime(2026, 5, 1, 12, tzinfo=UTC)) as clock:
        quotas = make({"requests": "1/day"}, review=lambda _: True)
        assert spend(quotas, "alice", 3) == 0
        assert quotas.of("alice")[0].extra == 2
        clock.set_wall(datetime(2026, 5, 2, 0, 0, 1, tzinfo=UTC))
        quotas.review = None
        assert spend(quotas, "alice", 3) == 2
        assert quotas.of("alice")[0].extra == 0


def test_a_queue_keeps_one_review_for_many_calls_until_somebody_decides(make):
    quotas, desk = make({"requests": "1/day"}, review="queue"), make()
    with pytest.raises(QuotaExceeded, match="a review is pending"):
        spend(quotas, "alice", 1)
        charge(quotas, "alice")
    assert spend(quotas, "alice", 2) == 2
    (review,) = desk.reviews("pending")
    assert (review.user, review.unit, review.asked, review.calls) == ("alice", "requests", 1, 3)
    assert desk.approve("alice", "requests", 2, by="carol").state == "approved"
    assert spend(quotas, "alice", 3) == 1
    desk.refuse("alice", "requests", by="carol")
    with pytest.raises(QuotaExceeded, match="a review has refused more") as caught:
        charge(quotas, "alice")
    assert caught.value.review == "refused"
    assert [(one.state, one.by, one.allowed) for one in desk.reviews()] == [
        ("approved", "carol", 2),
        ("refused", "carol", 0),
    ]


def test_an_approval_without_a_review_says_how_much(make):
    quotas = make({"requests": "1/day"})
    with pytest.raises(ValueError, match="'alice' has no pending review of requests: say how many units more"):
        quotas.approve("alice", "requests")
    with pytest.raises(ValueError, match="has no cap of tokens"):
        quotas.approve("alice", "tokens", 5)
    for wrong in (-5, True):
        with pytest.raises(ValueError, match="more must be a finite number of units above 0"):
            quotas.approve("alice", "requests", wrong)
    quotas.approve("alice", "requests", 1)
    assert spend(quotas, "alice", 3) == 1


@pytest.mark.anyio
async def test_a_call_that_is_let_through_and_refused_again_and_again_is_told_to_try_again(make, monkeypatch):
    """As where others use up what a review allows, faster than the call can be charged."""
    monkeypatch.setattr(module, "_ROUNDS", 1)
    quotas = make({"requests": "0/day"}, review=lambda _: True)
    for charge_one in (lambda: quotas.acquire("alice"), lambda: anyio.to_thread.run_sync(charge, quotas, "bob")):
        with pytest.raises(RateLimited, match="change faster than a call can be charged: try again"):
            await charge_one()
        await charge_one()


def test_of_many_users_those_that_called_last_are_at_hand_and_the_others_count_on(make, monkeypatch):
    monkeypatch.setattr(module, "_MOST_USERS", 2)
    quotas = make({"requests": "2/day"})
    assert [spend(quotas, user, 2) for user in ("alice", "bob", "carol")] == [0, 0, 0]
    assert [bool(quotas.last(user)) for user in ("alice", "bob", "carol")] == [False, True, True]
    assert spend(quotas, "alice", 1) == 1


def test_a_store_that_cannot_say_why_a_call_is_refused_is_the_error(make, monkeypatch):
    quotas = make({"requests": "1/day"})
    charge(quotas, "alice")

    def break_down(_):
        raise StoreError("it is broken")

    monkeypatch.setattr(quotas._records, "user", break_down)
    with pytest.raises(StoreError, match="it is broken"):
        charge(quotas, "alice")


@pytest.mark.anyio
async def test_an_error_of_the_users_function_is_its_own(make):
    async def broken(_):
        raise LookupError("the boss is out")

    quotas = make({"requests": "0/day"}, review=broken)
    with pytest.raises(LookupError, match="the boss is out"):
        await quotas.acquire("alice")
    quotas.review = lambda _: "yes"
    with pytest.raises(ValueError, match="a review must return True, False, or a number of units more, not 'yes'"):
        await quotas.acquire("alice")


def test_a_ledger_hears_of_grants_and_refusals(make, tmp_path):
    with Ledger(tmp_path / "usage.db") as ledger:
        spend(make({"requests": "1/day"}, on_event=ledger), "alice", 2)
    assert [(call.user, call.outcome) for call in calls_of(tmp_path / "usage.db")] == [
        ("alice", "granted"),
        ("alice", "refused"),
    ]


def test_a_store_that_does_not_answer_lets_users_through_if_it_is_to(path, monkeypatch):
    """Also those that are new: their caps could not be read, which was an error whatever `on_outage` said."""
    monkeypatch.setattr("penstock.usage.quotas._LOOK_AGAIN", 0.0)
    store = SQLiteStore(path, on_outage="open", patience=0.05)
    quotas = Quotas(store, {"requests": "1/day"})
    assert spend(quotas, "alice", 2) == 1
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert spend(quotas, "alice", 1) == spend(quotas, "bob", 1) == 0
    other.execute("ROLLBACK")
    other.close()
    quotas.close()
    store.close()


def test_a_store_that_does_not_answer_lets_a_share_through_if_it_is_to(path):
    """Of new users too; beyond it they have come to a cap, and meet no error of the store's. Afterwards all counts."""
    store = SQLiteStore(path, on_outage="share", share=0.5, patience=0.05)
    quotas = Quotas(store, {"requests": "4/day"})
    assert spend(quotas, "alice", 1) == 0
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert spend(quotas, "alice", 3) == spend(quotas, "bob", 2) + 1 == 1
    with pytest.raises(QuotaExceeded, match="the store does not answer, and no more than a share is let through") as no:
        charge(quotas, "bob")
    assert no.value.retry_after > 0
    other.execute("ROLLBACK")
    other.close()
    deadline = time.monotonic() + 60
    while [quota.used for user in ("alice", "bob") for quota in quotas.of(user)] != [3, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert spend(quotas, "alice", 5) == 4
    quotas.close()
    store.close()


def test_a_server_that_has_lost_its_state_is_told_the_caps_again(path, make, monkeypatch):
    """Everybody was without a cap, until the process began anew."""
    monkeypatch.setattr("penstock.usage.quotas._LOOK_AGAIN", 0.0)
    quotas = make({"requests": "1/day"})
    assert spend(quotas, "alice", 2) == 1
    other = sqlite3.connect(path)
    tables = [name for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        other.execute(f"DELETE FROM {table}")
    other.commit()
    other.close()
    assert spend(quotas, "alice", 2) == 1


def test_two_quotas_in_one_store_are_apart(path):
    store = SQLiteStore(path)
    one, other = Quotas(store, {"requests": "1/day"}, name="chat"), Quotas(store, {"requests": "2/day"}, name="images")
    assert (spend(one, "alice", 2), spend(other, "alice", 2)) == (1, 0)
    assert [isinstance(quota, Quota) for quota in other.all()] == [True]
    one.close()
    other.close()
    store.close()


@pytest.mark.parametrize("text", ["{}", "[]", "null", "5", '{"caps":[]}', '{"caps":{"requests":[{}]}}'])
def test_caps_for_everybody_that_were_damaged_are_an_error_and_no_absence_of_caps(make, text):
    quotas = make({"requests": "3/day"})
    quotas.of("alice")
    quotas._records._exchange("quota/caps", lambda rows, _: [((text, rows[0][1]), 1e9)])
    with pytest.raises(StoreError, match="cannot be read"):
        make().of("alice")


class Body:
    """What a caller holds while its call is refused."""


@pytest.mark.parametrize("review", [None, "queue", lambda _: False], ids=["no review", "queue", "function"])
@pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])
def test_a_refused_call_keeps_nothing_of_its_caller(tmp_path, review, is_async):
    """The error's traceback leads to the caller's frame: were the error in a frame of ours too, only the garbage
    collector would free both."""
    quotas = Quotas(tmp_path / "quotas.db", {"requests": "1/day"}, review=review)
    with quotas("alice"):
        pass

    def refused(body):
        with pytest.raises(QuotaExceeded), quotas("alice"):
            pytest.fail(f"{body} was let through")

    async def refused_in_loop(body):
        with pytest.raises(QuotaExceeded):
            async with quotas("alice"):
                pytest.fail(f"{body} was let through")

    gc.collect()
    gc.disable()
    try:
        body = Body()
        seen = weakref.ref(body)
        if is_async:
            asyncio.run(refused_in_loop(body))
        else:
            refused(body)
        del body
        until = time.monotonic() + 60  # a worker thread lets go of what it was given a moment after its answer
        while seen() is not None and time.monotonic() < until:
            time.sleep(0.01)
        assert seen() is None
    finally:
        gc.enable()
        quotas.close()
