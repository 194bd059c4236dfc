"""`hedge`: a second attempt when the first is slow."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import anyio
import pytest

from penstock import Limiter, per_second
from penstock.pipeline import Pipeline, hedge
from penstock.retry import Budget, Retry, current_attempt
from tests.pipeline.calls import raises

anyio_test = pytest.mark.anyio


class Answers:
    """Answers call after call as told: (seconds, result), where a result may be an error. Knows what ended how."""

    def __init__(self, *answers):
        self.answers, self.log = list(answers), []

    async def __call__(self, *_args):
        number = len(self.log)
        seconds, result = self.answers[number]
        self.log.append("running")
        try:
            await anyio.sleep(seconds)
        except BaseException:
            self.log[number] = "cancelled"
            raise
        self.log[number] = "ended"
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.mark.parametrize(
    ("answers", "result", "at", "log"),
    [
        pytest.param([(1, "a")], "a", 1, ["ended"], id="a quick first makes no second"),
        pytest.param([(9, "a"), (1, "b")], "b", 3, ["cancelled", "ended"], id="the second wins"),
        pytest.param([(3, "a"), (5, "b")], "a", 3, ["ended", "cancelled"], id="the first wins"),
        pytest.param([(3, OSError()), (5, "b")], "b", 7, ["ended", "ended"], id="the first fails, the second answers"),
        pytest.param([(9, "a"), (1, OSError())], "a", 9, ["ended", "ended"], id="the second fails, the first answers"),
    ],
)
@anyio_test
async def test_the_first_success_wins_and_the_loser_has_ended(answers, result, at, log, virtual_time):
    call = Answers(*answers)
    assert await hedge(2)(call)() == result
    assert virtual_time.now() == at
    assert call.log == log


@anyio_test
async def test_a_first_attempt_that_fails_early_is_raised_at_once(virtual_time):
    """Trying again is what a retry is for."""
    error = OSError("first")
    with pytest.raises(OSError) as caught:
        await hedge(2)(Answers((1, error), (0, "never")))()
    assert caught.value is error
    assert virtual_time.now() == 1


@anyio_test
async def test_when_both_fail_the_first_error_is_raised(virtual_time):
    error = OSError("first")
    with pytest.raises(OSError) as caught:
        await hedge(2)(Answers((5, error), (1, KeyError("second"))))()
    assert caught.value is error
    assert error.__notes__ == ["penstock: a second attempt, beside this one, failed with KeyError('second')"]
    assert virtual_time.now() == 5


@anyio_test
async def test_the_percentile_is_that_of_recent_calls(virtual_time):
    """Of 1 to 20 seconds the 95th percentile is 19; before 20 calls are known, `initial` is waited, or there is no
    second."""
    layer, by = hedge("p95"), hedge("p50", initial=7)
    assert layer.delay() is None
    assert by.delay() == 7
    call = Answers(*[(seconds, "a") for seconds in range(1, 21)])
    for _ in range(20):
        await layer(call)()
    assert call.log == ["ended"] * 20
    assert layer.delay() == 19

    late = Answers((60, "slow"), (1, "quick"))
    started = virtual_time.now()
    assert await layer(late)() == "quick"
    assert virtual_time.now() - started == 20
    assert layer.delay() == 20  # the one that was cut counts with the 20 s it had taken, or the percentile would sink


@anyio_test
async def test_failures_say_nothing_about_how_long_calls_take(virtual_time):
    layer = hedge("p95", initial=100)
    for _ in range(30):
        with pytest.raises(OSError):
            await layer(raises(OSError()))()
    assert layer.delay() == 100


@anyio_test
async def test_a_second_attempt_is_charged_like_the_first(virtual_time):
    limiter = Limiter(requests=per_second(10))
    assert await Pipeline(hedge(2), limiter())(Answers((9, "a"), (1, "b")))() == "b"
    assert limiter.statistics().granted == 2


@anyio_test
async def test_a_budget_bounds_second_attempts(virtual_time):
    call = Answers(*[(5, "a")] * 30)
    hedged = hedge(1, budget=Budget(ratio=0.2, floor=0, ttl=1000))(call)
    for _ in range(20):
        await hedged()
    assert len(call.log) == 24


@anyio_test
async def test_both_attempts_are_the_same_call(virtual_time):
    """To the retry around them, and so to a server that is shown the key."""
    keys = []

    async def send():
        keys.append(current_attempt().idempotency_key)
        await anyio.sleep(5)

    await Pipeline(Retry(on=OSError), hedge(1))(send)()
    assert len(keys) == 2
    assert len(set(keys)) == 1


@anyio_test
async def test_cancelling_a_hedged_call_cancels_both(virtual_time):
    call = Answers((60, "a"), (60, "b"))
    with anyio.move_on_after(5) as scope:
        await hedge(2)(call)()
    assert scope.cancelled_caught
    assert call.log == ["cancelled", "cancelled"]


@anyio_test
async def test_what_is_no_exception_passes_through_a_hedge_bare(virtual_time):
    class Stop(BaseException):
        pass

    for answers in ([(1, Stop())], [(9, "a"), (1, Stop())]):
        with pytest.raises(Stop):
            await hedge(2)(Answers(*answers))()


@anyio_test
async def test_what_is_no_exception_from_both_attempts_comes_as_a_group(virtual_time):
    class Stop(BaseException):
        pass

    async def stop():
        try:
            await anyio.sleep(5)
        finally:
            raise Stop

    with pytest.raises(BaseExceptionGroup) as caught:
        await hedge(2)(stop)()
    assert [type(error) for error in caught.value.exceptions] == [Stop, Stop]


@anyio_test
async def test_a_loser_that_answers_all_the_same_is_not_heard(virtual_time):
    answers = iter(["first", "second"])

    async def stubborn():
        answer = next(answers)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return answer

    assert await hedge(2)(stubborn)() == "first"
    assert virtual_time.now() == 7


@pytest.mark.parametrize("after", ["95", "p0", "p100", "fast", -1, float("inf"), timedelta(seconds=-1), None])
def test_a_hedge_after_nonsense_is_refused(after):
    with pytest.raises(ValueError, match="hedge"):
        hedge(after)


def test_a_hedge_with_wrong_numbers_is_refused():
    with pytest.raises(ValueError, match=r"hedge\(initial=-1\): seconds or a timedelta, 0 or more and finite"):
        hedge(initial=-1)
    with pytest.raises(ValueError, match=r"hedge\(samples=3\): 20 or more; fewer say little about how long calls take"):
        hedge(samples=3)


def test_spans_may_be_timedeltas():
    assert hedge(timedelta(seconds=2)).delay() == 2
    assert hedge("p95", initial=timedelta(seconds=3)).delay() == 3


def test_a_copy_of_a_hedge_is_the_hedge():
    one = hedge("p95")
    assert copy.deepcopy(one) is copy.copy(one) is one
    with pytest.raises(
        TypeError, match=r"hedge\('p95'\) cannot be pickled: its state belongs to the threads of this process"
    ):
        pickle.dumps(one)


@anyio_test
async def test_a_second_error_that_cannot_be_shown_does_not_cost_the_first(virtual_time):
    class Unspeakable(Exception):  # noqa: N818
        def __repr__(self):
            raise AssertionError

    answers = Answers((3, OSError()), (1, Unspeakable()))
    with pytest.raises(OSError) as caught:
        await hedge(1)(answers)()
    (note,) = caught.value.__notes__
    assert note.endswith("beside this one, failed with <Unspeakable, whose repr raised AssertionError>")
