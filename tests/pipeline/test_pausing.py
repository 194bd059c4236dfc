"""`pausing`: one refusal stops everybody, once."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta

import anyio
import pytest

from penstock import Limiter
from penstock.pipeline import Pipeline, pausing
from penstock.retry import Retry
from tests.pipeline.calls import echo, raises, stuck

anyio_test = pytest.mark.anyio


def _items():
    yield 1


class TooMany(Exception):  # noqa: N818
    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.retry_after = retry_after


class Overrun:
    """A server that refuses everything before `until`, and says so; a call takes 0.15 s. Knows who came when."""

    def __init__(self, virtual_time, until):
        self.time, self.until, self.came = virtual_time, until, []

    async def __call__(self, _):
        self.came.append(self.time.now())
        await anyio.sleep(0.15)
        if self.came[-1] < self.until:
            raise TooMany(self.until - self.time.now())


@pytest.mark.parametrize("paused", [False, True])
@anyio_test
async def test_one_refusal_stops_everybody_once(paused, virtual_time):
    """A retry alone waits for its own call; the other 99 would run into the same wall, one after the other."""
    limiter = Limiter(requests="10/s burst 1")
    server = Overrun(virtual_time, until=20)
    retry = Retry(on=TooMany, attempts=3)
    layers = [retry, limiter()] + [pausing(limiter, on=TooMany)] * paused
    call = Pipeline(*layers)(server)
    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(call, number)
    refused = [at for at in server.came if at < 20]
    assert len(refused) == (2 if paused else 100)  # those that were under way when the first refusal came
    assert len(server.came) - len(refused) == 100
    assert min(at for at in server.came if at > 1) >= 20 or not paused


@pytest.mark.parametrize(
    ("layer", "error", "seconds"),
    [
        ({"on": TooMany}, TooMany(7), 7),
        ({"on": TooMany}, TooMany(None), 0),
        ({"on": TooMany}, TooMany(float("inf")), 0),
        ({"on": TooMany}, KeyError(), 0),
        ({"on": lambda _: 3}, KeyError(), 3),
        ({"on": lambda _: False}, TooMany(7), 0),
        ({"on": TooMany, "hint": lambda error: error.retry_after / 10}, TooMany(20), 2),
        ({"on": TooMany}, ExceptionGroup("g", [TooMany(2), TooMany(9)]), 9),
    ],
    ids=repr,
)
@anyio_test
async def test_a_limiter_is_paused_for_what_the_error_says(layer, error, seconds, virtual_time):
    limiter = Limiter(requests="10/s")
    with pytest.raises(type(error)):
        await pausing(limiter, **layer)(raises(error))()
    assert limiter.statistics().paused_for == seconds


@anyio_test
async def test_pausing_is_put_around_every_kind_of_function(virtual_time):
    limiter = Limiter(requests="10/s")
    layer = pausing(limiter, on=TooMany)

    @layer
    def fail():
        raise TooMany(1)

    @layer
    async def items():
        yield 1
        raise TooMany(2)

    with pytest.raises(TooMany):
        fail()
    assert limiter.statistics().paused_for == 1
    with pytest.raises(TooMany):
        async for item in items():
            assert item == 1
    assert limiter.statistics().paused_for == 2
    assert await layer(echo)(5) == 5
    with anyio.move_on_after(3) as scope:
        await layer(stuck)()
    assert scope.cancelled_caught
    with pytest.raises(TypeError, match="which is a generator: put it around what that calls"):
        layer(_items)


def test_pausing_wants_the_limiter_itself():
    limiter = Limiter(requests="10/s")
    assert repr(pausing(limiter, on=TooMany)) == f"pausing({limiter!r}, on=TooMany)"
    with pytest.raises(TypeError) as caught:
        pausing(limiter(requests=2), on=TooMany)
    assert str(caught.value) == f"pausing({limiter!r}(requests=2)): give the limiter itself, which can be paused"
    with pytest.raises(TypeError, match=r"pausing\(on=echo\): it is called and not awaited"):
        pausing(limiter, on=echo)


@pytest.mark.parametrize("longest", [3600, timedelta(hours=1)])
@anyio_test
async def test_one_wrong_header_does_not_stop_everybody_for_years(longest, virtual_time, caplog):
    """A pause is cut at `max_pause`, and the first one that is cut is logged."""
    limiter = Limiter(requests="10/s")
    layer = pausing(limiter, on=TooMany, max_pause=longest)
    for _ in range(3):
        with pytest.raises(TooMany):
            await layer(raises(TooMany(9_999_999_999)))()
    assert limiter.statistics().paused_for == 3600
    (record,) = [record for record in caplog.records if record.name == "penstock.pipeline"]
    assert record.levelno == logging.WARNING
    assert (
        "TooMany(9999999999) asks for a pause of 115,740 days 18 h, and max_pause=3600 s is the longest"
        in record.getMessage()
    )
    assert record.penstock == {"asked": 9_999_999_999, "max_pause": 3600}


@anyio_test
async def test_a_pause_within_the_bound_is_not_spoken_of(virtual_time, caplog):
    limiter = Limiter(requests="10/s")
    layer = pausing(limiter, on=lambda _: 3600)
    with pytest.raises(OSError):
        await layer(raises(OSError()))()
    assert limiter.statistics().paused_for == 3600
    assert caplog.records == []


@anyio_test
async def test_no_bound_is_infinity(virtual_time):
    limiter = Limiter(requests="10/s")
    with pytest.raises(TooMany):
        await pausing(limiter, on=TooMany, max_pause=float("inf"))(raises(TooMany(1e6)))()
    assert limiter.statistics().paused_for == 1e6


@pytest.mark.parametrize("longest", [0, -1, float("nan"), timedelta(seconds=-1), "1h", None, True])
def test_a_bound_that_is_no_time_is_refused(longest):
    with pytest.raises(ValueError, match=r"pausing\(max_pause=.*\): seconds or a timedelta, above 0"):
        pausing(Limiter(requests="10/s"), on=OSError, max_pause=longest)


@anyio_test
async def test_a_hint_may_be_a_timedelta_and_may_break(virtual_time):
    limiter = Limiter(requests="10/s")
    error = KeyError()
    with pytest.raises(KeyError):
        await pausing(limiter, on=KeyError, hint=lambda _: timedelta(seconds=7))(raises(error))()
    assert limiter.statistics().paused_for == 7
    for broken in (lambda error: error.nothing, lambda _: "soon", lambda _: float("nan"), lambda _: -5):
        with pytest.raises(KeyError):
            await pausing(limiter, on=KeyError, hint=broken)(raises(error))()
    assert limiter.statistics().paused_for == 7
    (note,) = error.__notes__
    assert note == (
        "penstock: pausing: `hint` raised AttributeError(\"'KeyError' object has no attribute 'nothing'\") "
        "when asked about this error"
    )


@anyio_test
async def test_a_plain_callable_that_returns_an_awaitable_pauses_too(virtual_time):
    limiter = Limiter(requests="10/s")
    fail = raises(TooMany(7))
    with pytest.raises(TooMany):
        await pausing(limiter, on=TooMany)(lambda: fail())()  # noqa: PLW0108
    assert limiter.statistics().paused_for == 7


@anyio_test
async def test_a_block_that_fails_pauses_too(virtual_time):
    limiter = Limiter(requests="10/s")

    @pausing(limiter, on=TooMany)
    @contextlib.asynccontextmanager
    async def session():
        yield

    with pytest.raises(TooMany):
        async with session():
            raise TooMany(7)
    assert limiter.statistics().paused_for == 7
