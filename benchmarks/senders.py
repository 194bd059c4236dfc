"""Four processes that send batches of rows under one limit of a shared store, to one server that enforces it.

Each has a `penstock.runner.Sender`, unpickled as Ray Data, Dask or Spark would, and its own part of the rows. The
server is the simulator, the store a Valkey or Redis process; both are on this machine, so they and the workers share
its cores. What is counted: what the server let through while all had rows, beyond the burst that was there at first, as
a share of the limit; and what it refused.

    python benchmarks/senders.py [--rows 12000] [--rate 300] [--workers 4] [--batch 500]
"""

from __future__ import annotations

import argparse
import base64
import json
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import table, where
from penstock import Limiter, Rate, runner, simulator
from penstock.simulator import Latency, Simulation
from penstock.stores import RedisStore
from tests.stores import servers

HEAD = ("workers, rows", "seconds", "quota used", "429s", "rows lost", "CPU a row, ms")


def begin_workers(sender, count, rows, batch):
    packed = base64.b64encode(pickle.dumps(sender)).decode()
    found = []
    for number in range(count):
        plan = {"sender": packed, "first": number * rows, "rows": rows, "batch": batch}
        command = [sys.executable, "-m", "tests.runner.sending", json.dumps(plan)]
        root = Path(__file__).resolve().parents[1]
        found.append(subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for one in found:
        one.stdout.readline()
    for one in found:
        one.stdin.write("\n")
        one.stdin.flush()
    return found


def measure(count, rows, rate, batch, url):
    burst = 2 * rate
    store = RedisStore(url, prefix=f"senders-{uuid.uuid4().hex[:8]}")
    limiter = Limiter(name="senders", store=store, requests=Rate(rate, 1, burst))
    with simulator.serve(Simulation(requests=f"{rate}/s burst {burst}", latency=Latency(0.2))) as server:
        sender = runner.Sender(server.base_url, limiter, headers={"authorization": "Bearer key"})
        those = begin_workers(sender, count, rows // count, batch)
        told = [json.loads(one.communicate()[0]) for one in those]
        statistics = server.statistics()
    moments = [one.at_ns / 1e9 for one in statistics.admissions]
    ends = [one["ended"] for one in told]
    since, until = moments[burst], moments[-1] - (max(ends) - min(ends)) - 0.5
    used = sum(since < at <= until for at in moments) / (rate * (until - since))
    return (
        f"{count}, {rows:,} at {rate}/s",
        f"{moments[-1] - moments[0]:.1f}",
        f"{used:.1%}",
        sum(statistics.refused.values()),
        rows - sum(one["answered"] for one in told),
        f"{1000 * sum(one['cpu'] for one in told) / rows:.2f}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--rate", type=int, default=300, help="requests per second")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=500, help="rows in a batch")
    options = parser.parse_args()
    where("penstock", "aiohttp")
    server = servers.Server(servers.binaries()["valkey"])
    try:
        table(HEAD, [measure(options.workers, options.rows, options.rate, options.batch, server.url)])
    finally:
        server.stop()


if __name__ == "__main__":
    main()
