"""Errors keep what they say wherever they go."""

from __future__ import annotations

import copy
import pickle

import pytest

from penstock import errors

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
