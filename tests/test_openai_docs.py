"""Every example of docs/openai.md runs, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "openai.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.DOTALL)


def test_the_examples_are_found():
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize(("code", "output"), EXAMPLES)
def test_an_example_prints_what_the_page_says(code, output, capsys):
    exec(compile(code, "openai.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == output
