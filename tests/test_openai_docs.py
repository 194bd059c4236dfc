"""Every example of docs/openai.md and docs/openai-errors.md runs, and prints what the page says."""

from __future__ import annotations

import pytest

from tests.docs_examples import examples_of, run_example

EXAMPLES = examples_of("docs/openai.md") + examples_of("docs/openai-errors.md")


def test_the_examples_are_found():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_page_says(code, output, capsys):
    run_example(code, "openai.md", {"__name__": "__main__"})
    assert capsys.readouterr().out == output
