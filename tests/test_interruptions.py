"""What a signal handler raises while a user's code runs is not that code's error."""

from __future__ import annotations

import logging
import signal

import pytest

from penstock import _log
from penstock._interruptions import is_an_interruption
from penstock.batching._batcher import may_be_an_items_fault
from penstock.retry.report import attach_hint
from tests.alarms import alarms


class Rang(Exception):  # noqa: N818
    """What a user's signal handler raises."""


def ring(*_):
    raise Rang


def users_code(*_):
    signal.raise_signal(signal.SIGALRM)


class Failed(Exception):  # noqa: N818
    request = property(users_code)
    retry_after = property(lambda _: None, users_code)


def filtered():
    log = logging.getLogger("a user's")
    log.addFilter(users_code)
    try:
        _log.write(log, logging.ERROR, "text")
    finally:
        log.removeFilter(users_code)


@pytest.mark.parametrize(
    "use",
    [filtered, lambda: may_be_an_items_fault(Failed()), lambda: attach_hint(Failed(), 5.0)],
    ids=["a filter of a log", "a property of an error", "an attribute that is set"],
)
def test_it_passes(use):
    with alarms(ring), pytest.raises(Rang):
        use()


def test_a_handler_that_cannot_be_shown_replaces_no_error(monkeypatch):
    """`signal.getsignal` takes the `repr` of the handler. Asyncio's shows the main task and what that waits for, such
    as an error of the user's whose `__repr__` raises."""

    def getsignal(number):
        raise ZeroDivisionError

    monkeypatch.setattr(signal, "getsignal", getsignal)
    assert not is_an_interruption(ValueError())
