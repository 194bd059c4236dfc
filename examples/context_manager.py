"""A context manager: in a task, and the same limiter in a thread at the same time.

python examples/context_manager.py
"""

from __future__ import annotations

import asyncio

from penstock import Limiter, RateLimited, clock, in_flight, per_second

limiter = Limiter(queries=per_second(10, burst=2, default=1), connections=in_flight(2))


async def in_a_task(name: str) -> None:
    async with limiter():
        print(f"{clock.now() - begin:.1f} s: {name}")
        await asyncio.sleep(0.05)


def in_a_thread(name: str) -> None:
    with limiter():
        print(f"{clock.now() - begin:.1f} s: {name}")


async def main() -> None:
    await asyncio.gather(
        *(in_a_task(f"task {number}") for number in range(3)),
        *(asyncio.to_thread(in_a_thread, f"thread {number}") for number in range(3)),
    )
    try:
        await limiter.acquire(queries=2, max_wait=0.05)
    except RateLimited as error:
        print(f"refused at once: {error.blocked_by} in {error.retry_after:.1f} s")
    now = limiter.statistics()
    print(f"{now.granted} granted, {now.refused} refused, {now.in_flight} in flight")


if __name__ == "__main__":
    begin = clock.now()
    asyncio.run(main())
