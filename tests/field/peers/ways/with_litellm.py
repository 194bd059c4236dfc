"""litellm, which is told the limits, or is not.

python with_litellm.py WAY URL ROWS OUT REQUESTS TOKENS
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import litellm

AT_ONCE = 100


def lines(found):
    return "".join(
        json.dumps({"custom_id": row["custom_id"], "answer": reply.choices[0].message.content}) + "\n"
        for row, reply in found
        if not isinstance(reply, Exception)
    )


def batch(url, rows, _requests, _tokens):
    """A function for many calls, in threads."""
    messages = [row["body"]["messages"] for row in rows]
    options = {"api_base": url, "api_key": "any", "num_retries": 10, "max_workers": AT_ONCE}
    return litellm.batch_completion("openai/gpt-4o-mini", messages, **options)


def router(url, rows, requests, tokens):
    """Its Router, with the limits of the only deployment."""
    parameters = {"model": "openai/gpt-4o-mini", "api_base": url, "api_key": "any", "rpm": requests, "tpm": tokens}
    one = litellm.Router([{"model_name": "gpt-4o-mini", "litellm_params": parameters}], num_retries=10)

    async def main():
        places = asyncio.Semaphore(AT_ONCE)

        async def ask(row):
            async with places:
                return await one.acompletion(**row["body"])

        return await asyncio.gather(*map(ask, rows), return_exceptions=True)

    return asyncio.run(main())


def main(way, url, rows, out, requests, tokens, *_):
    rows = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    replies = {"batch": batch, "router": router}[way](url, rows, int(requests), int(tokens))
    Path(out).write_text(lines(zip(rows, replies, strict=True)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
