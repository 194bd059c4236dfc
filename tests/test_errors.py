"""Errors keep what they say wherever they go."""

from __future__ import annotations

import copy
import pickle
from contextlib import closing, suppress

import pytest

from penstock import Keyed, Limiter, errors
from penstock.stores import SQLiteStore

EVERY_ERROR = [
    errors.PenstockError("no"),
    errors.CostError("no"),
    errors.MissingUnit("no", unit="tokens"),
    errors.UnknownUnit("no", unit="token", known=("tokens",)),
    errors.Unsatisfiable("no", unit="tokens", cost=12, capacity=10),
    errors.RateLimited(retry_after=1.5, blocked_by="tokens"),
    errors.QueueFull("no", retry_after=1.5, blocked_by="tokens"),
    errors.WouldBlockEventLoop("no"),
    errors.ConfigurationConflict("no"),
    errors.StoreError("no"),
    errors.Unreachable("no"),
    errors.AttemptTimeout("no", seconds=2.0),
    errors.CircuitOpen("no", retry_after=3.0),
]


def test_every_error_is_in_this_file():
    assert {type(error).__name__ for error in EVERY_ERROR} == set(errors.__all__)


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "send",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_an_error_comes_out_of_another_process_as_it_was(error, send):
    """A worker of a process pool that is refused says so, with its numbers, and does not break the pool."""
    error.add_note("in a worker")
    there = send(error)
    assert type(there) is type(error)
    assert (str(there), there.args, vars(there)) == (str(error), error.args, vars(error))


@pytest.mark.anyio
async def test_a_refusal_says_whose_limit_it_is(tmp_path):
    """A program with ten limiters could not tell from its log which of them had refused."""
    org, per_user = Limiter(requests="1/h", name="org"), Keyed(requests="1/h")
    with closing(SQLiteStore(tmp_path / "limits.db")) as store:
        for name, limiter in {
            "org": org,
            "alice": per_user["alice"],
            "org & bob": org & per_user["bob"],
            "shared": Limiter(requests="1/h", name="shared", store=store),
            None: Limiter(requests="1/h"),
        }.items():
            with suppress(errors.RateLimited):  # two of them share a limit
                await limiter.acquire(max_wait=0)
            with pytest.raises(errors.RateLimited) as refused:
                await limiter.acquire(max_wait=0)
            assert refused.value.limiter == name
            assert (f' of "{name}"' in str(refused.value)) is (name is not None)


def test_a_full_queue_says_whose_it_is():
    limiter = Limiter(requests="1/h", name="busy", max_queue=0)
    limiter.acquire_nowait()
    with pytest.raises(errors.QueueFull, match=r'the queue of "busy" is full \(max_queue=0\)') as refused:
        limiter().__enter__()
    assert refused.value.limiter == "busy"
