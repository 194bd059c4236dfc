"""`penstock run` where there is a lot: a million rows, answers that take long, thousands in flight.

Everything is real: processes, sockets, files, and the clock. The server answers each request with the same 300 bytes,
at once or after the latency. Memory is the largest resident set of the whole process, CPU all that it used.

    python benchmarks/long_runs.py [--rows 1000000] [--latency 20]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from _report import table, verdict, where
from clients import run, served, write_rows

IN_FLIGHT = 200


def slow_answers(count, in_flight, latency):
    """Waves of requests that are all under way at once: nothing beats a latency for each wave."""
    with tempfile.TemporaryDirectory() as folder, served(latency) as base:
        write_rows(Path(folder, "in.jsonl"), count)
        used, summary = run(folder, base, in_flight)
    ideal = latency * count / in_flight
    table(
        ["rows", "in flight", "latency s", "ideal s", "makespan s", "of the ideal", "CPU s"],
        [
            [
                f"{count:,}",
                f"{in_flight:,}",
                f"{latency:g}",
                f"{ideal:g}",
                f"{summary['makespan']:.1f}",
                f"{summary['makespan'] / ideal:.2f}",
                f"{cpu(used):.1f}",
            ]
        ],
    )
    verdict("makespan against the ideal, answers that take long", summary["makespan"] / ideal, 1.15)


def many_rows(count):
    """Memory by the number of rows; then the same command again, with nine of ten rows answered."""
    lines, peaks = [], []
    with served() as base:
        for rows in (count // 100, count // 10, count):
            with tempfile.TemporaryDirectory() as folder:
                write_rows(Path(folder, "in.jsonl"), rows)
                used, summary = run(folder, base, IN_FLIGHT)
                peaks.append(megabytes(used))
                lines.append([f"{rows:,} rows", f"{cpu(used):.1f}", f"{summary['makespan']:.1f}", f"{peaks[-1]:.0f}"])
                if rows == count:
                    done = count * 9 // 10
                    forget(Path(folder), done)
                    again, _ = run(folder, base, IN_FLIGHT, "--rows", str(done + 1))
                    lines.append(
                        [f"to row {done + 1:,} of them again", f"{cpu(again):.1f}", "", f"{megabytes(again):.0f}"]
                    )
    table(["", "CPU s", "makespan s", "largest RSS, MB"], lines)
    verdict(f"RSS with {count:,} rows against {count // 100:,}", peaks[-1] / peaks[0], 1.2)
    verdict("CPU s to the first new row", cpu(again), 5)
    verdict("MB then", megabytes(again), 300)


def forget(folder, done):
    """Take the last results from a run, as if it had been killed before them."""
    cut(folder / "out.jsonl", done, b"")
    cut(folder / "out.jsonl.journal", done, b'{"done"')


def cut(path, count, beginning):
    """Cut a file behind so many lines that begin so."""
    with path.open("rb") as file:
        end = 0
        for line in file:
            if not count:
                break
            end += len(line)
            count -= line.startswith(beginning)
    os.truncate(path, end)


def cpu(used):
    return used.ru_utime + used.ru_stime


def megabytes(used):
    return used.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--latency", type=float, default=20.0, help="seconds; 0 leaves that part out")
    options = parser.parse_args()
    where("penstock", "aiohttp")
    if options.latency:
        slow_answers(10_000, 5_000, options.latency)
    if options.rows:
        many_rows(options.rows)


if __name__ == "__main__":
    main()
