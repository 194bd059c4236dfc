"""What a type checker sees of the records of what happened, and of time in tests. `make check` runs mypy and pyright on
this; nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import assert_type

from penstock import Limiter, Retry
from penstock.events import (
    Answered,
    AttemptStarted,
    GaveUp,
    Granted,
    LimiterEvent,
    Observed,
    Paused,
    Reason,
    Reconfigured,
    Refused,
    Resumed,
    RetryEvent,
    RetryScheduled,
    ServiceEvent,
    Settled,
    StoreLost,
    StoreRecovered,
    Succeeded,
    Withdrawn,
    emit,
)
from penstock.testing import (
    ManualClock,
    Patience,
    RecordedEvents,
    VirtualTime,
    fast_retries,
    manual_clock,
    run,
    virtual_time,
)


def of_a_limiter(event: LimiterEvent) -> Mapping[str, float] | None:
    assert_type(event.limiter, str | None)
    match event:
        case Granted():
            assert_type(event.waited, float)
            return event.cost
        case Refused():
            assert_type((event.retry_after, event.blocked_by), tuple[float, str])
            return event.cost
        case Withdrawn() | Settled():
            return event.cost
        case Resumed():
            assert_type(event.units, tuple[str, ...])
        case Paused():
            assert_type((event.seconds, event.units), tuple[float, tuple[str, ...]])
        case Observed():
            return event.remaining
        case Reconfigured():
            assert_type(event.limits, Mapping[str, tuple[object, ...]])
    return None


def of_a_retry(event: RetryEvent) -> int:
    assert_type(event.name, str)
    match event:
        case AttemptStarted() | RetryScheduled():
            return event.number
        case GaveUp():
            assert_type(event.reason, Reason)
            assert_type(event.error, Exception | None)
            return event.attempts
        case Succeeded():
            return event.attempts


def of_a_service(event: ServiceEvent) -> float:
    if isinstance(event, Answered):
        return event.elapsed + event.usage.get("input_tokens", 0)
    return len(event.limits)


def of_a_store(event: StoreLost | StoreRecovered) -> str:
    return event.reason if isinstance(event, StoreLost) else event.store


def hooks_are_functions_of_an_event(event: StoreLost) -> None:
    Limiter(requests="1/s", on_event=of_a_limiter)
    Retry(on=OSError, on_event=of_a_retry)
    Limiter(requests="1/s", on_event=of_a_retry)  # type: ignore[arg-type]
    recorded = RecordedEvents()
    Limiter(requests="1/s", on_event=recorded)
    assert_type(recorded.of(Granted), list[Granted])
    emit(of_a_store, event)


async def minutes() -> int:
    return 5


def time_is_what_a_test_says() -> None:
    with virtual_time(patience=Patience()) as time:
        assert_type(time, VirtualTime)
        assert_type(time.now(), float)
    with manual_clock(datetime(2026, 1, 1, tzinfo=UTC)) as clock:
        assert_type(clock, ManualClock)
        clock.advance(60)
    assert_type(run(minutes), int)
    with fast_retries(attempts=2):
        pass
