"""Pipelines and their layers; on asyncio, uvloop and trio, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import threading
import warnings
from contextlib import aclosing

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, per_minute, per_second
from penstock._core.breaker import Breaker
from penstock.errors import AttemptTimeout, CircuitOpen, RateLimited
from penstock.pipeline import Pipeline, PipelineOrderWarning, circuit_breaker, fallback, hedge, pausing, timeout
from penstock.retry import Budget, Retry, constant, current_attempt

anyio_test = pytest.mark.anyio


def tracing(name, log):
    """A layer of the user's own: any decorator of an async function."""

    def layer(fn):
        @functools.wraps(fn)
        async def wrapper(*args):
            log.append(f"{name} in")
            result = await fn(*args)
            log.append(f"{name} out")
            return f"{name}({result})"

        return wrapper

    return layer


async def echo(value):
    await anyio.lowlevel.checkpoint()
    return value


async def stuck(*_args):
    await anyio.sleep_forever()


# ----------------------------------------------------------------------------------------------------------------------
# Composition


@anyio_test
async def test_a_pipeline_is_its_layers_one_around_the_other():
    log = []
    a, b = tracing("a", log), tracing("b", log)
    assert await Pipeline(a, b)(echo)("x") == await a(b(echo))("x") == "a(b(x))"
    assert log == ["a in", "b in", "b out", "a out"] * 2
    assert Pipeline()(echo) is echo
    assert Pipeline(a, b)(echo).__name__ == "echo"


@anyio_test
async def test_pipelines_nest():
    log = []
    a, b, c = (tracing(name, log) for name in "abc")
    assert await Pipeline(a, Pipeline(b, Pipeline(c)))(echo)("x") == "a(b(c(x)))"
    assert Pipeline(a, Pipeline(b, c)) == Pipeline(a, b, c)
    assert await Pipeline(a)(Pipeline(b)(echo))("x") == "a(b(x))"


@anyio_test
async def test_a_pipeline_is_a_decorator():
    @Pipeline(timeout(5))
    async def fetch(url):
        """Fetch it."""
        return url

    assert await fetch("x") == "x"
    assert fetch.__doc__ == "Fetch it."


def test_describe_says_what_is_in_it():
    def count(prompt):
        return len(prompt)

    class Span:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *_):
            pass

    limiter = Limiter(tokens=per_minute(90_000))
    pipe = Pipeline(
        fallback("sorry", on=OSError),
        Retry(on=OSError, budget=Budget()),
        circuit_breaker(on=OSError),
        hedge("p95", initial=2),
        limiter(tokens=count),
        Span(),
        tracing,
        functools.partial(tracing, "x"),
        timeout(20),
    )
    assert pipe.describe().splitlines() == [
        "Pipeline, outermost first:",
        "  1. fallback('sorry', on=OSError)",
        (
            "  2. Retry(on=OSError, attempts=6, within=300, backoff=exponential(first=1, cap=60, jitter='full'), "
            "budget=Budget(ratio=0.2, floor=10, ttl=10))"
        ),
        "  3. circuit_breaker(on=OSError, failures=5, ratio=0.5, window=30, open_for=30, probes=1)",
        "  4. hedge('p95', initial=2)",
        f"  5. {limiter(tokens=count)!r}",
        "  6. test_describe_says_what_is_in_it.<locals>.Span",
        "  7. tracing",
        "  8. tracing",
        "  9. timeout(20)",
    ]
    assert repr(Pipeline(timeout(20), hedge(0.5, budget=Budget()))) == (
        "Pipeline(timeout(20), hedge(0.5, budget=Budget(ratio=0.2, floor=10, ttl=10)))"
    )
    assert repr(fallback(count, on=(OSError, KeyError))) == (
        "fallback(test_describe_says_what_is_in_it.<locals>.count, on=(OSError, KeyError))"
    )


@pytest.mark.parametrize("units", [("tokens",), ("requests", "tokens")], ids=", ".join)
def test_describe_knows_a_limiter_with_a_plain_cost(units):
    """`limiter(tokens=5)` is a permit as soon as it is entered; here it never was."""
    limiter = Limiter(**dict.fromkeys(units, per_minute(100)))
    assert Pipeline(limiter(tokens=5)).describe().endswith(f"1. {limiter!r}(tokens=5)")
    with pytest.warns(PipelineOrderWarning, match=re.escape(f"{limiter!r}(tokens=5) is outside Retry(on=OSError")):
        Pipeline(limiter(tokens=5), Retry(on=OSError))


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match=r"layer 2 of the pipeline, 20, is neither a decorator nor a context manager"):
        Pipeline(timeout(5), 20)
    with pytest.raises(
        TypeError, match=r"layer 2 of the pipeline, print, made None of echo: a decorator returns a function"
    ):
        Pipeline(timeout(5), print)(echo)


# ----------------------------------------------------------------------------------------------------------------------
# Order


def test_a_limiter_outside_a_retry_is_warned_of():
    retry, limiter = Retry(on=OSError), Limiter(requests=per_second(5))
    with pytest.warns(PipelineOrderWarning) as caught:
        Pipeline(limiter(), timeout(5), retry)
    assert str(caught[0].message) == (
        f"{limiter()!r} is outside {retry!r}: it would charge a call once, however often it is tried, and servers count every "
        "attempt. Put it inside: Pipeline(retry, limiter(...), ...)"
    )
    assert caught[0].filename == __file__
    with pytest.warns(PipelineOrderWarning):
        Pipeline(limiter, Pipeline(retry))
    assert issubclass(PipelineOrderWarning, UserWarning)


def test_a_limiter_outside_a_hedge_is_warned_of():
    """The second attempt would be sent and not charged."""
    limiter = Limiter(requests=per_second(5))
    with pytest.warns(PipelineOrderWarning) as caught:
        Pipeline(limiter(), hedge(1))
    assert str(caught[0].message) == (
        f"{limiter()!r} is outside hedge(1): it would charge a call once, however often it is tried, and servers count every "
        "attempt. Put it inside: Pipeline(hedge(...), limiter(...), ...)"
    )
    with pytest.warns(PipelineOrderWarning, match=r"is outside hedge\(1\)"):
        Pipeline(Retry(on=OSError), limiter(), hedge(1))


def test_orders_that_can_be_meant_are_not_warned_of():
    retry, limiter = Retry(on=OSError), Limiter(requests=per_second(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pipeline(retry, limiter())
        Pipeline(retry, hedge(1), limiter())
        Pipeline(limiter(), timeout(5))
        Pipeline(limiter(), retry, limiter())  # one for calls, one for attempts


@anyio_test
async def test_every_attempt_is_charged_inside_a_retry(virtual_time):
    limiter = Limiter(requests=per_second(10), tokens=per_minute(1000))
    attempts = []

    async def ask(prompt):
        attempts.append(virtual_time.now())
        if len(attempts) < 3:
            raise ConnectionError
        return prompt.upper()

    retry = Retry(on=ConnectionError, backoff=constant(1))
    pipe = Pipeline(retry, limiter(tokens=len), timeout(20))
    assert await pipe(ask)("hello") == "HELLO"
    assert attempts == [0, 1, 2]
    assert limiter.statistics().granted == 3
    assert limiter.acquire_nowait(tokens=900).cost["tokens"] == 900


@anyio_test
async def test_the_wait_for_a_turn_does_not_count_towards_a_timeout_inside(virtual_time):
    limiter = Limiter(requests="1/s burst 1")
    pipe = Pipeline(limiter(), timeout(0.5))
    inside = pipe(functools.partial(echo))
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(inside, number)
    assert virtual_time.now() == 4


# ----------------------------------------------------------------------------------------------------------------------
# Context managers as layers


@anyio_test
async def test_an_async_context_manager_is_entered_around_every_call(virtual_time):
    log = []

    class Span:
        async def __aenter__(self):
            log.append("in")

        async def __aexit__(self, *_):
            log.append("out")

    fetch = Pipeline(Retry(on=OSError, backoff=constant(1)), Span())(echo)
    assert [await fetch(1), await fetch(2)] == [1, 2]
    assert log == ["in", "out"] * 2

    @Pipeline(Span())
    async def stream():
        log.append("item")
        yield 1

    log.clear()
    assert [item async for item in stream()] == [1]
    assert log == ["in", "item", "out"]


@anyio_test
async def test_the_semaphores_of_the_loops_are_layers(virtual_time):
    slow = Pipeline(anyio.Semaphore(2))(anyio.sleep)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(slow, 1)
    assert virtual_time.now() == 2


@pytest.mark.asyncio
async def test_limiters_of_others_are_layers(virtual_time):
    import aiolimiter

    paced = Pipeline(Retry(on=OSError), aiolimiter.AsyncLimiter(1, 1))(echo)
    assert await asyncio.gather(*map(paced, range(3))) == [0, 1, 2]
    assert virtual_time.now() == pytest.approx(2, abs=0.1)


def test_a_context_manager_is_a_layer_of_sync_functions():
    lock = threading.Lock()
    assert Pipeline(lock)(lock.locked)() is True
    assert lock.locked() is False
    with pytest.raises(TypeError, match=r"lock is no async context manager: around echo it would block the event loop"):
        Pipeline(lock)(echo)
    with pytest.raises(TypeError, match=r"Lock is an async context manager, and abs is no async function"):
        Pipeline(asyncio.Lock())(abs)


@anyio_test
async def test_what_asynccontextmanager_makes_is_a_layer(virtual_time):
    log = []

    @contextlib.asynccontextmanager
    async def span(name):
        log.append(name)
        yield

    fetch = Pipeline(span("x"))(echo)
    assert [await fetch(1), await fetch(2)] == [1, 2]
    assert log == ["x", "x"]


# ----------------------------------------------------------------------------------------------------------------------
# timeout


@anyio_test
async def test_a_call_that_takes_too_long_is_cut_and_has_ended(virtual_time):
    ended = []

    @timeout(5)
    async def slow():
        try:
            await anyio.sleep(60)
        finally:
            ended.append(virtual_time.now())

    with pytest.raises(AttemptTimeout) as caught:
        await slow()
    assert ended == [5]
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.seconds == 5
    assert str(caught.value).endswith("slow took longer than timeout(5) allows")


@anyio_test
async def test_a_timeout_leaves_the_cancellation_of_others_alone(virtual_time):
    with anyio.move_on_after(3) as scope:
        await timeout(5)(stuck)()
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError, match="mine"):
        await timeout(5)(_raises(TimeoutError("mine")))()


def _raises(error):
    async def fail(*_args):
        raise error

    return fail


@anyio_test
async def test_a_retry_around_a_timeout_tries_again(virtual_time):
    calls = []

    async def slow_once():
        calls.append(virtual_time.now())
        if len(calls) == 1:
            await anyio.sleep(60)
        return "reply"

    assert await Pipeline(Retry(on=TimeoutError, backoff=constant(1)), timeout(5))(slow_once)() == "reply"
    assert calls == [0, 6]


def test_a_timeout_is_a_frozen_value_above_zero():
    assert timeout(5) == timeout(5)
    assert len({timeout(5), timeout(5), timeout(6)}) == 2
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="a number of seconds above 0"):
            timeout(seconds)


def _items():
    yield 1


async def _aitems():
    yield 1


@pytest.mark.parametrize(
    ("layer", "function", "message"),
    [
        (
            timeout(5),
            abs,
            "timeout(5) cannot be put around abs, which is no async function: only what awaits can be cut",
        ),
        (
            timeout(5),
            _aitems,
            "timeout(5) cannot be put around _aitems, which is an async generator: only what awaits can be cut",
        ),
        (
            hedge(1),
            abs,
            "hedge(1) cannot be put around abs, which is no async function: a second attempt beside the first needs an event loop",
        ),
        (
            fallback(1, on=OSError),
            _items,
            (
                "fallback(1, on=OSError) cannot be put around _items, which is a generator: when it fails, items may have been "
                "handed out already"
            ),
        ),
        (
            fallback(echo, on=OSError),
            abs,
            "fallback(echo, on=OSError) cannot be put around abs, which is no async function: it could not await",
        ),
        (circuit_breaker(on=OSError), _items, "which is a generator: put it around what that calls"),
    ],
)
def test_a_layer_refuses_what_it_cannot_be_put_around(layer, function, message):
    with pytest.raises(TypeError) as caught:
        layer(function)
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# fallback


@anyio_test
async def test_a_fallback_answers_when_the_call_fails():
    fail = _raises(OSError())
    assert await fallback("sorry", on=OSError)(fail)(1) == "sorry"
    assert await fallback(None, on=OSError)(fail)(1) is None
    assert await fallback(echo, on=lambda error: isinstance(error, OSError))(fail)("asked") == "asked"
    assert await fallback(str.upper, on=OSError)(fail)("asked") == "ASKED"
    assert (
        await fallback(lambda value: echo(value + 1), on=OSError)(fail)(1) == 2
    )  # a plain function around an async one
    assert await fallback("sorry", on=OSError)(echo)(1) == 1
    with pytest.raises(OSError):
        await fallback("sorry", on=KeyError)(fail)(1)


def test_a_fallback_of_a_sync_function():
    def fail(value):
        raise KeyError(value)

    assert fallback("sorry", on=LookupError)(fail)(1) == "sorry"
    assert fallback(str, on=LookupError)(fail)(1) == "1"
    with pytest.raises(KeyError):
        fallback("sorry", on=OSError)(fail)(1)


@anyio_test
async def test_a_fallback_does_not_hide_cancellation(virtual_time):
    with anyio.move_on_after(1) as scope:
        await fallback("sorry", on=lambda _: True)(stuck)()
    assert scope.cancelled_caught


# ----------------------------------------------------------------------------------------------------------------------
# pausing


class TooMany(Exception):  # noqa: N818
    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


class Overrun:
    """A server that refuses everything before `until`, and says so; a call takes 0.15 s. Knows who came when."""

    def __init__(self, virtual_time, until):
        self.time, self.until, self.came = virtual_time, until, []

    async def __call__(self, _):
        self.came.append(self.time.now())
        await anyio.sleep(0.15)
        if self.came[-1] < self.until:
            raise TooMany(self.until - self.time.now())


@pytest.mark.parametrize("paused", [False, True])
@anyio_test
async def test_one_refusal_stops_everybody_once(paused, virtual_time):
    """A retry alone waits for its own call; the other 99 would run into the same wall, one after the other."""
    limiter = Limiter(requests="10/s burst 1")
    server = Overrun(virtual_time, until=20)
    retry = Retry(on=TooMany, attempts=3)
    layers = [retry, limiter()] + [pausing(limiter, on=TooMany)] * paused
    call = Pipeline(*layers)(server)
    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(call, number)
    refused = [at for at in server.came if at < 20]
    assert len(refused) == (2 if paused else 100)  # those that were under way when the first refusal came
    assert len(server.came) - len(refused) == 100
    assert min(at for at in server.came if at > 1) >= 20 or not paused


@pytest.mark.parametrize(
    ("layer", "error", "seconds"),
    [
        ({"on": TooMany}, TooMany(7), 7),
        ({"on": TooMany}, TooMany(None), 0),
        ({"on": TooMany}, TooMany(float("inf")), 0),
        ({"on": TooMany}, KeyError(), 0),
        ({"on": lambda _: 3}, KeyError(), 3),
        ({"on": lambda _: False}, TooMany(7), 0),
        ({"on": TooMany, "hint": lambda error: error.retry_after / 10}, TooMany(20), 2),
        ({"on": TooMany}, ExceptionGroup("g", [TooMany(2), TooMany(9)]), 9),
    ],
    ids=repr,
)
@anyio_test
async def test_a_limiter_is_paused_for_what_the_error_says(layer, error, seconds, virtual_time):
    limiter = Limiter(requests="10/s")
    with pytest.raises(type(error)):
        await pausing(limiter, **layer)(_raises(error))()
    assert limiter.statistics().paused_for == seconds


@anyio_test
async def test_pausing_is_put_around_every_kind_of_function(virtual_time):
    limiter = Limiter(requests="10/s")
    layer = pausing(limiter, on=TooMany)

    @layer
    def fail():
        raise TooMany(1)

    @layer
    async def items():
        yield 1
        raise TooMany(2)

    with pytest.raises(TooMany):
        fail()
    assert limiter.statistics().paused_for == 1
    with pytest.raises(TooMany):
        async for item in items():
            assert item == 1
    assert limiter.statistics().paused_for == 2
    assert await layer(echo)(5) == 5
    with anyio.move_on_after(3) as scope:
        await layer(stuck)()
    assert scope.cancelled_caught
    with pytest.raises(TypeError, match="which is a generator: put it around what that calls"):
        layer(_items)


def test_pausing_wants_the_limiter_itself():
    limiter = Limiter(requests="10/s")
    assert repr(pausing(limiter, on=TooMany)) == f"pausing({limiter!r}, on=TooMany)"
    with pytest.raises(TypeError) as caught:
        pausing(limiter(requests=2), on=TooMany)
    assert str(caught.value) == f"pausing({limiter!r}(requests=2)): give the limiter itself, which can be paused"
    with pytest.raises(TypeError, match=r"pausing\(on=echo\): it is called and not awaited"):
        pausing(limiter, on=echo)


# ----------------------------------------------------------------------------------------------------------------------
# hedge


class Answers:
    """Answers call after call as told: (seconds, result), where a result may be an error. Knows what ended how."""

    def __init__(self, *answers):
        self.answers, self.log = list(answers), []

    async def __call__(self, *_args):
        number = len(self.log)
        seconds, result = self.answers[number]
        self.log.append("running")
        try:
            await anyio.sleep(seconds)
        except BaseException:
            self.log[number] = "cancelled"
            raise
        self.log[number] = "ended"
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.mark.parametrize(
    ("answers", "result", "at", "log"),
    [
        pytest.param([(1, "a")], "a", 1, ["ended"], id="a quick first makes no second"),
        pytest.param([(9, "a"), (1, "b")], "b", 3, ["cancelled", "ended"], id="the second wins"),
        pytest.param([(3, "a"), (5, "b")], "a", 3, ["ended", "cancelled"], id="the first wins"),
        pytest.param([(3, OSError()), (5, "b")], "b", 7, ["ended", "ended"], id="the first fails, the second answers"),
        pytest.param([(9, "a"), (1, OSError())], "a", 9, ["ended", "ended"], id="the second fails, the first answers"),
    ],
)
@anyio_test
async def test_the_first_success_wins_and_the_loser_has_ended(answers, result, at, log, virtual_time):
    call = Answers(*answers)
    assert await hedge(2)(call)() == result
    assert virtual_time.now() == at
    assert call.log == log


@anyio_test
async def test_a_first_attempt_that_fails_early_is_raised_at_once(virtual_time):
    """Trying again is what a retry is for."""
    error = OSError("first")
    with pytest.raises(OSError) as caught:
        await hedge(2)(Answers((1, error), (0, "never")))()
    assert caught.value is error
    assert virtual_time.now() == 1


@anyio_test
async def test_when_both_fail_the_first_error_is_raised(virtual_time):
    error = OSError("first")
    with pytest.raises(OSError) as caught:
        await hedge(2)(Answers((5, error), (1, KeyError("second"))))()
    assert caught.value is error
    assert error.__notes__ == ["penstock: a second attempt, beside this one, failed with KeyError('second')"]
    assert virtual_time.now() == 5


@anyio_test
async def test_the_percentile_is_that_of_recent_calls(virtual_time):
    """Of 1 to 20 seconds the 95th percentile is 19; before 20 calls are known, `initial` is waited, or there is no second."""
    layer, by = hedge("p95"), hedge("p50", initial=7)
    assert layer.delay() is None
    assert by.delay() == 7
    call = Answers(*[(seconds, "a") for seconds in range(1, 21)])
    for _ in range(20):
        await layer(call)()
    assert call.log == ["ended"] * 20
    assert layer.delay() == 19

    late = Answers((60, "slow"), (1, "quick"))
    started = virtual_time.now()
    assert await layer(late)() == "quick"
    assert virtual_time.now() - started == 20
    assert layer.delay() == 20  # the one that was cut counts with the 20 s it had taken, or the percentile would sink


@anyio_test
async def test_failures_say_nothing_about_how_long_calls_take(virtual_time):
    layer = hedge("p95", initial=100)
    for _ in range(30):
        with pytest.raises(OSError):
            await layer(_raises(OSError()))()
    assert layer.delay() == 100


@anyio_test
async def test_a_second_attempt_is_charged_like_the_first(virtual_time):
    limiter = Limiter(requests=per_second(10))
    assert await Pipeline(hedge(2), limiter())(Answers((9, "a"), (1, "b")))() == "b"
    assert limiter.statistics().granted == 2


@anyio_test
async def test_a_budget_bounds_second_attempts(virtual_time):
    call = Answers(*[(5, "a")] * 30)
    hedged = hedge(1, budget=Budget(ratio=0.2, floor=0, ttl=1000))(call)
    for _ in range(20):
        await hedged()
    assert len(call.log) == 24


@anyio_test
async def test_both_attempts_are_the_same_call(virtual_time):
    """To the retry around them, and so to a server that is shown the key."""
    keys = []

    async def send():
        keys.append(current_attempt().idempotency_key)
        await anyio.sleep(5)

    await Pipeline(Retry(on=OSError), hedge(1))(send)()
    assert len(keys) == 2
    assert len(set(keys)) == 1


@anyio_test
async def test_cancelling_a_hedged_call_cancels_both(virtual_time):
    call = Answers((60, "a"), (60, "b"))
    with anyio.move_on_after(5) as scope:
        await hedge(2)(call)()
    assert scope.cancelled_caught
    assert call.log == ["cancelled", "cancelled"]


@anyio_test
async def test_what_is_no_exception_passes_through_a_hedge_bare(virtual_time):
    class Stop(BaseException):
        pass

    for answers in ([(1, Stop())], [(9, "a"), (1, Stop())]):
        with pytest.raises(Stop):
            await hedge(2)(Answers(*answers))()


@anyio_test
async def test_what_is_no_exception_from_both_attempts_comes_as_a_group(virtual_time):
    class Stop(BaseException):
        pass

    async def stop():
        try:
            await anyio.sleep(5)
        finally:
            raise Stop

    with pytest.raises(BaseExceptionGroup) as caught:
        await hedge(2)(stop)()
    assert [type(error) for error in caught.value.exceptions] == [Stop, Stop]


@anyio_test
async def test_a_loser_that_answers_all_the_same_is_not_heard(virtual_time):
    answers = iter(["first", "second"])

    async def stubborn():
        answer = next(answers)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return answer

    assert await hedge(2)(stubborn)() == "first"
    assert virtual_time.now() == 7


@pytest.mark.parametrize("after", ["95", "p0", "p100", "fast", -1, float("inf")])
def test_a_hedge_after_nonsense_is_refused(after):
    with pytest.raises(ValueError, match="hedge"):
        hedge(after)


def test_a_hedge_with_wrong_numbers_is_refused():
    with pytest.raises(ValueError, match=r"hedge\(initial=-1\): seconds, 0 or more and finite"):
        hedge(initial=-1)
    with pytest.raises(ValueError, match=r"hedge\(samples=3\): 20 or more; fewer say little about how long calls take"):
        hedge(samples=3)


# ----------------------------------------------------------------------------------------------------------------------
# circuit breaker


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
    assert refused == [(float("inf"), "Service: the circuit breaker is half-open, for a probe is under way")] * 3
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
    await times(1, breaker(service), ZeroDivisionError)
    await times(1, breaker(service), OSError)
    assert breaker.state == "open"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failures": 0}, "circuit_breaker(failures=0): how many failures open it, 1 or more"),
        ({"ratio": 2}, "circuit_breaker(ratio=2): the share of calls that must have failed, from 0 to 1"),
        ({"probes": 0}, "circuit_breaker(probes=0): how many calls must succeed to close it, 1 or more"),
        ({"window": 0}, "circuit_breaker(window=0): seconds, above 0 and finite"),
        ({"open_for": float("inf")}, "circuit_breaker(open_for=inf): seconds, above 0 and finite"),
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
                tickets.append(ticket)
        elif tickets:
            ticket = tickets.pop()
            if what == "succeed":
                breaker.succeeded(ticket, now)
            elif what == "fail":
                breaker.failed(ticket, now)
            else:
                breaker.abandoned(ticket)
        if breaker.state == "half-open":
            assert tickets.count(breaker._term) <= probes
        if breaker.state != "open":
            opened_at = None
        elif before != "open":
            opened_at = now
    for ticket in tickets:
        breaker.abandoned(ticket)
    assert breaker.admit(now + 5) is not None


def test_a_clock_that_begins_anew_does_not_keep_a_breaker_open():
    """One at module level lives through many tests, each with a virtual time of its own."""
    breaker = Breaker(1, 0, 10, 30, 1)
    breaker.failed(breaker.admit(1000.0), 1000.0)
    assert breaker.admit(1010.0) is None
    assert breaker.admit(5.0) is not None
