"""What the page "Try it" runs in the browser: load on a service with limits, in virtual time, sent in three ways.

A browser's Python has no threads and no sockets, so its event loop here has nothing to select: it jumps to the next
timer.
"""

from __future__ import annotations

import asyncio
import json
import random
from asyncio import events

from penstock import Limiter, RateLimited, clock, sliding
from penstock.testing import manual_clock

SECONDS = 60
WAYS = ("penstock", "retry only", "overwrite")


class _Jump:
    """Stands where a loop has its selector: instead of waiting for sockets it moves the time."""

    def __init__(self, time):
        self._time = time

    def select(self, timeout):
        if timeout:
            self._time.advance(timeout)
        return []

    def close(self):
        pass


class _Loop(asyncio.BaseEventLoop):
    def __init__(self, time):
        super().__init__()
        self._selector = _Jump(time)

    def time(self):
        return clock.now()

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass


def in_virtual_time(main):
    """Run `main()`; the browser's own loop stands still meanwhile."""
    before = events._get_running_loop()
    events._set_running_loop(None)
    try:
        with manual_clock() as time:
            loop = _Loop(time)
            try:
                return loop.run_until_complete(main())
            finally:
                loop.close()
    finally:
        events._set_running_loop(before)


def written(kind, rpm, tpm, burst, share=1.0):
    """The limits of a service, or of a client that keeps a little below its burst, as a program says them."""
    told = {}
    for unit, amount in (("requests", rpm), ("tokens", tpm)):
        window = f"sliding({max(1, round(amount / 6))}, per=10)"
        most = 1 if kind == "paced" and unit == "requests" else max(1, round(amount * burst / 60 * share))
        bucket = f'"{round(amount)}/min burst {most}"'
        told[unit] = {"window": window, "both": f"[{bucket}, {window}]"}.get(kind, bucket)
    return ", ".join(f"{unit}={limit}" for unit, limit in told.items())


def limiter_of(*limits):
    return eval(f"Limiter({written(*limits)})", {"Limiter": Limiter, "sliding": sliding})  # noqa: S307 - our own text


PROGRAM = """\
import asyncio
import random
from penstock import Limiter{imported}

limiter = Limiter({limits})

async def call(flow, tokens):
    async with limiter(tokens=tokens, flow=flow):
        await asyncio.sleep({latency:g})                          # your call to the service

async def main():
    async with asyncio.TaskGroup() as tasks:
        for _ in range({calls}):
            flow = "alice" if random.random() < 0.8 else "bob"
            tokens = min({most}, max(1, random.lognormvariate(0, 0.6) * {size:g}))
            tasks.create_task(call(flow, tokens))
            await asyncio.sleep({pause:.3g})

asyncio.run(main())
"""


def program(kind="bucket", rpm=300, tpm=60_000, burst=5, load=1.5, size=200, latency=1.0):
    """The way of penstock under the same load, as a program to copy."""
    per_second = load * min(rpm, tpm / size) / 60
    return PROGRAM.format(
        imported=", sliding" if kind in {"window", "both"} else "",
        limits=written(kind, rpm, tpm, burst, 0.9),
        latency=latency,
        calls=max(1, round(per_second * SECONDS)),
        most=most_of(kind, tpm, burst),
        size=size,
        pause=1 / per_second,
    )


def most_of(kind, tpm, burst):
    """Tokens that a call may have at most."""
    window, bucket = tpm / 6, tpm * burst / 60 * 0.9
    return max(1, round({"window": window, "both": min(window, bucket)}.get(kind, bucket)))


def simulate(way, *, kind="bucket", rpm=300, tpm=60_000, burst=5, load=1.5, size=200, latency=1.0):
    """What one way lets through, a second at a time. `load` is what is asked for, as a multiple of what is allowed."""
    draw = random.Random(1)
    service = limiter_of(kind, rpm, tpm, burst)
    limiter = limiter_of(kind, rpm, tpm, burst, 0.9)
    most = most_of(kind, tpm, burst)
    per_second = load * min(rpm, tpm / size) / 60
    used, refused = [0.0] * SECONDS, [0] * SECONDS
    waiting = {"alice": [0] * SECONDS, "bob": [0] * SECONDS}
    queued = {"alice": 0, "bob": 0}
    remaining = {"level": float(rpm)}

    async def send(tokens):
        await asyncio.sleep(draw.uniform(0.01, 0.05))
        at = min(SECONDS - 1, int(clock.now()))
        try:
            service.acquire_nowait(tokens=tokens)
        except RateLimited:
            refused[at] += 1
            raise
        used[at] += tokens
        level = service.statistics().limits["requests"].level
        await asyncio.sleep(draw.lognormvariate(0, 0.4) * latency)
        remaining["level"] = level

    async def call(flow, tokens):
        queued[flow] += 1
        for attempt in range(12):
            if way == "penstock":
                await limiter.acquire(tokens=tokens, flow=flow)
            while way == "overwrite" and remaining["level"] < 1:
                await asyncio.sleep(0.5)
                remaining["level"] += rpm / 120
            remaining["level"] -= 1
            queued[flow] -= 1
            try:
                await send(tokens)
            except RateLimited as error:
                queued[flow] += 1
                pause = error.retry_after
                if way == "retry only":
                    pause = draw.uniform(0, min(60, 2**attempt))
                await asyncio.sleep(pause)
            else:
                return
        queued[flow] -= 1

    async def watch():
        for second in range(SECONDS):
            for flow, number in queued.items():
                waiting[flow][second] = number
            await asyncio.sleep(1)

    async def main():
        begun = clock.now()
        tasks = [asyncio.ensure_future(watch())]
        while (now := clock.now() - begun) < SECONDS:
            tokens = min(most, max(1.0, draw.lognormvariate(0, 0.6) * size))
            tasks.append(asyncio.ensure_future(call("alice" if draw.random() < 0.8 else "bob", tokens)))
            await asyncio.sleep(min(draw.expovariate(per_second), SECONDS - now))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    in_virtual_time(main)
    return {"way": way, "used": used, "refused": refused, "waiting": waiting, "allowed": min(tpm, rpm * size) / 60}


def simulate_all(options):
    """All ways, and ours as a program, as JSON, for the page."""
    given = json.loads(options)
    return json.dumps({"ways": [simulate(way, **given) for way in WAYS], "program": program(**given)})
