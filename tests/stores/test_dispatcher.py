"""What the dispatcher leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock import (
    ConfigurationConflict,
    Limiter,
    RateLimited,
    StoreError,
    WouldBlockEventLoop,
    calendar,
    in_flight,
    per_second,
    sliding,
    unlimited,
)
from penstock._backends.shared.requests import SharedRequest
from penstock._concurrency.parking import AsyncioParker
from penstock.permit import Permit
from penstock.stores import RedisStore, SQLiteStore
from penstock.stores.contract import Unreachable
from tests.stores.in_memory import RowsInMemory
from tests.threads import begun_and_interrupted, wait_until


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "in the queue"])
def test_what_was_granted_is_freed_without_the_garbage_collector(waits, tmp_path):
    """Else half of the time of a busy process goes into collections, each of which stops all of its threads for
    milliseconds."""
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(500 if waits else 1e6, burst=1 if waits else None), name="x", store=store)

    async def main():
        await limiter.acquire()
        gc.collect()
        before = {id(thing) for thing in gc.get_objects()}  # some of it is other tests'
        gc.disable()
        try:
            await asyncio.gather(*(limiter.acquire() for _ in range(100)))
            await limiter.refresh()  # the dispatcher is done with them
            return [
                thing
                for thing in gc.get_objects()
                if isinstance(thing, SharedRequest | Permit | AsyncioParker) and id(thing) not in before
            ]
        finally:
            gc.enable()

    left = asyncio.run(main())
    store.close()
    assert len(left) < 60  # of the last ten or so, and not three for each of the hundred


def test_a_calendar_beside_a_rate_asks_the_store_no_oftener(tmp_path):
    """Each answer told of the calendar's many units, and those that waited for the rate asked once more, for nothing."""

    async def calls(**more):
        store = SQLiteStore(tmp_path / f"{len(more)}.db")
        limiter = Limiter(requests=per_second(20, burst=1), name="x", store=store, **more)
        waiting = (limiter.acquire(dict.fromkeys(more, 1), max_wait=1) for _ in range(40))
        await asyncio.gather(*waiting, return_exceptions=True)
        store.close()
        return store.dispatcher.calls

    assert asyncio.run(calls(tokens=calendar(1_000, "day"))) <= 1.3 * asyncio.run(calls())


def test_a_window_is_asked_for_when_it_is_back_and_not_for_those_behind_the_first(tmp_path):
    """Those behind it wait for it, which was taken for the window's own moment: it was asked for every 0.2 ms."""

    async def calls():
        store = SQLiteStore(tmp_path / "x.db")
        limiter = Limiter(tokens=sliding(3, 0.5), name="x", store=store)
        waiting = (limiter.acquire(tokens=2 if place % 2 else 0.5, flow=place % 3) for place in range(12))
        await asyncio.gather(*waiting)
        store.close()
        return store.dispatcher.calls

    assert asyncio.run(calls()) <= 60


# Lifetime


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("penstock")]


def gone(before):
    """Whether all threads of ours but those have ended, within twenty seconds."""
    until = time.monotonic() + 20
    while set(threads()) - set(before):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def collect(held):
    """Collect garbage until it is gone: a store's subscriber holds it while it connects."""
    until = time.monotonic() + 20
    while held() is not None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_stores_that_nobody_holds_are_freed_with_a_warning(kind, tmp_path, valkey, prefix):
    """Their threads, sockets and files too."""
    before = threads()
    files = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        store = SQLiteStore(tmp_path / f"{number}.db") if kind == "sqlite" else RedisStore(valkey, prefix=prefix)
        with Limiter(requests=per_second(5), name="x", store=store):
            pass
        held = weakref.ref(store)
        del store
        with pytest.warns(ResourceWarning, match="was never closed"):
            collect(held)
    assert gone(before)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2


def connections():
    """All that there are in this process, of stores of both kinds."""
    return [each for each in gc.get_objects() if isinstance(each, (socket.socket, sqlite3.Connection))]


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_a_store_that_nobody_holds_closes_its_connection_first(kind, tmp_path, valkey, prefix):
    """In whatever order the garbage collector has them: a connection that it frees first would warn, too."""
    others = connections()
    limiter = Limiter(
        requests=per_second(5),
        name="x",
        store=SQLiteStore(tmp_path / "x.db") if kind == "sqlite" else RedisStore(valkey, prefix=prefix),
    )
    with limiter:
        pass
    first, *_, last = [each for each in connections() if not any(each is other for other in others)] * 2
    gc.collect()  # what this function names keeps its place in the collector's list, and the store goes behind it
    held = weakref.ref(limiter.store)
    del first, last, limiter, others, _
    with pytest.warns(ResourceWarning, match="was never closed"):
        collect(held)


def test_a_store_that_was_closed_is_freed_without_a_warning(tmp_path, recwarn):
    store = SQLiteStore(tmp_path / "x.db")
    with Limiter(requests=per_second(5), name="x", store=store):
        pass
    store.close()
    del store
    gc.collect()
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


@contextlib.contextmanager
def two_stores(tmp_path):
    """One file, as two processes open it."""
    stores = SQLiteStore(tmp_path / "x.db"), SQLiteStore(tmp_path / "x.db")
    yield stores
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    "say",
    [
        lambda limiter: limiter.pause(5),
        lambda limiter: limiter.resume(),
        lambda limiter: limiter.observe(remaining={"words": 1}),
    ],
    ids=["pause", "resume", "observe"],
)
def test_what_is_said_of_limits_that_the_store_does_not_count_is_said_once(say, tmp_path):
    """It has others of that name. Callers hear of it, and what is none's answer is left unsaid."""
    with two_stores(tmp_path) as (one, other):
        with Limiter(requests=per_second(50), name="x", store=one):
            pass
        limiter = Limiter(words=per_second(50), name="x", store=other)
        say(limiter)
        with pytest.raises(ConfigurationConflict), limiter(words=1):
            pass
        asked = other.dispatcher.calls
        time.sleep(0.1)
        assert other.dispatcher.calls == asked


def test_the_true_cost_of_limits_that_the_store_counts_no_more_is_told_once(tmp_path):
    """The row was lost, and another version of the program has begun it anew with other limits."""
    with two_stores(tmp_path) as (one, other):
        with Limiter(tokens=per_second(50), name="x", store=one)(tokens=5) as permit:
            pass
        with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as file:
            file.execute("DELETE FROM penstock_rows")
            file.commit()
        with Limiter(words=per_second(50), name="x", store=other)(words=1):
            pass
        permit.settle(tokens=1)
        give_up = time.monotonic() + 20
        while one.dispatcher.calls < 2 and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(0.1)
        assert one.dispatcher.calls == 2


def test_a_limiter_keeps_its_store(tmp_path):
    limiter = Limiter(requests=per_second(50), name="x", store=SQLiteStore(tmp_path / "x.db"))
    for _ in range(3):
        gc.collect()
        with limiter:
            pass
    limiter.store.close()


class Slow(SQLiteStore):
    """Takes its time: until it is let go on."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.slow, self.asked, self.goes_on = False, threading.Event(), threading.Event()

    def decide(self, batch):
        if self.slow:
            self.asked.set()
            self.goes_on.wait(60)
        return super().decide(batch)


def test_close_never_takes_longer_than_asked(tmp_path):
    before = threads()  # of other tests
    store = Slow(tmp_path / "x.db")
    limiter = Limiter(calls=in_flight(1), name="x", store=store)
    permit = limiter().__enter__()
    store.slow = True
    permit.close()
    assert store.asked.wait(20)
    store.close(timeout=0.2)
    store.goes_on.set()  # only now
    assert gone(before)


@pytest.mark.parametrize("after", [unlimited, [per_second(50), per_second(60)]], ids=["fewer", "more"])
def test_limits_may_change_in_number_while_the_store_decides(after, tmp_path):
    """Its answer is about those that it was asked for: neither these callers nor others hear of the change."""
    with contextlib.closing(Slow(tmp_path / "x.db")) as store, ThreadPoolExecutor() as threads:
        changing = Limiter(requests=per_second(50), tokens=per_second(50), name="x", store=store)
        other = Limiter(requests=per_second(50), name="y", store=store)
        for limiter, cost in (changing, {"tokens": 1}), (other, {}):
            with limiter(cost):
                pass
        store.slow = True
        calls = [threads.submit(lambda of: of.__enter__(), of) for of in (changing(tokens=1), other(), other())]
        assert store.asked.wait(20)
        changing.reconfigure(tokens=after)
        store.goes_on.set()
        for call in calls:
            call.result(20)
        with changing(tokens=1):
            pass


class Down(RowsInMemory):
    """Can be taken away. Its clock may be ahead of ours."""

    down = False
    ahead = 0.0

    def exchange(self, names, decide):
        if self.down:
            raise Unreachable("it is down")
        super().exchange(names, lambda rows, now: decide(rows, now + self.ahead * 1e6))


@pytest.mark.parametrize("options", [{}, {"on_outage": "open"}, {"on_outage": "share", "share": 0.5}])
def test_a_store_that_is_closed_while_it_is_down_begins_anew(options):
    """Nobody asks any more whether it is back: so that must not be waited for."""
    store = Down({}, threading.Lock(), patience=0.05, **options)
    limiter = Limiter(requests=per_second(1e-6, burst=3), name="x", store=store)
    store.down = True
    with contextlib.suppress(StoreError):
        limiter(max_wait=0).__enter__()
    assert store.dispatcher.down is not None
    store.close()
    store.down = False
    with limiter(max_wait=1):
        pass
    assert store.dispatcher.down is None
    time.sleep(0.3)  # whoever asked before it was closed would say something now
    with limiter(requests=1, max_wait=1), pytest.raises(RateLimited):
        limiter(requests=2, max_wait=0).__enter__()
    store.close()


@pytest.mark.parametrize("options", [{}, {"on_outage": "open"}, {"on_outage": "share", "share": 0.5}])
def test_new_limits_that_do_not_reach_the_store_keep_nobody_waiting(options):
    """Not even those of other limits: `on_outage` says what becomes of them. The store hears of them when it answers."""
    store = Down({}, threading.Lock(), patience=0.05, **options)
    limiter, other = (Limiter(requests=per_second(1e-6, burst=4), name=name, store=store) for name in ("x", "y"))
    with limiter, other:
        store.down = True
        limiter.reconfigure(requests=per_second(1e-6, burst=3))
    for each in (limiter, other):
        with contextlib.nullcontext() if options else pytest.raises(StoreError, match="it is down"), each():
            pass
    store.down = False
    while store.dispatcher.down is not None:
        time.sleep(0.001)
    asyncio.run(limiter.refresh())
    assert limiter.statistics().limits["requests"].level == pytest.approx(1 if options else 2, abs=1e-3)
    store.close()


class Cluster(RowsInMemory):
    """Has each name in another place, which it knows once it is asked."""

    found_out = False

    def prepare(self):
        self.found_out = True

    def group_of(self, name):
        return name if self.found_out else None


@pytest.mark.parametrize("max_wait", [None, 0])
@pytest.mark.parametrize("lease", [None, 0.1])
def test_limits_that_a_cluster_cannot_decide_together_are_refused_also_where_that_is_known_too_late(lease, max_wait):
    """They were joined before it was first asked, as when a program is imported. Each by itself goes on."""
    store = Cluster({}, threading.Lock())
    org, user = (Limiter(requests=per_second(50), name=name, store=store, lease=lease) for name in ("org", "user"))
    with pytest.raises(StoreError, match="org, user: they live in different hash slots"):
        (org & user)(max_wait=max_wait).__enter__()
    with org, user(max_wait=1):
        pass
    with pytest.raises(ValueError, match="they live in different hash slots"):
        org & user
    store.close()


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0], ids=["behind", "alike", "ahead"])
@pytest.mark.parametrize(
    "options", [{"on_outage": "open"}, {"on_outage": "share", "share": 0.75}], ids=["open", "share"]
)
def test_places_of_an_outage_come_back_when_their_permits_end_whatever_the_stores_clock_says(options, ahead):
    """And not at the end of their time to live: the store finds a place by its end, which is a moment of its clock."""
    store = Down({}, threading.Lock(), patience=0.05, **options)
    store.ahead = ahead
    limiter = Limiter(calls=in_flight(4, ttl=600), name="x", store=store)
    with limiter:
        pass
    store.down = True
    with limiter(calls=2), limiter(calls=1):
        store.down = False
        while store.dispatcher.down is not None:
            time.sleep(0.001)
    with limiter(calls=4, max_wait=30):
        pass
    store.close()


def test_acquire_nowait_speaks_of_a_running_loop_only_where_there_is_one(tmp_path):
    limiter = Limiter(requests=per_second(2), name="x", store=SQLiteStore(tmp_path / "x.db"))

    async def in_a_loop():
        limiter.acquire_nowait()

    with pytest.raises(WouldBlockEventLoop, match=r"waits for no answer: use `with limiter\(max_wait=0\):` here"):
        limiter.acquire_nowait()
    with pytest.raises(WouldBlockEventLoop, match="would block the running event loop"):
        asyncio.run(in_a_loop())


def test_who_comes_with_the_word_to_close_is_served(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(2, burst=1), name="x", store=store)
    with limiter:
        pass
    store.close()
    granted = threading.Event()

    def enter():
        with limiter:
            granted.set()

    busy = threading.Event()
    with limiter:
        store.dispatcher.post(lambda *_: busy.wait(5))
        time.sleep(0.1)
    store.dispatcher.stop_soon()
    threading.Thread(target=enter).start()
    time.sleep(0.1)
    busy.set()
    assert granted.wait(5)
    store.close()


def test_a_hook_is_called_with_the_lock_free(tmp_path):
    """So it may take its time, and use limiters itself."""
    heard = []

    def hook(event):
        other = threading.Thread(target=lambda: heard.append(limiter.statistics().waiting))
        other.start()
        other.join(timeout=20)
        heard.append(type(event).__name__)

    store = SQLiteStore(tmp_path / "x.db", patience=0.1, on_event=hook)
    limiter = Limiter(requests=per_second(50), name="x", store=store)
    with limiter:
        pass

    def unreachable(_):
        raise Unreachable("no")

    store.decide, decide = unreachable, store.decide
    with pytest.raises(StoreError), limiter:
        pass
    store.decide = decide
    until = time.monotonic() + 30
    while len(heard) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == [0, "StoreLost", 0, "StoreRecovered"]
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ["takes its time", "waits for the store", "raises", "exits"])
def test_whatever_a_stores_hook_does_holds_up_nobody(kind):
    heard, late = [], []
    over = threading.Event()

    def hook(event):
        heard.append(type(event).__name__)
        if kind == "takes its time":
            late.append(not over.wait(20))
        elif kind == "waits for the store":
            with contextlib.suppress(StoreError):
                limiter().__enter__()
        elif kind == "raises":
            raise RuntimeError(kind)
        elif kind == "exits":
            raise SystemExit(kind)

    store = Down({}, threading.Lock(), patience=0.05, on_event=hook)
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    store.down = True
    with pytest.raises(StoreError):
        limiter().__enter__()
    store.down = False
    while True:
        try:
            limiter().__enter__()
            break
        except StoreError:
            time.sleep(0.01)
    over.set()
    until = time.monotonic() + 30
    while len(heard) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert heard == ["StoreLost", "StoreRecovered"]
    assert True not in late
    store.close()


def run(program, *arguments, timeout=120):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return done.stdout.split(), done.stderr


def test_a_limiter_that_is_used_at_the_very_end_of_a_process_is_an_error_and_no_hang(tmp_path):
    program = """
        import os, sys
        from penstock import Limiter, per_second
        from penstock.stores import SQLiteStore

        limiter = Limiter(requests=per_second(50), name="x", store=SQLiteStore(sys.argv[1]))
        with limiter:
            pass

        class Last:
            def __del__(self, limiter=limiter, write=os.write):
                try:
                    with limiter(max_wait=1):
                        write(1, b"granted")
                except Exception as error:
                    write(1, type(error).__name__.encode())

        last = Last()
    """
    out, error = run(program, tmp_path / "x.db")
    assert out in (["StoreError"], ["granted"]), error


def test_threads_of_ours_import_nothing(valkey, tmp_path):
    """A fork meanwhile would leave the child half a module, and no way to import the rest."""
    program = """
        import sys
        from penstock import Limiter, per_second
        from penstock.stores import RedisStore, SQLiteStore

        for store in (RedisStore(sys.argv[1].replace("127.0.0.1", "localhost")), SQLiteStore(sys.argv[2])):
            limiter = Limiter(requests=per_second(50), name="x", store=store)
            before = set(sys.modules)
            with limiter:
                pass
            print(*set(sys.modules) - before)
            store.close()
    """
    assert run(program, valkey, tmp_path / "x.db") == ([], "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_does_not_wait_for_the_network():
    """Nor does what was under way then harm the child."""
    program = """
        import os, socket, threading, time
        from penstock import Limiter, StoreError, per_second
        from penstock.stores import RedisStore

        hole = socket.create_server(("127.0.0.1", 0))  # takes connections, and never says a word
        store = RedisStore(f"redis://127.0.0.1:{hole.getsockname()[1]}/0", timeout=60.0, patience=0.1)
        limiter = Limiter(requests=per_second(50), name="x", store=store)

        def wait():
            try:
                with limiter:
                    pass
            except StoreError:
                pass

        threading.Thread(target=wait, daemon=True).start()
        time.sleep(0.3)
        begin = time.monotonic()
        child = os.fork()
        if not child:
            os._exit(0 if store.dispatcher.down is None else 1)
        os.waitpid(child, 0)
        print(f"{time.monotonic() - begin:.2f}", flush=True)
        os._exit(0)
    """
    out, error = run(program)
    assert float(out[0]) < 30, error


def test_a_start_that_is_cut_short_leaves_no_second_dispatcher(tmp_path, monkeypatch):
    """Ctrl-C may strike when the thread has begun already, and nobody has noted that."""
    before = set(threading.enumerate())

    def threads():
        return set(threading.enumerate()) - before

    with contextlib.closing(SQLiteStore(tmp_path / "x.db")) as store:
        limiter = Limiter(requests=per_second(1e6), name="x", store=store)
        # The lock is held, so the threads come no further than it before there are five.
        with monkeypatch.context() as struck, store.dispatcher.lock:
            struck.setattr(threading.Thread, "start", begun_and_interrupted)
            for _ in range(5):
                with pytest.raises(KeyboardInterrupt), limiter():
                    pass
        with limiter(max_wait=60) as permit:
            assert permit.cost == {"requests": 1}
        assert wait_until(lambda: len(threads()) == 1)
    assert wait_until(lambda: not threads())
