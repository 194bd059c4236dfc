"""Write RESULTS.md: what every benchmark prints, with the command that prints it. Nothing in it is written by hand.

python benchmarks/_results.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
INTRO = """# Results

Written by `python benchmarks/_results.py`, which runs each command below and keeps what it prints. Candidates are interleaved in one run;
numbers of a shared machine are ratios, not speeds. "MISSED" says that a number the design asks for was not reached in this run.
"""


def main() -> int:
    """Run them all, one after another. Returns 1 if one of them failed."""
    pages = [INTRO]
    failed = 0
    for path in sorted(HERE.glob("[!_]*.py")):
        print(path.name, flush=True)
        done = subprocess.run(
            [sys.executable, path], check=False, capture_output=True, text=True, cwd=HERE.parent, timeout=900
        )
        failed |= done.returncode
        output = done.stdout.strip() or "(nothing)"
        if done.returncode:
            output += f"\n\nIt ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        pages.append(f"## `python benchmarks/{path.name}`\n\n{output}\n")
    (HERE / "RESULTS.md").write_text("\n".join(pages))
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
