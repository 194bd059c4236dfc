"""The ledger: nothing is lost, nobody is held up, memory is bounded."""

from __future__ import annotations

import gc
import math
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pytest

from penstock import Limiter, per_second
from penstock.events import Answered, Granted, Reconfigured
from penstock.testing import manual_clock
from penstock.usage import History, Ledger, LedgerError
from penstock.usage import ledger as ledgers
from tests.alarms import alarms, not_beside_coverage
from tests.quiet import seconds_without_a_core_of_all
from tests.threads import begun_and_interrupted, wait_until
from tests.usage.readings import calls_of

GRANTED = Granted("api", {"requests": 1}, 0.0, "alice")


def worker(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.usage.worker", *map(str, arguments)], stdout=subprocess.PIPE, text=True, **options
    )


def has_tried(ledger):
    """Wait until its thread has tried to write, and could not."""
    until = time.monotonic() + 60
    while not ledger.statistics().error:
        assert time.monotonic() < until
        time.sleep(0.01)


def users(path):
    return [call.user for call in calls_of(path)]


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_is_lost_when_a_process_ends(tmp_path, how):
    """Whether it closes its ledger or not."""
    process = worker(tmp_path / "usage.db", "alice", 3_000, how)
    process.communicate(timeout=60)
    assert users(tmp_path / "usage.db") == ["alice"] * 3_000


def test_kill_9_takes_the_last_100_ms_and_no_more(tmp_path):
    """And the file is whole. A busy machine is given some time on top."""
    path = tmp_path / "usage.db"
    for _ in range(5):
        path.unlink(missing_ok=True)
        process = worker(path, "alice")
        said = []
        for line in process.stdout:
            number, at = line.split()
            said.append((int(number), float(at)))
            if said[-1][1] - said[0][1] > 1.0:
                break
        killed = time.monotonic()
        busy = min(0.5, seconds_without_a_core_of_all(process.pid))
        process.kill()
        process.wait()
        process.stdout.close()
        kept = len(users(path)) if path.exists() else 0
        due = max((number for number, at in said if at < killed - 0.1 - busy), default=0)
        if kept >= due > 0:
            break
    else:
        pytest.fail(f"{kept} of {due} calls that were older than 100 ms are there")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_several_processes_write_into_one_file(tmp_path):
    path = tmp_path / "usage.db"
    processes = [worker(path, name, 2_000) for name in ("alice", "bob", "carol")]
    for process in processes:
        process.communicate(timeout=60)
    with History(path) as history:
        assert {name: totals.calls for name, totals in history.totals_by("user").items()} == {
            "alice": 2_000,
            "bob": 2_000,
            "carol": 2_000,
        }
        with pytest.raises(ValueError, match="what must be one of 'user', 'subject', 'outcome', not 'model'"):
            history.totals_by("model")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork_the_child_writes_for_itself_and_nothing_twice(tmp_path):
    process = worker(tmp_path / "usage.db", "child", 500, "fork")
    process.communicate(timeout=60)
    assert sorted(users(tmp_path / "usage.db")) == ["child"] * 500 + ["parent"] * 501


def test_a_file_that_is_locked_stops_nobody_and_is_written_later(tmp_path):
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        ledger(GRANTED)
        assert ledger.flush(60)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        for _ in range(1_000):
            ledger(GRANTED)
        assert time.monotonic() - begin < 30
        assert not ledger.flush(0.2)
        other.execute("ROLLBACK")
        other.close()
        assert ledger.flush(60)
        assert len(users(path)) == 1_001


@pytest.mark.parametrize("timeout", [math.inf, 1e12, timedelta(days=400), timedelta(seconds=9)])
def test_a_ledger_waits_as_long_as_it_is_told_to(tmp_path, timeout):
    """A timeout that no thread can wait for is the longest that one can: it was an OverflowError."""
    ledger = Ledger(tmp_path / "usage.db")
    ledger(GRANTED)
    assert ledger.flush(timeout)
    ledger.close(timeout)


@pytest.mark.parametrize("timeout", [-1, "5", None, math.nan])
def test_a_timeout_that_is_none_is_refused(tmp_path, timeout):
    with Ledger(tmp_path / "usage.db") as ledger:
        ledger(GRANTED)
        for wait in (ledger.flush, ledger.close):
            with pytest.raises(
                ValueError, match=r"timeout must be a number of seconds, 0 or more, or a timedelta, not"
            ):
                wait(timeout)


def test_memory_is_bounded_and_what_is_dropped_is_counted_and_noted(tmp_path, caplog):
    """The folder is not there yet, as a disk that is not mounted."""
    path = tmp_path / "later" / "usage.db"
    with Ledger(path, max_pending=100) as ledger:
        for _ in range(1_000):
            ledger(GRANTED)
        has_tried(ledger)
        for _ in range(1_000):
            ledger(GRANTED)
        now = ledger.statistics()
        assert now.pending <= 202  # the queue, and what the thread had taken
        assert now.dropped >= 1_700
        assert "unable to open" in now.error
        path.parent.mkdir()
        assert ledger.flush(60)
        assert ledger.statistics().error == ""
    with History(path) as history:
        assert history.dropped() == now.dropped
        assert history.totals().calls == 2_000 - now.dropped
    assert len([record for record in caplog.records if record.name == "penstock.usage"]) == 1


def test_a_full_disk_breaks_no_call_and_later_ones_are_written(tmp_path):
    """SQLite is told that the file may have no more pages."""
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        ledger(GRANTED)
        assert ledger.flush(60)
        connection = ledger._writer._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        for _ in range(500):
            ledger(GRANTED)
        assert ledger.flush(60)  # it is opened anew, without that limit
        assert len(users(path)) == 501


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path):
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        ledger(GRANTED)
        assert ledger.flush(60)
        shutil.move(path, tmp_path / "old.db")
        ledger(GRANTED)
        ledger(GRANTED)
        assert ledger.flush(60)
        assert len(users(path)) == 2


def test_the_file_of_another_program_is_left_alone(tmp_path, caplog):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    ledger = Ledger(path)
    ledger(GRANTED)
    has_tried(ledger)
    assert not ledger.flush(0)
    assert ledger.statistics().pending == 1
    with pytest.warns(RuntimeWarning, match="1 event could not be written .*another program"):
        ledger.close(0.3)
    assert "is the database of another program" in caplog.text
    with pytest.raises(LedgerError, match="another program"):
        History(path)
    path.unlink()  # so that what waits is written, and the thread ends
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)


def test_a_ledger_that_was_forgotten_warns_and_writes(tmp_path):
    path = tmp_path / "usage.db"
    ledger = Ledger(path)
    ledger(GRANTED)
    thread = ledger._writer.thread
    with pytest.warns(ResourceWarning, match=r"Ledger\(.*\) was never closed"):  # noqa: PT031
        del ledger
        gc.collect()
    thread.join(60)
    assert users(path) == ["alice"]


def test_one_that_was_closed_or_never_used_says_nothing_and_may_go_on(tmp_path):
    path = tmp_path / "usage.db"
    Ledger(path).close()
    assert not path.exists()
    ledger = Ledger(path)
    for _ in range(2):
        ledger(GRANTED)
        ledger.close()
    assert users(path) == ["alice", "alice"]
    del ledger
    gc.collect()


def test_a_signal_handler_may_call_too(tmp_path):
    """While the call that it interrupts is being written down."""
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        rang = []

        def ring(*_):
            ledger(GRANTED)
            rang.append(1)

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            made = 0
            while len(rang) < 100:
                ledger(GRANTED)
                made += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert ledger.flush(60)  # tens of thousands of events
        assert len(users(path)) + ledger.statistics().dropped == made + len(rang)


def test_old_calls_are_taken_out(tmp_path):
    with manual_clock() as clock, Ledger(tmp_path / "usage.db", keep=86_400) as ledger:
        begin = clock.wall()
        for _ in range(3):
            ledger(GRANTED)
            assert ledger.flush(60)
            clock.advance(43_200 + 1)
        ledger(GRANTED)
        assert ledger.flush(60)
        assert [call.at - begin for call in calls_of(ledger)] == [86_402, 129_603]


def test_a_limiter_with_a_ledger_can_be_pickled_with_its_store(tmp_path):
    ledger = pickle.loads(pickle.dumps(Ledger(tmp_path / "usage.db", max_pending=5, keep=60)))
    assert repr(ledger) == f"Ledger({str(tmp_path / 'usage.db')!r})"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pending": 0}, "max_pending must be a whole number of events, 1 or more, not 0"),
        ({"max_pending": True}, "not True"),
        ({"keep": 0}, "keep=0: seconds or a timedelta, above 0"),
        ({"keep": "day"}, "keep='day': seconds or a timedelta, above 0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Ledger(tmp_path / "usage.db", **options)


def test_there_must_be_a_ledger_to_read(tmp_path):
    with pytest.raises(LedgerError, match="there is no ledger at"):
        History(tmp_path / "none.db")
    (tmp_path / "noise.db").write_bytes(b"noise" * 1_000)
    with pytest.raises(LedgerError, match="cannot be read as a ledger"):
        History(tmp_path / "noise.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError, match="nothing was recorded"):
        History(tmp_path / "empty.db")


def test_threads_lose_nothing(ledger):
    import threading

    limiter = Limiter(requests=per_second(1_000_000), on_event=ledger)

    def call():
        for _ in range(500):
            limiter.acquire_nowait()

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls_of(ledger)) == 4_000


@pytest.mark.parametrize(
    "strange",
    [
        Granted("api", {"dollars": Decimal("0.001")}, 0.0, "alice"),
        Granted("api", {"dollars": Fraction(1, 3)}, 0.0, "alice"),
        Granted("api", {"tokens": math.nan}, 0.0, "alice"),
        Granted("api", {"tokens": 10**400}, math.nan, "alice"),
        Granted("\ud800", {"\ud800": 1}, 0.0, "\ud800"),
        Answered("api", "\ud800", {"requests": 1}, {"input_tokens": math.inf}, 0.0, 1.0, 10**30),
        Answered("api", ["m"], {"requests": 1}, {}, 0.0, 1.0, 200),
        Reconfigured("\ud800", {"\ud800": (per_second(5),)}),
    ],
    ids=["decimal", "fraction", "nan", "huge", "surrogates", "answer", "no model", "limits"],
)
def test_one_strange_event_costs_no_other(tmp_path, strange):
    """It ended the thread that writes, or was tried again for ever, or the file could not be read any more."""
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        for event in (GRANTED, strange, GRANTED):
            ledger(event)
        assert ledger.flush(60)
    with History(path) as history:
        assert history.totals().calls == 2 + (type(strange) is not Reconfigured)
        assert [call.user for call in history.calls()].count("alice") >= 2


def test_dollars_may_be_decimals(ledger):
    limiter = Limiter(dollars="5/day", on_event=ledger)
    with limiter(dollars=Decimal("0.001")) as permit:
        permit.settle(dollars=Decimal("0.0005"))
    (call,) = calls_of(ledger)
    assert (call.dollars, call.settled) == (0.0005, {"dollars": 0.0005})


def test_prices_must_be_able_to_tell_dollars(tmp_path):
    """They were asked for the first time in the ledger's own thread."""
    with pytest.raises(
        ValueError, match=r"prices= must have a method dollars\(model, input_tokens, output_tokens\), not 0.5"
    ):
        Ledger(tmp_path / "usage.db", prices=0.5)


def test_a_flush_during_a_write_in_vain_is_heard(tmp_path, monkeypatch):
    """The next try is at once, and not when the thread would have looked again by itself."""
    refused, opened = [], ledgers.open_writer

    def refused_once(path, timeout):
        if not refused:
            refused.append(kept._writer.put_marker(ends=False))  # as the flush of another thread does now
            raise sqlite3.OperationalError("disk I/O error")
        return opened(path, timeout)

    monkeypatch.setattr(ledgers, "_TRY_AGAIN", 3_600.0)
    monkeypatch.setattr(ledgers, "open_writer", refused_once)
    with Ledger(tmp_path / "usage.db") as kept:
        kept(GRANTED)
        until = time.monotonic() + 60
        while not refused:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert refused[0].wait(60)
    assert users(tmp_path / "usage.db") == ["alice"]


def test_where_no_thread_can_be_started_it_is_said_and_tried_again(tmp_path, monkeypatch, caplog):
    """The call goes on, and its event is written as soon as a thread can be had."""

    def refused(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as poor, Ledger(tmp_path / "usage.db") as kept:
        poor.setattr(ledgers.threading.Thread, "start", refused)
        kept(GRANTED)
        assert "no thread can be started that writes" in kept.statistics().error
        poor.undo()
        kept(GRANTED)
        assert kept.flush(60)
    assert "no thread can be started that writes" in caplog.text
    assert users(tmp_path / "usage.db") == ["alice", "alice"]


class StopError(Exception):
    pass


def test_a_handler_that_raises_as_the_thread_is_started_lets_a_later_event_start_it(tmp_path, monkeypatch):
    """The lock of the one that starts it was held for ever, and nothing was written until the ledger was closed."""
    not_beside_coverage()
    armed = False

    def stop(*_):
        nonlocal armed
        if armed:
            armed = False
            raise StopError

    def refused(**_):
        raise RuntimeError("can't start new thread")

    def start_for_ever(writer):
        while True:
            writer.start()

    with Ledger(tmp_path / "usage.db") as kept:
        with monkeypatch.context() as poor, alarms(stop):
            poor.setattr(ledgers, "threading", SimpleNamespace(Thread=refused))
            poor.setattr(kept._writer, "_complain", lambda _: None)
            kept(GRANTED)
            for number in range(300):
                signal.setitimer(signal.ITIMER_REAL, 50e-6 + number % 50 * 1e-6, 1e-3)
                with pytest.raises(StopError):
                    armed = True
                    start_for_ever(kept._writer)
        kept(GRANTED)
        assert kept._writer.thread is not None
        assert kept.flush(60)
    assert users(tmp_path / "usage.db") == ["alice", "alice"]


def test_a_signal_handler_may_flush_what_the_call_that_it_interrupts_is_writing(tmp_path, monkeypatch):
    """It waited for that call, which waited for it."""

    def refused(_):
        raise RuntimeError("can't start new thread")

    kept = Ledger(tmp_path / "usage.db")
    write, flushed = kept._writer._write, []

    def interrupted():
        flushed.append(kept.flush())  # as a handler does, in the same thread
        return write()

    monkeypatch.setattr(kept._writer, "_write", interrupted)
    with monkeypatch.context() as poor:
        poor.setattr(ledgers.threading.Thread, "start", refused)
        kept(GRANTED)
    thread = threading.Thread(target=kept.flush, daemon=True)
    thread.start()
    thread.join(30)
    assert flushed == [False]
    kept.close()
    assert users(tmp_path / "usage.db") == ["alice"]


@pytest.mark.parametrize("end", ["flush", "close"])
def test_what_came_when_the_thread_could_not_be_started_is_written_all_the_same(tmp_path, monkeypatch, end):
    """Ctrl-C may strike in the start of the thread: `flush` said that all was in a file that there was not."""

    def interrupted(_):
        raise KeyboardInterrupt

    with Ledger(tmp_path / "usage.db") as kept:
        with monkeypatch.context() as struck, pytest.raises(KeyboardInterrupt):
            struck.setattr(ledgers.threading.Thread, "start", interrupted)
            kept(GRANTED)
        assert kept.statistics().pending == 1
        assert kept.flush(60) if end == "flush" else kept.close() is None
        assert kept.statistics().pending == 0
        assert users(kept.path) == ["alice"]


def test_a_start_that_is_cut_short_leaves_no_second_writer(tmp_path, monkeypatch):
    """Ctrl-C may strike when the thread has begun already, and nobody has noted that."""
    before = set(threading.enumerate())

    def writers():
        return set(threading.enumerate()) - before

    with Ledger(tmp_path / "usage.db") as kept:
        # The lock is held, so the threads come no further than it before there are five.
        with monkeypatch.context() as struck, kept._writer._starting:
            struck.setattr(ledgers.threading.Thread, "start", begun_and_interrupted)
            for _ in range(5):
                with pytest.raises(KeyboardInterrupt):
                    kept(GRANTED)
        kept(GRANTED)
        assert kept.flush(60)
        assert wait_until(lambda: len(writers()) == 1)
        assert users(kept.path) == ["alice"] * 6
    assert wait_until(lambda: not writers())
