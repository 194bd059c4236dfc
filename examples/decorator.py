"""A decorator: every call of `classify` costs one request and its tokens, and waits for its turn.

python examples/decorator.py
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from penstock import Limiter, clock, per_second


@dataclass(frozen=True)
class Reply:
    """What the service answers, and what it took."""

    text: str
    tokens: int


def count(prompt: str) -> int:
    """The most that the call may take: what is asked, and room for the answer."""
    return len(prompt) // 4 + 10


limiter = Limiter(requests=per_second(20, burst=5), tokens=per_second(400))


@limiter(tokens=count, settle=lambda reply: {"tokens": reply.tokens})
async def classify(prompt: str) -> Reply:
    """Stands for a call to a service."""
    await asyncio.sleep(random.uniform(0.01, 0.05))
    return Reply("kind" if "thank" in prompt else "plain", len(prompt) // 4 + 1)


async def main() -> None:
    prompts = [f"{'thank you, ' * (number % 3)}please send item {number}" for number in range(30)]
    begin = clock.now()
    replies = await asyncio.gather(*map(classify, prompts))
    print(
        f"{len(replies)} calls in {clock.now() - begin:.2f} s, "
        f"{sum(reply.text == 'kind' for reply in replies)} of them kind"
    )
    print(f"tokens: {sum(map(count, prompts))} charged at first, {sum(reply.tokens for reply in replies)} in the end")


if __name__ == "__main__":
    asyncio.run(main())
