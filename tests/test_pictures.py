"""A picture of the docs shows what was measured, or what a run in virtual time did: its program draws it again, the
same."""

from __future__ import annotations

import importlib.util
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.docs_examples import ROOT, text_of


def _tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "tools"))
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


PICTURES = _tool("pictures").PICTURES
ESTIMATED = {"learning"}  # shows what an estimator did, and changes with it


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - ESTIMATED))
def test_a_picture_is_what_its_program_draws(name):
    there = text_of(f"docs/images/{name}.svg")
    assert there == PICTURES[name](), "make pictures"
    assert ET.fromstring(there).findtext("{http://www.w3.org/2000/svg}title")


def test_every_drawn_picture_is_shown():
    pages = "".join(file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    drawn = {file.name for file in (ROOT / "docs/images").glob("*.svg")}
    assert drawn == {f"{name}.svg" for name in PICTURES}
    assert [name for name in drawn if name not in pages] == []


@pytest.mark.parametrize(
    ("page", "text"), _tool("measured").pages().items(), ids=lambda each: getattr(each, "stem", "")
)
def test_the_measurements_that_are_quoted_are_those_of_the_results(page, text):
    assert page.read_text(encoding="utf-8") == text, "make pictures"
