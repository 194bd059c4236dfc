"""The same job by penstock and by its peers, over sockets, against one service: time, 429s, rows lost, CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import job
import pytest

from penstock.simulator import fingerprint, serve
from tests.quiet import wait_for_quiet

WAYS = Path(__file__).with_name("ways")
PATIENCE = 400.0
"""Seconds after which a way is ended; what it has not done by then is lost."""

BY_HAND = {
    "{openai}, 10 retries": "sdk",
    "{tenacity}, 6 attempts": "tenacity",
    "{aiolimiter} × 2, SDK's retries": "two limiters",
    "{aiolimiter} × 2 at 90 %, half the bursts, {tenacity}": "careful limiters",
    "{openlimit}, SDK's retries": "openlimit",
}
if sys.version_info >= (3, 12):
    BY_HAND["{token-throttle}, SDK's retries"] = "token-throttle"

LIMITS = ",".join(f"{unit}={limit}" for unit, limit in job.LIMITS.items())
PENSTOCK = [sys.executable, "-m", "penstock", "run", "ROWS", "-o", "OUT", "--base-url", "URL"]


def program(name, *before):
    numbers = (job.REQUESTS, job.TOKENS, *job.BURSTS.values())
    return [sys.executable, WAYS / name, *before, "URL", "ROWS", "OUT", *map(str, numbers)]


COMMANDS = {
    "penstock": {
        "**penstock run, limits given**": [*PENSTOCK, "--limits", LIMITS],
        "**penstock run, limits learned**": PENSTOCK,
    },
    "by-hand": {name: program("by_hand.py", way) for name, way in BY_HAND.items()},
    "cookbook": {"the cookbook's script, {aiohttp}": program("cookbook.py")},
    "litellm": {
        "{litellm}, Router with rpm and tpm": program("with_litellm.py", "router"),
        "{litellm}, batch_completion": program("with_litellm.py", "batch"),
    },
    "curator": {"{bespokelabs-curator}": program("with_curator.py")},
}[os.environ["PENSTOCK_FIELD_ENVIRONMENT"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_one_job(name, tmp_path, field):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    asked = job.rows()
    job.write(rows, asked)
    with serve(job.simulation()) as server:
        words = {"URL": server.base_url, "ROWS": str(rows), "OUT": str(out)}
        command = [words.get(word, word) for word in COMMANDS[name]]
        wait_for_quiet(5.0)
        used = used_by(command, tmp_path)
        seen = server.statistics()
    answers = {row["custom_id"]: answer_of(row) for row in map(json.loads, out.read_text().splitlines())}
    right = {
        row["custom_id"]
        for row in asked
        if answers.get(row["custom_id"], "").startswith(fingerprint(job.question(row)))
    }
    lost, refused = len(asked) - len(right), sum(seen.refused.values())
    moments = [one.at_ns / 1e9 for one in seen.admissions]
    times = (moments[-1] - moments[0]) / job.optimum(seen.requests_used, seen.tokens_used)
    if name.startswith("**penstock"):
        assert lost == 0
        assert refused <= (2 if "given" in name else 5)
        assert times <= 1.1
    else:
        assert right, (tmp_path / "log").read_text()[-2_000:]
    subject = name.format_map(Versions(field))
    columns = {"time / optimum": f"{times:.2f}", "429s": f"{refused:,}", "rows lost": lost}
    field.row(
        subject, columns | {"CPU s": f"{used.ru_utime + used.ru_stime:.1f}", "MB": f"{used.ru_maxrss / 1024:.0f}"}
    )


class Versions:
    """A package's name and version, by its name."""

    def __init__(self, field):
        self.field = field

    def __getitem__(self, package):
        return self.field.version(package)


def answer_of(row):
    """Of a way's own line, or of one as the Batch API writes them."""
    if "response" in row:
        return row["response"]["body"]["choices"][0]["message"]["content"]
    return row["answer"]


def used_by(command, folder):
    """Run a way to its end; what the system says that it took, with all that it started."""
    variables = os.environ | {
        "OPENAI_API_KEY": "any",
        "HOME": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TELEMETRY_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while True:
            ended, _, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = 0
                return used
            if time.monotonic() > end:
                process.kill()
            time.sleep(0.1)
