"""What the pages about retries, pipelines and other libraries show is what happens."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest

from penstock.testing import virtual_time
from tests.docs_examples import ROOT, examples_of, run_example, text_of

PAGES = (
    "docs/retry.md",
    "docs/retry-functions.md",
    "docs/retry-budgets.md",
    "docs/retry-watching.md",
    "docs/pipelines.md",
    "docs/with-other-libraries.md",
)


def examples():
    for page in PAGES:
        shared = None
        for number, (code, output) in enumerate(examples_of(page)):
            if code.startswith("# service.py"):
                shared = code
            else:
                yield pytest.param(page, code, output, shared, id=f"{page}-{number}")


@pytest.mark.parametrize(("page", "code", "output", "shared"), list(examples()))
def test_an_example_prints_what_the_page_says(page, code, output, shared, capsys, monkeypatch):
    with virtual_time():
        if shared is not None:  # a module of its own for each example that imports it
            module = ModuleType("service")
            run_example(shared, "service.py", vars(module))
            monkeypatch.setitem(sys.modules, "service", module)
        run_example(code, page, {"__name__": "__main__"})
    assert capsys.readouterr().out == output


def test_every_feature_is_linked_to_a_test_that_exists():
    """All rows of the comparison, and all recorded failings of others."""
    rows = text_of("docs/retry-others.md").partition("## What it costs")[0].splitlines()
    features = [row for row in rows if row.startswith("| ") and "penstock" not in row and "| seen |" not in row]
    assert len(features) == 15 + 8
    for row in features:
        test, file = re.search(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", row).groups()
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), row
