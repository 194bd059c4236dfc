"""What the machine and the network do to a run: processes are stopped, disks fill up, servers come back as another process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import aiohttp
import pytest

from penstock import simulator
from penstock.cli import main
from penstock.simulator import Latency, Simulation
from tests.cli.commands import KEY, LIMITS, count, lines_of, started, wait_for, write
from tests.stores.servers import free_port


def names_in(path):
    """The rows that are answered, each once."""
    names = [result["custom_id"] for result in lines_of(path)]
    assert len(names) == len(set(names))
    return set(names)


def test_a_run_that_is_stopped_for_longer_than_its_time_out_loses_no_answer(folder):
    """SIGSTOP and SIGCONT. What was answered meanwhile was paid for, so nothing is sent again."""
    write(folder, range(60))
    with simulator.serve(Simulation(latency=Latency(median=1.0))) as server:
        process = started(
            "run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits", LIMITS, "--timeout", "3"
        )
        wait_for(lambda: server.statistics().admitted == 60)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: server.statistics().answered == 60)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=180)
        assert process.returncode == 0, said
        assert server.statistics().admitted == 60
    assert len(names_in(folder / "out.jsonl")) == 60
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["sent"], summary["lost"], summary["possibly_billed_twice"]) == (60, 0, 0)


def serving(port, *options):
    """A server as a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock", "simulate", "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def listens():
        assert server.poll() is None, server.communicate()
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    return server


def end(server):
    server.kill()
    server.communicate()


@pytest.fixture
def port():
    return free_port()


def test_a_server_that_is_stopped_for_a_while_costs_no_row(folder, port):
    write(folder, range(200))
    server = serving(port, "--latency", "0.2", "--limits", "requests=6000/min")
    process = started(
        "run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1",
        "--limits", "requests=3000/min burst 20",
    )  # fmt: skip
    wait_for(lambda: count(folder / "out.jsonl") >= 40)
    server.send_signal(signal.SIGSTOP)
    time.sleep(3)
    server.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=180)
    end(server)
    assert process.returncode == 0, said
    assert len(names_in(folder / "out.jsonl")) == 200
    assert json.loads((folder / "out.summary.json").read_text())["sent"] == 200


def test_a_server_that_is_killed_comes_back_as_another_process(folder, port):
    """What was under way is sent again and said; nothing is lost, and nothing is used up by knocking at a closed door."""
    write(folder, range(200))
    options = ("--latency", "0.2", "--limits", "requests=6000/min")
    server = serving(port, *options)
    process = started(
        "run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1",
        "--limits", "requests=3000/min burst 20",
    )  # fmt: skip
    wait_for(lambda: count(folder / "out.jsonl") >= 40)
    end(server)
    time.sleep(2)
    assert process.poll() is None
    server = serving(port, *options)
    said = process.communicate(timeout=180)
    end(server)
    assert process.returncode == 0, said
    assert len(names_in(folder / "out.jsonl")) == 200
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["sent"] - 200 == summary["retries"] == summary["lost"]
    assert summary["possibly_billed_twice"] <= summary["lost"]


class Connects:
    """What the event loop's connections meet: when each began and how many were under way then."""

    def __init__(self, monkeypatch, host=None):
        self.tried = []
        self.refused = []
        loop, ours = asyncio.selector_events.BaseSelectorEventLoop, self
        connect = loop.sock_connect

        async def sock_connect(self, sock, address):
            ours.tried.append(time.monotonic())
            try:
                await connect(self, sock, address)
            except OSError:
                ours.refused.append((ours.tried[-1], time.monotonic()))
                raise

        monkeypatch.setattr(loop, "sock_connect", sock_connect)


def all_answered_beside(trouble, folder, base_url):
    """Run 200 rows while another thread makes trouble; the summary, which knows of each that was sent again."""
    thread = threading.Thread(target=trouble)
    thread.start()
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", base_url, "--quiet"]
    code = main([*command, "--limits", "requests=3000/min burst 20"])
    thread.join()
    assert code == 0
    assert len(names_in(folder / "out.jsonl")) == 200
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["sent"] - 200, summary["failed"]) == (summary["lost"], 0)
    return summary


def test_a_server_that_is_lost_is_knocked_at_by_one_row_at_a_time_and_costs_none(folder, monkeypatch, port):
    """Over real sockets, for seconds that grow as minutes would: one pause for all, one probe, and a connection that
    is refused is no attempt."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(folder, range(200))
    options = ("--latency", "0.2", "--limits", "requests=6000/min")
    servers, connects, gone = [serving(port, *options)], Connects(monkeypatch), []

    def lose():
        wait_for(lambda: count(folder / "out.jsonl") >= 40)
        end(servers.pop())
        gone.append(time.monotonic())
        time.sleep(4)
        gone.append(time.monotonic())
        servers.append(serving(port, *options))

    summary = all_answered_beside(lose, folder, f"http://127.0.0.1:{port}/v1")
    end(servers.pop())
    # Those that were under way knock once each; then one goes at a time, each later than the one before.
    probes = [moment for moment, _ in connects.refused if gone[0] + 1 < moment < gone[1]]
    assert 1 <= len(probes) <= 4
    assert len(connects.refused) <= summary["lost"] + 20 + 8
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert gaps == sorted(gaps)


def test_a_name_that_no_longer_resolves_costs_no_row(folder, monkeypatch, port):
    """The server moves, and the name server is away in the same moment: names are asked for again, one at a time."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(folder, range(200))
    resolve, asked, away = socket.getaddrinfo, [], threading.Event()

    def resolve_or_not(host, *more, **options):
        if host != "service.test":
            return resolve(host, *more, **options)
        if away.is_set():
            asked.append(time.monotonic())
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_or_not)
    connector = aiohttp.TCPConnector  # which remembers for a minute where a name leads to
    monkeypatch.setattr(aiohttp, "TCPConnector", lambda **more: connector(**{**more, "use_dns_cache": False}))
    options = ("--latency", "0.2", "--limits", "requests=6000/min")
    servers = [serving(port, *options)]

    def lose():
        wait_for(lambda: count(folder / "out.jsonl") >= 40)
        away.set()
        end(servers.pop())
        servers.append(serving(port, *options))
        time.sleep(2)
        away.clear()

    summary = all_answered_beside(lose, folder, f"http://service.test:{port}/v1")
    end(servers.pop())
    assert 1 <= len(asked) <= summary["lost"] + 20 + 8


def test_a_name_that_does_not_resolve_is_said_and_ends_the_run(folder, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://nowhere.invalid/v1", "--limits", LIMITS]
    assert main([*command, "--give-up-after", "1"]) == 5
    said = capsys.readouterr().err
    assert "cannot connect to nowhere.invalid:80: " in said
    assert "the server was not reached even once" in said
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["sent"], summary["untouched"]) == (0, 20)


def test_a_name_that_resolves_after_a_while_costs_nothing(folder, monkeypatch):
    """The network comes up later than the run, as after the start of a machine."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    resolve, asked = socket.getaddrinfo, []

    def resolve_late(host, *more, **options):
        if host != "service.test":
            return resolve(host, *more, **options)
        asked.append(time.monotonic())
        if asked[-1] < asked[0] + 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    with simulator.serve(Simulation(latency=Latency(median=0.05))) as server:
        base = server.base_url.replace("127.0.0.1", "service.test")
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--base-url", base, "--limits", LIMITS]) == 0
        assert server.statistics().admitted == 20
    assert len(asked) > 2
    assert json.loads((folder / "out.summary.json").read_text())["sent"] == 20


def test_a_proxy_that_is_not_there_is_named_and_no_proxy_goes_past_it(folder, monkeypatch, capsys, port):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with simulator.serve(Simulation(latency=Latency(median=0.05))) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits", LIMITS]
        assert main([*command, "--give-up-after", "0.5"]) == 5
        said = capsys.readouterr().err
        assert f"cannot connect to 127.0.0.1:{port}: " in said
        assert "secret" not in said
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert main(command) == 0
        assert server.statistics().admitted == 20


# Connections that are reset


@contextmanager
def resetting(address, every, burst):
    """A relay that tears down all its connections, and each new one, for `burst` of every `every` seconds."""
    host, _, port = address.removeprefix("http://").removesuffix("/v1").partition(":")
    ready, ports, open_ones, loop = threading.Event(), [], set(), asyncio.new_event_loop()

    def is_bad():
        return time.monotonic() % every < burst

    def reset(writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        open_ones.discard(writer)

    async def pump(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader, writer):
        open_ones.add(writer)
        if is_bad():
            reset(writer)
            return
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
        open_ones.discard(writer)

    async def serve():
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        while ports:
            if is_bad():
                for writer in list(open_ones):
                    reset(writer)
            await asyncio.sleep(0.01)
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.1)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(60)
    yield f"http://127.0.0.1:{ports[0]}/v1"
    ports.clear()
    thread.join()
    loop.close()


def test_bursts_of_resets_cost_no_row(folder, monkeypatch):
    """Each is answered once; what was under way is sent again, and said."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(folder, range(300))
    with (
        simulator.serve(Simulation(latency=Latency(median=0.1))) as server,
        resetting(server.base_url, 1.0, 0.3) as address,
    ):
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", address, "--quiet"]
        assert main([*command, "--limits", "requests=6000/min burst 50"]) == 0
        admitted = server.statistics().admitted
    assert len(names_in(folder / "out.jsonl")) == 300
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["retries"] == summary["sent"] - 300 > 0
    assert 300 <= admitted <= 300 + summary["possibly_billed_twice"]


# Folders that may not be written to


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="root lets go of its rights by setpriv"
)
def test_a_folder_that_becomes_read_only_is_said_and_no_answer_is_lost(folder):
    write(folder, range(100))
    (folder / "ours").mkdir()
    command = [
        "setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search",
        sys.executable, "-m", "penstock", "run", "in.jsonl", "-o", "ours/out.jsonl",
    ]  # fmt: skip
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with simulator.serve(Simulation(latency=Latency(median=0.05))) as server:
        command += ["--base-url", server.base_url, "--limits", "requests=3000/min burst 5"]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        with subprocess.Popen(command, env=environment, **options) as process:
            wait_for(lambda: count(folder / "ours/out.jsonl") >= 10)
            (folder / "ours").chmod(0o555)
            said = process.communicate(timeout=180)
        assert process.returncode == 2, said
        assert "penstock: cannot write ours/out.summary.json: Permission denied" in said[1]
        assert len(names_in(folder / "ours/out.jsonl")) == 100
        again = subprocess.run(command, env=environment, timeout=180, check=False, **options)
        assert again.returncode == 2
        assert (
            again.stderr == "penstock: cannot write ours/out.summary.json: no permission to write in the folder ours\n"
        )
        assert server.statistics().admitted == 100


# Disks that fill up


SIZES = {"-o": 64, "--journal": 64, "--errors": 64, "--ledger": 128, "--report": 4}
"""kB of a disk that is too small for a file."""


@pytest.fixture
def mounted(tmp_path):
    """Makes a disk of so many kB, which may grow."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}k", *options)), "none", where]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this root may not mount a disk")
        return where

    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root may mount a disk, by the command mount")
    yield mount
    subprocess.run(["umount", "-l", where], check=False, capture_output=True)


@pytest.mark.parametrize("option", list(SIZES))
def test_a_disk_that_fills_up_is_said_and_the_next_run_goes_on(folder, monkeypatch, capsys, mounted, option):
    """Each row is answered once in the end, and none is paid for twice unknowingly."""
    disk = mounted(SIZES[option])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(folder, range(400), b"{torn\n" * 1_000)
    files = {"-o": "out.jsonl", "--journal": "journal", "--errors": "e.jsonl", "--ledger": "l.db", "--report": "r.html"}
    files[option] = str(disk / files[option])
    with simulator.serve(Simulation(latency=Latency(median=0.01))) as server:
        command = ["run", "in.jsonl", *sum(files.items(), ()), "--base-url", server.base_url]
        command += ["--limits", "requests=60000/min"]
        code, said = main(command), capsys.readouterr().err
        # The work is done without these two, and some rows failed as it is.
        assert code == (3 if option in {"--ledger", "--report"} else 2), said
        assert all(line.startswith("penstock: ") for line in said.splitlines()), said
        assert "No space left on device" in said or "full" in said
        assert "mistake" not in said
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert main(command) == 3, capsys.readouterr().err
        assert len(names_in(folder / files["-o"])) == 400
        summary = json.loads((folder / files["-o"]).with_name("out.summary.json").read_text())
        assert server.statistics().admitted - 400 <= summary["possibly_billed_twice"]


def test_files_that_may_not_grow_any_more_end_the_run_while_answers_can_be_kept(folder, monkeypatch):
    """`ulimit -f`, and it says that it is that."""
    write(folder, range(400))
    with simulator.serve(Simulation(latency=Latency(median=1.0, sigma=0.1))) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--max-in-flight", "20"]
        most = (100_000, 100_000)
        process = started(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, most))
        said = process.communicate(timeout=180)[1]
        assert process.returncode == 2
        assert "out.jsonl.journal is nearly full (" in said
        assert "kB are left by ulimit -f): 2" in said
        before = server.statistics()
        assert 20 <= before.admitted == before.answered == count(folder / "out.jsonl") < 400
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "--quiet"]) == 0
        assert count(folder / "out.jsonl") == server.statistics().admitted == 400


def test_a_disk_without_room_for_the_summary_is_said_and_every_answer_is_kept(folder, monkeypatch, capsys, mounted):
    """The results are a link to another disk; nothing half is left beside it."""
    disk = mounted(4)
    (disk / "out.jsonl").symlink_to(folder / "out.jsonl")
    (disk / "room").write_bytes(bytes(4096))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with simulator.serve(Simulation(latency=Latency(median=0.01))) as server:
        command = ["run", "in.jsonl", "-o", str(disk / "out.jsonl"), "--errors", "e.jsonl", "--journal", "journal"]
        command += ["--base-url", server.base_url, "--limits", LIMITS]
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.err == f"penstock: cannot write {disk}/out.summary.json: No space left on device\n"
        assert said.out.startswith("20 rows: 20 answered")
        assert sorted(path.name for path in disk.iterdir()) == ["out.jsonl", "room"]
        (disk / "room").unlink()
        assert main(command) == 0
        assert server.statistics().admitted == 20
    assert json.loads((disk / "out.summary.json").read_text())["skipped"] == len(names_in(folder / "out.jsonl")) == 20
