"""Caps per user over each kind of store, in processes that are killed and that fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import anyio
import pytest

from penstock.stores import RedisStore, SQLiteStore
from penstock.usage import QuotaExceeded, Quotas


def _all(_name):
    return "all"


@pytest.fixture(params=["sqlite", "valkey", "cluster"])
def make(request, tmp_path, prefix):
    """Quotas in one store, each as if in a process of its own."""
    made = []

    def make(caps=None, **options):
        if request.param == "sqlite":
            store = SQLiteStore(tmp_path / "quotas.db")
        else:
            group = _all if request.param == "cluster" else None
            store = RedisStore(request.getfixturevalue(request.param), prefix=prefix, group=group)
        made.append(Quotas(store, caps, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.store.close()


@pytest.mark.anyio
async def test_caps_hold_are_changed_and_reset_in_every_store(make):
    one, other = make({"requests": "3/month", "dollars": "1/month"}, review="queue"), make()

    async def call(**cost):
        async with one("alice*{1}", cost) as permit:
            return permit

    for _ in range(3):
        (await call(dollars=0.5)).settle(dollars=0.25)
    with pytest.raises(QuotaExceeded, match=r"has used 3 of 3 requests a month.*a review is pending"):
        await call()
    await anyio.to_thread.run_sync(other.approve, "alice*{1}", "requests")
    await call(dollars=0.125)
    await anyio.to_thread.run_sync(lambda: other.set("alice*{1}", requests="9/month"))
    await call(dollars=0.125)
    with pytest.raises(QuotaExceeded, match=r"has used \$1 of \$1 a month and asks for \$0\.000001"):
        await call()
    found = await anyio.to_thread.run_sync(other.all)
    assert [(quota.unit, quota.limit) for quota in found] == [("dollars", 1), ("requests", 10)]
    assert await anyio.to_thread.run_sync(other.reset, "alice*{1}")
    await call(dollars=1)
    assert [quota.used for quota in await anyio.to_thread.run_sync(one.of, "alice*{1}")] == [1, 1]


KILLED = """
import sys
from penstock.usage import Quotas
quotas = Quotas(sys.argv[1], {"requests": "100000/month"})
for number in range(100000):
    with quotas("alice"):
        print(number + 1, flush=True)
"""


def test_a_process_that_is_killed_has_charged_what_it_was_granted(tmp_path):
    """Every call that began, and at most one that was about to begin."""
    path = tmp_path / "quotas.db"
    begun = 0
    for count in (3, 60):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline() for _ in range(count)]
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines()
        begun += int([line for line in lines if line.strip()][-1])
        with Quotas(path) as quotas:
            used = quotas.of("alice")[0].used
        assert begun <= used <= begun + 1
        begun = used


def test_a_child_of_a_fork_shares_the_caps(tmp_path):
    """A server that loads its program and then forks its workers."""
    with Quotas(tmp_path / "quotas.db", {"requests": "20/month"}) as quotas:
        with quotas("alice"):
            pass
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for _ in range(5):
                        with quotas("alice"):
                            pass
                    quotas.set("bob", requests="1/month")
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        for _ in range(5):
            with quotas("alice"):
                pass
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert {(quota.user, quota.used) for quota in quotas.all()} == {("alice", 16), ("bob", 0)}
