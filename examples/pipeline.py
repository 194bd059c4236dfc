"""A pipeline: retries around a limiter around a timeout, for many calls to a service that loses one call in five.

python examples/pipeline.py
"""

from __future__ import annotations

import asyncio
import random

from penstock import Budget, Limiter, Pipeline, Retry, amap, clock, exponential, in_flight, per_second, timeout

draw = random.Random(7)
lost = {f"word{number}" for number in range(0, 100, 5)}


async def translate(word: str) -> str:
    """Stands for a call to a service, which loses some calls when they come for the first time."""
    await asyncio.sleep(draw.uniform(0.005, 0.02))
    if word in lost:
        lost.remove(word)
        raise ConnectionError("reset by peer")
    return word[::-1]


retry = Retry(
    on=(ConnectionError, TimeoutError),
    attempts=6,
    within=30,
    backoff=exponential(first=0.05, cap=1),
    budget=Budget(0.5),
)
limiter = Limiter(requests=per_second(100, burst=10), calls=in_flight(20))
ask = Pipeline(retry, limiter, timeout(5))(translate)  # outermost first: every attempt is charged, as servers do


async def main() -> None:
    words = [f"word{number}" for number in range(100)]
    begin = clock.now()
    replies = [reply async for reply in amap(ask, words, in_flight=20)]
    print(f"{len(replies)} replies in {clock.now() - begin:.1f} s, {limiter.statistics().granted} attempts")
    print(f"all there: {sorted(replies) == sorted(word[::-1] for word in words)}")


if __name__ == "__main__":
    asyncio.run(main())
