"""Leases: what a longer lease buys, and what it costs the processes that share the limit.

    python benchmarks/leases.py                         # both tables: a few seconds a row
    python benchmarks/leases.py --seconds 5 --store valkey

The first table is one process with 50 tasks on a limit that is never reached: grants a second, and store calls per
grant. The second is four processes on one limit of 2,000 a second: three of 50 tasks that always want more, and a light
one with a single task, which asks every 20 ms. Excess is the most that any span of time had beyond burst + rate × span,
by the moments of all grants on the clock that the processes of one machine share; below 0 is what the lease keeps off
the burst. Without a lease a grant is seen a moment after it was admitted, so a little above 0 is lateness, and not
quota.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from _report import table, where

TESTS = Path(__file__).resolve().parent.parent / "tests" / "stores"
LEASEHOLDER = str(TESTS / "leaseholder.py")
_spec = importlib.util.spec_from_file_location("penstock_test_servers", TESTS / "servers.py")
servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(servers)

RATE, BURST = 2_000, 4_500
HEAVY = {"waiters": 50, "work": 0.0}
LIGHT = {"waiters": 1, "work": 0.02}


def run(store, lease, crew, seconds, **plan):
    """Let the processes of `crew` run side by side; return what each reports, and the moments of all grants."""
    number = run.count = getattr(run, "count", 0) + 1
    kind, address = store
    place = [kind, f"{address}.{number}"] if kind == "sqlite" else [kind, address, f"bench-leases-{number}"]
    plans = [
        {"store": place, "lease": lease, "seconds": seconds, "seed": i, **plan, **who} for i, who in enumerate(crew)
    ]
    command = [sys.executable, LEASEHOLDER]
    processes = [subprocess.Popen([*command, json.dumps(plan)], stdout=subprocess.PIPE, text=True) for plan in plans]
    lines = [[] for _ in processes]
    readers = [
        threading.Thread(target=lambda process=process, into=into: into.extend(process.stdout))
        for process, into in zip(processes, lines, strict=True)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for process in processes:
        process.wait()
    moments = sorted(float(line) for each in lines for line in each[:-1])
    return [json.loads(each[-1]) for each in lines], moments


def excess(moments, rate, burst):
    worst = low = -math.inf
    for count, moment in enumerate(moments):
        low = max(low, rate * moment - count)
        worst = max(worst, count + 1 - rate * moment + low)
    return worst - burst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--store", default="sqlite,valkey")
    options = parser.parse_args()
    directory = tempfile.mkdtemp()
    stores = {"sqlite": ("sqlite", f"{directory}/limits.db")}
    server = None
    if "valkey" in options.store:
        url = servers.outside_url()
        if url is None:
            server = servers.Server(servers.binaries()["valkey"])
            url = server.url
        stores["valkey"] = ("redis", url)
    where("anyio", "redis")
    try:
        rows = []
        for name in options.store.split(","):
            for lease in (None, 0.05, 0.5):
                ((done,), _) = run(
                    stores[name], lease, [HEAVY], options.seconds, rate=10**6, burst=2 * 10**6, quiet=True
                )
                rows.append((
                    f"{name}, {'no lease' if lease is None else f'{lease:g} s'}",
                    f"{done['granted'] / options.seconds:,.0f}",
                    f"{done['calls'] / done['granted']:.5f}",
                    f"{1e3 * done['p50']:.3f}",
                    f"{1e3 * done['p99']:.2f}",
                ))  # fmt: skip
        print("One process, 50 tasks, a limit that is never reached\n")
        table(("store, lease", "grants/s", "calls per grant", "wait p50 ms", "wait p99 ms"), rows)
        rows = []
        for name in options.store.split(","):
            for lease in (None, 0.1, 0.5, 2.0):
                crew = [HEAVY, HEAVY, HEAVY, LIGHT]
                done, moments = run(stores[name], lease, crew, options.seconds, rate=RATE, burst=BURST)
                span = moments[-1] - moments[0]
                possible = BURST - RATE * (lease or 0.0) + RATE * span
                rows.append((
                    f"{name}, {'no lease' if lease is None else f'{lease:g} s'}",
                    f"{len(moments) / span:,.0f}",
                    f"{100 * len(moments) / possible:.1f} %",
                    f"{sum(each['calls'] for each in done) / len(moments):.4f}",
                    f"{excess(moments, RATE, BURST):,.1f}",
                    f"{1e3 * done[3]['p50']:.1f}",
                    f"{1e3 * done[3]['p99']:.1f}",
                    f"{1e3 * done[0]['p50']:.1f}",
                ))  # fmt: skip
        print(f"Three heavy processes and a light one on {RATE:,}/s with a burst of {BURST:,}\n")
        table(
            (
                "store, lease", "grants/s", "of what is left", "calls per grant", "worst excess", "light: p50 ms",
                "light: p99 ms", "heavy: p50 ms",
            ),
            rows,
        )  # fmt: skip
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
