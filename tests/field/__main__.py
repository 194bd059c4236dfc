"""Runs one kind of the tests against the outside world, each environment in turn, and writes the figures into the docs.

    python tests/field KIND [ENVIRONMENT]

README.md beside this file says how a kind is laid out.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGES = ROOT / "docs/field"
VENV = Path(sys.prefix).name
"""Each Python that is asked for (`make PYTHON=… field`) has environments of its own, as everywhere."""


def main(arguments: list[str]) -> int:
    """Run the tests of a kind; write its page if all of its environments passed today. Return the exit code."""
    kinds = sorted({file.parent.name for file in HERE.glob("*/*.txt")})
    if not arguments or arguments[0] not in kinds:
        print(f"which kind? {', '.join(kinds)}: make field WHAT=...", file=sys.stderr)
        return 2
    kind, *only = arguments
    environments = sorted(file.stem for file in (HERE / kind).glob("*.txt"))
    if only and only[0] not in environments:
        print(f"{kind} has no environment {only[0]}, but {', '.join(environments)}", file=sys.stderr)
        return 2
    failed = [name for name in only or environments if not run(kind, name)]
    found = [row for name in only or environments if name not in failed for row in rows_of(kind, name)]
    print("\n".join(tables_of(found)))
    if failed:
        print(f"failed: {', '.join(failed)}; the page of {kind} is left as it was", file=sys.stderr)
        return 1
    if old := [name for name in environments if not is_of_today(kind, name)]:
        print(f"not measured today: {', '.join(old)}; the page of {kind} is left as it was")
        return 0
    PAGES.mkdir(exist_ok=True)
    (PAGES / f"{kind}.md").write_text(page(kind, [row for name in environments for row in rows_of(kind, name)]))
    print(f"wrote docs/field/{kind}.md")
    return 0


def run(kind: str, name: str) -> bool:
    """Set an environment up and run the kind's tests in it, and keep their rows; whether they passed."""
    environment = f"{VENV}-field-{kind}-{name}"
    pins = f"tests/field/{kind}/{name}.txt"
    setup = [sys.executable, "tools/environment.py", f"{environment}={pins}"]
    if subprocess.run(setup, cwd=ROOT, check=False).returncode != 0:
        return False
    python = ROOT / environment / "bin/python"
    print(f"{kind}: {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        rows.touch()
        variables = os.environ | {"PENSTOCK_FIELD_ENVIRONMENT": name, "PENSTOCK_FIELD_ROWS": str(rows)}
        variables["PATH"] = f"{python.parent}{os.pathsep}{variables['PATH']}"
        tests = [python, "-m", "pytest", "-q", "-c", HERE / "pytest.ini", "--rootdir", HERE, HERE / kind]
        passed = subprocess.run(tests, cwd=ROOT, env=variables, check=False).returncode == 0
        kept = kept_in(kind, name) if passed else failed_in(kind, name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rows, kept)
    if not passed:
        print("\n".join(tables_of(read(kept))))
    return passed


def kept_in(kind: str, name: str) -> Path:
    """The file with the rows of the last run of an environment that passed."""
    return ROOT / f".cache/field/{kind}/{name}.jsonl"


def failed_in(kind: str, name: str) -> Path:
    """The file with the rows of the last run that failed: they took as long to measure."""
    return kept_in(kind, name).with_suffix(".failed.jsonl")


def rows_of(kind: str, name: str) -> list[dict]:
    """What the last run measured that passed."""
    return read(kept_in(kind, name))


def read(file: Path) -> list[dict]:
    """The rows in a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def is_of_today(kind: str, name: str) -> bool:
    """Whether there was such a run, today."""
    file = kept_in(kind, name)
    return file.exists() and dt.datetime.fromtimestamp(file.stat().st_mtime, tz=dt.UTC).date() == today()


def today() -> dt.date:
    """The date, wherever the machine is."""
    return dt.datetime.now(tz=dt.UTC).date()


def page(kind: str, rows: list[dict]) -> str:
    """The page of a kind: what its README says, when and where it was measured, and the tables."""
    about = (HERE / kind / "README.md").read_text().strip()
    measured = (
        f"Measured on {today()} with Python {platform.python_version()} on {os.cpu_count()} cores"
        f"{', before all other work of the machine,' if before_others() else ''} by `make field WHAT={kind}`, which "
        "wrote this page."
    )
    return "\n".join([about, "", *textwrap.wrap(measured, 120), *tables_of(rows)]) + "\n"


def before_others() -> bool:
    """Whether this runs with a real-time priority (`chrt -r 1`), and so do all that it starts."""
    return hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in {os.SCHED_RR, os.SCHED_FIFO}


def tables_of(rows: list[dict]) -> Iterable[str]:
    """The rows as tables in Markdown."""
    for name in dict.fromkeys(row["table"] for row in rows):
        mine = [row for row in rows if row["table"] == name]
        columns = list(dict.fromkeys(column for row in mine for column in row["columns"]))
        if name:
            yield from ("", f"## {name}")
        yield from ("", f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}")
        for row in mine:
            yield f"| {row['subject']} | {' | '.join(str(row['columns'].get(column, '')) for column in columns)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
