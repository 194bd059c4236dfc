"""`circuit_breaker`: what is down is not called. The rules are tested in tests/_core/test_breaker.py."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import threading
from contextlib import aclosing
from datetime import timedelta

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import testing
from penstock._core.breaker import Breaker
from penstock.errors import CircuitOpen, RateLimited
from penstock.pipeline import Pipeline, circuit_breaker, fallback, timeout
from penstock.retry import Retry, constant
from tests.limiter.interrupts import every_point, raise_interrupted
from tests.pipeline.calls import echo, raises

anyio_test = pytest.mark.anyio


class Service:
    def __init__(self):
        self.calls, self.error, self.takes = 0, None, 0

    async def __call__(self):
        self.calls += 1
        await anyio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return "reply"


async def times(n, fetch, error):
    for _ in range(n):
        with pytest.raises(error):
            await fetch()


@anyio_test
async def test_a_breaker_opens_probes_and_closes(virtual_time):
    service, breaker = Service(), circuit_breaker(on=OSError, failures=3, open_for=30)
    fetch = breaker(service)
    service.error = OSError()
    await times(3, fetch, OSError)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen) as caught:
        await fetch()
    assert service.calls == 3
    assert caught.value.retry_after == 30
    assert (
        str(caught.value)
        == "Service: the circuit breaker is open, for 3 of 3 calls had failed; it lets a probe through in 30 s"
    )

    await anyio.sleep(29.9)
    await times(1, fetch, CircuitOpen)
    await anyio.sleep(0.1)
    await times(1, fetch, OSError)  # the probe fails, so it opens again
    await times(1, fetch, CircuitOpen)
    assert service.calls == 4

    await anyio.sleep(30)
    service.error = None
    assert await fetch() == "reply"
    assert breaker.state == "closed"
    service.error = OSError()
    await times(2, fetch, OSError)  # it begins to count anew
    assert breaker.state == "closed"


async def asks(fetch):
    """The moments at which a caller asks that comes back whenever a refusal says so, until the reply."""
    at = []
    while True:
        at.append(anyio.current_time())
        try:
            await fetch()
        except CircuitOpen as error:
            await anyio.sleep(error.retry_after)
        else:
            return [each - at[0] for each in at]


@anyio_test
@pytest.mark.parametrize(
    ("takes", "asked"),
    [(0.5, [0, 1]), (5, [0, 1, 2, 4, 8]), (1e9, [0, 1, 2, 4, 8, 10])],
    ids=["quick", "slow", "hanging"],
)
async def test_a_caller_that_waits_as_long_as_it_is_told_is_answered_whatever_a_probe_does(virtual_time, takes, asked):
    """While half-open a refusal said to wait for ever."""
    service, breaker = Service(), circuit_breaker(on=OSError, failures=1, open_for=10)
    fetch = breaker(service)
    service.error = OSError()
    await times(1, fetch, OSError)
    await anyio.sleep(10)
    service.error, service.takes = None, takes
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch)
        await anyio.wait_all_tasks_blocked()
        service.takes = 0
        assert await asks(fetch) == pytest.approx(asked)
        tasks.cancel_scope.cancel()


@anyio_test
async def test_only_probes_go_while_half_open(virtual_time):
    service, breaker = Service(), circuit_breaker(on=OSError, failures=1, open_for=10, probes=2)
    fetch = breaker(service)
    service.error = OSError()
    await times(1, fetch, OSError)
    await anyio.sleep(10)
    service.error, service.takes = None, 5
    refused = []

    async def client():
        try:
            await fetch()
        except CircuitOpen as error:
            refused.append((error.retry_after, str(error)))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(client)
    assert service.calls == 1 + 2
    assert refused == [(1, "Service: the circuit breaker is half-open, for a probe is under way; ask again in 1 s")] * 3
    assert breaker.state == "closed"


@anyio_test
async def test_only_what_the_classifier_calls_a_failure_counts(virtual_time):
    """A page that does not exist is an answer. So is every call that the ratio weighs failures against."""
    service, breaker = Service(), circuit_breaker(on=OSError, failures=2, ratio=0.5)
    fetch = breaker(service)
    service.error = KeyError("no such page")
    await times(6, fetch, KeyError)
    service.error = OSError()
    await times(5, fetch, OSError)
    assert breaker.state == "closed"  # 5 of 11
    await times(1, fetch, OSError)
    assert breaker.state == "open"  # 6 of 12


@anyio_test
async def test_a_cancelled_probe_leaves_its_place_to_another(virtual_time):
    service, breaker = Service(), circuit_breaker(on=OSError, failures=1, open_for=10)
    fetch = breaker(service)
    service.error = OSError()
    await times(1, fetch, OSError)
    await anyio.sleep(10)
    service.error, service.takes = None, 60
    with anyio.move_on_after(1):
        await fetch()
    assert breaker.state == "half-open"
    service.takes = 0
    assert await fetch() == "reply"
    assert breaker.state == "closed"


class Answers:
    """Answers call after call as told: (seconds, result), where a result may be an error."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    async def __call__(self):
        seconds, result = next(self.answers)
        await anyio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result


@anyio_test
async def test_a_failure_from_before_says_nothing_about_now(virtual_time):
    """A call that began before the outage ended must not open what a probe has just closed. Nor close what is open."""
    service, breaker = Service(), circuit_breaker(on=OSError, failures=1, open_for=10)
    slow = breaker(Answers((15, OSError()), (5, "reply")))

    async def straggler():
        with contextlib.suppress(OSError):
            assert await slow() == "reply"
            assert breaker.state == "open"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(straggler)
        tasks.start_soon(straggler)
        await anyio.sleep(1)
        service.error = OSError()
        await times(1, breaker(service), OSError)
        await anyio.sleep(10)
        service.error = None
        await breaker(service)()
        assert breaker.state == "closed"
    assert breaker.state == "closed"


@anyio_test
async def test_a_breaker_stays_open_as_long_as_the_server_asks(virtual_time):
    service, breaker = Service(), circuit_breaker(on=RateLimited, failures=1, open_for=10)
    service.error = RateLimited("later", retry_after=100, blocked_by="requests")
    await times(1, breaker(service), RateLimited)
    with pytest.raises(CircuitOpen) as caught:
        await breaker(service)()
    assert caught.value.retry_after == 100
    deaf = circuit_breaker(on=RateLimited, failures=1, open_for=10, hint=None)
    await times(1, deaf(service), RateLimited)
    with pytest.raises(CircuitOpen) as caught:
        await deaf(service)()
    assert caught.value.retry_after == 10


@anyio_test
async def test_a_retry_around_a_breaker_comes_back_when_it_lets_a_probe_through(virtual_time):
    service, breaker = Service(), circuit_breaker(on=OSError, failures=1, open_for=30)
    service.error = OSError()
    await times(1, breaker(service), OSError)
    service.error = None
    retry = Retry(on=(OSError, CircuitOpen), backoff=constant(0))
    assert await Pipeline(retry, breaker)(service)() == "reply"
    assert virtual_time.now() == 30


@anyio_test
async def test_a_stream_counts_when_it_ends(virtual_time):
    breaker = circuit_breaker(on=OSError, failures=1)

    @breaker
    async def items(fails):
        yield 1
        if fails:
            raise OSError

    assert [item async for item in items(fails=False)] == [1]
    async with aclosing(items(fails=True)) as stream:
        await anext(stream)  # closed early: neither a success nor a failure
    with pytest.raises(OSError):
        async for _ in items(fails=True):
            pass
    assert breaker.state == "open"


def test_a_breaker_of_sync_functions_serves_threads():
    breaker = circuit_breaker(on=OSError, failures=50, ratio=0)

    @breaker
    def fail():
        raise OSError

    def client():
        for _ in range(10):
            with contextlib.suppress(OSError, CircuitOpen):
                fail()

    threads = [threading.Thread(target=client) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        fail()


@anyio_test
async def test_a_classifier_that_fails_does_not_keep_the_probes_place(virtual_time):
    answers = iter([True, ZeroDivisionError(), True])

    def on(_error):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    service, breaker = Service(), circuit_breaker(on=on, failures=1, open_for=10)
    service.error = OSError()
    await times(1, breaker(service), OSError)
    await anyio.sleep(10)
    await times(2, breaker(service), OSError)
    assert "`on` raised ZeroDivisionError() when asked about this error" in service.error.__notes__[0]
    assert breaker.state == "open"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failures": 0}, "circuit_breaker(failures=0): how many failures open it, 1 or more"),
        ({"ratio": 2}, "circuit_breaker(ratio=2): the share of calls that must have failed, from 0 to 1"),
        ({"probes": 0}, "circuit_breaker(probes=0): how many calls must succeed to close it, 1 or more"),
        ({"window": 0}, "circuit_breaker(window=0): seconds or a timedelta, above 0 and finite"),
        ({"open_for": float("inf")}, "circuit_breaker(open_for=inf): seconds or a timedelta, above 0 and finite"),
    ],
)
def test_a_breaker_with_wrong_numbers_is_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        circuit_breaker(on=OSError, **settings)
    assert str(caught.value) == message


def test_a_classifier_of_a_layer_is_no_async_function():
    for layer, message in (
        (
            lambda: circuit_breaker(on=echo),
            "circuit_breaker(on=echo): it is called and not awaited; give a plain function",
        ),
        (lambda: circuit_breaker(on=OSError, hint=echo), "circuit_breaker(hint=echo): it is called and not awaited"),
        (lambda: fallback("sorry", on=echo), "fallback(on=echo): it is called and not awaited; give a plain function"),
    ):
        with pytest.raises(TypeError) as caught:
            layer()
        assert message in str(caught.value)


def test_layers_that_classify_have_no_default():
    with pytest.raises(TypeError):
        circuit_breaker()
    with pytest.raises(TypeError):
        fallback("sorry")
    with pytest.raises(TypeError, match=r"fallback\(on=BaseException\): only types of Exception"):
        fallback("sorry", on=BaseException)


steps = st.lists(st.tuples(st.sampled_from(["admit", "succeed", "fail", "abandon"]), st.floats(0, 20)), max_size=120)


@given(steps, st.integers(1, 4), st.floats(0, 1), st.integers(1, 3))
def test_a_breaker_admits_no_more_than_its_state_allows(trace, failures, ratio, probes):
    """Open: nobody before its time. Half-open: never more than `probes` at once. And it never gets stuck."""
    breaker, now = Breaker(failures, ratio, window=10, open_for=5, probes=probes), 0.0
    tickets, opened_at = [], None
    for what, gap in trace:
        now += gap
        before = breaker.state
        if what == "admit":
            ticket = breaker.admit(now)
            if opened_at is not None and now < opened_at + 5:
                assert ticket is None
                assert breaker.retry_after(now) == pytest.approx(opened_at + 5 - now)
            elif breaker.state == "closed":
                assert ticket is not None
            if ticket is not None:
                tickets.append((ticket, now))
        elif tickets:
            ticket, _ = tickets.pop()
            if what == "succeed":
                breaker.succeeded(ticket, now)
            elif what == "fail":
                breaker.failed(ticket, now)
            else:
                breaker.abandoned(ticket)
        if breaker.state == "half-open":
            assert sum(ticket.term == breaker._term and now < since + 5 for ticket, since in tickets) <= probes
        if breaker.state != "open":
            opened_at = None
        elif before != "open":
            opened_at = now
    for ticket, _ in tickets:
        breaker.abandoned(ticket)
    assert breaker.admit(now + 5) is not None


def test_a_clock_that_begins_anew_does_not_keep_a_breaker_open():
    """One at module level lives through many tests, each with a virtual time of its own."""
    breaker = Breaker(1, 0, 10, 30, 1)
    breaker.failed(breaker.admit(1000.0), 1000.0)
    assert breaker.admit(1010.0) is None
    assert breaker.admit(5.0) is not None


@pytest.mark.parametrize("lost", ["hangs", "is collected", "is a generator that nobody finishes"])
@anyio_test
async def test_a_probe_that_never_returns_does_not_keep_the_breaker_half_open(lost, virtual_time):
    """Its place goes to another call after `open_for` seconds."""
    breaker = circuit_breaker(on=OSError, failures=1, open_for=10)
    service = Service()
    fetch = breaker(service)
    service.error = OSError()
    await times(1, fetch, OSError)
    await anyio.sleep(10)
    service.error = None

    @breaker
    async def items():
        yield 1
        yield 2

    async with anyio.create_task_group() as tasks:
        if lost == "hangs":
            service.takes = 1_000
            tasks.start_soon(fetch)
        elif lost == "is collected":
            breaker._admit("a task that is gone")
        else:
            kept = items()
            assert await anext(kept) == 1
        await anyio.sleep(9)
        service.takes = 0
        await times(1, fetch, CircuitOpen)
        await anyio.sleep(1)
        assert await fetch() == "reply"
        assert breaker.state == "closed"
        tasks.cancel_scope.cancel()
    if lost == "is a generator that nobody finishes":
        await kept.aclose()


@pytest.mark.parametrize("broken", ["retry_after", "response", "headers", "status_code"])
@anyio_test
async def test_an_error_whose_properties_raise_is_raised_itself(broken, virtual_time):
    error = Broken(broken)
    breaker = circuit_breaker(on=Broken, failures=1)
    with pytest.raises(Broken) as caught:
        await breaker(raises(error))()
    assert (caught.value is error, breaker.state) == (True, "open")


class Broken(Exception):  # noqa: N818
    """An error that cannot be looked at."""

    def __init__(self, *names):
        super().__init__()
        self._names = names

    def __getattribute__(self, name):
        if name in super().__getattribute__("__dict__").get("_names", ()):
            raise AssertionError(name)
        return super().__getattribute__(name)

    def __str__(self):
        raise AssertionError

    __repr__ = __str__


@anyio_test
async def test_a_hint_that_raises_does_not_cost_the_error(virtual_time):
    breaker = circuit_breaker(on=OSError, failures=1, hint=lambda error: error.no_such_attribute)
    error = OSError()
    with pytest.raises(OSError):
        await breaker(raises(error))()
    assert breaker.state == "open"
    assert "circuit_breaker: `hint` raised AttributeError" in error.__notes__[0]


@anyio_test
async def test_a_hint_that_returns_an_awaitable_is_refused(virtual_time):
    breaker = circuit_breaker(on=OSError, failures=1, hint=lambda _: echo(5))
    with pytest.raises(
        TypeError, match=r"circuit_breaker\(hint=\.\.\.\) returned coroutine: it is called and not awaited"
    ):
        await breaker(raises(OSError()))()


@anyio_test
async def test_no_hint_keeps_a_breaker_open_for_years(virtual_time):
    breaker = circuit_breaker(on=OSError, failures=1, hint=lambda _: 9_999_999_999, max_open=timedelta(hours=2))
    service = Service()
    with pytest.raises(OSError):
        await breaker(raises(OSError()))()
    await anyio.sleep(7_199)
    await times(1, breaker(service), CircuitOpen)
    await anyio.sleep(1)
    assert await breaker(service)() == "reply"


def test_spans_may_be_timedeltas():
    shown = repr(circuit_breaker(on=OSError, window=timedelta(minutes=2), open_for=timedelta(seconds=5)))
    assert "window=120, open_for=5" in shown


@pytest.mark.parametrize("value", [timedelta(seconds=-1), "5", None, True, 1j])
def test_what_is_no_span_of_time_is_refused(value):
    for name in ("window", "open_for", "max_open"):
        with pytest.raises(ValueError, match=rf"circuit_breaker\({name}="):
            circuit_breaker(on=OSError, **{name: value})


def test_a_copy_of_a_breaker_is_the_breaker():
    breaker = circuit_breaker(on=OSError)
    pipe = Pipeline(breaker, timeout(5))
    assert copy.deepcopy(pipe).layers[0] is copy.copy(breaker) is breaker
    with pytest.raises(
        TypeError, match=r"cannot be pickled: its state belongs to the threads of this process\. Make one in each"
    ):
        pickle.dumps(pipe)


@anyio_test
async def test_a_plain_callable_that_returns_an_awaitable_is_watched_to_its_end(virtual_time):
    """A lambda, an SDK's bound method, a partial: not a success before it has been awaited."""
    service = Service()
    service.error = OSError()
    for plain in (lambda: service(), functools.partial(lambda: service()), Bound(service).get):  # noqa: PLW0108
        breaker = circuit_breaker(on=OSError, failures=2, window=100)
        await times(2, breaker(plain), OSError)
        assert breaker.state == "open"
        await times(1, breaker(plain), CircuitOpen)


class Bound:
    def __init__(self, service):
        self.service = service

    def get(self):
        return self.service()


@anyio_test
async def test_a_block_is_watched_to_its_end(virtual_time):
    breaker = circuit_breaker(on=OSError, failures=1, open_for=10)

    @breaker
    @contextlib.asynccontextmanager
    async def session():
        yield "session"

    async with session() as opened:
        assert opened == "session"
    with pytest.raises(OSError):
        async with session():
            raise OSError
    with pytest.raises(CircuitOpen):
        async with session():
            pass

    @breaker
    @contextlib.contextmanager
    def plain():
        yield "session"

    with pytest.raises(CircuitOpen), plain():
        pass


def test_an_interrupt_at_any_point_of_a_probe_leaves_room_for_another_one_later():
    def half_open():
        breaker = circuit_breaker(on=OSError, failures=1, ratio=0, open_for=1)
        with pytest.raises(OSError, match="down"):
            breaker(down)()
        time.advance(1)
        return breaker

    def down():
        raise OSError("down")

    def what_is_wrong(breaker):
        time.advance(2)
        try:
            breaker(lambda: None)()
        except CircuitOpen as error:
            return str(error)

    with testing.manual_clock() as time:
        found, points = every_point(
            lambda _: raise_interrupted(), half_open, lambda breaker: breaker(lambda: None)(), what_is_wrong
        )
    assert points > 10
    assert found == {}


def test_an_interrupt_at_any_point_of_a_failure_breaks_no_breaker():
    def down():
        raise OSError("down")

    def use(breaker):
        with contextlib.suppress(OSError):
            breaker(down)()

    def what_is_wrong(breaker):
        time.advance(60)
        breaker(lambda: None)()

    with testing.manual_clock() as time:
        found, points = every_point(
            lambda _: raise_interrupted(),
            lambda: circuit_breaker(on=OSError, failures=1, ratio=0, open_for=1),
            use,
            what_is_wrong,
        )
    assert points > 10
    assert found == {}
