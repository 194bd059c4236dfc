"""Commands for the tests of the command line, in this process and as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from penstock.cli import main

LIMITS = "requests=6000/min,tokens=600k/min"
KEY = "sk-none"


def chat(number):
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder, numbers, more=b""):
    (folder / "in.jsonl").write_bytes(b"".join(json.dumps(chat(number)).encode() + b"\n" for number in numbers) + more)


def simulated(*arguments):
    return main(
        ["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--latency", "0.01", "--limits", LIMITS, *arguments]
    )


def started(*arguments, **options):
    """The command as a process of its own."""
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        **options,
    )


def wait_for(condition, seconds=180):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.01)


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
