"""What the README and the pages about limits show is what happens; all links lead somewhere."""

from __future__ import annotations

import ast
import codeop
import re
import runpy
import tomllib

import pytest

from penstock.testing import virtual_time
from tests.docs_examples import ROOT, awaits, examples_of, run_example, text_of

PAGES = ("tutorial", "tour", "limits", "waiting", "keys", "logging", "from-aiolimiter")
FRAGMENTS = {"in-jupyter", "run-in-a-program"}
"""Their blocks are cells of a notebook, and lines of a reader's own program."""

CONSOLE = [
    page.stem
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.stem not in FRAGMENTS and any(awaits(code) for code, _ in examples_of(f"docs/{page.name}"))
]
"""Those of which a block awaits at its top level, which a program cannot."""

ALL_PAGES = ["README.md", *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "docs").rglob("*.md")))]


def run_page(page, capsys, names):
    """Run all examples of a page, one after the other, as one module; return how many there are."""
    examples = examples_of(page)
    for number, (code, output) in enumerate(examples, 1):
        run_example(code, page, names)
        assert capsys.readouterr().out == output, f"example {number} of {page}"
    return len(examples)


@pytest.mark.parametrize("page", PAGES)
def test_an_example_prints_what_the_page_says(page, capsys):
    with virtual_time():
        assert run_page(f"docs/{page}.md", capsys, {"__name__": "__main__"}) >= 1


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in CONSOLE for number in range(len(examples_of(f"docs/{page}.md")))],
)
def test_a_block_of_a_page_that_awaits_can_be_pasted_into_a_console(page, number):
    """A line at a time, as consoles before Python 3.13 take it: there an empty line ends a block, and nothing else
    does."""
    compiler, waiting = codeop.CommandCompiler(), []
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code, _ = examples_of(f"docs/{page}.md")[number]
    for line in [*code.splitlines(), ""]:
        waiting.append(line)
        if compiler("\n".join(waiting)) is not None:  # what is wrong so far raises
            waiting.clear()
    assert waiting == []


@pytest.mark.parametrize("page", CONSOLE)
def test_a_page_whose_examples_are_no_programs_says_where_they_run(page):
    """In a file they are a SyntaxError."""
    assert "`python -m asyncio`" in text_of(f"docs/{page}.md")


def test_the_page_about_testing_does_what_it_says(capsys):
    """Its examples make virtual times of their own; and the test that it shows passes."""
    names = {"__name__": "__main__"}
    assert run_page("docs/testing.md", capsys, names) == 6
    with virtual_time() as time:
        run_example("await test_the_hourly_limit(virtual_time)", "docs/testing.md", {**names, "virtual_time": time})


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("docs/batching.md", 4),
        ("docs/many-calls.md", 3),
        ("docs/shared-stores.md", 2),
        ("docs/store-leases.md", 1),
        ("docs/store-of-your-own.md", 1),
        ("docs/store-outages.md", 1),
        ("docs/store-redis.md", 2),
        ("docs/store-sqlite.md", 1),
        ("docs/usage-ledger.md", 1),
        ("docs/user-quotas.md", 2),
        ("docs/open-telemetry.md", 2),
    ],
)
def test_an_example_in_a_time_of_its_own_prints_what_the_page_says(page, count, capsys):
    """Each is a program by itself; together they take less than a second of real time."""
    for number, (code, output) in enumerate(examples_of(page), 1):
        run_example(code, page, {"__name__": "__main__"})
        assert capsys.readouterr().out == output, f"example {number} of {page}"
        count -= 1
    assert count == 0


def test_the_page_about_caps_in_fastapi_does_what_it_says(capsys):
    assert run_page("docs/caps-in-fastapi.md", capsys, {"__name__": "__main__"}) == 2


def test_the_readme_runs(capsys):
    """As it stands there; the call waits, is charged and settled."""
    names = {"__name__": "__main__"}
    with virtual_time():
        assert run_page("README.md", capsys, names) == 1
        assert names["limiter"].statistics().granted == 1
        assert names["limiter"].statistics().limits["tokens"].level == 90_000 - 900 + 150  # refilled in 0.1 s


def test_the_example_of_the_readme_has_eight_lines():
    ((code, _),) = examples_of("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) == 8


def test_every_link_of_the_readme_is_whole_and_leads_to_a_file_of_the_repository():
    """It is read on PyPI too, where there are no files beside it."""
    urls = tomllib.loads(text_of("pyproject.toml"))["project"]["urls"]
    files = re.escape(urls["Repository"]) + "/blob/main/"
    images = re.escape(urls["Repository"].replace("//github.com", "//raw.githubusercontent.com")) + "/main/"
    links = [*re.findall(r"(?:\]\(|^\[[^\]]+\]: )([^)\s]+)", text_of("README.md"), re.MULTILINE), *urls.values()]
    assert [link for link in links if not link.startswith("https://")] == []
    here = [match[1] for link in links if (match := re.fullmatch(f"(?:{files}|{images})([^#]+)", link))]
    assert len(here) > 10
    assert [name for name in here if not (ROOT / name).exists()] == []


def test_the_address_of_the_repository_is_set_by_one_command():
    """It is a placeholder until there is one."""
    new = "https://github.com/you/penstock.py"
    texts = runpy.run_path(str(ROOT / "tools/address.py"))["moved"](new)
    old = tomllib.loads(text_of("pyproject.toml"))["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    tracked = [ROOT / name for name in ("pyproject.toml", *ALL_PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    assert [file for file in tracked if f"/{old}" in texts.get(file, file.read_text(encoding="utf-8"))] == []
    assert {
        value.startswith(new) for value in tomllib.loads(texts[ROOT / "pyproject.toml"])["project"]["urls"].values()
    } == {True}


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_link_leads_to_a_file_that_is_there(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text_of(page))
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_page_with_python_is_run_by_a_test(page):
    """A page whose examples nobody runs is soon wrong."""
    if "```python" in text_of(page):
        tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
        name = page.removeprefix("docs/")
        assert name in tests or f'"{name.removesuffix(".md")}"' in tests
