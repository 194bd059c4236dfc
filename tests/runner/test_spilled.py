"""Numbers that a temporary file holds: custom_ids that were seen, and where the answers of rows are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runner.files import OutputError, beside
from penstock.runner.output import Results
from penstock.runner.source import Row, custom_id_digest
from penstock.runner.spilled import IdSet, NumberTable

STATUS = Path("/proc/self/status")

only_linux = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says how much memory is held")

NO_ROOM = r"no room for a temporary file of 20 bytes a row \(database or disk is full\)"


def held():
    """Kilobytes of memory that are no file's."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


def digest(number):
    return number * 0x9E3779B97F4A7C15 & ((1 << 64) - 1)


@given(st.lists(st.text(max_size=3) | st.integers(0, 300)))
def test_a_set_of_names_is_a_set_of_names(ids):
    """7 and "7" are one: a program that joins results to requests may read either."""
    names, expected = IdSet(), set()
    for name in ids:
        assert names.add(custom_id_digest(name)) == (str(name) not in expected)
        expected.add(str(name))


@only_linux
def test_names_take_no_memory_however_many_there_are():
    names = IdSet()
    assert all(names.add(digest(number)) for number in range(60_000))
    before = held()
    assert all(names.add(digest(number)) for number in range(60_000, 160_000))
    assert held() - before < 400  # kB; 8 bytes for each would be 780
    assert not any(names.add(digest(number)) for number in range(0, 160_000, 100))


def test_names_without_room_are_said():
    """And not taken for new ones, nor for a fault of the row."""
    names = IdSet()
    assert names.add(1)
    names._cursor.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OutputError, match=NO_ROOM):
        any(not names.add(number) for number in range(2, 100_000))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1 << 62))))
def test_a_table_of_numbers_is_a_dict_in_the_order_of_its_keys(pairs):
    table, expected = NumberTable(), dict(pairs)
    table.put(pairs[: len(pairs) // 2])
    table.put(pairs[len(pairs) // 2 :])
    assert list(table.in_order()) == [expected[key] for key in sorted(expected)]
    assert [table[key] for key in expected] == list(expected.values())
    with pytest.raises(KeyError):
        table[51]


def test_a_table_without_room_is_said():
    table = NumberTable()
    table.put([(1, 1)])
    table._cursor.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OutputError, match=NO_ROOM):
        table.put((number, number) for number in range(100_000))


def answer(results, numbers):
    for number in numbers:
        results.answer(Row(number, number, "/v1/x", "m", b"{}", {}, number), 200, None, b"{}")


def most_held(out, count):
    """Answer so many rows, the last one first, and put them in order; the bytes that Python held at most for it."""
    tracemalloc.start()
    try:
        with Results(out, beside(out, ".errors.jsonl"), order="input") as results:
            answer(results, range(count, 0, -1))
            results.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_results_in_the_order_of_the_input_take_no_memory_however_many_there_are(tmp_path):
    """Neither while they come, in any order, nor when they are put in order. It was 16 bytes a row."""
    few = most_held(tmp_path / "few.jsonl", 2_000)
    many = most_held(tmp_path / "many.jsonl", 20_000)
    assert many - few < 50_000  # 16 bytes for each would be 290,000
    lines = (tmp_path / "many.jsonl").read_bytes().splitlines()
    ids = [line.split(b'"custom_id":')[1].split(b",")[0] for line in lines]
    assert ids == [b"%d" % number for number in range(1, 20_001)]


@only_linux
def test_a_table_takes_no_memory_however_many_numbers_it_has():
    table = NumberTable()
    table.put((number, number) for number in range(160_000, 100_000, -1))
    before = held()
    table.put((number, number) for number in range(100_000, 0, -1))
    assert held() - before < 400  # kB


def test_an_answer_without_room_for_its_place_is_kept(tmp_path):
    """It was paid for: the journal has it, and the next run puts it in order."""
    out = tmp_path / "out.jsonl"
    with Results(out, beside(out, ".errors.jsonl"), order="input") as results:
        answer(results, [1])
        results._offsets._cursor.connection.close()
        with pytest.raises(OutputError, match="no room for a temporary file"):
            answer(results, [2])
    with Results(out, beside(out, ".errors.jsonl"), order="input") as results:
        assert results.found == 2
