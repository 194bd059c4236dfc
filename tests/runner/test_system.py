"""What an operating system lacks costs no row: each call is taken away that Windows does not have."""

from __future__ import annotations

import json
import os
import signal
import threading

import anyio
import pytest

from penstock.runner.files import Appended, OutputError
from penstock.runner.source import Lines, open_source
from penstock.runner.system import is_readable, pread, signals_here, sync_data, try_lock


@pytest.fixture
def numbers(tmp_path):
    """A file of the digits, open, with the place of reading at 3."""
    (tmp_path / "digits").write_bytes(b"0123456789")
    file = os.open(tmp_path / "digits", os.O_RDWR)
    os.lseek(file, 3, os.SEEK_SET)
    yield file
    os.close(file)


def read_at_a_place_leaves_the_other(file):
    assert pread(file, 2, 7) == b"78"
    assert pread(file, 5, 9) == b"9"
    assert pread(file, 5, 20) == b""
    assert os.read(file, 2) == b"34"


def test_reading_at_a_place_leaves_the_place_of_reading(numbers):
    read_at_a_place_leaves_the_other(numbers)


def test_reading_at_a_place_leaves_the_place_of_reading_on_a_poor_system_too(numbers, poor):
    """Before, it did not: a file that was looked through a second time was read on from there."""
    read_at_a_place_leaves_the_other(numbers)


def test_two_threads_may_read_at_places_on_a_poor_system(numbers, poor):
    wrong = []

    def read(at):
        wrong.extend(at for _ in range(2000) if pread(numbers, 1, at) != b"%d" % at)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_was_written_is_synced_on_a_poor_system(numbers, poor):
    sync_data(numbers)


def test_a_file_is_one_runs_own_where_there_are_locks(tmp_path):
    first = Appended(tmp_path / "out", "-o")
    with pytest.raises(OutputError, match="another run"):
        Appended(tmp_path / "out", "-o")
    first.close()


def test_a_file_is_written_where_there_are_no_locks(numbers, poor):
    assert try_lock(numbers)


def test_a_pipe_is_read_where_nobody_can_tell_whether_it_has_something(poor):
    out, into = os.pipe()
    assert is_readable(out, 0.0)
    os.write(into, b'{"model": "m"}\n')
    os.close(into)
    assert [line for _, line in Lines(out)] == [b'{"model": "m"}']
    os.close(out)


def test_a_file_is_read_twice_at_once_on_a_poor_system(tmp_path, poor):
    """The second look, which plans, does not move the first, which sends."""
    rows = [json.dumps({"number": number, "text": "x" * 100}).encode() for number in range(20_000)]
    (tmp_path / "rows").write_bytes(b"\n".join(rows) + b"\n")
    file = open_source(str(tmp_path / "rows"))
    lines = Lines(file)
    seen = []
    for number, (_, line) in enumerate(lines):
        seen.append(line)
        if number == 100:
            assert sum(len(batch) for _, batch in lines.batches()) == 20_000
    assert seen == rows
    os.close(file)


@pytest.mark.anyio
@pytest.mark.parametrize("lacking", [False, True], ids=["with receivers", "without receivers"])
async def test_a_signal_reaches_the_task_and_what_was_there_comes_back(lacking, request):
    before = signal.getsignal(signal.SIGTERM)
    if lacking:
        request.getfixturevalue("poor")
    with anyio.fail_after(30), signals_here(signal.SIGTERM) as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            async for number in signals:
                assert number == signal.SIGTERM
                break
    assert signal.getsignal(signal.SIGTERM) == before
