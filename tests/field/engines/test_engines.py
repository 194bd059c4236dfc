"""Each engine's four workers share one limit, by the recipe that the docs print: it is used, and never passed."""

from __future__ import annotations

import os

import pytest
import recording
from recipes import ENGINES, WORKERS

from penstock import Limiter, per_second
from penstock.stores import RedisStore, SQLiteStore
from tests.quiet import wait_for_quiet
from tests.stores import servers
from tests.stores.admissions import excess

recording.begin()  # a process that is forked from this one has it

RATE, BURST, CALLS, RUNS = 25, 5, 200, 3
UNBOUND = 100_000
"""Calls a second of a limit that does not bind."""

NAMES = ENGINES[os.environ["PENSTOCK_FIELD_ENVIRONMENT"]]


@pytest.fixture(scope="session", autouse=True)
def admissions(tmp_path_factory):
    os.environ[recording.FOLDER] = str(tmp_path_factory.mktemp("admissions"))


@pytest.fixture(params=["Valkey", "SQLite"])
def store(request, tmp_path):
    if request.param == "SQLite":
        store = SQLiteStore(tmp_path / "limits.db")
        yield store
        store.close()
    else:
        server = servers.Server(servers.binaries()["valkey"])
        store = RedisStore(server.url)
        yield store
        store.close()
        server.stop()


@pytest.fixture(scope="module")
def engine(request):
    with NAMES[request.param]() as run:
        yield run


@pytest.mark.parametrize("engine", NAMES, indirect=True)
def test_four_workers_use_one_limit_and_never_more(engine, store, request, field):
    package, _, how = request.node.callspec.params["engine"].partition(", ")
    subject = ", ".join([package, *filter(None, [how, request.node.callspec.params["store"]])])
    offered = 0.0
    for number in range(5):  # an engine may begin with fewer workers
        offered = max(offered, speed(engine, store, f"{subject}, not bound {number}"))
        if number and offered >= 2 * RATE:
            break
    for run in range(1, RUNS + 1):
        wait_for_quiet(5.0)
        name = f"{subject}, {run}"
        engine(Limiter(requests=per_second(RATE, burst=BURST), name=name, store=store), CALLS)
        found = recording.read(name)
        moments = all_of(found)
        over = excess(moments, RATE, BURST)
        used = used_of(moments, max(each[0] for each in found.values()))
        assert len(moments) == CALLS
        assert over <= 0.001  # moments are whole microseconds
        if used >= 0.97 and len(found) == WORKERS:
            break
    assert len(found) == WORKERS
    assert offered >= 2 * RATE
    assert used >= 0.97
    versioned = subject.replace(package, package if package == "concurrent.futures" else field.version(package), 1)
    columns = {"offered, calls/s": f"{offered:.0f}", "used": f"{used:.1%}", "excess": f"{max(0.0, over):.3f}"}
    field.row(versioned, columns | {"runs": run})


def used_of(moments, begin):
    """The share of what the limit had from a moment on that was granted, until the last was."""
    level, before = float(BURST), moments[0]
    for moment in [*(each for each in moments if each < begin), begin]:
        level = min(BURST, level + RATE * (moment - before)) - (moment < begin)
        before = moment
    return sum(moment >= begin for moment in moments) / (level + RATE * (moments[-1] - begin))


def speed(engine, store, name):
    """Calls a second under a limit that does not bind, once workers have begun."""
    engine(Limiter(requests=per_second(UNBOUND), name=name, store=store), CALLS)
    moments = all_of(recording.read(name))[CALLS // 4 :]
    return len(moments) / (moments[-1] - moments[0])


def all_of(found):
    return sorted(moment for moments in found.values() for moment in moments)
