"""Run every benchmark, and write what they print to RESULTS.md, with the commands. Nothing in it is written by hand.

python benchmarks/_results.py [stores.py …]     all of them, or these again: what the others printed stays
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
INTRO = """# Results

Written by `make bench`, which runs each command below and keeps what it prints. Candidates are interleaved in one run;
numbers of a shared machine are ratios, not speeds. "MISSED" says that a number the design asks for was not reached in
this run.
"""


def pages_of(results: str) -> dict[str, str]:
    """What RESULTS.md says of each benchmark, by its file."""
    pages = re.split(r"^(?=## `python benchmarks/)", results, flags=re.MULTILINE)[1:]
    return {page.split("`")[1].rpartition("/")[2]: page.strip() + "\n" for page in pages}


def main() -> int:
    """Run them one after another. Returns 1 if one of them failed."""
    only, before = sys.argv[1:], pages_of(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    pages = [INTRO]
    failed = []
    for path in sorted(HERE.glob("[!_]*.py")):
        if only and path.name not in only:
            pages.append(before.get(path.name, f"## `python benchmarks/{path.name}`\n\n(not run)\n"))
            continue
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
