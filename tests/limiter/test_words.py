"""Words that are members of an enum: units, names, keys and periods by what they say, in memory and in a store."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum

import pytest

from penstock import Keyed, Limiter, RateLimited, UnknownUnit, calendar
from penstock.limits import Unlimited
from penstock.stores import SQLiteStore
from penstock.testing import RecordedEvents, manual_clock
from penstock.usage import Quotas


class Word(str, Enum):  # noqa: UP042 - unlike a StrEnum's, their `str` and f-strings are `Word.TOKENS`
    TOKENS = "tokens"
    OPENAI = "openai"
    ALICE = "alice"
    RATE = "5/day"
    DAY = "day"
    BERLIN = "Europe/Berlin"


@pytest.fixture(params=["memory", "sqlite"])
def place(request, tmp_path):
    if request.param == "memory":
        yield {}
        return
    store = SQLiteStore(tmp_path / "limits.db")
    yield {"store": store}
    store.close()


@pytest.mark.parametrize("as_mapping", [True, False], ids=["a mapping", "keywords"])
def test_units_and_names_count_as_the_words_that_they_are(place, as_mapping):
    limits = {Word.TOKENS: Word.RATE}
    limiter = Limiter(limits, name=Word.OPENAI, **place) if as_mapping else Limiter(**limits, name=Word.OPENAI, **place)
    with limiter({Word.TOKENS: 2}) as permit:
        permit.settle({Word.TOKENS: 3})
    limiter.reconfigure({Word.TOKENS: "5/day"})
    limiter.pause(0, Word.TOKENS)
    limiter.observe(remaining={Word.TOKENS: 5})
    with pytest.raises(RateLimited) as refused, Limiter(tokens="5/day", name="openai", **place)(tokens=3, max_wait=0):
        pass
    assert str(refused.value).startswith("tokens=3 would have to wait ")
    assert 'for tokens of "openai"' in str(refused.value)
    assert {type(limiter.name), *map(type, limiter.limits), *map(type, limiter.statistics().limits)} == {str}
    with pytest.raises(UnknownUnit, match="'openai'"):
        limiter.forecast({Word.OPENAI: 1})


def test_keys_are_one_key_with_the_words_that_they_are(place):
    per_user = Keyed({Word.TOKENS: "5/day"}, name=Word.OPENAI, **place)
    with per_user[Word.ALICE](tokens=3):
        pass
    with pytest.raises(RateLimited), per_user["alice"](tokens=3, max_wait=0):
        pass
    assert "Word" not in str(per_user[Word.ALICE])


def test_a_user_is_the_same_with_the_word_that_it_is(tmp_path):
    with Quotas(tmp_path / "quotas.db", {Word.TOKENS: "3/day"}, name=Word.OPENAI, tz=Word.BERLIN) as quotas:
        with quotas(Word.ALICE, tokens=2):
            pass
        assert [(each.user, each.used) for each in quotas.of("alice")] == [("alice", 2)]


def test_a_period_and_a_time_zone_may_be_members_of_an_enum():
    limit = calendar(5, Word.DAY, tz=Word.BERLIN)
    assert repr(limit) == repr(calendar(5, timedelta(days=1), tz="Europe/Berlin"))
    assert str(limit) == "5 per calendar day (Europe/Berlin)"


def test_events_tell_units_and_names_as_words():
    events = RecordedEvents()
    with manual_clock():
        Limiter({Word.TOKENS: Unlimited()}, name=Word.OPENAI, on_event=events).acquire_nowait(tokens=1)
    [event] = events
    assert (repr(event.limiter), repr(event.cost)) == ("'openai'", "{'tokens': 1}")


def test_what_remains_may_be_any_number_that_a_cost_may_be():
    with manual_clock():
        limiter = Limiter(tokens="5/min")
        limiter.observe(remaining={"tokens": True})
        assert limiter.statistics().limits["tokens"].level == 1
