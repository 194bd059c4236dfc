"""Pipelines: layers one around the other; on asyncio, uvloop and trio, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import re
import threading
import warnings
import weakref

import anyio
import pytest

from penstock import Keyed, Limiter, per_minute, per_second, testing
from penstock.pipeline import Pipeline, PipelineOrderWarning, circuit_breaker, fallback, hedge, pausing, timeout
from penstock.retry import Budget, Retry, constant
from tests.pipeline.calls import echo

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


def test_a_limiter_per_key_is_a_layer_like_a_limiter():
    """It is described as it was written, and warned of where it would count a call once."""
    layer = Keyed(requests=per_minute(60), tokens="2/s")(key=lambda user: user, tokens=len, priority=2)
    described = "Keyed(requests=60/min, tokens=2/s)(tokens=len, key="
    assert described in Pipeline(layer).describe()
    assert "priority=2)" in repr(layer)
    with pytest.warns(PipelineOrderWarning, match=re.escape(described)):
        Pipeline(layer, Retry(on=OSError))


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match=r"layer 2 of the pipeline, 20, is neither a decorator nor a context manager"):
        Pipeline(timeout(5), 20)
    with pytest.raises(TypeError, match=r"layer 1 of the pipeline is the class Retry: give one made .*, Retry\(…\)"):
        Pipeline(Retry, timeout(5))
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
        f"{limiter()!r} is outside {retry!r}: it would charge a call once, "
        "however often it is tried, and servers count every attempt. Put it inside: Pipeline(retry, limiter(...), ...)"
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
        f"{limiter()!r} is outside hedge(1): it would charge a call once, however often it is tried, "
        "and servers count every attempt. Put it inside: Pipeline(hedge(...), limiter(...), ...)"
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
    with pytest.raises(
        TypeError, match=r"lock is not an async context manager: around echo it would block the event loop"
    ):
        Pipeline(lock)(echo)
    with pytest.raises(TypeError, match=r"Lock is an async context manager, and abs is not an async function"):
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


@anyio_test
async def test_a_plain_callable_that_returns_an_awaitable_goes_through_all_layers(virtual_time):
    """An SDK's bound method: each attempt is limited, retried and watched as if it were an async function."""
    running, most, calls = 0, 0, []

    class Session:
        def get(self, value):
            return self._get(value)

        async def _get(self, value):
            nonlocal running, most
            running += 1
            most = max(most, running)
            calls.append(value)
            await anyio.sleep(1)
            running -= 1
            if calls.count(value) == 1:
                raise OSError
            return value

    places = anyio.Semaphore(1)
    pipe = Pipeline(Retry(on=OSError, backoff=constant(1)), Entered(places), circuit_breaker(on=OSError, failures=99))
    get = pipe(Session().get)
    got = []

    async def one(value):
        got.append(await get(value))

    async with anyio.create_task_group() as tasks:
        for value in range(3):
            tasks.start_soon(one, value)
    assert (sorted(got), most, len(calls)) == ([0, 1, 2], 1, 6)


class Entered:
    """A context manager for both worlds, as limiters are: the plain one does not wait."""

    def __init__(self, places):
        self.places = places

    async def __aenter__(self):
        await self.places.acquire()

    async def __aexit__(self, *_):
        self.places.release()

    def __enter__(self):
        self.places.acquire_nowait()

    def __exit__(self, *_):
        self.places.release()


def test_a_lock_is_not_held_while_a_task_waits():
    """A plain context manager around a callable that turns out to be async would block the event loop."""
    lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"returned an awaitable, and lock is not an async context manager|would block the event loop"
    ):
        Pipeline(lock)(lambda: echo(1))()
    assert not lock.locked()


def test_an_error_leaves_no_reference_cycle_behind():
    """Its frames, and all that they hold, go at once, and not when the garbage collector comes."""

    class Held:
        pass

    async def fail():
        held = Held()
        seen.append(weakref.ref(held))
        raise OSError

    async def main():
        with contextlib.suppress(OSError):
            await Pipeline(*layers)(fail)()
        with contextlib.suppress(OSError):
            await Pipeline(*layers[:3])(lambda: fail())()  # noqa: PLW0108

    limiter = Limiter(requests="100/s")
    layers = [
        Retry(on=OSError, attempts=2, backoff=constant(0)),
        circuit_breaker(on=OSError, failures=99),
        pausing(limiter, on=OSError),
        fallback(None, on=KeyError),
        hedge(1),
        timeout(5),
    ]
    seen = []
    gc.collect()
    gc.disable()
    try:
        testing.run(main)
        assert len(seen) == 4
        assert [ref() for ref in seen] == [None] * 4
    finally:
        gc.enable()
