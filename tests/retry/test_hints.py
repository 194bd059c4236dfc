"""What the server asked for: how it is read, and that no retry comes before it."""

from __future__ import annotations

import contextlib
import urllib.error
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace

import anyio
import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import CircuitOpen, RateLimited
from penstock.events import GaveUp, RetryScheduled
from penstock.retry import Retry, constant, exponential, retry_after
from penstock.testing import manual_clock

NOON = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


def http_date(moment):
    return format_datetime(moment, usegmt=True)


class HTTPError(Exception):
    def __init__(self, headers, status_code=429):
        super().__init__(status_code)
        self.response = SimpleNamespace(headers=headers, status_code=status_code)


class Asked(Exception):  # noqa: N818
    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({"retry-after": "7"}, 7, id="seconds"),
        pytest.param({"Retry-After": "1.5"}, 1.5, id="fractions, in another case"),
        pytest.param({"RETRY-AFTER": 3}, 3, id="a number"),
        pytest.param({"retry-after": "0"}, 0, id="zero"),
        pytest.param({"retry-after": "7s"}, 7, id="with its unit"),
        pytest.param({"retry-after": "7.5 s"}, 7.5, id="with a space before its unit"),
        pytest.param({"retry-after": "7ms"}, 0.007, id="with another unit"),
        pytest.param({"retry-after": "1m30s"}, 90, id="a duration"),
        pytest.param({"retry-after": "7 seconds"}, 7, id="with its unit in full"),
        pytest.param({"retry-after": "5, 10"}, 10, id="of two proxies"),
        pytest.param({"retry-after": "10", "Retry-After": b"5"}, 10, id="of two proxies, as two items"),
        pytest.param({"retry-after": "2026-05-01T12:00:30Z"}, 30, id="a date of another form"),
        pytest.param(
            {"retry-after": ", ".join(http_date(NOON + timedelta(seconds=after)) for after in (30, 60))},
            60,
            id="two dates",
        ),
        pytest.param({"retry-after": "s"}, None, id="a unit alone"),
        pytest.param({"retry-after": "60", "retry-after-ms": "250"}, 0.25, id="milliseconds go first"),
        pytest.param({"retry-after": "2", "retry-after-ms": "soon"}, 2, id="milliseconds that are none"),
        pytest.param({"retry-after": f"{NOON.timestamp() + 30:.0f}"}, 30, id="a moment since 1970"),
        pytest.param({"retry-after": f"{NOON.timestamp() * 1000 + 30_000:.0f}"}, 30, id="in milliseconds"),
        pytest.param({"retry-after": "-1"}, None, id="negative"),
        pytest.param({"retry-after": "inf"}, None, id="infinite"),
        pytest.param({"retry-after": "nan"}, None, id="no number"),
        pytest.param({"retry-after": "soon"}, None, id="a word"),
        pytest.param({"retry-after": http_date(NOON + timedelta(seconds=30))}, 30, id="a date"),
        pytest.param({"retry-after": http_date(NOON - timedelta(seconds=30))}, 0, id="a date that is past"),
        pytest.param(
            {
                "retry-after": http_date(NOON + timedelta(hours=3, seconds=9)),
                "Date": http_date(NOON + timedelta(hours=3)),
            },
            9,
            id="a date on a server three hours ahead",
        ),
        pytest.param(
            {"retry-after": http_date(NOON + timedelta(seconds=9)), "date": "yesterday"}, 9, id="a Date that is none"
        ),
        pytest.param({"retry-after": "Fri May  1 12:00:20 2026"}, 20, id="the old form of a date"),
        pytest.param({"retry-after": b"4"}, 4, id="bytes"),
        pytest.param({"retry-after": 10**400}, None, id="more digits than are read"),
        pytest.param({"retry-after": "1e400"}, 1e9, id="beyond all floats"),
        pytest.param({"retry-after-ms": "1e400"}, 1e6, id="milliseconds beyond all floats"),
        pytest.param(
            {"retry-after": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"}, None, id="a year that is too large"
        ),
        pytest.param({"retry-after": "Fri, 01 May 2026 12:00:09 +99999999999999"}, None, id="a zone that is too large"),
        pytest.param(
            {
                "retry-after": http_date(NOON + timedelta(seconds=9)),
                "date": "Fri, 1 May 99999999999999999999 12:00:00 GMT",
            },
            9,
            id="a Date that is too large",
        ),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_headers_are_read(headers, seconds):
    with manual_clock(NOON):
        assert retry_after(HTTPError(headers)) == seconds


def wrapped(error, how):
    """A user's error around another: raised from it, or while it was handled."""
    try:
        try:
            raise error
        except Exception as inner:
            if how == "from":
                raise ValueError("mine") from inner
            if how == "from None":
                raise ValueError("mine") from None
            raise ValueError("mine")  # noqa: B904 - that is the case
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(("how", "seconds"), [("from", 7), ("from None", None), ("while handled", None)])
def test_an_error_that_wraps_another_has_its_hint(how, seconds):
    assert retry_after(wrapped(Asked(7), how)) == seconds
    assert retry_after(wrapped(wrapped(HTTPError({"retry-after": "7"}), how), how)) == seconds
    assert retry_after(ExceptionGroup("several", [wrapped(Asked(7), how), OSError()])) == seconds


def test_an_errors_own_hint_goes_before_that_of_its_cause():
    own = Asked(3)
    own.__cause__ = Asked(7)
    assert retry_after(own) == 3
    own = Asked(None)
    own.__cause__, own.args = OSError(), ()
    own.__cause__.__cause__ = own
    assert retry_after(own) is None, "causes in a circle"


@pytest.mark.parametrize(
    ("attribute", "seconds"),
    [
        (5, 5),
        (0.5, 0.5),
        ("3", 3),
        (timedelta(minutes=1), 60),
        (-1, None),
        (float("inf"), None),
        (True, None),
        (print, None),
    ],
    ids=repr,
)
def test_an_attribute_of_the_exception_goes_first(attribute, seconds):
    error = HTTPError({"retry-after": "99"})
    error.retry_after = attribute
    assert retry_after(error) == (99 if seconds is None else seconds)
    assert retry_after(Asked(attribute)) == seconds


def test_errors_of_penstock_are_read():
    assert retry_after(RateLimited("no", retry_after=2.5, blocked_by="tokens")) == 2.5
    assert retry_after(CircuitOpen("no", retry_after=4)) == 4
    assert retry_after(RateLimited("depends on others", retry_after=float("inf"), blocked_by="calls")) is None


def test_errors_of_http_libraries_are_read():
    """httpx, requests, urllib and botocore, as they are raised."""
    request = httpx.Request("GET", "http://x")
    response = httpx.Response(429, headers={"Retry-After": "7"}, request=request)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert retry_after(caught.value) == 7

    response = requests.Response()
    response.status_code = 503
    response.headers["Retry-After"] = "8"
    with pytest.raises(requests.HTTPError) as caught:
        response.raise_for_status()
    assert retry_after(caught.value) == 8
    assert retry_after(requests.ConnectionError()) is None  # its response is None

    message = Message()
    message["Retry-After"] = "9"
    with contextlib.closing(urllib.error.HTTPError("http://x", 429, "slow down", message, None)) as refused:
        assert retry_after(refused) == 9

    error = Exception()
    error.response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPHeaders": {"retry-after": "10"}}}
    assert retry_after(error) == 10
    error.response = {"headers": {"retry-after": "11"}}
    assert retry_after(error) == 11


@pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt(), Asked(None)], ids=repr)
def test_what_says_nothing_is_none(error):
    assert retry_after(error) is None


def test_a_response_that_succeeded_asks_for_nothing():
    """Some services send Retry-After on a 200, and do not mean it."""
    assert retry_after(HTTPError({"retry-after": "59"}, 200)) is None
    assert retry_after(HTTPError({"retry-after": "59"}, 429)) == 59


def test_a_group_asks_for_the_longest_wait_of_its_leaves():
    group = ExceptionGroup("g", [Asked(1), ExceptionGroup("h", [Asked(8), ValueError()]), Asked(3)])
    assert retry_after(group) == 8
    assert retry_after(ExceptionGroup("g", [ValueError()])) is None


@given(st.dictionaries(st.text(max_size=20) | st.just("retry-after"), st.text(max_size=30) | st.floats() | st.none()))
def test_no_header_breaks_the_reader(headers):
    seconds = retry_after(HTTPError(headers))
    assert seconds is None or 0 <= seconds < float("inf")


# ----------------------------------------------------------------------------------------------------------------------
# Obeying


def failing(*errors):
    remaining = iter(errors)

    async def fetch():
        for error in remaining:
            raise error
        return "reply"

    return fetch


@pytest.mark.anyio
async def test_no_retry_comes_before_the_hint_and_none_long_after_it(virtual_time):
    """A thousand clients that were told the same second come back over a tenth of it, after it."""
    arrivals = []
    retry = Retry(on=Asked)

    async def client():
        await retry.call(failing(Asked(20)))
        arrivals.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(client)
    assert min(arrivals) >= 20
    assert max(arrivals) <= 22
    assert len(set(arrivals)) > 990
    assert max(arrivals) - min(arrivals) > 1.5


@pytest.mark.anyio
async def test_without_jitter_the_hint_is_met_exactly(virtual_time):
    await Retry(on=Asked, backoff=exponential(jitter="none")).call(failing(Asked(7.5)))
    assert virtual_time.now() == 7.5


@pytest.mark.anyio
async def test_a_hint_of_zero_leaves_the_wait_to_the_backoff(virtual_time):
    await Retry(on=Asked, backoff=constant(3)).call(failing(Asked(0)))
    assert virtual_time.now() == 3


@pytest.mark.anyio
async def test_a_hint_is_heard_through_a_group(virtual_time):
    await Retry(on=Asked, backoff=constant(3)).call(failing(ExceptionGroup("g", [Asked(4), Asked(9)])))
    assert virtual_time.now() == 9


@pytest.mark.parametrize(("said", "asked", "waited"), [(5, 2, 5), (2, 5, 5)])
@pytest.mark.anyio
async def test_what_on_says_is_exact_but_never_before_the_hint(said, asked, waited, virtual_time):
    await Retry(on=lambda _: said, random=lambda: 0.0).call(failing(Asked(asked)))
    assert virtual_time.now() == waited


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"max_hint": 60}, "the server asks to wait 90 s, which is more than max_hint=60 s"),
        ({"within": 80}, "the server asks to wait 90 s, which is more than the time left"),
    ],
    ids=["max_hint", "within"],
)
@pytest.mark.anyio
async def test_a_hint_out_of_bounds_gives_up_at_once_with_the_hint_attached(settings, why, virtual_time):
    events = []
    with pytest.raises(HTTPError) as caught:
        await Retry(on=HTTPError, on_event=events.append, **settings).call(failing(HTTPError({"retry-after": "90"})))
    assert virtual_time.now() == 0
    assert caught.value.__notes__[0].endswith(why)
    assert caught.value.retry_after == 90
    assert isinstance(events[-1], GaveUp)
    assert (events[-1].reason, events[-1].hint) == ("hint", 90)


@pytest.mark.anyio
async def test_a_hint_beyond_the_enclosing_deadline_gives_up_at_once(virtual_time):
    with pytest.raises(Asked), anyio.fail_after(5):
        await Retry(on=Asked).call(failing(Asked(6)))
    assert virtual_time.now() == 0


@pytest.mark.anyio
async def test_the_spread_never_passes_the_time_left(virtual_time):
    """A hint that just fits is met, though a tenth on top would not fit: in `within`, and before an enclosing
    deadline."""
    retry = Retry(on=Asked, within=20, random=lambda: 0.999)
    assert await retry.call(failing(Asked(19.5))) == "reply"
    assert 19.99 < virtual_time.now() < 20
    with anyio.fail_after(20):
        assert await Retry(on=Asked, random=lambda: 0.999).call(failing(Asked(19.5))) == "reply"


@pytest.mark.anyio
async def test_hints_can_be_read_otherwise_or_not_at_all(virtual_time):
    retry = Retry(on=Asked, hint=lambda error: error.retry_after / 10, backoff=constant(1))
    await retry.call(failing(Asked(70)))
    assert virtual_time.now() == 7
    await Retry(on=Asked, hint=None, backoff=constant(1)).call(failing(Asked(70)))
    assert virtual_time.now() == 8


@pytest.mark.parametrize("hint", [float("nan"), -5.0])
@pytest.mark.anyio
async def test_a_hint_that_is_no_time_says_nothing(hint, virtual_time):
    """A moment that has passed, as `reset_at - now` gives it: what `on` or the backoff says holds."""
    await Retry(on=lambda _: 7, hint=lambda _: hint).call(failing(Asked(1)))
    assert virtual_time.now() == 7
    events = []
    await Retry(on=Asked, hint=lambda _: hint, backoff=constant(1), on_event=events.append).call(failing(Asked(1)))
    assert virtual_time.now() == 8
    assert next(event for event in events if isinstance(event, RetryScheduled)).hint is None


@pytest.mark.anyio
async def test_the_event_tells_the_hint(virtual_time):
    events = []
    await Retry(on=Asked, on_event=events.append, random=lambda: 0.5).call(failing(Asked(10)))
    scheduled = next(event for event in events if isinstance(event, RetryScheduled))
    assert (scheduled.hint, scheduled.delay) == (10, 10.5)


@pytest.mark.anyio
async def test_a_limiters_refusal_is_a_hint(virtual_time):
    """Retry and limiter share what they know: the refusal says when, and then the call is granted."""
    refusal = RateLimited("not now", retry_after=2.5, blocked_by="tokens")
    await Retry(on=RateLimited, backoff=constant(0)).call(failing(refusal))
    assert virtual_time.now() == 2.5


# ----------------------------------------------------------------------------------------------------------------------
# Hints that nobody can wait for

HUGE = [
    pytest.param(HTTPError({"retry-after": "9999999999"}), id="a header of 317 years"),
    pytest.param(HTTPError({"retry-after": "1e18"}), id="a header of 1e18"),
    pytest.param(HTTPError({"retry-after-ms": "1e300"}), id="milliseconds"),
    pytest.param(HTTPError({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}), id="a date in the year 9999"),
    pytest.param(Asked(1e18), id="an attribute"),
    pytest.param(Asked(timedelta.max), id="the longest timedelta"),
    pytest.param(ExceptionGroup("g", [Asked(1e18), Asked(1)]), id="a leaf of a group"),
]


async def through_call(retry, error):
    await retry.call(failing(error, error))


async def through_decorator(retry, error):
    await retry(failing(error, error))()


async def through_loop(retry, error):
    async for attempt in retry:
        with attempt:
            raise error


async def through_stream(retry, error):
    @retry
    async def items():
        raise error
        yield

    async for _ in items():
        pass


def raising(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("form", [through_call, through_decorator, through_loop, through_stream])
@pytest.mark.parametrize("error", HUGE)
@pytest.mark.anyio
async def test_a_hint_of_centuries_gives_up_at_once_with_the_users_error(error, form, virtual_time):
    with pytest.raises(type(error)) as caught:
        await form(Retry(on=(HTTPError, Asked), within=None), error)
    assert caught.value is error
    assert virtual_time.now() == 0
    assert any("which is more than a year, the longest wait there is" in note for note in error.__notes__)


@pytest.mark.parametrize("error", HUGE)
def test_a_hint_of_centuries_does_not_overflow_the_sleep_of_a_thread(error):
    retry = Retry(on=(HTTPError, Asked), within=None)
    for use in (retry.call_sync, lambda fail: retry(fail)()):
        with pytest.raises(type(error)) as caught:
            use(raising(error))
        assert caught.value is error
    with pytest.raises(type(error)):
        for attempt in retry:
            with attempt:
                raise error


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, timedelta.max], ids=repr)
def test_a_hint_function_may_say_never(seconds):
    with pytest.raises(Asked):
        Retry(on=Asked, within=None, hint=lambda _: seconds).call_sync(raising(Asked(1)))


def test_a_max_hint_of_centuries_is_no_way_around_it():
    with pytest.raises(Asked):
        Retry(on=Asked, within=None, max_hint=1e20).call_sync(raising(Asked(1e18)))


@pytest.mark.anyio
async def test_a_hint_of_a_month_is_waited_for(virtual_time):
    """A monthly quota is a good reason."""
    month = 31 * 86_400
    await Retry(on=Asked, within=None, backoff=exponential(jitter="none")).call(failing(Asked(month)))
    assert virtual_time.now() == month


@pytest.mark.parametrize(
    "settings",
    [{"backoff": constant(1e18)}, {"on": lambda _: 1e18}, {"backoff": exponential(1e300, cap=1e308, jitter="none")}],
    ids=["a constant", "on", "a cap"],
)
def test_no_wait_is_longer_than_a_year(settings, monkeypatch):
    """However long the user said: clocks refuse to sleep for centuries, and that would cost the user's error."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(Asked):
        Retry(**{"on": Asked, "within": None, "attempts": 2} | settings).call_sync(raising(Asked(None)))
    assert slept == [366 * 86_400]


@pytest.mark.anyio
async def test_hints_may_be_timedeltas_and_text(virtual_time):
    retry = Retry(on=Asked, hint=lambda error: error.args[0], backoff=constant(1))
    await retry.call(failing(Asked(timedelta(minutes=1)), Asked("30")))
    assert virtual_time.now() == 90
    await Retry(on=lambda _: timedelta(seconds=10)).call(failing(Asked(None)))
    assert virtual_time.now() == 100
