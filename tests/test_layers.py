"""Who may import whom, read off the source itself.

The order is that of the design: a module imports only from those above it. What is imported inside a function counts as
well: a lazy import hides a dependency from the reader, not from the program. Only what stands under `if TYPE_CHECKING:`
is free, since a type that is merely named is never loaded and ties nothing together at run time.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "penstock"

ORDER = (
    "errors",
    "events",  # frozen records of what happened
    "limits",
    "_core",
    "clock",
    "_concurrency",  # how a task or a thread waits and is woken
    "_introspect",  # what kind of function one decorates
    "_retry_after",  # what the server asked for
    "_classify",  # which errors count
    "_user_errors",  # looking at the user's exceptions without losing them
    "stores",
    "_gate",  # the line in front of limits of this process
    "_desks",  # what the courier keeps books of
    "_leasing",  # grants out of what this process holds of a shared store
    "_courier",  # who carries what is asked to a shared store
    "_validation",  # what users write, read and checked
    "permit",
    "_calls",  # what limiter(...) is
    "limiter",
    "keyed",
    "adaptive",
    "_shared",  # limiters over a shared store
    "retry",
    "pipeline",
    "batching",
    "mapping",
    "_names",  # the list of public names
    "__init__",  # the public names; whoever is below may use them
    "compat",
    "testing",
    "_pytest_plugin",
    "llm",
    "openai",
    "anthropic",
    "usage",
    "runner",
    "simulator",
    "cli",
    "__main__",
)

IMPURE = {
    "anyio",
    "asyncio",
    "io",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "sniffio",
    "subprocess",
    "threading",
    "time",
    "trio",
}
"""Modules that read a clock, draw, wait, or touch the world: the arithmetic below `_core` is told everything instead."""

FILES = sorted(SOURCE.rglob("*.py"))


def layer_of(file):
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file):
    """Every (line, module) that a file may load when it runs, as absolute dotted names."""
    package = ("penstock", *file.relative_to(SOURCE).parts[:-1])

    def walk(node):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from walk(other)
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            # `from penstock import clock` loads a module, `from penstock import Limiter` the package: the name tells.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(file.read_text(encoding="utf-8"), str(file)))


def our_layer(module):
    """The layer that an import of ours reaches; None if it is not ours."""
    parts = module.split(".")
    if parts[0] != "penstock":
        return None
    name = parts[1] if len(parts) > 1 else "__init__"
    is_module = (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()
    return name if is_module else "__init__"


def breaches(file):
    """What a file imports from layers below its own, as sentences."""
    own = layer_of(file)
    for line, module in imports_of(file):
        other = our_layer(module)
        if other is not None and other != own and ORDER.index(other) > ORDER.index(own):
            yield f"{file.relative_to(SOURCE)}:{line}: {own} imports {module}, which is below it"


def test_every_module_has_its_place_in_the_order():
    """A new module is put into ORDER before it is used."""
    assert {layer_of(file) for file in FILES} - set(ORDER) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_module_imports_only_from_those_above_it(file):
    assert list(breaches(file)) == []


@pytest.mark.parametrize("name", ["errors", "events", "limits", "_core"])
def test_the_arithmetic_is_pure(name):
    """No clock, no randomness, no loop, no file: what it needs to know is passed in. And nothing there can wait."""
    for file in (file for file in FILES if layer_of(file) == name):
        impure = [module for _, module in imports_of(file) if module.split(".")[0] in IMPURE]
        assert impure == [], file
        waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncWith, ast.AsyncFor)
        assert not any(isinstance(node, waits) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))), file


def test_the_core_knows_nothing_of_ours_but_errors_and_limits():
    for file in (file for file in FILES if layer_of(file) == "_core"):
        assert {our_layer(module) for _, module in imports_of(file)} <= {None, "errors", "limits", "_core"}, file


def test_events_know_errors_alone():
    """They are imported from above and below, so they must not pull anything in."""
    assert {our_layer(module) for _, module in imports_of(SOURCE / "events.py")} <= {None, "errors"}


def test_only_the_clock_reads_time():
    """Everybody else asks `penstock.clock`, or a virtual clock would not be believed.

    A thread may sleep by itself, and anybody may ask which clock it is (`clock.now is time.monotonic`).
    """
    for file in (file for file in FILES if layer_of(file) not in {"clock", "testing"}):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        compared = {
            id(each) for node in nodes if isinstance(node, ast.Compare) for each in (node.left, *node.comparators)
        }
        used = [node for node in nodes if isinstance(node, ast.Attribute) and id(node) not in compared]
        read = [ast.unparse(node) for node in used if ast.unparse(node.value) == "time"]
        by_name = [module for _, module in imports_of(file) if module.startswith("time.")]
        assert set(read + by_name) <= {"time.sleep"}, file


def test_importing_penstock_loads_nothing_but_anyio():
    """Optional parts stay optional: what they need is not loaded, nor even looked for."""
    of_anyio = {"anyio", "exceptiongroup", "idna", "sniffio", "typing_extensions"}  # it loads these itself
    program = (
        "import sys; before = set(sys.modules); import penstock;"
        "print(*({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith("_sysconfigdata")}
    assert loaded - of_anyio == {"penstock"}


def test_a_breach_would_be_seen(tmp_path, monkeypatch):
    """The reader of imports sees lazy and relative ones, and what hides behind the package; not mere types."""
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    for name in ("errors", "limits", "limiter", "cli"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "limits.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from penstock import errors\n"
        "from .errors import X\n"
        "if TYPE_CHECKING:\n"
        "    from penstock.cli import main\n"
        "def f():\n"
        "    from penstock import Limiter\n"
        "    from . import limiter\n"
        "    import penstock.cli\n"
    )
    assert [breach.split(": ")[0] for breach in breaches(tmp_path / "limits.py")] == [
        "limits.py:7",
        "limits.py:8",
        "limits.py:9",
    ]
