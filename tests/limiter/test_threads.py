"""Real threads on one limiter, in real time: loops of their own, of asyncio and trio, and plain threads.

2 seconds; for a longer look, `PENSTOCK_STRESS=30`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from fractions import Fraction

import anyio
import pytest

from penstock import Limiter, Rate, RateLimited, in_flight
from penstock._backends import base
from penstock._backends.local import LocalBackend
from penstock._core.places import Hold

SECONDS = float(os.environ.get("PENSTOCK_STRESS") or 2)


def excess(grants: list[tuple[float, float]], limit: Rate) -> float:
    """By how much the worst interval of all passes burst + rate · T: the largest rise of `total − rate · t`, in one
    pass."""
    rate, total = Fraction(limit.amount) / Fraction(limit.per), Fraction(0)
    lowest, worst = None, -Fraction(limit.burst)
    for at, amount in sorted(grants):
        before = total - rate * Fraction(at)
        lowest = before if lowest is None else min(lowest, before)
        total += Fraction(amount)
        worst = max(worst, total - rate * Fraction(at) - lowest - Fraction(limit.burst))
    return float(worst)


def test_many_threads_and_loops_share_one_limiter_without_a_violation():
    """Promises 1, 2, 5 and 10, with waiters that give up, cancels, refunds, pauses; nobody hangs, and nothing is left
    behind."""
    requests, tokens = Rate(400, 1.0, 20), Rate(3_000, 1.0, 150)
    limiter = Limiter(requests=requests, tokens=tokens, calls=in_flight(6))
    end = time.monotonic() + SECONDS
    grants: list[tuple[float, dict[str, float]]] = []
    inside = most = 0
    lock = threading.Lock()
    errors: list[BaseException] = []

    def enter():
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def leave(permit, luck):
        nonlocal inside
        fate = luck.random()
        if fate < 0.1:
            permit.settle(tokens=1)
        with lock:
            inside -= 1
        if fate > 0.95:
            permit.cancel()
        else:
            grants.append((permit.granted_at, permit.cost))

    async def task(luck):
        while time.monotonic() < end:
            with anyio.move_on_after(luck.choice([0.001, 0.02, 5.0])):
                try:
                    permit = await limiter.acquire(
                        tokens=luck.choice([1, 5, 20, 90]), priority=luck.choice([0, 0, 1]), flow=luck.choice("ab")
                    )
                except RateLimited:
                    await anyio.sleep(0.001)
                    continue
                with permit:
                    enter()
                    try:
                        await anyio.sleep(luck.choice([0, 0.001, 0.005]))
                    finally:
                        leave(permit, luck)

    async def loop(seed):
        async with anyio.create_task_group() as group:
            for i in range(8):
                group.start_soon(task, random.Random(100 * seed + i))

    def plain(seed):
        luck = random.Random(seed)
        while time.monotonic() < end:
            try:
                with limiter(tokens=luck.choice([1, 5, 20]), max_wait=luck.choice([0.01, 5.0])) as permit:
                    enter()
                    try:
                        time.sleep(luck.choice([0, 0.001]))  # the work, not the wait
                    finally:
                        leave(permit, luck)
            except RateLimited:
                time.sleep(0.001)
            if luck.random() < 0.01:
                limiter.pause(0.005)

    def guarded(function, *args, **options):
        try:
            function(*args, **options)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(anyio.run, loop, i), kwargs={"backend": backend}, daemon=True)
        for i, backend in enumerate(("asyncio", "trio", "asyncio", "trio"))
    ] + [threading.Thread(target=guarded, args=(plain, 1_000 + i), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 20)
    assert not [thread for thread in threads if thread.is_alive()], "somebody hangs"
    assert not errors
    assert most <= 6
    for unit, limit in (("requests", requests), ("tokens", tokens)):
        assert excess([(at, cost.get(unit, 0)) for at, cost in grants], limit) <= limit.rate * 1e-6, unit
    statistics = limiter.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    assert len(grants) > 30 * SECONDS, "it was a real load"


@pytest.mark.parametrize("kinds", [("asyncio", "thread"), ("trio", "asyncio"), ("trio", "thread")])
def test_the_post_passes_between_loops_and_threads(kinds):
    """Who leaves while it has the only timer wakes somebody in another loop or thread, who then sees to all turns."""
    limiter = Limiter(requests=Rate(50, 1.0, 1))
    limiter.acquire_nowait()
    served = []

    def work(kind):
        async def several():
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(one)
                    await anyio.sleep(0)

        async def one():
            async with limiter:
                served.append(kind)

        if kind == "thread":
            for _ in range(5):
                with limiter():
                    served.append(kind)
        else:
            anyio.run(several, backend=kind)

    threads = [threading.Thread(target=work, args=(kind,), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(served) == sorted(kinds * 5)


FORK = """
import os, threading, time
from penstock import Limiter, per_second

limiter = Limiter(requests=per_second(1, burst=1))
limiter.acquire_nowait()
threads = [threading.Thread(target=limiter.__enter__) for _ in range(3)]  # they wait, and the first of them for all
for thread in threads:
    thread.start()
while limiter.statistics().waiting + limiter.statistics().granted < 4:  # or some have had their turns
    time.sleep(0.001)

def keep_the_lock():
    with limiter.store.lock:
        kept.set()
        time.sleep(0.1)

kept = threading.Event()
threading.Thread(target=keep_the_lock).start()
kept.wait()
if os.fork() == 0:
    begin = time.monotonic()
    assert limiter.statistics().waiting == 0
    for _ in range(2):
        with limiter:
            pass
    assert time.monotonic() - begin < 4.5, "its own two turns, and nobody else's"
    os._exit(7)
for thread in threads:
    thread.join()
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_waits_for_no_thread_of_its_parent():
    """One that held the lock at that moment held it in the child for ever; and who waited there was on post, and never
    rang."""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (child.stdout.strip(), child.stderr) == ("7", "")


def test_threads_that_enter_a_limiter_for_the_first_time_at_once_have_a_place_each(monkeypatch):
    """Until each of them leaves: what one has entered is not lost by what another makes at the same moment."""
    limiter = Limiter(calls=in_flight(2))
    together, inside = threading.Barrier(2, timeout=20), threading.Barrier(3, timeout=20)
    bind = LocalBackend.bind

    def bind_together(*given):
        together.wait()
        return bind(*given)

    monkeypatch.setattr(LocalBackend, "bind", bind_together)

    def work():
        with limiter:
            inside.wait()
            inside.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    held = limiter.statistics().in_flight
    inside.wait()
    for thread in threads:
        thread.join()
    assert (held, limiter.statistics().in_flight) == (2, 0)


def test_a_permit_that_two_threads_change_at_once_gives_back_what_it_was_charged_and_no_more(monkeypatch):
    """One cancels while the other settles: where the one has begun, it must not undo what the other has done."""
    limiter = Limiter(tokens="100/day", calls=in_flight(9))
    limiter.acquire_nowait(tokens=40)
    settled = threading.Event()

    def settle():
        permit.settle(tokens=20)
        settled.set()

    def hold(*given):
        if not settling.ident:
            settling.start()
            settled.wait(0.1)  # it may have to wait for this thread
        return Hold(*given)

    settling = threading.Thread(target=settle)
    with limiter(tokens=60) as permit:
        monkeypatch.setattr(base, "Hold", hold)
        permit.cancel()
        settling.join()
    assert limiter.statistics().limits["tokens"].level < 60.1  # the other call's 40 stay charged
