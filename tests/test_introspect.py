"""What a function is found to be, however it is wrapped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager

import anyio
import pytest

from penstock import Adaptive, Batcher, Keyed, Limiter, Pipeline, Retry, amap, in_flight, pausing, per_second, timeout
from penstock._introspect import kind_of, name_of
from penstock.pipeline import circuit_breaker, fallback, hedge


def plain():
    return "value"


async def fetch():
    return "value"


async def stream():
    yield "item"


def items():
    yield "item"


@types.coroutine
def fetch_of_old():
    yield from ()
    return "value"


class Service:
    async def __call__(self):
        return "value"

    async def method(self):
        return "value"

    @asynccontextmanager
    async def session(self):
        yield "open"


def around(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (plain, "sync"),
        (fetch, "async"),
        (stream, "stream"),
        (items, "generator"),
        (fetch_of_old, "async"),
        (functools.partial(fetch_of_old), "async"),
        (functools.partial(fetch), "async"),
        (Service(), "async"),
        (Service().method, "async"),
        (functools.partial(Service()), "async"),
        (functools.partial(functools.partial(stream)), "stream"),
        (around(fetch), "async"),
        (functools.partial(around(fetch)), "async"),
        (contextlib.contextmanager(items), "context"),
        (contextlib.asynccontextmanager(stream), "async context"),
        (functools.partial(contextlib.asynccontextmanager(stream)), "async context"),
        (around(contextlib.contextmanager(items)), "context"),
        (Service().session, "async context"),
        (Service.session, "async context"),
        (around(items), "sync"),
        (len, "sync"),
        (Service, "sync"),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_a_function_is_seen_for_what_calling_it_gives(function, kind):
    """Through partials, objects that can be called, and plain functions around async ones; a context manager is no
    generator."""
    assert kind_of(function) == kind


@pytest.mark.parametrize(
    "decorator",
    [
        Retry(on=OSError),
        timeout(1),
        fallback(1, on=OSError),
        hedge(1),
        circuit_breaker(on=OSError),
        Limiter(requests="1/s"),
    ],
    ids=name_of,
)
def test_what_cannot_be_called_is_refused_at_decoration(decorator):
    """And not when it is called; above `@staticmethod` a decorator would even change what a method is given."""
    for wrong in (classmethod(fetch), staticmethod(fetch), 5):
        with pytest.raises(TypeError, match=r"classmethod|staticmethod|5"):
            decorator(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (classmethod(fetch), "fetch is a classmethod already: put the decorator below @classmethod"),
        (staticmethod(fetch), "fetch is a staticmethod already: put the decorator below @staticmethod"),
        (5, "5 is not a function"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_function_is_refused_by_name(wrong, message):
    with pytest.raises(TypeError) as caught:
        kind_of(wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize("wrapper", [classmethod, staticmethod])
@pytest.mark.parametrize(
    "limiter",
    [Limiter(requests="5/s"), Limiter(requests="5/s")(), Limiter(requests="5/s")(requests=lambda: 1)],
    ids=repr,
)
def test_a_limiter_above_a_classmethod_says_where_it_belongs(limiter, wrapper):
    with pytest.raises(TypeError, match=f"put the decorator below @{wrapper.__name__}"):
        limiter(wrapper(plain))


@pytest.mark.anyio
async def test_a_coroutine_of_old_holds_its_place_while_it_runs():
    """It is a generator function, so what the limiter made of it was a generator that nobody can await."""
    limiter = Limiter(calls=in_flight(1))

    @limiter
    @types.coroutine
    def call():
        yield from anyio.sleep(0).__await__()
        return limiter.statistics().in_flight

    assert await call() == 1
    assert limiter.statistics().in_flight == 0


def test_a_limited_context_manager_is_charged_when_it_is_entered():
    """`@contextmanager` hides a generator function, but what it returns is to be entered, not iterated."""
    limiter = Limiter(requests=per_second(2))

    @limiter
    @contextlib.contextmanager
    def session():
        yield "open"

    with session() as opened:
        assert opened == "open"
    assert limiter.statistics().granted == 1


def test_a_name_is_that_of_the_function_inside():
    assert name_of(functools.partial(fetch)) == "fetch"
    assert name_of(Service()) == "Service"


@dataclasses.dataclass
class Noted(AbstractAsyncContextManager):
    """An async context manager of somebody else's, for a layer."""

    log: list

    async def __aexit__(self, *_):
        self.log.append("left")


class TestStreams:
    """Whoever decorates an async generator passes on all that can be said to one."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture(
        params=[
            lambda: Limiter(requests="100/s", calls=in_flight(1)),
            lambda: Limiter(requests="100/s")(flow=lambda *_: "a"),
            lambda: Retry(on=OSError),
            lambda: pausing(Limiter(requests="100/s"), on=OSError),
            lambda: circuit_breaker(on=OSError),
            lambda: Pipeline(Noted([])),
            lambda: Pipeline(Retry(on=OSError), Limiter(requests="100/s")(), circuit_breaker(on=OSError), Noted([])),
        ],
        ids=["limiter", "call", "retry", "pausing", "breaker", "context manager", "all"],
    )
    def decorator(self, request):
        return request.param()

    async def test_what_is_sent_in_arrives(self, decorator):
        @decorator
        async def echo(first):
            heard = yield first
            while heard is not None:
                heard = yield heard.upper()

        stream = echo("a")
        assert [await stream.asend(word) for word in (None, "b", "c")] == ["a", "B", "C"]
        with pytest.raises(StopAsyncIteration):
            await stream.asend(None)

    async def test_what_is_thrown_in_can_be_handled(self, decorator):
        """As it is by `@asynccontextmanager`."""
        log = []

        @asynccontextmanager
        @decorator
        async def session():
            try:
                yield "open"
            except ValueError as error:
                log.append(repr(error))
            finally:
                log.append("closed")

        async with session() as state:
            assert state == "open"
            raise ValueError(1)
        with pytest.raises(KeyError):
            async with session():
                raise KeyError(2)
        assert log == ["ValueError(1)", "closed", "closed"]

    async def test_it_may_go_on_after_an_error(self, decorator):
        @decorator
        async def count():
            for number in range(3):
                try:
                    yield number
                except ValueError:
                    yield "skipped"

        stream = count()
        heard = [await anext(stream), await stream.athrow(ValueError), await anext(stream), await anext(stream)]
        assert heard == [0, "skipped", 1, 2]
        await stream.aclose()

    async def test_it_has_ended_when_it_is_closed_early(self, decorator):
        log = []

        @decorator
        async def count():
            try:
                for number in range(3):
                    yield number
            finally:
                await anyio.sleep(0)
                log.append("closed")

        async with aclosing(count()) as stream:
            assert await anext(stream) == 0
        assert log == ["closed"]


@pytest.mark.anyio
async def test_a_stream_ends_before_what_it_runs_inside():
    log = []

    @Pipeline(Noted(log))
    async def count():
        try:
            yield 1
        finally:
            await anyio.sleep(0)
            log.append("closed")

    async with aclosing(count()) as stream:
        await anext(stream)
    assert log == ["closed", "left"]


def test_a_generator_runs_inside_a_layer_that_is_a_context_manager():
    log = []

    @contextmanager
    def noted():
        yield log.append("entered")
        log.append("left")

    class Noting:
        def __enter__(self):
            self.inside = noted()
            self.inside.__enter__()

        def __exit__(self, *error):
            return self.inside.__exit__(*error)

    @Pipeline(Noting())
    def count():
        heard = yield 1
        log.append(heard)

    items = count()
    assert inspect.isgeneratorfunction(count)
    assert (next(items), log) == (1, ["entered"])
    with pytest.raises(StopIteration):
        items.send("word")
    assert log == ["entered", "word", "left"]


def _a_generator(*_):
    yield 1


async def _an_async_generator(*_):
    yield 1


@contextlib.contextmanager
def _a_block(*_):
    yield 1


ASKED = {
    "Retry on=": lambda fn: Retry(on=fn),
    "Retry on_result=": lambda fn: Retry(on=ValueError, on_result=fn),
    "Retry hint=": lambda fn: Retry(on=ValueError, hint=fn),
    "on_event= of a retry": lambda fn: Retry(on=ValueError, on_event=fn),
    "on_event= of a limiter": lambda fn: Limiter(requests="1/s", on_event=fn),
    "a cost": lambda fn: Limiter(requests="1/s")(requests=fn),
    "flow=": lambda fn: Limiter(requests="1/s")(flow=fn),
    "settle=": lambda fn: Limiter(requests="1/s")(settle=fn),
    "key=": lambda fn: Keyed(requests="1/s")(key=fn),
    "a breaker's on=": lambda fn: circuit_breaker(on=fn),
    "a breaker's hint=": lambda fn: circuit_breaker(on=ValueError, hint=fn),
    "an item's cost": lambda fn: Batcher(len, cost=fn),
    "split_on=": lambda fn: Batcher(len, split_on=fn),
    "on_progress=": lambda fn: amap(len, [], in_flight=1, on_progress=fn),
}


@pytest.mark.parametrize("function", [_a_generator, _an_async_generator, _a_block], ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_function_that_only_begins_when_it_is_called_gives_no_answer(ask, function):
    """What it returns is true, and new each time: every error was retried, and every call had a key of its own."""
    with pytest.raises(
        (TypeError, ValueError), match=r"called for its answer, and a (generator|context manager) has none"
    ):
        ask(function)


def test_a_key_or_verdict_that_has_yet_to_run_is_refused_where_it_is_asked_for():
    """A lambda around a generator or an async function does not show what it returns before it is called."""

    async def async_key(user):
        return user

    for key in (lambda user: _a_generator(), lambda user: async_key(user)):  # noqa: PLW0108 - a lambda is the point
        with pytest.raises(TypeError, match="give a plain function"):
            Keyed(requests="1/s")(key=key)(len)("alice")
    with pytest.raises(TypeError, match="has yet to run: give a plain function"):
        Retry(on=lambda _: _a_generator()).call_sync(lambda: 1 / 0)


DECORATORS = {
    "limiter": Limiter(requests="1/s"),
    "limiter(...)": Limiter(requests="1/s")(requests=1),
    "limiter(unit=function)": Limiter(tokens="1/s")(tokens=lambda _: 1),
    "keyed": Keyed(requests="1/s")(key=lambda *_: 1),
    "retry": Retry(on=OSError),
    "retry(resume=)": Retry(on=OSError)(resume=lambda *_: None),
    "breaker": circuit_breaker(on=OSError),
    "fallback": fallback(1, on=OSError),
    "timeout": timeout(1),
    "hedge": hedge(1),
    "pausing": pausing(Limiter(requests="1/s"), on=OSError),
    "adaptive": Adaptive(Limiter(requests="1/s"), on=OSError),
    "pipeline": Pipeline(Limiter(requests="1/s")),
    "a pipeline's block": Pipeline(contextlib.nullcontext()),
}


@pytest.mark.parametrize("decorator", DECORATORS.values(), ids=DECORATORS)
def test_a_class_is_refused_as_its_name_would_be_that_of_a_function(decorator):
    """`isinstance` and subclasses of it would fail far from the decorator."""
    with pytest.raises(TypeError, match="Service is a class, and a decorator would put a function in its place"):
        decorator(Service)


LAYERS = [
    *(decorator for name, decorator in DECORATORS.items() if name != "retry(resume=)"),  # a function like any other
    Keyed(requests="1/s")(key=str, requests=len),
]


@pytest.mark.parametrize("layer", LAYERS, ids=name_of)
def test_a_layer_is_refused_as_only_the_decorating_would_be_retried_or_limited(layer):
    """`retry(limiter)` looks like both; the functions that it decorates would be tried once."""
    for decorator in DECORATORS.values():
        with pytest.raises(TypeError, match="is a decorator itself, and no function: put both around one function"):
            decorator(layer)


def test_a_class_may_be_what_is_called():
    """Only as a decorator's target it would lose its name."""
    made = Retry(on=OSError).call_sync(Service)
    assert isinstance(made, Service)
    assert isinstance(Limiter(requests="1/s")(functools.partial(Service))(), Service)
