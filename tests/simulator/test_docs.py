"""What the page about the simulator shows is what happens."""

from __future__ import annotations

import pytest

from tests.docs_examples import examples_of, run_example

EXAMPLES = [
    example
    for page in ("simulator", "simulator-checks", "simulator-faults")
    for example in examples_of(f"docs/{page}.md")
]


def test_every_example_shows_its_output():
    assert [bool(output) for _, output in EXAMPLES] == [True] * 5


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_the_page_says(code, output, capsys):
    run_example(code, "simulator.md", {"__name__": "__main__"})
    assert capsys.readouterr().out == output
