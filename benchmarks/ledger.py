"""What a ledger costs a call: the hook by itself, and a limiter with it, beside what one would write instead.

By itself: handing an event to the ledger, beside appending it to a list, and beside a logging call to a file. In a
limiter: a call of two rates with `on_event=` a plain function, and with a ledger; what the ledger's own thread takes
meanwhile is in it.

    python benchmarks/ledger.py [--calls 20000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

from _report import table, verdict, where

from penstock import Limiter, per_second
from penstock.events import Granted
from penstock.usage import Ledger


def microseconds(call, calls):
    """Per call, of this thread alone: what the ledger's thread takes from it by the GIL counts, its own work does
    not."""
    began, cpu = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls * 1e6, (time.thread_time() - cpu) / calls * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    where("anyio")
    event = Granted("api", {"requests": 1, "tokens": 900}, 0.0, "alice")
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "usage.db", max_pending=10**7) as ledger:
        log = logging.getLogger("by hand")
        log.propagate = False
        log.setLevel(logging.INFO)
        handler = logging.FileHandler(Path(folder) / "calls.log")
        log.addHandler(handler)
        rows = []
        limits = {"requests": per_second(10**9), "tokens": per_second(10**12)}
        plain = Limiter(limits, on_event=lambda _: None)
        kept = Limiter(limits, on_event=ledger)
        candidates = {
            "append to a list": lambda: rows.append((time.time(), event)),
            "ledger(event)": lambda: ledger(event),
            "logging to a file": lambda: log.info("%s %s %s", event.flow, event.cost, event.waited),
            "limiter, on_event= a plain function": lambda: plain.acquire_nowait(tokens=900, flow="alice"),
            "limiter, on_event=ledger": lambda: kept.acquire_nowait(tokens=900, flow="alice"),
        }
        best = dict.fromkeys(candidates, (9000000000.0, 9000000000.0))
        for _ in range(args.rounds):
            for name, call in candidates.items():
                best[name] = min(best[name], microseconds(call, args.calls))
                ledger.flush(60)
                rows.clear()
        begin = time.perf_counter()
        for _ in range(args.calls):
            ledger(event)
        ledger.flush(60)
        written = args.calls / (time.perf_counter() - begin)
        handler.close()
    by_list = best["append to a list"][0]
    table(
        ("a call", "µs", "µs of CPU", "× a list"),
        [(name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall / by_list:.1f}") for name, (wall, cpu) in best.items()],
    )
    table(("", "calls/s"), [("written into the file by its thread", f"{written:,.0f}")])
    verdict("µs that a ledger takes of the caller", best["ledger(event)"][0], 5)


if __name__ == "__main__":
    main()
