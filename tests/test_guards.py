"""No loop goes back outside of what guards it, and no lock is left held.

CPython looks for signals where a loop goes back. Up to 3.12 that is inside of the `with` or `try` around the loop. In
3.13 a jump back that depends on a condition is not: an exception raised there passes the lock's `__exit__` by, and the
lock is held for ever. So loops whose jump depends on a condition stand in functions of their own, which guards call.
What runs there under signals is in the tests of signals.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src/penstock"
GUARDED = sorted(
    file
    for part in ("_core", "_backends", "_concurrency", "stores/memory.py", "llm/endpoints.py", "llm/discovered.py")
    for file in ([SOURCE / part] if part.endswith(".py") else (SOURCE / part).rglob("*.py"))
)

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
WITHS = (ast.With, ast.AsyncWith)


def loops_in(node, guarded=False):
    """The loops directly inside a `with` or the body of a `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            yield from loops_in(child)
            continue
        if guarded and isinstance(child, LOOPS):
            yield child
        inside = child.body if isinstance(child, (*WITHS, ast.Try, ast.TryStar)) else []
        yield from loops_in(ast.Module(list(inside), []), guarded=True)
        outside = [one for one in ast.iter_child_nodes(child) if one not in inside]
        yield from loops_in(ast.Module(outside, []), guarded=guarded)


def goes_back_on_a_condition(loop):
    """Whether its jump back follows a test: at its top, at its end, or before a `continue`."""
    if isinstance(loop, ast.While) and not (isinstance(loop.test, ast.Constant) and loop.test.value):
        return True
    own = list(loop.body)
    while own:
        statement = own.pop()
        if isinstance(statement, ast.Continue):
            return True
        if not isinstance(statement, (*FUNCTIONS, *LOOPS)):
            own += [one for one in ast.iter_child_nodes(statement) if isinstance(one, ast.stmt | ast.excepthandler)]
    last = loop.body[-1]
    while isinstance(last, WITHS):
        last = last.body[-1]
    return isinstance(last, ast.If)


@pytest.mark.parametrize("file", GUARDED, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_no_loop_goes_back_outside_of_what_guards_it(file):
    loops = [loop for loop in loops_in(ast.parse(file.read_text())) if goes_back_on_a_condition(loop)]
    assert [f"line {loop.lineno}" for loop in loops] == []


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(SOURCE.rglob("*.py")) if file.parent.name != "_concurrency"],
    ids=lambda file: file.relative_to(SOURCE).as_posix(),
)
def test_every_lock_is_one_that_no_handler_leaves_held(file):
    """Those of `threading` are not, in CPython 3.14: see `penstock._concurrency.locks`."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert [call for call in calls if call in ("threading.Lock", "threading.RLock", "threading.Condition")] == []
