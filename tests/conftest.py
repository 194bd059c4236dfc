"""What every test shares: the loops they run on, and how hard Hypothesis looks.

Time is in `penstock.testing`: a test that waits asks for its `virtual_time` fixture.

anyio's backends are imported here, by one thread: pytest parses them when they are first imported, to rewrite their
assertions, and in CPython 3.11 two threads that parse at once may fail (SystemError: AST constructor recursion depth
mismatch).
"""

from __future__ import annotations

import gc
import os
import random
import re
import sys
from types import SimpleNamespace

import anyio
import anyio._backends._asyncio
import anyio._backends._trio
import pytest
import trio
from hypothesis import HealthCheck, settings

from penstock import _backends
from penstock._chance import CHANCE
from tests.quiet import wait_for_quiet
from tests.stores.busy import BUSY

# The same examples in every run, so that a run tells of the change and not of chance; HYPOTHESIS_PROFILE=long looks for
# others. A busy machine makes examples slowly too.
profile = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", **profile, max_examples=60, derandomize=True, print_blob=True)
settings.register_profile("long", **profile, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "same")

# Nor does a test draw another jitter, or another order of trio's tasks, in each run; PENSTOCK_DRAWS=word draws others.
DRAWS = os.environ.get("PENSTOCK_DRAWS", "")
_jitter = random.Random()
CHANCE.random, CHANCE.getrandbits = _jitter.random, _jitter.getrandbits


def pytest_collection_modifyitems(items):
    for item in items:
        if getattr(item.module, "BUSY", None) == BUSY:
            item.add_marker(pytest.mark.flaky(reruns=3, only_rerun=[re.escape(BUSY)]))


def pytest_runtest_setup(item):
    """Begin each test alike, whichever came before: with the same draws, and with no names, since what is used of a
    named limit outlives its limiters.

    A claim about real time that failed on a busy machine is looked at again when the machine is quieter.
    """
    for draws in (_jitter, trio._core._run._r):
        draws.seed(DRAWS + item.nodeid)
    _backends._THIS_PROCESS._names.clear()
    if getattr(item, "execution_count", 1) > 1:
        wait_for_quiet()


def pytest_collection_finish():
    """Let the many tests that collect garbage look at their own, and not at all that was imported: it takes them a
    tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick_collections():
    """The garbage collector looks at what this module makes, and not at all that the modules before have left alive."""
    gc.collect()
    gc.freeze()


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request):
    """A test marked `anyio` runs on each of the loops that penstock promises to work on."""
    return request.param


@pytest.fixture
def poor(monkeypatch):
    """A system without what Windows lacks: `pread`, file locks, `select` on pipes, signals for event loops, limits of
    open files."""
    from penstock.runner import system

    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "fdatasync", raising=False)
    monkeypatch.setattr(system, "_fcntl", None)

    def sockets_only(*_):
        raise OSError(10038, "An operation was attempted on something that is not a socket")

    monkeypatch.setattr(system, "select", SimpleNamespace(select=sockets_only))

    def no_receiver(*_):
        raise NotImplementedError

    monkeypatch.setattr(anyio, "open_signal_receiver", no_receiver)
    monkeypatch.setitem(sys.modules, "resource", None)
