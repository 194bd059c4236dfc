"""What docs/retry.md says to have seen go wrong elsewhere is what the installed versions do; in virtual time.

A newer version that does better fails here, and then the page is to be changed: to its credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest
import stamina
import tenacity

from penstock import clock

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def their_time(virtual_time, monkeypatch):
    """Tenacity, and stamina above it, read the time through this name."""
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: clock.now(), sleep=time.sleep))  # noqa: PLW0108
    stamina.instrumentation.set_on_retry_hooks([])  # by default it logs every retry
    yield
    stamina.instrumentation.set_on_retry_hooks(None)


async def test_tasks_that_iterate_one_policy_of_tenacity_mix_up_their_outcomes():
    """The task that fails for ever ends as if it had succeeded, because another one has."""
    retrying = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(2), reraise=True)
    ended = []

    async def task(name, failures):
        made = 0
        async for attempt in retrying:
            with attempt:
                made += 1
                await asyncio.sleep(1)
                if made <= failures:
                    raise ValueError(name)
        ended.append(name)

    await asyncio.gather(task("never", 99), task("once", 1), task("twice", 2), return_exceptions=True)
    assert "never" in ended


@pytest.mark.parametrize(
    "decorate",
    [
        tenacity.retry(retry=tenacity.retry_if_not_exception_type(KeyError)),
        stamina.retry(on=lambda _: True, wait_initial=0.1),
    ],
    ids=["tenacity", "stamina"],
)
async def test_a_predicate_turns_cancellation_into_a_normal_return(decorate):
    calls = 0

    @decorate
    async def fetch():
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(60)
        return "as if nothing had happened"

    task = asyncio.create_task(fetch())
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "as if nothing had happened"


@pytest.mark.parametrize(
    ("on", "waits", "takes"),
    [
        pytest.param(ValueError, 0.35, 0.65, id="its own waits"),
        pytest.param(lambda _: 1.0, 0.1, 1.0, id="a hint"),
    ],
)
async def test_the_timeout_of_stamina_does_not_bound_the_last_wait(on, waits, takes, virtual_time):
    @stamina.retry(on=on, timeout=0.3, attempts=None, wait_initial=waits, wait_max=waits, wait_jitter=0)
    async def fail():
        await asyncio.sleep(0.15 if on is ValueError else 0)
        raise ValueError

    with pytest.raises(ValueError):
        await fail()
    assert virtual_time.now() == pytest.approx(takes)


async def test_nor_does_that_of_tenacity_unless_it_is_told_to(virtual_time):
    for stop, takes in ((tenacity.stop_after_delay(0.3), 0.5), (tenacity.stop_before_delay(0.3), 0.25)):
        since = virtual_time.now()

        @tenacity.retry(stop=stop, wait=tenacity.wait_fixed(0.25), reraise=True)
        async def fail():
            raise ValueError

        with pytest.raises(ValueError):
            await fail()
        assert virtual_time.now() - since == pytest.approx(takes)


async def test_at_the_cap_everybody_waits_the_same():
    waits = []
    stamina.instrumentation.set_on_retry_hooks([lambda details: waits.append((details.retry_num, details.wait_for))])

    @stamina.retry(on=ValueError, attempts=10, timeout=None)
    async def fail():
        raise ValueError

    for _ in range(50):
        with contextlib.suppress(ValueError):
            await fail()
    assert {round(wait, 9) for number, wait in waits if number > 7} == {5.0}
    at_the_cap = SimpleNamespace(attempt_number=20)
    assert {tenacity.wait_exponential_jitter(max=60)(at_the_cap) for _ in range(50)} == {60}
    assert len({tenacity.wait_random_exponential(max=60)(at_the_cap) for _ in range(50)}) > 40


async def test_a_least_wait_puts_everybodys_first_retry_of_tenacity_on_one_moment():
    first = SimpleNamespace(attempt_number=1)
    assert {tenacity.wait_random_exponential(min=1, max=60)(first) for _ in range(50)} == {1}


async def test_a_stream_of_stamina_hands_out_its_items_again():
    attempts = 0

    @stamina.retry(on=ValueError, attempts=3)
    async def items():
        nonlocal attempts
        attempts += 1
        yield 1
        yield 2
        if attempts < 3:
            raise ValueError
        yield 3

    assert [item async for item in items()] == [1, 2, 1, 2, 1, 2, 3]


async def test_nested_policies_of_stamina_multiply():
    calls = 0

    @stamina.retry(on=ValueError, attempts=3)
    async def inner():
        nonlocal calls
        calls += 1
        raise ValueError

    with pytest.raises(ValueError):
        await stamina.retry(on=ValueError, attempts=3)(inner)()
    assert calls == 9
