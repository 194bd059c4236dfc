"""The site: every page can be reached and fits a reader's screen and patience, and the reference names all that is
public.

That it builds without a warning is seen by `make docs`, which has what builds it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from fnmatch import fnmatchcase

import pytest

import penstock
from tests.docs_examples import ROOT, text_of

DOCS = ROOT / "docs"
PAGES = sorted(str(file.relative_to(ROOT)) for file in DOCS.rglob("*.md"))
WORDS, COLUMNS = 1_200, 120

REFERENCE = "\n".join(file.read_text(encoding="utf-8") for file in (DOCS / "reference").glob("*.md"))
DOCUMENTED = set(re.findall(r"^ *\.\. auto(?:class|function|data|exception):: ([\w.]+)", REFERENCE, re.MULTILINE))
WHOLE_MODULES = set(re.findall(r"^\.\. automodule:: ([\w.]+)\n +:members:$", REFERENCE, re.MULTILINE))


def test_the_reference_has_every_public_name():
    """Of `penstock`, one by one or with the module that is their home."""
    homes = {f"{module}.{name}" for module in WHOLE_MODULES for name in importlib.import_module(module).__all__}
    there = {name.removeprefix("penstock.") for name in DOCUMENTED} | {name.rpartition(".")[2] for name in homes}
    assert set(penstock.__all__) - there == set()
    assert [name for name in DOCUMENTED if not _exists(name)] == []


@pytest.mark.parametrize("module", ["llm", "limits", "mapping", "batching"])
def test_the_reference_has_every_name_that_a_module_offers(module):
    there = {name.rpartition(".")[2] for name in DOCUMENTED} | {
        name for whole in WHOLE_MODULES for name in importlib.import_module(whole).__all__
    }
    offered = set(importlib.import_module(f"penstock.{module}").__all__)
    assert offered - there - {"Period", "may_be_an_items_fault"} == set()


def test_the_reference_has_every_error_that_leaves_penstock():
    """But for those that one part raises to another, and those that stand for their documented bases."""

    def below(kind):
        return {each for child in kind.__subclasses__() for each in (child, *below(child))}

    for module in pkgutil.walk_packages(penstock.__path__, "penstock."):
        importlib.import_module(module.name)
    homes = {name for whole in WHOLE_MODULES for name in importlib.import_module(whole).__all__}
    there = homes | {name.rpartition(".")[2] for name in DOCUMENTED}
    inside = {"NeitherCostNorFunction", "OutputError", "KeptError", "ReplacedError", "ChangedError", "FormatError"}
    ours = {kind.__name__ for kind in below(penstock.PenstockError) if kind.__module__.startswith("penstock.")}
    assert ours - there - inside == set()


@pytest.mark.parametrize(
    "name", ["http", "stores", "testing", "openai", "anthropic", "runner", "simulator", "events", "otel", "usage"]
)
def test_the_reference_has_all_of_a_public_module(name):
    assert f"penstock.{name}" in WHOLE_MODULES
    assert importlib.import_module(f"penstock.{name}").__all__


def test_the_reference_has_the_command_line():
    assert ".. commands::" in text_of("docs/reference/commands.md")


def _exists(name):
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_reached_from_the_index(page):
    entries = [line for block in _toctrees() for line in block.splitlines() if line and not line.startswith(":")]
    name = page.removeprefix("docs/").removesuffix(".md")
    assert name == "index" or any(fnmatchcase(name, entry) for entry in entries), "name it in docs/index.md"


def _toctrees():
    return re.findall(r"```\{toctree\}\n(.*?)```", text_of("docs/index.md"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if "/reference/" not in page and page != "docs/index.md"])
def test_every_page_is_a_link_of_the_index(page):
    """Where the repository is read, a table of contents is a block of code: nobody can click in it."""
    assert f"]({page.removeprefix('docs/')})" in text_of("docs/index.md")


SOUGHT = [
    "REST API", "OpenAI", "Azure", "Anthropic", "Gemini", "framework", "million rows", "many machines", "FastAPI",
    "Celery", "Django", "gunicorn", "aiohttp", "requests", "Scrapy", "Jupyter", "Lambda", "Kubernetes", "virtual time",
    "freezegun", "pytest", "logs", "metrics", "aiolimiter", "limits", "pyrate-limiter", "tenacity", "backoff", "stamina",
    "openlimit", "cookbook",
]  # fmt: skip


@pytest.mark.parametrize("word", SOUGHT)
def test_what_a_reader_looks_for_is_beside_a_link(word):
    assert re.search(rf"^\|.*\b{word}\b.*\]\(", text_of("docs/index.md"), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_takes_longer_than_a_break(page):
    """Words of code are counted too, and not signs alone."""
    words = len([word for word in text_of(page).split() if re.search(r"\w", word)])
    assert words <= WORDS, f"{words} words: a page answers one question, split it"


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES])
def test_no_line_is_wider_than_a_screen(page):
    """Code and prose; a row of a table cannot be broken."""
    lines = enumerate(text_of(page).splitlines(), 1)
    assert [number for number, line in lines if len(line) > COLUMNS and not line.startswith("|")] == []


def test_the_site_asks_the_network_for_nothing():
    """No page, template, style or script of ours names another host; what a link leads to is the reader's choice."""
    files = [*DOCS.rglob("*.css"), *DOCS.rglob("*.js"), *DOCS.rglob("*.html"), DOCS / "conf.py"]
    text = "".join(file.read_text(encoding="utf-8") for file in files if "_build" not in file.parts)
    assert re.findall(r"https?://(?!127\.0\.0\.1|www\.w3\.org/2000/svg)[^\s\"')]+", text) == []
