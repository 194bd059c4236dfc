"""The samples of tests/typing, which type checkers read and nothing runs: no public name is missing from them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "typing"
PUBLIC = (
    "penstock",
    "penstock.stores",
    "penstock.testing",
    "penstock.events",
    "penstock.errors",
    "penstock.openai",
    "penstock.http",
    "penstock.otel",
    "penstock.usage",
)


def used_in(text):
    """The names that a sample imports from us and uses, and the module that it has each from."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names if alias.name in used)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_sample(module):
    samples = {pair for file in SAMPLES.glob("*.py") for pair in used_in(file.read_text(encoding="utf-8"))}
    public = importlib.import_module(module)
    # Whoever uses an error by the package's name has a sample of it by its module's, too.
    homes = {module, "penstock"} if module == "penstock.errors" else {module}
    assert [name for name in public.__all__ if not any((home, name) in samples for home in homes)] == []


def test_a_name_that_is_imported_and_not_used_has_no_sample():
    sample = "from penstock import Limiter, Retry\nfrom penstock.stores import Store as S\nRetry(on=OSError)\n"
    assert list(used_in(sample)) == [("penstock", "Retry")]
