"""`penstock run`, a thousand rows, through limits that others decide: 429s, lost rows, and the share that was used.

Real sockets and real time, as the judges have clocks of their own. Each run is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from judges.goals import GOALS, Goal, Outcome
from judges.judging import ALIGNED, BUCKETS, COUNTERS, JUDGES, share
from judges.names import AMOUNT, FIXED, SECONDS, STYLES
from judges.serving import address, served

ROWS = 1_000
AT_ONCE = 9
"""Runs at a time: each takes a twentieth of a core."""

GIVEN, AUTO, RETRY_AFTER, NOTHING = WAYS = ("limits given", "auto", "auto, `Retry-After`", "auto, nothing")
TELLS = dict(zip(WAYS, ("headers", *STYLES), strict=True))
AIMS = {GIVEN: Goal(5, 0.98), AUTO: Goal(5, 0.98), RETRY_AFTER: GOALS["retry-after"], NOTHING: GOALS["nothing"]}
MISSED = {(way, judge): Goal(5, 0.90) for judge in COUNTERS for way in (GIVEN, AUTO)} | {
    (way, judge): Goal(20, 0.62) for judge in (*COUNTERS, *ALIGNED, FIXED) for way in (RETRY_AFTER, NOTHING)
}
"""Where a run misses that, and what it reaches."""
ROOM = 0.03
"""What one run may have less than it has as a rule: a busy machine sends late."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every run, several at a time."""
    runs = [(way, judge) for way in WAYS for judge in JUDGES]
    with served() as port, ThreadPoolExecutor(AT_ONCE) as threads:
        under_way = {
            run: threads.submit(outcome, *run, number, port, tmp_path_factory.mktemp("run"))
            for number, run in enumerate(runs)
        }
        return {run: each.result() for run, each in under_way.items()}


@pytest.mark.parametrize("judge", JUDGES)
def test_a_run_against_a_judge_that_we_did_not_write(judge, outcomes, field):
    """No row is lost, hardly anything is refused, and nearly all is used of what the judge would have admitted."""
    mine = {way: outcomes[way, judge] for way in WAYS}
    field.row(judge, {way: cell(way, outcome) for way, outcome in mine.items()})
    for way, found in mine.items():
        assert found.lost == 0, (way, found)
        assert MISSED.get((way, judge), AIMS[way]).met(found.refused, found.used + ROOM), (way, found)


def cell(way, found):
    """What the table shows of an outcome."""
    missed = found.lost or not AIMS[way].met(found.refused, found.used)
    return f"{found.refused:.0f}, {found.lost}, {100 * found.used:.1f} %{' ✗' if missed else ''}"


def outcome(way, judge, number, port, folder):
    """Run the command to its end: what it says of its rows, and what the judge says of its requests."""
    if number < AT_ONCE:  # their windows should not begin together
        time.sleep(number * SECONDS / AT_ONCE)
    with Path(folder, "in.jsonl").open("w") as rows:
        for row in range(ROWS):
            messages = [{"role": "user", "content": f"Yes or no, {row}?"}]
            rows.write(json.dumps({"custom_id": f"row-{row}", "body": {"model": "m", "messages": messages}}) + "\n")
    kinds = dict.fromkeys(BUCKETS, "") | dict.fromkeys(COUNTERS, "") | dict.fromkeys(ALIGNED, " window")
    kind = kinds.get(judge, " sliding")
    limits = ["--limits", f"requests={AMOUNT}/{SECONDS}s{kind}"] if way == GIVEN else []
    command = [sys.executable, "-m", "penstock", "run", "in.jsonl", "-o", "out.jsonl", *limits]
    name = f"run-{number}"
    with Path(folder, "log").open("w") as log:
        subprocess.run(
            [*command, "--base-url", address(port, judge, TELLS[way], name)],
            cwd=folder,
            env=os.environ | {"OPENAI_API_KEY": "any"},
            stdout=log,
            stderr=log,
            check=False,
            timeout=600,
        )
    answered = {json.loads(line)["custom_id"] for line in Path(folder, "out.jsonl").read_text().splitlines()}
    ledger = httpx2.get(f"http://127.0.0.1:{port}/ledgers/{name}").json()
    began = min(ledger["admitted"] + ledger["refused"])  # the command takes a moment to begin
    used = share(judge, ledger["admitted"], began, AMOUNT, SECONDS)
    return Outcome(1_000 * len(ledger["refused"]) / ROWS, ROWS - len(answered), used)
