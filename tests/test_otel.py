"""What reaches OpenTelemetry, read back from its SDK."""

from __future__ import annotations

import asyncio
import gc
import itertools
from types import SimpleNamespace

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock import Limiter, Pipeline, RateLimited, Retry, constant, in_flight, per_minute, unlimited
from penstock.otel import Telemetry

pytestmark = pytest.mark.anyio

_NUMBERS = itertools.count()


class Collected:
    """A `Telemetry` and all that it reported."""

    def __init__(self):
        self._metrics = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = Telemetry(meter_provider=MeterProvider([self._metrics]), tracer_provider=tracers)

    def points(self, name):
        """The points of a metric, by the values of their attributes."""
        data = self._metrics.get_metrics_data()
        scopes = (
            [] if data is None else [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        )
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return {tuple(point.attributes.values()): point for metric in found for point in metric.data.data_points}

    def spans(self):
        return self._spans.get_finished_spans()


@pytest.fixture
def collected(virtual_time):
    return Collected()


@pytest.fixture
def name():
    """Of one limiter of one test: limiters of one name share their state."""
    return f"api-{next(_NUMBERS)}"


async def test_a_limiter_tells_grants_waits_units_and_refusals(collected, name):
    limiter = Limiter(tokens=per_minute(60), name=name, on_event=collected.telemetry)
    await limiter.acquire(tokens=60)
    await limiter.acquire(tokens=5)
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=30)
    limiter.pause(7)
    waits = collected.points("penstock.limiter.wait.duration")[name,]
    assert (waits.count, waits.sum) == (2, pytest.approx(5))
    assert collected.points("penstock.limiter.units")[name, "tokens"].value == 65
    assert collected.points("penstock.limiter.refusals")[name, "tokens"].value == 1
    assert collected.points("penstock.limiter.pause.duration")[name,].sum == 7


async def test_a_watched_limiter_shows_its_levels_until_it_is_gone(collected, name):
    limiter = Limiter(tokens=per_minute(60), calls=in_flight(2), name=name)
    collected.telemetry.watch(limiter)
    with await limiter.acquire(tokens=45):
        levels = collected.points("penstock.limiter.level")
        assert levels[name, "tokens", "tokens"].value == pytest.approx(15)
        assert collected.points("penstock.limiter.capacity")[name, "tokens", "tokens"].value == 60
        assert collected.points("penstock.limiter.in_flight")[name,].value == 1
    del limiter
    gc.collect()
    assert collected.points("penstock.limiter.level") == {}


async def test_what_is_no_event_of_ours_is_passed_over(collected):
    collected.telemetry("an event of the user's own")
    collected.telemetry(None)
    assert collected.points("penstock.limiter.units") == {}


async def test_a_retry_tells_attempts_and_how_it_ended(collected):
    async def fails():
        raise ConnectionError

    retry = Retry(on=ConnectionError, attempts=3, backoff=constant(1), on_event=collected.telemetry)
    with pytest.raises(ConnectionError):
        await retry.call(fails)
    (attempts,) = collected.points("penstock.retry.attempts").values()
    assert attempts.value == 3
    ((attributes, call),) = collected.points("penstock.retry.call.duration").items()
    assert attributes[1:] == ("ConnectionError", "attempts")
    assert call.sum == pytest.approx(2)


async def test_a_span_holds_the_wait_and_the_retry_as_events(collected, name):
    limiter = Limiter(requests=per_minute(60, burst=1), name=name, on_event=collected.telemetry)
    retry = Retry(on=ConnectionError, attempts=2, backoff=constant(1), on_event=collected.telemetry)
    calls = []

    @collected.telemetry.traced("fetch", attributes={"peer": "api"})
    @Pipeline(retry, limiter)
    async def fetch():
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return "reply"

    limiter.acquire_nowait()
    assert await fetch() == "reply"
    (span,) = collected.spans()
    assert (span.name, span.attributes["peer"], span.status.is_ok) == ("fetch", "api", True)
    assert [event.name for event in span.events] == ["penstock.waited", "penstock.retry"]


async def test_what_fails_says_its_type(collected):
    @collected.telemetry.traced()
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    (span,) = collected.spans()
    assert span.attributes["error.type"] == "ValueError"
    assert not span.status.is_ok


ANSWERS = {
    "chat": SimpleNamespace(model="m-1", usage=SimpleNamespace(prompt_tokens=7, completion_tokens=3)),
    "responses": {"model": "m-1", "usage": {"input_tokens": 7, "output_tokens": 3}},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_call_of_a_model_follows_the_conventions(collected, answer):
    @collected.telemetry.gen_ai("openai")
    async def ask(*, model):
        await anyio.sleep(2)
        return answer

    assert await ask(model="m") is answer
    (span,) = collected.spans()
    assert span.name == "chat m"
    assert dict(span.attributes) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m-1",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
    }
    about = ("openai", "chat", "m", "m-1")
    assert collected.points("gen_ai.client.operation.duration")[about].sum == pytest.approx(2)
    tokens = collected.points("gen_ai.client.token.usage")
    assert (tokens[*about, "input"].sum, tokens[*about, "output"].sum) == (7, 3)


class Hostile:
    @property
    def usage(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "answer",
    [None, "text", {"usage": None}, {"usage": {"input_tokens": -1}}, {"usage": {"output_tokens": "9"}}, Hostile()],
)
async def test_an_answer_whose_usage_cannot_be_read_is_kept(collected, answer):
    @collected.telemetry.gen_ai("openai")
    async def ask():
        return answer

    assert await ask() is answer
    assert collected.points("gen_ai.client.token.usage") == {}
    assert len(collected.spans()) == 1


async def test_a_plain_function_that_returns_a_coroutine_is_one_call(collected):
    async def ask():
        await anyio.sleep(2)
        return ANSWERS["chat"]

    traced = collected.telemetry.gen_ai("openai")(lambda _: ask())
    assert await traced(None) is ANSWERS["chat"]
    (point,) = collected.points("gen_ai.client.operation.duration").values()
    assert point.sum == pytest.approx(2)


async def test_a_stream_is_one_span_from_its_first_item_to_its_last(collected):
    @collected.telemetry.traced("items")
    async def items():
        for item in range(3):
            yield item

    assert [item async for item in items()] == [0, 1, 2]
    assert [span.name for span in collected.spans()] == ["items"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_is_awaited_and_is_no_coroutine_is_refused_and_its_span_ends(collected):
    """A span that is open until somebody awaits a future might never end."""
    futures = collected.telemetry.traced("later")(asyncio.get_running_loop().create_future)
    with pytest.raises(TypeError, match="returned Future: trace an async function that awaits it"):
        futures()
    (span,) = collected.spans()
    assert (span.name, span.status.status_code.name) == ("later", "ERROR")


async def test_unlimited_has_no_level(collected, name):
    """A gauge of infinity could not be drawn, and a limiter that is gone has none."""
    limiter = Limiter(tokens=per_minute(60), images=unlimited, name=name)
    collected.telemetry.watch(limiter)
    assert set(collected.points("penstock.limiter.level")) == {(name, "tokens", "tokens")}


async def test_a_cancelled_call_ends_its_span(collected):
    @collected.telemetry.traced("slow")
    async def slow():
        await anyio.sleep(10)

    with anyio.move_on_after(1):
        await slow()
    assert [span.name for span in collected.spans()] == ["slow"]


async def test_without_an_sdk_nothing_happens(virtual_time):
    telemetry = Telemetry()
    limiter = Limiter(requests=per_minute(60), on_event=telemetry)
    telemetry.watch(limiter)
    assert await telemetry.traced()(anyio.sleep)(0) is None
    await limiter.acquire()
