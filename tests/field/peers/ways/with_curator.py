"""Curator, which is told the limits.

python with_curator.py URL ROWS OUT REQUESTS TOKENS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bespokelabs import curator


class Asker(curator.LLM):
    """Asks what a row says."""

    def prompt(self, row):
        return row["question"]

    def parse(self, row, response):
        return {"custom_id": row["custom_id"], "answer": response}


def main(url, rows, out, requests, tokens, *_):
    rows = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    parameters = {
        "base_url": url,
        "max_requests_per_minute": int(requests),
        "max_tokens_per_minute": int(tokens),
        "require_all_responses": False,
    }
    asker = Asker(model_name="gpt-4o-mini", backend="openai", backend_params=parameters)
    asked = [{"custom_id": row["custom_id"], "question": row["body"]["messages"][0]["content"]} for row in rows]
    found = asker(asked)
    answers = getattr(found, "dataset", found)
    Path(out).write_text("".join(json.dumps(dict(answer)) + "\n" for answer in answers), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
