"""Run each page of the docs as a reader does: the wheel, what the page says to install, and its programs as printed.

    python tools/pages.py [PAGE ...]

Every page has an environment of its own, with the extras that it names and no others, so that a page that forgets one
fails here and not at a stranger's. What a page is about (`import fastapi`) is there too, as its reader has it already.
Pages whose programs are too heavy for this are run by `make field`. Ends with 1 if a page did not print what it says,
after a table of all.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

sys.path.append(str(Path(__file__).resolve().parent.parent))  # which has no penstock: that one is in src

from tests.docs_examples import ROOT, examples_of, run_example, text_of

FIELD = {"in-celery", "in-django", "in-scrapy", "your-framework"}
"""Run by `make field`."""

PARTS = {"run-in-a-program"}
"""They show lines of a reader's own program, which `tests/runner` completes."""

REAL_TIME = {
    "anthropic", "any-http-api", "azure", "batch-api", "batching", "caps-in-fastapi", "from-limits", "from-openlimit",
    "from-pyrate-limiter", "from-the-cookbook", "in-aws-lambda", "in-jupyter", "in-kubernetes", "many-calls",
    "open-telemetry", "openai", "openai-errors", "prometheus-grafana", "shared-stores", "simulator",
    "simulator-checks", "simulator-faults", "store-leases", "store-of-your-own", "store-outages", "store-redis",
    "store-sqlite", "testing", "under-gunicorn", "usage-ledger", "user-quotas",
}  # fmt: skip
"""They talk over sockets, wait by others' clocks, or make a virtual time themselves. The other pages run in one."""

PROGRAMS = {"many-machines"}
"""Each block is a program in a file, which its own workers import again."""

FOREIGN = {
    "aiohttp", "aiolimiter", "anthropic", "backoff", "fastapi", "httpx", "joblib", "limits",
    "pyrate_limiter", "requests", "stamina", "tenacity",
}  # fmt: skip
"""What a page may be about, by the name under which it is imported: its reader has it already."""


def pages() -> list[str]:
    """Those with Python, by name; the README too."""
    found = ["README.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
    skipped = {f"docs/{name}.md" for name in FIELD | PARTS}
    return [page for page in found if page not in skipped and examples_of(page)]


def needs(page: str) -> list[str]:
    """What a reader installs: the extras that the page names, what else its commands install, and what it is about."""
    text = text_of(page)
    extras = sorted({extra for some in re.findall(r"penstock\[([\w,]+)\]", text) for extra in some.split(",")})
    commands = re.findall(r"pip install\s+([^`\n]+)", text)
    beside = {word for command in commands for word in command.split() if "penstock" not in word}
    imported = set(
        re.findall(r"^ *(?:import|from) (\w+)", "".join(code for code, _ in examples_of(page)), re.MULTILINE)
    )
    own = f"penstock[{','.join(extras)}]" if extras else "penstock"
    return [own, *sorted(beside), *sorted(imported & FOREIGN)]


def attempt(page: str, wheel: Path, uv: Path) -> str:
    """Install what a page needs and run it; what went wrong, or nothing."""
    own, *others = needs(page)
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
        install = [uv, "pip", "install", "--quiet", "--python", inside, "--only-binary", ":all:"]
        for step in (
            [uv, "venv", "--quiet", "--python", sys.executable, folder],
            [*install, f"{own} @ {wheel.as_uri()}", *others],
            [inside, "-I", __file__, "--run", page],
        ):
            done = subprocess.run(step, capture_output=True, text=True, check=False, cwd=folder)
            if done.returncode:
                return re.sub(r"\s+", " ", done.stderr.strip()[-400:])
    return ""


def run(page: str) -> None:
    """Run a page's examples one after the other, as one module, and compare what they print with what it says."""
    name = Path(page).stem
    examples = examples_of(page)
    if name in PROGRAMS:
        for number, (code, output) in enumerate(examples):
            program = Path(f"program{number}.py").resolve()
            program.write_text(code, encoding="utf-8")
            ran = subprocess.run([sys.executable, "-I", program], capture_output=True, text=True, check=False)
            compare(number, ran.stdout, output, ran.stderr)
    elif name in REAL_TIME:
        run_all(examples)
    else:
        from penstock.testing import virtual_time

        with virtual_time():
            run_all(examples)


def run_all(examples: list[tuple[str, str]]) -> None:
    """Run blocks with one module's names; one that begins with a file's name is that module."""
    names: dict[str, object] = {"__name__": "__main__"}
    modules = {}
    for number, (code, output) in enumerate(examples):
        if file := re.match(r"# (\w+)\.py\n", code):
            modules[file[1]] = code
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            for name, module_code in modules.items():  # each example is a program, which imports it anew
                module = sys.modules[name] = ModuleType(name)
                run_example(module_code, f"{name}.py", vars(module))
            run_example(code, f"example {number}", names)
        compare(number, printed.getvalue(), output)


def compare(number: int, printed: str, promised: str, errors: str = "") -> None:
    """End with what differs."""
    if printed != promised:
        sys.exit(f"example {number} printed {printed!r}, and the page says {promised!r}. {errors}")


def main(wanted: list[str]) -> int:
    """Run the pages named, or all; return the exit code."""
    from matrix import UV, build

    faults = []
    print("| page | installed | |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        for page in wanted or pages():
            fault = attempt(page, wheel, Path(UV))
            faults += [page] * bool(fault)
            print(f"| {page} | {', '.join(needs(page))} | {fault or 'as printed'} |", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
