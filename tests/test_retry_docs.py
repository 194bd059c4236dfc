"""What the pages about retries, pipelines and other libraries show is what happens."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from penstock.testing import virtual_time

ROOT = Path(__file__).parents[1]
PAGES = ("retry.md", "pipelines.md", "with-other-libraries.md")

# A block of Python, and the output that follows it, if one does.
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def text_of(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def examples():
    for page in PAGES:
        shared = None
        for number, (code, output) in enumerate(EXAMPLE.findall(text_of(page))):
            if code.startswith("# service.py"):
                shared = code
            else:
                yield pytest.param(page, code, output, shared, id=f"{page}-{number}")


@pytest.mark.parametrize(("page", "code", "output", "shared"), list(examples()))
def test_an_example_prints_what_the_page_says(page, code, output, shared, capsys, monkeypatch):
    with virtual_time():
        if shared is not None:  # a module of its own for each example that imports it
            module = ModuleType("service")
            exec(compile(shared, "service.py", "exec"), vars(module))
            monkeypatch.setitem(sys.modules, "service", module)
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == output


def test_every_feature_is_linked_to_a_test_that_exists():
    """All rows of the comparison, and all recorded failings of others."""
    text = text_of("retry.md")
    rows = text.split("## Beside the others")[1].splitlines()
    features = [row for row in rows if row.startswith("| ") and "penstock" not in row and "| seen |" not in row]
    assert len(features) == 15 + 8
    for row in features:
        test, file = re.search(r"\[(test_\w+)\]\(\.\./(tests/\w+\.py)\)", row).groups()
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), row


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", text_of(page)):
            assert (ROOT / "docs" / link).exists(), link
