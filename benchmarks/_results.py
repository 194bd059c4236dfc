"""Run every benchmark, and write what they print to RESULTS.md, with the commands. Nothing in it is written by hand.

python benchmarks/_results.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
INTRO = """# Results

Written by `make bench`, which runs each command below and keeps what it prints. Candidates are interleaved in one run;
numbers of a shared machine are ratios, not speeds. "MISSED" says that a number the design asks for was not reached in this run.
"""


def main() -> int:
    """Run them all, one after another. Returns 1 if one of them failed."""
    pages = [INTRO]
    failed = []
    for path in sorted(HERE.glob("[!_]*.py")):
        print(f"== benchmarks/{path.name}", flush=True)
        lines = []
        with subprocess.Popen(
            [sys.executable, "-u", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parent
        ) as run:
            for line in run.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        if run.returncode:
            failed.append(path.name)
            lines.append(f"\nIt ended with {run.returncode}.\n")
        pages.append(f"## `python benchmarks/{path.name}`\n\n{''.join(lines).strip() or '(nothing)'}\n")
    RESULTS.write_text("\n".join(pages), encoding="utf-8")
    print(f"written: {RESULTS.relative_to(HERE.parent)}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
