"""`penstock run` against a server of which two answers in a hundred go wrong, each in another way.

The simulator serves a file of rows of mixed sizes under two limits that both bind, over sockets and in real time, and
draws each fault with the same odds. What went wrong was admitted and charged, so it counts as used; its row is sent
again. Of each run is shown how many requests were sent beyond the rows, the share that was used of what the limits
allowed from the first admission to the last, 429s, and rows without an answer.

    python benchmarks/faulty_runs.py [--rows 3000]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from _report import table, verdict, where

from penstock import simulator
from penstock.simulator import Faults, Latency, Simulation

REQUESTS, TOKENS = 1_500, 500_000
"""Of a minute."""
BURSTS = {"requests": 20, "tokens": 6_000}
LIMITS = {"requests": f"{REQUESTS}/min burst {BURSTS['requests']}", "tokens": f"{TOKENS}/min burst {BURSTS['tokens']}"}

TIMEOUT = 10
"""Seconds that an answer may take: a request that hangs is noticed then."""

KINDS = (
    "server_error", "overloaded", "bad_gateway", "dropped", "cut_short", "error_in_200", "empty", "null", "no_choices",
    "hang",
)  # fmt: skip
"""Faults after which a row is sent again."""

MIXES = {
    "none": Faults(),
    "2 % that break, of ten kinds": Faults(**dict.fromkeys(KINDS, 0.02 / len(KINDS))),
    "2 % without headers, 2 % compressed": Faults(no_headers=0.02, gzip=0.02),
    "2 % that say 503": Faults(overloaded=0.02),
    "2 % that break the connection": Faults(dropped=0.01, cut_short=0.01),
}
WAYS = {"given": ["--limits", ",".join(f"{unit}={limit}" for unit, limit in LIMITS.items())], "auto": []}


def rows(count):
    """Half of them short, half long, in any order."""
    draw = random.Random(1)
    for number in range(count):
        size = round(min(11_000, max(40, draw.lognormvariate(math.log(draw.choice((300, 1_800))), 0.8))))
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"{number:0{size}}"}]}
        yield json.dumps({"custom_id": f"row-{number}", "body": body})


def outcome(mix, way, count):
    """One run to its end: requests that met a fault, the share used, 429s, and rows without an answer."""
    simulation = Simulation(**LIMITS, latency=Latency(0.4, 0.5), faults=MIXES[mix], seed=1)
    with tempfile.TemporaryDirectory() as folder, simulator.serve(simulation) as server:
        Path(folder, "in.jsonl").write_text("\n".join(rows(count)), encoding="utf-8")
        command = [sys.executable, "-m", "penstock", "run", "in.jsonl", "-o", "out.jsonl", "-q", *WAYS[way]]
        command += ["--base-url", server.base_url, "--timeout", str(TIMEOUT)]
        ended = subprocess.run(
            command, cwd=folder, env=os.environ | {"OPENAI_API_KEY": "any"}, check=False, capture_output=True, text=True
        )
        assert ended.returncode in {0, 3}, ended.stderr
        seen = server.statistics()
        answered = {json.loads(line)["custom_id"] for line in Path(folder, "out.jsonl").read_text().splitlines()}
    moments = [one.at_ns / 1e9 for one in seen.admissions]
    least = (
        max((seen.requests_used - BURSTS["requests"]) / REQUESTS, (seen.tokens_used - BURSTS["tokens"]) / TOKENS) * 60
    )
    used = least / (moments[-1] - moments[0])
    return seen.admitted - count, used, sum(seen.refused.values()) / count * 1_000, count - len(answered)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--at-once", type=int, default=4, help="runs at a time: each takes a tenth of a core")
    options = parser.parse_args()
    where("penstock", "aiohttp")
    runs = [(mix, way) for mix in MIXES for way in WAYS]
    with ProcessPoolExecutor(options.at_once, get_context("spawn")) as servers:  # a process for each server
        found = list(servers.map(outcome, *zip(*runs, strict=True), [options.rows] * len(runs)))
    table(
        ["faults", "limits", "more than rows", "of what was possible", "429s in 1,000", "rows lost"],
        [
            [mix, way, sent_again, f"{used:.1%}", f"{refused:.1f}", lost]
            for (mix, way), (sent_again, used, refused, lost) in zip(runs, found, strict=True)
        ],
    )
    verdict("what was possible over what was used, at worst", 1 / min(used for _, used, _, _ in found), 1 / 0.98)
    verdict("429s in 1,000 rows, at most", max(refused for _, _, refused, _ in found), 1)
    verdict("rows lost", sum(lost for *_, lost in found), 0)


if __name__ == "__main__":
    main()
