"""The job that every way of sending has to do: rows of mixed sizes, under two limits that both bind."""

from __future__ import annotations

import json
import math
import random

from penstock.simulator import Latency, Simulation

ROWS, AT_ONCE = 600, 100
REQUESTS, TOKENS = 600, 200_000
"""Of a minute."""
BURSTS = {"requests": 20, "tokens": 6_000}
LIMITS = {"requests": f"{REQUESTS}/min burst {BURSTS['requests']}", "tokens": f"{TOKENS}/min burst {BURSTS['tokens']}"}
WORDS = (" the", " and", " for", " was", " you", " are", " not", " can", " all", " has")
"""Each is a token for the server, which counts four bytes, and for a tokenizer."""


def simulation():
    """A refused request takes nothing from the limits, which is kinder than the services are."""
    return Simulation(**LIMITS, latency=Latency(0.4, 0.5), count_refused=False)


def rows():
    """Half of them short, half long, in any order."""
    draw = random.Random(1)
    found = []
    for number in range(ROWS):
        size = round(min(2_900, max(20, draw.lognormvariate(math.log(draw.choice((80, 450))), 0.8))))
        words = "".join(draw.choices(WORDS, k=size - 4))
        messages = [{"role": "user", "content": f"{number:04}{words[4:]}"}]
        body = {"model": "gpt-4o-mini", "messages": messages}
        found.append({"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    return found


def question(row):
    return row["body"]["messages"][0]["content"]


def optimum(requests, tokens):
    """Seconds from the first admission to the last that the limits allow at best."""
    return max((requests - BURSTS["requests"]) / REQUESTS, (tokens - BURSTS["tokens"]) / TOKENS) * 60


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
