"""Mutation testing of `src/penstock/_core`: change one thing at a time, and see whether a test notices.

    python tools/mutation.py [names of mutants]

Runs mutmut as `[tool.mutmut]` in pyproject.toml says, prints a table per file, and lists what survived. Ends with 1 if
of any file fewer than 95 % were killed, or hung. What was run before and has not changed is not run again; `rm -rf
mutants` begins anew, as is needed after a change of the tests. Names may have stars: `'penstock._core.lease*'`; then
the table is of those that were run. Which survivors change nothing that anybody could see is said in tests/MUTATION.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = 95.0  # per cent
MUTMUT = [sys.executable, "-m", "mutmut"]


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of one server for all mutants of `_core`; else each would start its own."""
    sys.path.insert(0, str(ROOT / "tests/stores"))
    import servers

    server = servers.Server(servers.binaries()["valkey"])
    try:
        yield server.url
    finally:
        server.stop()


def results() -> dict[str, str]:
    """What became of each mutant."""
    done = subprocess.run([*MUTMUT, "results", "--all", "true"], cwd=ROOT, capture_output=True, text=True, check=True)
    pairs = (line.strip().rpartition(": ") for line in done.stdout.splitlines() if line.strip())
    return {name: fate for name, _, fate in pairs}


def main() -> int:
    """Run, print the table and the survivors; return the exit code."""
    jobs = os.environ.get("JOBS", "1")
    with valkey() as url:
        # With that profile the examples are the same at every run.
        environment = os.environ | {"HYPOTHESIS_PROFILE": "same", "PENSTOCK_TEST_REDIS_URL": url}
        subprocess.run([*MUTMUT, "run", "--max-children", jobs, *sys.argv[1:]], cwd=ROOT, env=environment, check=True)
    fates = {name: fate for name, fate in results().items() if fate != "not checked"}
    files: dict[str, Counter[str]] = {}
    for name, fate in fates.items():
        files.setdefault(name.split(".")[2], Counter())[fate] += 1
    total = sum(files.values(), Counter())
    worst = 100.0
    print("| file | mutants | killed | hung | survived | killed or hung |\n|---|---:|---:|---:|---:|---:|")
    for name, counts in [*sorted(files.items()), ("all", total)]:
        mutants, killed, hung = counts.total(), counts["killed"], counts["timeout"]
        share = 100 * (killed + hung) / mutants
        worst = min(worst, share)
        print(f"| {name} | {mutants} | {killed} | {hung} | {mutants - killed - hung} | {share:.1f} % |")
    for name, fate in fates.items():
        if fate not in {"killed", "timeout"}:
            print(f"\n{name.removeprefix('penstock._core.')}: {fate}")
            shown = subprocess.run([*MUTMUT, "show", name], cwd=ROOT, capture_output=True, text=True, check=True)
            print(
                *(line for line in shown.stdout.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}),
                sep="\n",
            )
    return 0 if worst >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
