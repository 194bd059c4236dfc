"""Batches of rows from several processes and threads, under one limit, to one server that enforces it."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock import Limiter, Rate, runner, simulator
from penstock.runner import sender as senders
from penstock.runner.mix import Mix
from penstock.simulator import Latency, Simulation
from penstock.stores import RedisStore
from tests.runner.sending import chat
from tests.runner.service import ANSWER

ROOT = Path(__file__).resolve().parents[2]
KEY = {"authorization": "Bearer key"}


def workers(count, sender, rows, batch):
    """Processes that send `rows` rows each; started, and waiting for a line."""
    packed = base64.b64encode(pickle.dumps(sender)).decode()
    plans = [{"sender": packed, "first": number * rows, "rows": rows, "batch": batch} for number in range(count)]
    found = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runner.sending", json.dumps(plan)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for plan in plans
    ]
    for one in found:
        assert one.stdout.readline() == "ready\n"
    return found


def begin(those):
    for one in those:
        one.stdin.write("\n")
        one.stdin.flush()


def outcomes(those):
    return [json.loads(one.communicate(timeout=60)[0]) for one in those]


def four_processes_and_a_kill(valkey, prefix):
    """The share of the limit that was used while there were rows, and how many requests were refused."""
    rate, burst, each = 20, 40, 33
    limiter = Limiter(name="senders", store=RedisStore(valkey, prefix=prefix), requests=Rate(rate, 1, burst))
    with simulator.serve(Simulation(requests=f"{rate}/s burst {burst}", latency=Latency(0.1))) as server:
        those = workers(4, runner.Sender(server.base_url, limiter, headers=KEY), each, 11)
        begin(those)
        while len(server.statistics().admissions) < burst + 5:
            time.sleep(0.05)
        killed = those.pop()
        killed.kill()
        killed.communicate()
        told = outcomes(those)
        statistics = server.statistics()
    assert [one["answered"] for one in told] == [each] * 3
    moments = [one.at_ns / 1e9 for one in statistics.admissions]
    ends = [one["ended"] for one in told]
    since, until = moments[burst], moments[-1] - (max(ends) - min(ends)) - 0.2
    let_through = sum(since < at <= until for at in moments) + 2  # one was its turn, one is being counted
    return let_through / max(1.0, rate * (until - since)), sum(statistics.refused.values())


@pytest.mark.throughput
def test_four_processes_use_all_of_one_limit_and_meet_no_429_though_one_is_killed(valkey, prefix):
    """In one of three runs at least: a machine that keeps a process from running for a second shows nothing."""
    found = []
    while len(found) < 3 and not any(used >= 0.97 and not refused for used, refused in found):
        found.append(four_processes_and_a_kill(valkey, f"{prefix}-{len(found)}"))
    used, refused = found[-1]
    assert used >= 0.97, found
    assert not refused, found


def test_batches_of_several_threads_share_connections_and_limits():
    limiter = Limiter(requests=Rate(100, 1, 50))
    with (
        simulator.serve(Simulation(requests="100/s burst 50", latency=Latency(0.05), tolerance=0.5)) as server,
        runner.Sender(server.base_url, limiter, headers=KEY) as send,
        ThreadPoolExecutor(4) as pool,
    ):
        batches = [[chat(number) for number in range(first, first + 25)] for first in range(0, 150, 25)]
        before = threading.active_count()
        found = list(pool.map(send, batches))
        assert threading.active_count() <= before + 4 + 4  # the pool's, and those of one loop
        assert [one.custom_id for batch in found for one in batch] == [f"row-{number}" for number in range(150)]
        assert server.statistics().refused == {}


def test_what_was_learned_of_the_limits_is_kept_from_batch_to_batch():
    """Only the very first request of all has to come back before others leave."""
    with (
        simulator.serve(Simulation(requests="6000/min", latency=Latency(0.2))) as server,
        runner.Sender(server.base_url, headers=KEY) as send,
    ):
        took = []
        for first in range(0, 30, 10):
            began = time.monotonic()
            send([chat(number) for number in range(first, first + 10)])
            took.append(time.monotonic() - began)
    assert min(took[1:]) < took[0] - 0.1


class OutOfCredit(BaseHTTPRequestHandler):
    """Answers two requests, and then takes no more."""

    protocol_version = "HTTP/1.1"
    answered = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        type(self).answered += 1
        status, said = (200, ANSWER) if self.answered <= 2 else (402, b'{"error": {"message": "Insufficient Balance"}}')
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *args):
        pass


def test_what_was_answered_before_the_money_ended_comes_with_the_error():
    service = type("Service", (OutOfCredit,), {})  # which counts for itself
    with ThreadingHTTPServer(("127.0.0.1", 0), service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        stopped = pytest.raises(runner.RunStoppedError, match="Insufficient Balance")
        with runner.Sender(url, headers=KEY, max_in_flight=1) as send, stopped as caught:
            send([chat(number) for number in range(5)])
        server.shutdown()
    error = pickle.loads(pickle.dumps(caught.value))  # a worker's error travels
    assert error.code == "account"
    assert [one.custom_id for one in error.results] == ["row-0", "row-1"]
    assert error.untouched == (3, 4, 5)


@pytest.mark.parametrize("said", [(404, b'{"detail": "Not Found"}'), (200, b"<html>Sign in</html>")])
def test_a_batch_at_the_wrong_address_says_of_each_row_how_it_ended(said):
    class Wrong(OutOfCredit):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(said[0])
            self.send_header("content-length", str(len(said[1])))
            self.end_headers()
            self.wfile.write(said[1])

    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        stopped = pytest.raises(runner.RunStoppedError, match=rf"the first 20 answers .*{url}/chat/completions")
        with runner.Sender(url, headers=KEY, max_in_flight=2) as send, stopped as caught:
            send([chat(number) for number in range(50)])
        server.shutdown()
    error = pickle.loads(pickle.dumps(caught.value))
    failed = [one.number for one in error.results if one.error is not None]
    assert len(failed) == len(error.results) >= (20 if said[0] == 404 else 0)
    assert sorted([*failed, *error.untouched]) == list(range(1, 51))


def test_what_was_answered_before_a_defect_comes_with_the_error(monkeypatch):
    """Whatever breaks: an answer that was paid for is handed over."""
    taken = []

    def take(mix, levels, whole=Mix.take):
        taken.append(mix)
        if len(taken) > 2:
            raise ZeroDivisionError("a defect")
        return whole(mix, levels)

    monkeypatch.setattr(Mix, "take", take)
    serving = simulator.serve(Simulation(requests="600/min", latency=Latency(0.01)))
    stopped = pytest.raises(runner.RunStoppedError, match="ZeroDivisionError: a defect")
    with serving as server, runner.Sender(server.base_url, headers=KEY, max_in_flight=1) as send, stopped as caught:
        send([chat(number) for number in range(5)])
    assert caught.value.code == "internal"
    assert [one.custom_id for one in caught.value.results] == ["row-0", "row-1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is a thing of POSIX")
@pytest.mark.parametrize("does", ["sends", "sends first", "drops it"])
def test_a_fork_makes_connections_of_its_own(does):
    """And leaves those of its parent alone."""
    with simulator.serve(Simulation(requests="600/min", latency=Latency(0.01))) as server:
        send = runner.Sender(server.base_url, headers=KEY)
        if does != "sends first":
            send([chat(0)])
        child = os.fork()
        if not child:
            try:
                if does == "drops it":
                    del send
                    gc.collect()
                    os._exit(0)
                os._exit(0 if send([chat(1)])[0].error is None else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert send([chat(2)])[0].error is None
        send.close()


def test_what_is_wrong_with_a_sender_is_raised_by_its_batch(monkeypatch):
    """As it is: nothing was sent, so nothing is to be handed over."""
    with pytest.raises(ValueError, match="max_in_flight must be a whole number"):
        runner.Sender("http://localhost:9/v1", max_in_flight=0)([chat(0)])

    def no_loop(live):
        live.close()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "run", no_loop)
    with pytest.raises(OSError, match="Too many open files"):
        runner.Sender("http://localhost:9/v1")([chat(0)])


def test_a_thread_that_is_interrupted_ends_its_batch():
    """What was not sent by then is not sent, and the next batch finds all as it was."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with (
        simulator.serve(Simulation(requests="60/min burst 2", latency=Latency(0.01))) as server,
        runner.Sender(server.base_url, Limiter(requests=Rate(60, 60, 2)), headers=KEY) as send,
    ):
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(KeyboardInterrupt):
                send([chat(number) for number in range(100)])
        finally:
            signal.signal(signal.SIGALRM, before)
        sent = len(server.statistics().admissions)
        assert send([chat(0)])[0].error is None
        assert len(server.statistics().admissions) <= sent + 2


def test_a_batch_that_is_under_way_while_another_thread_closes_says_so_and_keeps_what_is_there():
    with simulator.serve(Simulation(latency=Latency(0.3))) as server:
        send = runner.Sender(server.base_url, headers=KEY, max_in_flight=2)

        def close():
            while len(server.statistics().admissions) < 3:
                time.sleep(0.01)
            send.close()

        threading.Thread(target=close).start()
        with pytest.raises(runner.RunStoppedError, match="closed by another thread") as caught:
            send([chat(number) for number in range(40)])
        assert caught.value.code == "closed"
        assert 1 <= len(caught.value.results) < 40
        assert send([chat(0)])[0].error is None  # a new one
        send.close()
        send.close()


def test_a_batch_that_comes_while_another_thread_closes_is_told_so(monkeypatch):
    """At any moment of the end: behind the loop's last step nobody would have taken it, and it waited for ever."""
    with simulator.serve(Simulation(requests="600/min")) as server, runner.Sender(server.base_url, headers=KEY) as send:
        send([chat(0)])
        at_the_end, may_end, told = threading.Event(), threading.Event(), []
        end = asyncio.SelectorEventLoop.close

        def end_later(loop):
            at_the_end.set()
            may_end.wait(30)
            end(loop)

        def late(this):
            with pytest.raises(CancelledError):
                this.call([chat(1)], [None], {})
            told.append(True)

        this = send._open
        monkeypatch.setattr(asyncio.SelectorEventLoop, "close", end_later)
        closing = threading.Thread(target=send.close)
        closing.start()
        assert at_the_end.wait(30)
        batch = threading.Thread(target=late, args=(this,), daemon=True)
        batch.start()
        batch.join(10)
        may_end.set()
        closing.join()
        late(this)  # when it is over
        assert told == [True, True]


def test_a_sender_that_is_collected_in_its_own_thread_ends_it(caplog):
    """A thread cannot wait for itself; and the collector runs in whichever thread comes to it."""
    with simulator.serve(Simulation(requests="600/min")) as server:
        send = runner.Sender(server.base_url, headers=KEY)
        send([chat(0)])
        this = send._open
        this._loop.call_soon_threadsafe(this.close)
        this._thread.join(30)
        assert not this._thread.is_alive()
    assert caplog.records == []


def test_a_thread_that_nobody_has_heard_of_ends(monkeypatch):
    """Ctrl-C came while it began."""

    interruptions = [KeyboardInterrupt]

    def interrupted(future, timeout=None, result=Future.result):
        if interruptions:
            raise interruptions.pop()
        return result(future, timeout)

    with simulator.serve(Simulation(requests="600/min")) as server, runner.Sender(server.base_url, headers=KEY) as send:
        before = set(threading.enumerate())
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Future, "result", interrupted)
            send([chat(0)])
        for thread in set(threading.enumerate()) - before:
            thread.join(30)
        assert not set(threading.enumerate()) - before
        assert send([chat(0)])[0].error is None


def test_a_signal_handler_may_close_a_sender_that_connects(monkeypatch):
    """It waited for the batch that it interrupts, which waited for it."""
    connect, found = senders._Open, []

    def interrupted(*arguments):
        send.close()  # as a handler does, in the same thread
        return connect(*arguments)

    monkeypatch.setattr(senders, "_Open", interrupted)
    with simulator.serve(Simulation(requests="600/min")) as server:
        send = runner.Sender(server.base_url, headers=KEY)
        thread = threading.Thread(target=lambda: found.extend(send([chat(0)])), daemon=True)
        thread.start()
        thread.join(30)
        assert [one.error for one in found] == [None]
        send.close()


def test_a_sender_that_is_dropped_ends_its_thread():
    with simulator.serve(Simulation(requests="600/min")) as server:
        send = runner.Sender(server.base_url, headers=KEY)
        send([chat(0)])
        assert "penstock sender" in {one.name for one in threading.enumerate()}
        del send
        gc.collect()
        assert "penstock sender" not in {one.name for one in threading.enumerate()}


def test_a_key_that_the_environment_holds_does_not_travel(monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", "sk-of-the-team")
    sender = runner.Sender(
        "http://localhost:9/v1", headers={"authorization": "Bearer sk-of-the-team", "x-team": "blue"}
    )
    packed = pickle.dumps(sender)
    assert b"sk-of-the-team" not in packed
    monkeypatch.setenv("SERVICE_KEY", "sk-of-the-worker")
    assert dict(pickle.loads(packed)._server.headers) == {"authorization": "Bearer sk-of-the-worker", "x-team": "blue"}
    monkeypatch.delenv("SERVICE_KEY")
    with pytest.raises(ValueError, match="SERVICE_KEY, which is not set here"):
        pickle.loads(packed)


@pytest.mark.parametrize("value", ["sk-of-the-team", "Bearer sk-of-the-team", "session=sk-of-the-team; theme=dark"])
@pytest.mark.parametrize("name", ["x-api-key", "API-Key", "cookie"])
def test_wherever_a_header_holds_it(monkeypatch, name, value):
    monkeypatch.setenv("SERVICE_KEY", "sk-of-the-team")
    packed = pickle.dumps(runner.Sender("http://localhost:9/v1", headers={name: value}))
    assert b"sk-of-the-team" not in packed
    assert pickle.loads(packed)._server.headers == {name: value}


def test_a_key_that_no_variable_holds_travels_as_it_is():
    sender = runner.Sender("http://localhost:9/v1", headers={"authorization": "Bearer sk-nobody-else-has-this"})
    assert pickle.loads(pickle.dumps(sender))._server.headers == {"authorization": "Bearer sk-nobody-else-has-this"}
