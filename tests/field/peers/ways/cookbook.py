"""The scheme of the service's cookbook for many requests, as it is today: what is left of each minute is counted.

A refusal shall stop everything for 15 s. It is known by the code "429", and services say "rate_limit_exceeded": nothing
ever stops.

python cookbook.py URL ROWS OUT REQUESTS TOKENS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from pathlib import Path

import aiohttp
import tiktoken

ATTEMPTS = 5
PAUSE = 15.0
"""Seconds for which nothing is sent after a 429."""
NAP = 0.001
"""Seconds between two looks at what may be sent."""


class Left:
    """How much of a limit may be used now: a minute's worth at first, and at most."""

    def __init__(self, limit):
        self.limit = self.amount = float(limit)
        self.at = time.monotonic()

    def refill(self):
        now = time.monotonic()
        self.amount = min(self.limit, self.amount + self.limit * (now - self.at) / 60)
        self.at = now


class Script:
    """One run over a file."""

    def __init__(self, url, results, requests, tokens):
        self.url, self.results = f"{url}/chat/completions", results
        self.requests, self.tokens = Left(requests), Left(tokens)
        self.again, self.under_way, self.refused_at = deque(), set(), -PAUSE
        self.encoding = tiktoken.get_encoding("cl100k_base")

    def cost(self, row):
        """The prompt as its tokenizer counts it, what each message takes beside it, and 15 for the answer."""
        texts = [text for message in row["body"]["messages"] for text in message.values()]
        return sum(len(self.encoding.encode(text)) for text in texts) + 4 * len(row["body"]["messages"]) + 2 + 15

    async def run(self, rows):
        rows = iter(rows)
        waiting = None
        async with aiohttp.ClientSession() as self.session:
            while True:
                if waiting is None:
                    row = None if self.again else next(rows, None)
                    waiting = self.again.popleft() if self.again else row and (row, self.cost(row), ATTEMPTS)
                self.requests.refill()
                self.tokens.refill()
                if waiting and self.requests.amount >= 1 and self.tokens.amount >= waiting[1]:
                    self.requests.amount -= 1
                    self.tokens.amount -= waiting[1]
                    task = asyncio.create_task(self.send(*waiting))
                    self.under_way.add(task)
                    task.add_done_callback(self.under_way.discard)
                    waiting = None
                elif waiting is None and not self.under_way and not self.again:
                    return
                await asyncio.sleep(NAP)
                if (left := self.refused_at + PAUSE - time.monotonic()) > 0:
                    await asyncio.sleep(left)

    async def send(self, row, cost, attempts):
        try:
            async with self.session.post(self.url, json=row["body"], headers={"authorization": "Bearer any"}) as reply:
                said = await reply.json()
        except aiohttp.ClientError as error:
            said = {"error": {"message": str(error)}}
        if "error" not in said:
            answer = said["choices"][0]["message"]["content"]
            self.results.write(json.dumps({"custom_id": row["custom_id"], "answer": answer}) + "\n")
            return
        if said["error"].get("code") == "429":
            self.refused_at = time.monotonic()
        if attempts > 1:
            self.again.append((row, cost, attempts - 1))


async def main(url, rows, out, requests, tokens, *_):
    lines = Path(rows).read_text(encoding="utf-8").splitlines()
    with Path(out).open("w", encoding="utf-8") as results:
        await Script(url, results, int(requests), int(tokens)).run(json.loads(line) for line in lines)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
