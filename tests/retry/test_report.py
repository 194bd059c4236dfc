"""What the error tells, and what is an event."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import weakref

import anyio
import anyio.to_thread
import pytest

from penstock.events import AttemptStarted, GaveUp, RetryScheduled, Succeeded
from penstock.retry import Retry, constant
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


# ----------------------------------------------------------------------------------------------------------------------
# What the error tells


@anyio_test
async def test_the_last_error_is_raised_itself_with_the_history_as_notes(virtual_time):
    errors = [ConnectionError("one"), ConnectionError("two"), ConnectionError("three")]
    source = iter(errors)

    async def fetch():
        raise next(source)

    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, attempts=3, backoff=EVERY_SECOND).call(fetch)
    assert caught.value is errors[2]
    assert caught.value.__context__ is caught.value.__cause__ is None
    name = fetch.__qualname__
    assert caught.value.__notes__ == [
        f"penstock: {name} gave up after 3 attempts in 2 s: attempts=3 allows no more",
        "penstock: attempt 1 ended at 0 s: ConnectionError('one'); waited 1 s",
        "penstock: attempt 2 ended at 1 s: ConnectionError('two'); waited 1 s",
    ]


@anyio_test
async def test_an_error_that_is_not_retried_is_left_alone(virtual_time):
    flaky = Flaky(1, KeyError)
    with pytest.raises(KeyError) as caught:
        await Retry(on=ValueError).call(flaky)
    assert not hasattr(caught.value, "__notes__")


@anyio_test
async def test_an_error_that_ends_a_row_of_retries_tells_of_them(virtual_time):
    errors = iter([ValueError("first"), KeyError("other")])

    async def fetch():
        raise next(errors)

    with pytest.raises(KeyError) as caught:
        await Retry(on=ValueError, backoff=EVERY_SECOND).call(fetch)
    assert caught.value.__notes__[0].endswith(
        "gave up after 2 attempts in 1 s: `on` says that this error is not worth another attempt"
    )


@anyio_test
@pytest.mark.parametrize(("attempts", "unseen"), [(51, "30 attempts are"), (22, "attempt is")], ids=str)
async def test_a_long_history_is_cut(attempts, unseen, virtual_time):
    flaky = Flaky(99, ConnectionError("x" * 1000))
    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, attempts=attempts, within=None, backoff=constant(0)).call(flaky)
    notes = caught.value.__notes__
    assert len(notes) == 22
    assert notes[1] == f"penstock: the first {unseen} not shown"
    assert notes[2].startswith(f"penstock: attempt {attempts - 20} ended at")
    assert max(map(len, notes)) < 300


@anyio_test
async def test_an_error_that_many_calls_share_does_not_grow_without_end(virtual_time):
    """As the callers of one `Batcher` do, and a module that raises one object again and again."""
    shared = ConnectionError("down")
    retry = Retry(on=ConnectionError, attempts=3, backoff=constant(0))
    for _ in range(1000):
        with pytest.raises(ConnectionError):
            await retry.call(Flaky(9, shared))
    assert 3 <= len(shared.__notes__) <= 50
    assert "gave up after 3 attempts" in shared.__notes__[0]


@anyio_test
async def test_an_error_that_takes_no_notes_still_comes_through(virtual_time):
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):  # noqa: N818
        retry_after: float = 999

    with pytest.raises(Frozen):
        await Retry(on=Frozen, attempts=2, within=5).call(Flaky(9, Frozen))

    class Closed(Exception):  # noqa: N818
        retry_after = property(lambda _: None)

    with pytest.raises(Closed) as caught:
        await Retry(on=Closed, hint=lambda _: 999).call(Flaky(9, Closed))
    assert "the server asks to wait 16 min 39 s" in caught.value.__notes__[0]


@anyio_test
async def test_a_call_leaves_no_garbage_behind(virtual_time):
    """An error holds its frames; the frames must not hold the error, or it lives until the collector comes by."""

    class Mine(Exception):  # noqa: N818
        pass

    born = []

    async def fail():
        error = Mine()
        born.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Mine):
            await Retry(on=Mine, attempts=3, backoff=constant(0)).call(fail)
        assert [ref() for ref in born] == [None] * 3

        async def fail_and_hang():
            if len(born) > 3:
                await anyio.sleep_forever()
            await fail()

        with anyio.move_on_after(5):
            await Retry(on=Mine, backoff=constant(0)).call(fail_and_hang)
        assert [ref() for ref in born] == [None] * 4

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Retry(on=Mine, backoff=constant(60)).call, fail)
                await anyio.sleep(30)  # cancelled while it waits
                scope.cancel()
        assert [ref() for ref in born] == [None] * 5
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------------------------
# Events


def kinds(events):
    return [type(event) for event in events]


@anyio_test
async def test_every_step_is_an_event(virtual_time):
    events = []
    retry = Retry(on=ValueError, attempts=2, backoff=EVERY_SECOND, on_event=events.append)
    flaky = Flaky(1, ValueError)
    await retry.call(flaky)
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, Succeeded]
    assert [event.number for event in events[:3]] == [1, 1, 2]
    assert (events[1].delay, events[1].hint, type(events[1].error)) == (1, None, ValueError)
    assert (events[3].attempts, events[3].elapsed, events[3].name) == (2, 1, "Flaky")
    assert len({event.idempotency_key for event in events}) == 1

    events.clear()
    flaky.left = 9
    with pytest.raises(ValueError) as caught:
        await retry.call(flaky)
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, GaveUp]
    assert events[3] == GaveUp("Flaky", events[0].idempotency_key, 2, caught.value, "attempts", 1, None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attempts": 1}, "attempts"),
        ({"within": 0.5}, "within"),
        ({"on": KeyError}, "unretryable"),
        ({"on": lambda error: error.args == (), "hint": lambda _: 400}, "hint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@anyio_test
async def test_giving_up_names_the_bound(settings, reason, virtual_time):
    events = []
    with pytest.raises(ValueError):
        await Retry(**{"on": ValueError, "backoff": EVERY_SECOND, "on_event": events.append} | settings).call(
            Flaky(9, ValueError)
        )
    assert events[-1].reason == reason


@anyio_test
async def test_a_refused_result_is_an_event_without_an_error(virtual_time):
    events = []

    async def busy():
        return "busy"

    retry = Retry(on=ValueError, attempts=2, on_result=lambda _: True, backoff=EVERY_SECOND, on_event=events.append)
    assert await retry.call(busy) == "busy"
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, GaveUp]
    assert events[1].error is events[3].error is None


@anyio_test
async def test_a_hook_that_fails_is_logged_and_breaks_nothing(virtual_time, caplog):
    def broken(event):
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, logger="penstock"):
        assert await Retry(on=ConnectionError, backoff=EVERY_SECOND, on_event=broken).call(Flaky(1)) == "reply"
    assert len(caplog.records) == 4
    assert "broken" in caplog.records[0].message
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
