"""A policy: a frozen value that any number of tasks, threads and processes share, and that refuses nonsense."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import math
import pickle
import random
import threading
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import anyio
import anyio.to_thread
import pytest

from penstock.errors import AttemptTimeout, RateLimited
from penstock.retry import Budget, Retry, constant, exponential
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


def test_processes_that_seed_random_alike_do_not_back_off_alike():
    """As the ranks of a training run do: after an outage all would come back at once, again and again."""
    drawn = []
    for _ in range(2):  # each as in a process of its own
        random.seed(42)
        drawn.append([Retry(on=ValueError).random() for _ in range(5)])
    assert drawn[0] != drawn[1]


def test_what_a_program_draws_of_random_does_not_depend_on_retries():
    random.seed(42)
    before = random.getstate()
    Retry(on=ConnectionError, backoff=exponential(first=0.001)).call_sync(Flaky(2).sync)
    assert random.getstate() == before


def test_one_policy_serves_many_threads():
    flakies = [Flaky(1) for _ in range(5)]
    retry = Retry(on=ConnectionError, backoff=constant(0))
    threads = [threading.Thread(target=retry.call_sync, args=(flaky.sync,)) for flaky in flakies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(flaky.at) for flaky in flakies] == [2] * 5


def test_a_policy_can_be_copied_and_pickled():
    """The copy is equal, and a budget is not multiplied by it."""
    retry = Retry(on=ValueError, attempts=3, within=timedelta(minutes=1), backoff=constant(2), max_hint=9)
    for again in (copy.copy(retry), copy.deepcopy(retry), pickle.loads(pickle.dumps(retry))):
        assert again == retry
        assert again.within == 60
    budget = Budget()
    shared = Retry(on=ValueError, budget=budget)
    assert copy.deepcopy(shared).budget is copy.copy(shared).budget is copy.copy(budget) is budget
    assert dataclasses.replace(shared, attempts=2).budget is budget
    assert dataclasses.asdict(shared)["budget"] is budget


def test_a_budget_says_why_it_cannot_be_sent_to_another_process():
    for value in (Budget(0.5), Retry(on=ValueError, budget=Budget(0.5))):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(value)
        assert str(caught.value) == (
            "Budget(ratio=0.5, floor=10, ttl=10) cannot be pickled: its state belongs to the threads of this process. "
            "Make one in each process, at module level, and let functions refer to it by name"
        )


# ----------------------------------------------------------------------------------------------------------------------
# Spans of time


def test_spans_may_be_timedeltas_and_numbers_of_any_kind():
    """They are seconds from then on, so that policies compare and are shown alike."""
    spans = {"within": timedelta(minutes=5), "attempt_timeout": timedelta(seconds=20), "max_hint": timedelta(hours=1)}
    retry = Retry(on=ValueError, **spans)
    assert retry == Retry(on=ValueError, within=300, attempt_timeout=20, max_hint=3600)
    assert hash(retry) == hash(Retry(on=ValueError, within=300, attempt_timeout=20, max_hint=3600))
    assert "within=300.0, " in repr(retry)
    assert Retry(on=ValueError, within=Decimal("2.5"), max_hint=Fraction(1, 2)).within == 2.5
    assert repr(Budget(ttl=timedelta(seconds=30))) == "Budget(ratio=0.2, floor=10, ttl=30)"
    assert Retry(on=ValueError, within=float("inf"), attempt_timeout=float("inf"), max_hint=0).max_hint == 0


@anyio_test
async def test_a_timedelta_bounds_as_its_seconds_do(virtual_time):
    flaky = Flaky(9, virtual_time=virtual_time)
    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, within=timedelta(seconds=2), backoff=constant(timedelta(seconds=1))).call(flaky)
    assert flaky.at == [0, 1, 2]
    assert caught.value.__notes__[0].endswith("the next attempt would start after within=2.0 s")
    with pytest.raises(AttemptTimeout) as caught:
        await Retry(on=ConnectionError, attempt_timeout=timedelta(seconds=3)).call(anyio.sleep, 60)
    assert caught.value.seconds == 3


NO_SPANS = [-1, timedelta(seconds=-1), True, False, float("nan"), "5", 5j, [5], 10**400]


@pytest.mark.parametrize("value", NO_SPANS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", ["within", "attempt_timeout", "max_hint"])
def test_what_is_no_span_is_refused_with_its_name_and_value(name, value):
    with pytest.raises(ValueError) as caught:
        Retry(on=ValueError, **{name: value})
    assert str(caught.value).startswith(f"Retry({name}={value!r}): seconds or a timedelta")


@pytest.mark.parametrize("value", [*NO_SPANS, float("inf")], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", ["ratio", "floor", "ttl"])
def test_what_is_no_number_of_a_budget_is_refused(name, value):
    with pytest.raises(ValueError) as caught:
        Budget(**{name: value})
    assert str(caught.value).startswith(f"Budget({name}={value!r}): ")


@pytest.mark.parametrize("value", [*NO_SPANS, float("inf")], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", ["capacity", "retry", "timeout", "success"])
def test_what_is_no_number_of_a_pot_is_refused(name, value):
    with pytest.raises(ValueError) as caught:
        Budget.tokens(**{name: value})
    assert str(caught.value).startswith(f"Budget.tokens({name}={value!r}): ")


@pytest.mark.parametrize("name", ["within", "attempt_timeout"])
def test_no_time_at_all_is_refused(name):
    with pytest.raises(ValueError, match="above 0"):
        Retry(on=ValueError, **{name: timedelta(0)})


@pytest.mark.parametrize("answer", [-1, float("nan"), "soon", None], ids=repr)
def test_a_backoff_of_your_own_that_answers_nonsense_is_named(answer):
    @dataclasses.dataclass
    class Mine:
        jitter: str = "none"

        def delay(self, retry, previous, u):
            return answer

    with pytest.raises(
        ValueError, match=rf"Mine\(jitter='none'\) asked for a wait of {answer!r} s: a wait is a number"
    ) as caught:
        Retry(on=ConnectionError, backoff=Mine()).call_sync(Flaky(1).sync)
    assert isinstance(caught.value.__context__, ConnectionError)


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
                "Retry(on=BaseException): only types of Exception can be given; "
                "cancellation, KeyboardInterrupt and their like always pass through"
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
                "Retry(on=[<class 'ValueError'>]): "
                "an exception type, a tuple of them, or a function of the exception that returns True, False or seconds"
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
            "Retry(within=-1): seconds or a timedelta, above 0",
        ),
        (lambda: Retry(on=ValueError, attempts=2.5), ValueError, "Retry(attempts=2.5): a whole number from 1"),
        (lambda: Retry(on=ValueError, attempts=True), ValueError, "Retry(attempts=True): a whole number from 1"),
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
        (
            lambda: Retry(on=ValueError, max_hint=-1),
            ValueError,
            "Retry(max_hint=-1): seconds or a timedelta, 0 or more",
        ),
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
@pytest.mark.parametrize(
    ("answer", "raises", "said"),
    [
        (-1, ValueError, "asked for a retry after -1 s: a wait is 0 or more, and finite"),
        (math.nan, ValueError, "asked for a retry after nan s: a wait is 0 or more, and finite"),
        (Decimal("nan"), ValueError, "asked for a retry after Decimal('NaN') s: a wait is 0 or more, and finite"),
        (10**400, ValueError, "asked for a retry after 1000000"),
        ((each for each in ()), TypeError, "which has yet to run: give a plain function"),
    ],
    ids=["negative", "nan", "decimal", "huge", "generator"],
)
async def test_a_classifier_that_answers_nonsense_is_named_and_so_is_the_error_it_was_asked_about(
    virtual_time, answer, raises, said
):
    with pytest.raises(raises) as caught:
        await Retry(on=lambda _: answer).call(Flaky(1))
    assert str(caught.value).startswith("Flaky: `on`, asked about ConnectionError(), ")
    assert said in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_a_policy_is_shown_as_it_is_written():
    assert repr(Retry(on=ValueError)) == (
        "Retry(on=ValueError, attempts=6, within=300, backoff=exponential(first=1, cap=60, jitter='full'))"
    )
    assert repr(Retry(on=(OSError, RateLimited), attempts=None, backoff=constant(2), max_hint=60, hint=None)) == (
        "Retry(on=(OSError, RateLimited), attempts=None, within=300, backoff=constant(2), hint=None, max_hint=60)"
    )
