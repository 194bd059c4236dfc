"""The pages of one question each do what they say: how-tos, and how to come from other libraries.

What needs packages that are too heavy for this suite is run by `make field WHAT=pages` and `WHAT=frameworks`.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from penstock.testing import virtual_time
from tests.docs_examples import ROOT, examples_of, parts_of, run_example, text_of

IN_VIRTUAL_TIME = ["interactive-first", "why-bucket", "why-refunds", "from-tenacity", "from-backoff", "from-stamina"]
IN_REAL_TIME = ["azure", "from-limits", "from-pyrate-limiter", "from-the-cookbook", "in-jupyter"]
PROGRAMS = ["in-celery", "prometheus-grafana", "from-openlimit", "in-aws-lambda", "in-kubernetes", "under-gunicorn"]
TOO_HEAVY = ["anthropic", "in-django", "in-scrapy", "your-framework"]
EXTRAS = {"openai": "openai", "RedisStore": "redis", "runner": "cli", "simulator": "simulator", "otel": "otel"}
"""What brings what a name of ours needs."""

OF_COMMANDS = {"": "cli", "simulate": "simulator", "redis://": "redis"}
"""What brings what a command needs in which this stands."""


@pytest.mark.parametrize("page", IN_VIRTUAL_TIME)
def test_a_page_prints_what_it_says_in_virtual_time(page, capsys):
    with virtual_time():
        _run(page, capsys)


@pytest.mark.parametrize("page", IN_REAL_TIME)
def test_a_page_prints_what_it_says(page, capsys):
    """Libraries of others wait by clocks of their own; each page takes less than two seconds."""
    _run(page, capsys)


def _run(page, capsys):
    names = {"__name__": "__main__"}
    for number, (code, output) in enumerate(examples_of(f"docs/{page}.md"), 1):
        run_example(code, page, names)
        assert capsys.readouterr().out == output, f"example {number} of {page}"


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_blocks_of_a_page_are_a_program(page, tmp_path):
    examples = examples_of(f"docs/{page}.md")
    program = tmp_path / "program.py"
    program.write_text("\n".join(code for code, _ in examples), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (run.stdout, run.stderr) == ("".join(output for _, output in examples), "")


def test_two_workers_of_the_tutorial_share_one_limit(tmp_path):
    """Ten calls at 5 a second, the first at once: 1.8 s at least, which two limiters would do in 0.8."""
    (program,) = re.findall(r"```py\n(.*?)```", text_of("docs/tutorial.md"), re.DOTALL)
    told = program.replace("import sys", "import sys, time").replace("sys.argv[1], number", "time.time()")
    told = told.replace("async def main():\n", "async def main():\n    print(time.time())\n")  # none is granted before
    (tmp_path / "worker.py").write_text(told, encoding="utf-8")
    command = [sys.executable, "worker.py"]
    workers = [subprocess.Popen([*command, name], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for name in "ab"]
    moments = sorted(float(line) for worker in workers for line in worker.communicate(timeout=120)[0].splitlines())
    assert len(moments) == 2 + 10
    assert moments[-1] - moments[0] > 1.7


@pytest.mark.parametrize("number", range(2))
def test_each_block_about_many_machines_is_a_program(number, tmp_path):
    """Its workers import the program again, so it has to be a file."""
    code, output = examples_of("docs/many-machines.md")[number]
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert (run.stdout, run.stderr) == (output, "")


@pytest.mark.parametrize("page", sorted(file.stem for file in (ROOT / "docs").glob("*.md")))
def test_a_page_names_the_extras_that_its_code_needs(page):
    """Who has installed penstock alone is told before the import fails."""
    text = text_of(f"docs/{page}.md")
    code = "".join(re.findall(r"```(?:python|py)\n(.*?)```", text, re.DOTALL))
    uses = re.findall(r"^ *(?:from|import) (penstock.*)$", code, re.MULTILINE)
    needed = {extra for name, extra in EXTRAS.items() if any(re.search(rf"\b{name}\b", use) for use in uses)}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shell = "".join(block for kind, block in blocks if kind in {"", "bash", "console", "sh"})
    commands = re.findall(r"^(?:\$ )?penstock .*", shell, re.MULTILINE)
    needed |= {extra for word, extra in OF_COMMANDS.items() if any(word in command for command in commands)}
    named = {extra for some in re.findall(r"penstock\[([\w,]+)\]", text) for extra in some.split(",")}
    assert needed - named == set()


@pytest.mark.parametrize("page", TOO_HEAVY)
def test_the_others_are_at_least_python(page, tmp_path):
    """And bind each name that they use: a block that is a file of its own has to be imported."""
    files, program = parts_of(examples_of(f"docs/{page}.md"))
    assert program
    for name, code in {**files, "program.py": program}.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
        compile(code, name, "exec")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--output-format=concise", tmp_path]
    checked = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout.strip()) == (0, "All checks passed!")


def test_each_of_the_others_is_run_outside_of_this_suite():
    field = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "tests/field").glob("*/test_*.py"))
    assert [page for page in TOO_HEAVY if not re.search(rf'"{page}"|docs/{page}\.md', field)] == []


def test_each_framework_of_its_page_is_an_environment():
    uses = (ROOT / "tests/field/frameworks/uses.py").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (.*)$", text_of("docs/your-framework.md"), re.MULTILINE)) - {"Another framework"}
    assert sections == set(re.findall(r"Use\(\s*\"([^\"]+)\"", uses))
    environments = {file.stem for file in (ROOT / "tests/field/frameworks").glob("*.txt")}
    assert environments == set(re.findall(r"^    \"([\w-]+)\": Use", uses, re.MULTILINE))
