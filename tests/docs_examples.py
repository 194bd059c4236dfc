"""How the examples of a page of docs are found, run and filled in: for all tests of the docs.

An example is a block of Python. The block of text right behind it, if there is one, is all that it prints.
"""

from __future__ import annotations

import ast
import re
from inspect import CO_COROUTINE
from pathlib import Path
from types import FunctionType

import anyio

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def examples_of(page):
    """(code, output) of each example of a page, such as "docs/retry.md"."""
    return EXAMPLE.findall(text_of(page))


def parts_of(examples):
    """The blocks that begin with the name of a file, by that name, and the program that the others are."""
    named = {found[1]: code for code, _ in examples if (found := re.match(r"# (\w+\.py)\n", code))}
    return named, "\n".join(code for code, _ in examples if code not in named.values())


def compiled_example(code, page):
    return compile(code, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def awaits(code):
    """Whether a block awaits at its top level, which a console of asyncio's can and a program cannot."""
    return bool(compiled_example(code, "example").co_flags & CO_COROUTINE)


def run_example(code, page, names):
    """Run a block with `names` as its module; a block that awaits at its top level runs in an asyncio loop of its
    own."""
    compiled = compiled_example(code, page)
    if compiled.co_flags & CO_COROUTINE:
        anyio.run(FunctionType(compiled, names))
    else:
        exec(compiled, names)
