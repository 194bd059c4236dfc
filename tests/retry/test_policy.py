"""A policy: a frozen value that any number of tasks, threads and processes share, and that refuses nonsense."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading

import anyio
import anyio.to_thread
import pytest

from penstock.errors import RateLimited
from penstock.retry import Retry, constant, exponential
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


# ----------------------------------------------------------------------------------------------------------------------
# Sharing


@anyio_test
async def test_tasks_that_iterate_one_policy_share_nothing(virtual_time):
    """tenacity #93: two tasks that iterated one `AsyncRetrying` got each other's exceptions."""
    retry = Retry(on=ValueError, attempts=5, backoff=EVERY_SECOND)
    seen = {}

    async def task(name, fails, gap):
        numbers = seen.setdefault(name, [])
        async for attempt in retry:
            with attempt:
                numbers.append(attempt.number)
                assert attempt.previous is None or attempt.previous.args == (name,)
                await anyio.sleep(gap)
                if attempt.number <= fails:
                    raise ValueError(name)

    async with anyio.create_task_group() as tasks:
        for index in range(4):
            tasks.start_soon(task, f"task {index}", index, 0.3 * index + 0.1)
    assert seen == {f"task {index}": list(range(1, index + 2)) for index in range(4)}


def test_a_policy_is_a_frozen_value():
    retry = Retry(on=ValueError, attempts=3)
    assert retry == Retry(on=ValueError, attempts=3)
    assert hash(retry) == hash(Retry(on=ValueError, attempts=3))
    assert retry != Retry(on=ValueError, attempts=4)
    assert dataclasses.replace(retry, attempts=4).attempts == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        retry.attempts = 4


def test_policies_that_were_sent_to_other_processes_do_not_draw_in_step():
    """`random.random` takes its generator along: workers that unpickle it would all wait the same, again and again."""
    sent = pickle.dumps(Retry(on=ValueError, attempts=3))
    assert len(sent) < 1000
    one, other = pickle.loads(sent), pickle.loads(sent)
    assert one == other == Retry(on=ValueError, attempts=3)
    assert [one.random() for _ in range(5)] != [other.random() for _ in range(5)]


def test_one_policy_serves_many_threads():
    flakies = [Flaky(1) for _ in range(5)]
    retry = Retry(on=ConnectionError, backoff=constant(0))
    threads = [threading.Thread(target=retry.call_sync, args=(flaky.sync,)) for flaky in flakies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(flaky.at) for flaky in flakies] == [2] * 5


# ----------------------------------------------------------------------------------------------------------------------
# Wrong policies


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Retry(), TypeError, "on"),  # noqa: PLW0108
        (
            lambda: Retry(on=BaseException),
            TypeError,
            (
                "Retry(on=BaseException): only types of Exception can be given; cancellation, KeyboardInterrupt and their like "
                "always pass through"
            ),
        ),
        (
            lambda: Retry(on=(ValueError, asyncio.CancelledError)),
            TypeError,
            "Retry(on=CancelledError): only types of Exception",
        ),
        (
            lambda: Retry(on=[ValueError]),
            TypeError,
            (
                "Retry(on=[<class 'ValueError'>]): an exception type, a tuple of them, or a function of the exception that returns "
                "True, False or seconds"
            ),
        ),
        (lambda: Retry(on=(ValueError, 429)), TypeError, "a tuple of them"),
        (lambda: Retry(on=(ValueError, str)), TypeError, "Retry(on=str): only types of Exception"),
        (
            lambda: Retry(on=ValueError, attempts=0),
            ValueError,
            "Retry(attempts=0): a whole number from 1, the first attempt included; or None",
        ),
        (
            lambda: Retry(on=ValueError, within=-1),
            ValueError,
            "Retry(within=-1): a number of seconds above 0, or None for no bound",
        ),
        (lambda: Retry(on=ValueError, attempts=2.5), ValueError, "Retry(attempts=2.5): a whole number from 1"),
        (lambda: Retry(on=ValueError, attempts="3"), ValueError, "Retry(attempts='3'): a whole number from 1"),
        (lambda: Retry(on=ValueError, attempt_timeout=float("nan")), ValueError, "Retry(attempt_timeout=nan)"),
        (
            lambda: Retry(on=ValueError, backoff=exponential),
            TypeError,
            "Retry(backoff=exponential): exponential(...), constant(...), or an object with `delay` and `jitter`",
        ),
        (lambda: Retry(on=ValueError, backoff=3), TypeError, "Retry(backoff=3): exponential(...), constant(...)"),
        (lambda: Retry(on=ValueError, budget=0.2), TypeError, "Retry(budget=0.2): a Budget(...), or None"),
        (lambda: Retry(on=ValueError, hint=5), TypeError, "Retry(hint=5): a function is needed"),
        (lambda: Retry(on=ValueError, random=0.5), TypeError, "Retry(random=0.5): a function is needed"),
        (lambda: Retry(on=ValueError, max_hint=-1), ValueError, "Retry(max_hint=-1): a number of seconds, 0 or more"),
    ],
)
def test_a_wrong_policy_is_refused_where_it_is_written(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_a_generator_is_refused_at_decoration():
    def items():
        yield 1

    with pytest.raises(
        TypeError, match=r"items is a generator function, which cannot be retried: its items are handed out"
    ):
        Retry(on=ValueError)(items)


@pytest.mark.parametrize("use", ["decorate", "call", "loop"])
def test_a_thread_cannot_be_cut(use):
    retry = Retry(on=ValueError, attempt_timeout=5)
    with pytest.raises(TypeError, match=r"cannot be cut after attempt_timeout=5: nothing can stop a thread"):
        if use == "decorate":
            retry(print)
        elif use == "call":
            retry.call_sync(print)
        else:
            iter(retry)


@anyio_test
async def test_a_classifier_that_answers_nonsense_is_named(virtual_time):
    with pytest.raises(
        ValueError, match=r"a classifier asked for a retry after -1 s: a wait is 0 or more, and finite"
    ) as caught:
        await Retry(on=lambda _: -1).call(Flaky(1))
    assert isinstance(caught.value.__context__, ConnectionError)


def test_a_policy_is_shown_as_it_is_written():
    assert repr(Retry(on=ValueError)) == (
        "Retry(on=ValueError, attempts=6, within=300, backoff=exponential(first=1, cap=60, jitter='full'))"
    )
    assert repr(Retry(on=(OSError, RateLimited), attempts=None, backoff=constant(2), max_hint=60, hint=None)) == (
        "Retry(on=(OSError, RateLimited), attempts=None, within=300, backoff=constant(2), hint=None, max_hint=60)"
    )
