"""How long `import penstock` takes, beside what it imports itself and what others take.

Each import runs in a fresh interpreter, in turns; what the table shows is the median of the rounds, less an interpreter
that imports nothing. Everything is in the file cache and compiled after the first round, which does not count.

    python benchmarks/import_time.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from _report import table, verdict, where

STATEMENTS = {
    "nothing": "pass",
    "asyncio": "import asyncio",
    "asyncio, anyio": "import asyncio, anyio, anyio.lowlevel",
    "penstock": "import penstock",
    "penstock, and its Limiter": "from penstock import Limiter",
    "aiolimiter": "import aiolimiter",
    "limits": "import limits",
    "pyrate-limiter": "import pyrate_limiter",
    "throttled-py": "import throttled",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    where("anyio", "aiolimiter", "limits", "pyrate-limiter", "throttled-py")
    samples = {name: [] for name in STATEMENTS}
    for turn in range(args.rounds + 1):
        for name, statement in STATEMENTS.items():
            code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
            wall = time.perf_counter()
            output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
            if turn:
                samples[name].append((float(output) * 1e3, (time.perf_counter() - wall) * 1e3))
    cpu = {name: statistics.median(cpu for cpu, _ in times) for name, times in samples.items()}
    least = {name: min(cpu for cpu, _ in times) for name, times in samples.items()}
    wall = {name: statistics.median(wall for _, wall in times) for name, times in samples.items()}
    rows = [
        (n, f"{cpu[n]:.0f}", f"{least[n]:.0f}", f"{wall[n] - wall['nothing']:.0f}")
        for n in STATEMENTS
        if n != "nothing"
    ]
    table(("import", "CPU ms, median", "CPU ms, least", "wall ms, median"), rows)
    for name in ("penstock", "penstock, and its Limiter"):
        verdict(f"{name}: CPU ms beyond anyio's own", cpu[name] - cpu["asyncio, anyio"], 12)


if __name__ == "__main__":
    main()
