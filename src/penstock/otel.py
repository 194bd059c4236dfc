"""OpenTelemetry metrics and spans: what limiters, retries and stores do, and how the calls under them went.

    telemetry = Telemetry()
    limiter = Limiter(requests="3500/min", tokens="90k/min", name="openai", on_event=telemetry)
    retry = Retry(on=ConnectionError, on_event=telemetry)
    telemetry.watch(limiter)

It needs the extra `otel` (OpenTelemetry's API). Which exporter gets the numbers is the application's choice:
the SDK's providers, or Prometheus through `opentelemetry-exporter-prometheus`. Without an SDK everything here does
nothing.

The names of calls to LLM services follow OpenTelemetry's conventions for generative AI, which are still in development
there.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from penstock import clock, events
from penstock._introspect import decorable_kind, name_of, refuse_awaitable, to_be_awaited
from penstock._run_inside import run_inside
from penstock.statistics import Statistics

__all__ = ["Telemetry"]

_F = TypeVar("_F", bound=Callable[..., Any])

_SECONDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 3600]
"""Upper ends of the buckets of waits and pauses, in seconds."""

_GEN_AI_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_GEN_AI_TOKENS = [4**n for n in range(14)]
"""The ends that OpenTelemetry's conventions for generative AI ask for."""

_USAGE = {"input": ("input_tokens", "prompt_tokens"), "output": ("output_tokens", "completion_tokens")}
"""What services call the tokens of a call."""


class _Watched(Protocol):
    """What can be watched: a limiter."""

    @property
    def name(self) -> str | None: ...

    def statistics(self) -> Statistics: ...


class Telemetry:
    """Report to OpenTelemetry. Give it as `on_event=` to limiters, retries and stores, and as a layer to calls.

    One object serves any number of them, from any task or thread. While a span is recorded, waits, retries and pauses
    are added to it as events.

    Metrics of limiters, by `penstock.limiter.name`:

    - `penstock.limiter.wait.duration`: histogram, s
    - `penstock.limiter.units`: counter, {unit}; by `penstock.unit`
    - `penstock.limiter.refusals`: counter, {call}; by `penstock.limit`
    - `penstock.limiter.withdrawals`: counter, {call}
    - `penstock.limiter.pause.duration`: histogram, s
    - `penstock.limiter.level`, `penstock.limiter.capacity`: gauges, {unit}; by `penstock.unit` and `penstock.limit`
    - `penstock.limiter.waiting`, `penstock.limiter.in_flight`: gauges, {call}

    Metrics of retries, stores and calls of models:

    - `penstock.retry.call.duration`: histogram, s; by `penstock.call`, `error.type` and `penstock.retry.reason`
    - `penstock.retry.attempts`: counter, {attempt}; by `penstock.call`
    - `penstock.store.outages`: counter, {outage}; by `penstock.store`
    - `gen_ai.client.operation.duration`: histogram, s; by the attributes of the conventions
    - `gen_ai.client.token.usage`: histogram, {token}; the same

    The number of calls granted is the count of `penstock.limiter.wait.duration`.

    Args:
        meter_provider: Where the metrics go; the process's own unless given.
        tracer_provider: Where the spans go; the process's own unless given.
    """

    def __init__(
        self, *, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        meter = metrics.get_meter("penstock", meter_provider=meter_provider)
        self._tracer = trace.get_tracer("penstock", tracer_provider=tracer_provider)
        self._watched: dict[int, tuple[weakref.ref[_Watched], str | None]] = {}

        def seconds(name: str, description: str, ends: list[float]) -> metrics.Histogram:
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=ends)

        self._waits = seconds(
            "penstock.limiter.wait.duration", "Time in the queue of calls that were granted", _SECONDS
        )
        self._units = meter.create_counter("penstock.limiter.units", "{unit}", "Units that calls were charged")
        self._refusals = meter.create_counter(
            "penstock.limiter.refusals", "{call}", 'Calls that were refused with "not now"'
        )
        self._withdrawals = meter.create_counter(
            "penstock.limiter.withdrawals", "{call}", "Calls given back or given up"
        )
        self._pauses = seconds("penstock.limiter.pause.duration", "Pauses that were asked for", _SECONDS)
        self._calls = seconds("penstock.retry.call.duration", "Calls under a retry, with all attempts", _SECONDS)
        self._attempts = meter.create_counter("penstock.retry.attempts", "{attempt}", "Attempts that began")
        self._outages = meter.create_counter("penstock.store.outages", "{outage}", "Times a store did not answer")
        self._operations = seconds("gen_ai.client.operation.duration", "GenAI operation duration", _GEN_AI_SECONDS)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used",
            explicit_bucket_boundaries_advisory=_GEN_AI_TOKENS,
        )
        for name, unit, description, read in _GAUGES:
            callback = functools.partial(self._read, read)
            meter.create_observable_gauge(f"penstock.limiter.{name}", [callback], unit, description)
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.Granted: self._on_granted,
            events.Refused: self._on_refused,
            events.Withdrawn: lambda event: self._withdrawals.add(1, _limiter(event.limiter)),
            events.Paused: self._on_paused,
            events.AttemptStarted: lambda event: self._attempts.add(1, {"penstock.call": event.name}),
            events.RetryScheduled: self._on_retry,
            events.Succeeded: lambda event: self._calls.record(event.elapsed, {"penstock.call": event.name}),
            events.GaveUp: self._on_gave_up,
            events.StoreLost: lambda event: self._outages.add(1, {"penstock.store": event.store}),
        }

    def __call__(self, event: object, /) -> None:
        """Report an event of `penstock.events`; anything else is passed over."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def watch(self, limiter: _Watched, *, name: str | None = None) -> None:
        """Show a limiter's levels, capacities, waiters and places as gauges, whenever metrics are collected.

        The limiter is not kept alive by this; when it is gone, so are its gauges.

        Args:
            limiter: The limiter. Each limiter of a `Keyed` is a series of its own: watch only a small, fixed set of
                keys.
            name: What it is called in the attribute `penstock.limiter.name`; its own name unless given.
        """
        number = id(limiter)
        watched = self._watched
        watched[number] = (weakref.ref(limiter, lambda _: watched.pop(number, None)), name or limiter.name)

    def traced(
        self, name: str | None = None, *, attributes: Mapping[str, AttributeValue] | None = None
    ) -> Callable[[_F], _F]:
        """Make a layer that records a span for each call. A decorator, also in a `Pipeline`.

        Inside a retry there is a span for each attempt; outside, one for all of them, with the retries as its events.

        Args:
            name: The span's name; the function's unless given.
            attributes: What every span says.
        """
        return functools.partial(
            self._decorate, lambda fn, _: (name or name_of(fn), SpanKind.INTERNAL, attributes or {}), None
        )

    def gen_ai(self, provider: str, *, operation: str = "chat", model: str | None = None) -> Callable[[_F], _F]:
        """Make a layer that records a span and metrics of each call of a model, by the conventions for generative AI.

        Tokens are read from the result's `usage`, and the answering model from its `model`. What cannot be read is left
        out; the caller always gets the result.

        Args:
            provider: `gen_ai.provider.name`: "openai", "anthropic", "gcp.gemini"…
            operation: `gen_ai.operation.name`: "chat", "embeddings", "text_completion"…
            model: `gen_ai.request.model`; the call's argument `model=` unless given.
        """

        def about(_: object, kwargs: Mapping[str, Any]) -> tuple[str, SpanKind, dict[str, AttributeValue]]:
            asked = model or kwargs.get("model")
            known: dict[str, AttributeValue] = {"gen_ai.provider.name": provider, "gen_ai.operation.name": operation}
            if isinstance(asked, str):
                known["gen_ai.request.model"] = asked
            return f"{operation} {asked}" if isinstance(asked, str) else operation, SpanKind.CLIENT, known

        return functools.partial(self._decorate, about, self._on_answer)

    # ------------------------------------------------------------------------------------------------------------------
    # Spans

    def _decorate(self, about: Any, on_result: Callable[[_TracedCall, Any], None] | None, fn: _F) -> _F:
        """Open a span around each call of a function of any kind."""

        def begin(kwargs: Mapping[str, Any]) -> _TracedCall:
            name, kind, attributes = about(fn, kwargs)
            span = self._tracer.start_span(name, kind=kind, attributes=attributes)
            return _TracedCall(span, dict(attributes), clock.now(), on_result, self._operations if on_result else None)

        kind = decorable_kind(fn)
        wrapper: Any
        if kind == "async":

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with begin(kwargs) as call, call.as_current():
                    return call.ended(await fn(*args, **kwargs))

        elif kind == "sync":

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with ExitStack() as stack:
                    call = stack.enter_context(begin(kwargs))
                    with call.as_current():
                        result = fn(*args, **kwargs)
                    if not to_be_awaited(result):
                        return call.ended(result)
                    if not isinstance(result, Coroutine):
                        refuse_awaitable(
                            result,
                            f"{name_of(fn)} returned {type(result).__name__}: trace an async function that awaits it",
                        )
                    stack.pop_all()
                return _finish(call, result)

        else:
            # A span that is current in a generator would be current in the code that reads it.
            return run_inside(fn, lambda _, kwargs: cast("AbstractContextManager[Any]", begin(kwargs)))
        return cast("_F", functools.wraps(fn)(wrapper))

    def _on_answer(self, call: _TracedCall, result: Any) -> None:
        answered = _field(result, "model")
        if isinstance(answered, str):
            call.say("gen_ai.response.model", answered)
        usage = _field(result, "usage")
        for kind, names in _USAGE.items():
            count = next((count for name in names if type(count := _field(usage, name)) is int and count >= 0), None)
            if count is not None:
                call.span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
                self._tokens.record(count, {**call.attributes, "gen_ai.token.type": kind})

    # ------------------------------------------------------------------------------------------------------------------
    # Events

    def _on_granted(self, event: events.Granted) -> None:
        whose = _limiter(event.limiter)
        self._waits.record(event.waited, whose)
        for unit, amount in event.cost.items():
            self._units.add(max(0.0, amount), {**whose, "penstock.unit": unit})
        if event.waited > 0:
            _note("penstock.waited", {**whose, "penstock.wait.duration": event.waited})

    def _on_refused(self, event: events.Refused) -> None:
        where = {**_limiter(event.limiter), "penstock.limit": event.blocked_by}
        self._refusals.add(1, where)
        _note("penstock.refused", {**where, "penstock.retry_after": event.retry_after})

    def _on_paused(self, event: events.Paused) -> None:
        self._pauses.record(event.seconds, _limiter(event.limiter))
        _note("penstock.paused", {**_limiter(event.limiter), "penstock.pause.duration": event.seconds})

    def _on_retry(self, event: events.RetryScheduled) -> None:
        said: dict[str, AttributeValue] = {
            "penstock.call": event.name,
            "penstock.retry.attempt": event.number,
            "penstock.retry.delay": event.delay,
        }
        if event.error is not None:
            said["error.type"] = _type_of(event.error)
        _note("penstock.retry", said)

    def _on_gave_up(self, event: events.GaveUp) -> None:
        failed = _type_of(event.error) if event.error is not None else "result"
        said = {"penstock.call": event.name, "error.type": failed, "penstock.retry.reason": event.reason}
        self._calls.record(event.elapsed, said)

    def _read(self, read: Any, _: CallbackOptions) -> Iterator[Observation]:
        for reference, name in list(self._watched.values()):
            limiter = reference()
            if limiter is not None:
                for value, attributes in read(limiter.statistics()):
                    yield Observation(value, {**_limiter(name), **attributes})


def _of_limits(attribute: str) -> Callable[[Statistics], Iterator[tuple[float, dict[str, str]]]]:
    def read(now: Statistics) -> Iterator[tuple[float, dict[str, str]]]:
        for label, limit in now.limits.items():
            value = getattr(limit, attribute)
            if abs(value) != float("inf"):
                yield value, {"penstock.unit": limit.unit, "penstock.limit": label}

    return read


_GAUGES: tuple[tuple[str, str, str, Callable[[Statistics], Any]], ...] = (
    ("level", "{unit}", "Units that could be charged now; below 0 while there is a debt", _of_limits("level")),
    ("capacity", "{unit}", "The most that one call can take", _of_limits("capacity")),
    ("waiting", "{call}", "Calls in the queue", lambda now: [(now.waiting, {})]),
    ("in_flight", "{call}", "Places held", lambda now: [(now.in_flight, {})]),
)


@dataclass(slots=True, eq=False)
class _TracedCall:
    """One call and its span, which ends with it."""

    span: Span
    attributes: dict[str, AttributeValue]
    began: float
    on_result: Callable[[_TracedCall, Any], None] | None
    durations: metrics.Histogram | None

    def __enter__(self) -> _TracedCall:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception):
            self.say("error.type", _type_of(error))
            self.span.record_exception(error)
            self.span.set_status(StatusCode.ERROR, kind.__name__ if kind else None)
        if self.durations is not None:
            self.durations.record(clock.now() - self.began, self.attributes)
        self.span.end()

    def say(self, name: str, value: AttributeValue) -> None:
        """Put an attribute on the span and on the call's metrics."""
        self.attributes[name] = value
        self.span.set_attribute(name, value)

    def ended(self, result: Any) -> Any:
        """Read the result, whatever it is, and return it."""
        if self.on_result is not None:
            try:
                self.on_result(self, result)
            except Exception:  # noqa: BLE001 - an answer that was paid for is not lost because its usage cannot be read
                self.span.add_event("penstock.unreadable_usage")
        return result

    def as_current(self) -> AbstractContextManager[Span]:
        """Make the span the current one, without ending it."""
        return trace.use_span(self.span, record_exception=False, set_status_on_exception=False)


async def _finish(call: _TracedCall, result: Coroutine[Any, Any, Any]) -> Any:
    with call, call.as_current():
        return call.ended(await result)


def _note(name: str, attributes: Mapping[str, AttributeValue]) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.add_event(name, attributes)


def _limiter(name: str | None) -> dict[str, str]:
    return {"penstock.limiter.name": name} if name is not None else {}


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
