"""What the page "Try it" runs in the browser: load on a service with limits, in virtual time, sent in three ways.

A browser's Python has no threads and no sockets, so its event loop here has nothing to select: it jumps to the next
timer.
"""

from __future__ import annotations

import asyncio
import json
import random
from asyncio import events

from penstock import Limiter, Rate, RateLimited, clock, sliding
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


def limits_of(kind, rpm, tpm, burst, share=1.0):
    """The limits of a service, or of a client that keeps a little below its burst."""
    if kind == "window":
        return {"requests": sliding(max(1, round(rpm / 6)), per=10), "tokens": sliding(max(1, tpm / 6), per=10)}
    bursts = [max(1.0, amount * burst / 60 * share) for amount in (rpm, tpm)]
    return {"requests": Rate(rpm, 60, burst=bursts[0]), "tokens": Rate(tpm, 60, burst=bursts[1])}


def simulate(way, *, kind="bucket", rpm=300, tpm=60_000, burst=5, load=1.5, size=200, latency=1.0):
    """What one way lets through, a second at a time. `load` is what is asked for, as a multiple of what is allowed."""
    draw = random.Random(1)
    service = Limiter(limits_of(kind, rpm, tpm, burst))
    limiter = Limiter(limits_of(kind, rpm, tpm, burst, 0.9))
    most = max(1.0, tpm / 6 if kind == "window" else tpm * burst / 60 * 0.9)
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
    """All ways, as JSON, for the page."""
    return json.dumps([simulate(way, **json.loads(options)) for way in WAYS])
