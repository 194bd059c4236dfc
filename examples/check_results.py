"""Checks what `penstock run --simulate` wrote: every row answered once, with its own answer, no 429, at full speed.

    python examples/check_results.py requests.jsonl results.jsonl [--efficiency 0.95]

Uses nothing of penstock, so that a mistake there cannot hide itself here. That an answer belongs to its row can be seen
because the simulator begins each text with the SHA-256 of the question, and makes each embedding from its text alone.
Numbers are read from the summary that the run leaves beside the results (`results.summary.json`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any


def main() -> int:
    """Print what is wrong, or one line that says that nothing is. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the results of a simulated run.")
    parser.add_argument("requests", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--efficiency", type=float, default=0.95, help="least share of the optimum (default: 0.95)")
    arguments = parser.parse_args()
    try:
        requests = {row["custom_id"]: row for row in _lines(arguments.requests)}
        results = _lines(arguments.results)
        summary = json.loads(arguments.results.with_suffix(".summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        print(f"check_results: {error!r}", file=sys.stderr)
        return 2
    wrong = [*_wrong_rows(requests, results), *_wrong_numbers(summary, len(requests), arguments.efficiency)]
    for line in wrong[:20]:
        print(f"check_results: {line}", file=sys.stderr)
    if wrong:
        print(f"check_results: {len(wrong)} things are wrong", file=sys.stderr)
        return 1
    print(
        f"check_results: {len(results)} of {len(requests)} rows answered, each once and with its own answer; "
        f"0 429s; {summary['makespan']:.1f} s, {summary['efficiency']:.1%} of the optimum ({summary['optimum']:.1f} s)"
    )
    return 0


def _lines(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _wrong_rows(requests: dict[str, dict[str, Any]], results: list[dict[str, Any]]) -> list[str]:
    times = Counter(result.get("custom_id") for result in results)
    wrong = [f"{name}: no result" for name in requests if name not in times]
    wrong += [f"{name}: {count} results" for name, count in times.items() if count > 1]
    for result in results:
        name = result.get("custom_id")
        if name not in requests:
            wrong.append(f"{name}: was never asked")
            continue
        response = result.get("response") or {}
        if response.get("status_code") != 200 or result.get("error") is not None:
            wrong.append(f"{name}: not answered: {json.dumps(result)[:200]}")
        elif not _belongs(requests[name], response["body"]):
            wrong.append(f"{name}: has the answer of another row")
    return wrong


def _belongs(request: dict[str, Any], answer: dict[str, Any]) -> bool:
    body = request["body"]
    try:
        match request["url"]:
            case "/v1/embeddings":
                texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
                vectors = [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]
                return all(_is_embedding(vector, text) for vector, text in zip(vectors, texts, strict=True))
            case "/v1/responses":
                asked, text = body["input"], answer["output"][0]["content"][0]["text"]
            case _:
                content = body["messages"][-1]["content"]
                asked = content if isinstance(content, str) else "".join(part["text"] for part in content)
                text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError, ValueError):  # the answer of another endpoint, or of none
        return False
    return bool(text.startswith(_fingerprint(asked)))


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_embedding(vector: list[float], text: str) -> bool:
    """Whether the vector is the simulator's for this text: normal random numbers, seeded by it, of length 1."""
    random = Random(_fingerprint(text))
    expected = [random.gauss(0.0, 1.0) for _ in vector]
    length = math.hypot(*expected)
    return all(math.isclose(got, want / length, abs_tol=1e-6) for got, want in zip(vector, expected, strict=True))


def _wrong_numbers(summary: dict[str, Any], rows: int, efficiency: float) -> list[str]:
    expected = {"rows": rows, "answered": rows, "failed": 0, "status_429": 0}
    wrong = [
        f"summary: {key} is {summary.get(key)}, not {value}"
        for key, value in expected.items()
        if summary.get(key) != value
    ]
    share = summary.get("efficiency", 0)
    if not share >= efficiency:
        wrong.append(f"summary: {share:.1%} of the optimum, less than {efficiency:.0%}")
    if share > 1.001:
        wrong.append(f"summary: {share:.1%} of the optimum: faster than the limits allow, so the optimum is wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
