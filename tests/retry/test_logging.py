"""Retries can be seen with the logging of the standard library, and cost nothing where nobody looks."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from penstock.events import RetryScheduled
from penstock.retry import Retry, constant
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.DEBUG, logger="penstock.retry")
    return caplog


def extra_of(record):
    return {name: value for name, value in vars(record).items() if name.startswith("retry_")}


@anyio_test
async def test_a_retry_and_a_call_that_gives_up_are_logged(logged, virtual_time):
    events = []
    retry = Retry(on=ConnectionError, attempts=2, backoff=EVERY_SECOND, on_event=events.append)
    with pytest.raises(ConnectionError):
        await retry.call(Flaky(9))
    key = next(event for event in events if isinstance(event, RetryScheduled)).idempotency_key
    scheduled, gave_up = logged.records
    assert (scheduled.name, scheduled.levelno) == ("penstock.retry", logging.DEBUG)
    assert scheduled.getMessage() == "Flaky: attempt 1 failed with ConnectionError; the next one starts in 1 s"
    assert extra_of(scheduled) == {
        "retry_call": "Flaky",
        "retry_key": key,
        "retry_attempt": 1,
        "retry_error": "ConnectionError",
        "retry_delay": 1,
        "retry_hint": None,
    }
    assert (gave_up.name, gave_up.levelno) == ("penstock.retry", logging.INFO)
    assert gave_up.getMessage() == (
        "Flaky: gave up after 2 attempts in 1 s with ConnectionError: attempts=2 allows no more"
    )
    assert extra_of(gave_up) == {
        "retry_call": "Flaky",
        "retry_key": key,
        "retry_attempt": 2,
        "retry_error": "ConnectionError",
        "retry_reason": "attempts",
        "retry_elapsed": 1,
    }


@anyio_test
async def test_the_hint_is_logged(logged, virtual_time):
    await Retry(on=ConnectionError, hint=lambda _: 7, backoff=constant(0)).call(Flaky(1))
    assert (logged.records[0].retry_delay, logged.records[0].retry_hint) == (7, 7)


@anyio_test
async def test_one_attempt_is_no_attempts(logged, virtual_time):
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=1).call(Flaky(1))
    (gave_up,) = logged.records
    assert gave_up.getMessage().startswith("Flaky: gave up after 1 attempt in 0 s with ConnectionError: ")


@anyio_test
async def test_a_refused_result_is_logged_as_such(logged, virtual_time):
    await Retry(on=ValueError, attempts=2, on_result=lambda _: True, backoff=EVERY_SECOND).call(lambda: "busy")
    assert [record.retry_error for record in logged.records] == ["a refused result"] * 2


@anyio_test
async def test_what_is_no_retry_is_not_logged(logged, virtual_time):
    """A call that succeeds, an error that is not worth another attempt, and a policy that stands back."""
    retry = Retry(on=ConnectionError, attempts=2, backoff=EVERY_SECOND)
    await retry.call(Flaky(0))
    with pytest.raises(KeyError):
        await retry.call(Flaky(1, KeyError))
    assert logged.records == []
    with pytest.raises(ConnectionError):
        await retry.call(retry(Flaky(9)))
    assert [record.levelno for record in logged.records] == [logging.DEBUG, logging.INFO]


@anyio_test
async def test_the_level_decides(caplog, virtual_time):
    caplog.set_level(logging.INFO, logger="penstock.retry")
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=2, backoff=EVERY_SECOND).call(Flaky(9))
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    caplog.clear()
    caplog.set_level(logging.WARNING, logger="penstock.retry")
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=2, backoff=EVERY_SECOND).call(Flaky(9))
    assert caplog.records == []


@anyio_test
async def test_a_log_filter_that_fails_breaks_nothing(caplog, monkeypatch, virtual_time):
    caplog.set_level(logging.DEBUG, logger="penstock.retry")

    def broken(_):
        raise ZeroDivisionError

    logger = logging.getLogger("penstock.retry")
    logger.addFilter(broken)
    try:
        assert await Retry(on=ConnectionError, backoff=EVERY_SECOND).call(Flaky(1)) == "reply"
        with pytest.raises(ConnectionError):
            await Retry(on=lambda _: 1 / 0).call(Flaky(1))
    finally:
        logger.removeFilter(broken)


def test_a_program_that_does_not_log_does_not_load_logging_for_a_retry():
    program = (
        "import sys\n"
        "from penstock.retry.report import log_gave_up, log_scheduled\n"
        "loaded = 'logging' in sys.modules\n"
        "sys.modules.pop('logging', None)\n"
        "log_scheduled('f', lambda: 1 / 0, 1, ValueError(), 1.0, None)\n"
        "log_gave_up('f', lambda: 1 / 0, 1, ValueError(), 'attempts', 1.0, 'why')\n"
        "print('logging' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
