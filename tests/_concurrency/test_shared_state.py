"""Nothing leaves a shared object locked: no fork, no signal handler, no garbage collection."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import subprocess
import sys
import threading
from weakref import WeakSet

import pytest

from penstock import Adaptive, Limiter, circuit_breaker, hedge
from penstock._concurrency.shared_state import SharedState, members
from tests.alarms import alarms


class Counter(SharedState):
    __slots__ = ("count",)

    def __init__(self, count=0):
        self.count = count

    def __repr__(self):
        return f"Counter({self.count})"

    def up(self):
        with self._lock:
            self.count += 1


FORK = """
import os, sys, threading, time
from penstock import Adaptive, Limiter, circuit_breaker, hedge
from penstock.retry import Budget

limiter = Limiter(requests="1000/s")
what = {
    "breaker": circuit_breaker(on=OSError),
    "adaptive": Adaptive(limiter),
    "hedge": hedge("p95"),
}[sys.argv[1]]
inside, go_on = threading.Event(), threading.Event()

def hold():
    with what._lock:
        inside.set()
        go_on.wait()

threading.Thread(target=hold, daemon=True).start()
inside.wait()
child = os.fork()
if child == 0:
    import faulthandler
    faulthandler.dump_traceback_later(20, exit=True)
    if sys.argv[1] == "breaker":
        assert what(lambda: 1)() == 1
    elif sys.argv[1] == "adaptive":
        with what:
            pass
        what.overloaded()
    else:
        what._took(1)
        what.delay()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("what", ["breaker", "adaptive", "hedge"])
def test_a_child_that_was_forked_while_a_thread_was_inside_does_not_hang(what):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, what], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_signal_handler_may_use_what_the_program_is_using():
    counter = Counter()
    with alarms(lambda *_: counter.up()), counter._lock:
        signal.raise_signal(signal.SIGALRM)
    assert counter.count == 1


def test_a_handler_that_raises_at_any_moment_leaves_nothing_locked():
    """A storm of signals, each of which raises out of whatever runs, as `alarm` handlers and Control-C do."""

    class StopError(Exception):
        pass

    armed = False

    def stop(*_):
        nonlocal armed
        if armed:
            armed = False
            raise StopError

    breaker = circuit_breaker(on=OSError)
    call = breaker(lambda: None)
    with alarms(stop, every=0.0005):
        for _ in range(200):
            with pytest.raises(StopError):
                armed = True
                while True:
                    call()
    done = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(10)
    assert done == [None]


def test_garbage_may_use_what_the_program_is_using():
    counter = Counter()

    class Garbage:
        def __del__(self):
            counter.up()

    garbage = Garbage()
    garbage.itself = garbage
    del garbage
    with counter._lock:
        gc.collect()
    assert counter.count == 1


def test_a_copy_is_the_object_itself_and_pickling_says_why_not():
    counter = Counter(3)
    assert copy.copy(counter) is copy.deepcopy([counter])[0] is counter
    with pytest.raises(TypeError) as caught:
        pickle.dumps(counter)
    assert str(caught.value) == (
        "Counter(3) cannot be pickled: its state belongs to the threads of this process. "
        "Make one in each process, at module level, and let functions refer to it by name"
    )


@pytest.mark.parametrize(
    "make", [lambda: circuit_breaker(on=OSError), hedge, lambda: Adaptive(Limiter(requests="1/s"))]
)
def test_what_is_dropped_is_gone(make):
    """The list of those that get new locks in a child keeps nobody alive."""
    from penstock._concurrency import shared_state

    gc.collect()
    before = len(shared_state._alive)
    one = make()
    assert len(shared_state._alive) == before + 1
    del one
    gc.collect()
    assert len(shared_state._alive) == before


def test_all_are_found_while_other_threads_add_some():
    """A plain look fails with "Set changed size during iteration"."""

    class Growing(WeakSet):
        looks = 0

        def __iter__(self):
            self.looks += 1
            if self.looks < 3:
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    counter = Counter()
    assert members(Growing([counter])) == [counter]
