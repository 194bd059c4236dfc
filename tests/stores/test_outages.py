"""Outages and defects in virtual time: what was promised meanwhile is counted once, by the store that answers."""

from __future__ import annotations

import asyncio

import pytest

from penstock import Limiter, StoreError, clock, per_second
from penstock._backends.shared.dispatcher import Dispatcher
from penstock.stores.contract import Unreachable
from tests.stores.in_virtual_time import Rows, processes
from tests.stores.test_like_memory import run
from tests.stores.test_seldom import fail_once, later, level_of

__all__ = ["processes"]

PROBE = 0.05


@pytest.fixture
def found(processes, monkeypatch):
    """What is called at the moment at which a store answers again. It is asked for that by tasks."""
    called, tasks = [], []

    async def probe(dispatcher, lost, inbox):
        await asyncio.sleep(PROBE)
        while dispatcher.probe(lost, None, inbox):
            await asyncio.sleep(PROBE)
        for call in called:
            call()

    def begin(dispatcher, lost):
        tasks.append(asyncio.ensure_future(probe(dispatcher, lost, dispatcher._inbox)))

    monkeypatch.setattr(Dispatcher, "_begin_to_probe", begin)
    return called


class Outage:
    """A store that answers or does not, and a limiter of four a second over it."""

    def __init__(self, **options):
        self.store = Rows(hears=True).store()
        self.store.patience, self.store.on_outage, self.store.share = 0.0, "share", 0.5
        self._exchange, self.is_down = self.store.exchange, False
        self.store.exchange = self.exchange
        self.limiter = Limiter(requests=per_second(4, burst=1), name="x", store=self.store, **options)

    def exchange(self, names, decide):
        if self.is_down:
            raise Unreachable("it is down")
        return self._exchange(names, decide)

    async def granted_meanwhile(self):
        """The permit of a call that this process let through by itself, while the limit was full."""
        await self.limiter.acquire()
        await asyncio.sleep(1)
        self.is_down = True
        return await self.limiter.acquire()


def test_a_call_with_a_moment_to_come_by_this_processs_share_goes_by_the_whole_limit_once_there_is_an_answer(
    processes, found
):
    """And is charged once. What was let through meanwhile costs no more than the share of a burst."""

    async def main():
        outage = Outage()
        await outage.granted_meanwhile()
        waiting = asyncio.ensure_future(outage.limiter.acquire())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        outage.is_down = False
        await waiting
        return clock.now(), await level_of(outage.limiter)

    gone, level = run(processes, main)
    assert gone == pytest.approx(1.1 + 0.5 / 4, abs=0.02)  # and not 1.5
    assert level == pytest.approx(0, abs=0.1)


def test_what_was_let_through_is_charged_by_the_store_also_where_that_fails_at_first(processes, found):
    async def main():
        outage = Outage()
        found.append(lambda: fail_once(outage.store, "not yet"))
        await outage.granted_meanwhile()
        outage.is_down = False
        await asyncio.sleep(PROBE + 0.01)
        return await level_of(outage.limiter)

    assert run(processes, main) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("when", ["meanwhile", "as it answers", "afterwards"])
def test_a_call_that_was_let_through_and_never_sent_is_not_charged_unless_the_store_was_told_already(
    processes, found, when
):
    """How much of that has flowed back already, nobody knows."""

    async def main():
        outage = Outage()
        permit = await outage.granted_meanwhile()
        if when == "meanwhile":
            permit.cancel()
            await later()
        elif when == "as it answers":
            found.append(permit.cancel)
        outage.is_down = False
        await asyncio.sleep(PROBE + 0.01)
        if when == "afterwards":
            permit.cancel()
        return await level_of(outage.limiter)

    assert run(processes, main) == pytest.approx(0.5 if when == "afterwards" else 1, abs=0.05)


def test_a_node_that_answers_again_within_the_patience_was_never_lost(processes, found, caplog):
    async def main():
        outage = Outage()
        outage.store.on_outage, outage.store.patience = "raise", 5.0
        outage.store.node_of = lambda name: name
        await outage.limiter.acquire()
        outage.is_down = True
        waiting = asyncio.ensure_future(outage.limiter.acquire())
        await asyncio.sleep(1)
        outage.is_down = False
        await waiting
        return clock.now()

    assert run(processes, main) == pytest.approx(1, abs=2 * PROBE)
    assert "answer" not in caplog.text


def test_a_call_with_a_moment_to_come_hears_that_its_store_was_closed_and_takes_nothing_along(processes):
    async def main():
        limiter = Limiter(requests=per_second(4, burst=1), name="x", store=Rows(hears=True).store())
        await limiter.acquire()
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0.05)
        limiter.store.dispatcher.post(lambda scheduler, now: scheduler.on_stop(now))
        with pytest.raises(StoreError, match="was closed while this call was waiting"):
            await waiting
        return await level_of(limiter)

    assert run(processes, main) == pytest.approx(0.2, abs=0.02)


def test_a_defect_in_what_the_dispatcher_is_told_reaches_those_that_wait_and_no_later_ones(processes):
    """What was reserved for them is lost."""

    def defect(*_):
        raise RuntimeError("a defect")

    async def main():
        limiter = Limiter(requests=per_second(1, burst=1), name="x", store=Rows(hears=True).store())
        await limiter.acquire()
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0.1)
        limiter.store.dispatcher.post(defect)
        with pytest.raises(StoreError, match="has failed: RuntimeError"):
            await waiting
        await limiter.acquire()
        return clock.now()

    assert run(processes, main) == pytest.approx(2, abs=0.02)
