"""Who may import whom, read off the source itself.

The order is that of the design: a module imports only from those above it. An import inside a function counts as
well: a lazy import hides a dependency from the reader, not from the program. So does one under `if TYPE_CHECKING:`, as
a reader has to follow it all the same; and no module imports another by a string, but the package itself, whose names
are loaded when asked for.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "penstock"

ORDER = (
    "_interruptions",  # signals that strike where we run a user's function
    "_chance",  # drawn from the system, whatever programs seed
    "_frozen",  # dicts that records show
    "_text",  # what others wrote, as terminals and messages may show it
    "_numbers",  # numbers and spans of time as users write them
    "errors",
    "_notation",  # limits as people write them
    "events",  # frozen records of what happened
    "limits",
    "_core",
    "clock",
    "_log",  # what happens, for the standard library's logging
    "_concurrency",  # how a task or a thread waits and is woken
    "_introspect",  # what kind of function one decorates
    "_run_inside",  # each call of it inside a context manager
    "_stated_times",  # spans and moments as services write them
    "_retry_after",  # what the server asked for
    "_user_errors",  # which errors count, and asking the user about them
    "_validation",  # what users write, read and checked
    "_turn",  # whose the limited calls of a block are
    "stores",
    "_backends",  # what decides for a limiter
    "statistics",
    "permit",
    "_arguments",  # functions of a call's arguments
    "_call",  # what limiter(...) is
    "_call_method",  # and how a limiter finds it
    "limiter",
    "keyed",
    "adaptive",
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
    "http",  # the seam under any HTTP client
    "otel",  # what OpenTelemetry hears
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
"""Modules that read a clock, draw, wait, or touch the world: the arithmetic below `_core` is told everything
instead."""

FILES = sorted(SOURCE.rglob("*.py"))


def layer_of(file):
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def nodes_of(file):
    """All that a file consists of, read once for all tests."""
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))))


@cache
def imports_of(file):
    """Every (line, module) that a file names in an import, wherever it stands, as absolute dotted names."""
    package = ("penstock", *file.relative_to(SOURCE).parts[:-1])

    found = []
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            # `from penstock import clock` loads a module, `from penstock import Limiter` the package: the name tells.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return sorted(found)


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


def module_of(name):
    """The file of a dotted name of ours, or of what a name is imported from."""
    path = SOURCE.parent.joinpath(*name.split("."))
    for candidate in (
        path.with_suffix(".py"),
        path / "__init__.py",
        path.parent.with_suffix(".py"),
        path.parent / "__init__.py",
    ):
        if candidate.exists():
            return candidate
    return None


def test_no_modules_import_each_other_in_a_circle():
    """Each file's imports, those of types included, lead to files that do not lead back."""
    # The package itself hands out everybody's names, and asks for them by name: it is the end of every circle, and of
    # none.
    edges = {
        file: {
            other
            for _, name in imports_of(file)
            if name.startswith("penstock") and (other := module_of(name)) not in {None, file, SOURCE / "__init__.py"}
        }
        for file in FILES
        if file.name != "_names.py" and file != SOURCE / "__init__.py"
    }
    done, circles = set(), []

    def visit(file, way):
        if file in way:
            circles.append([str(each.relative_to(SOURCE)) for each in way[way.index(file) :]])
        elif file not in done:
            for other in sorted(edges.get(file, ())):
                visit(other, [*way, file])
            done.add(file)

    for file in edges:
        visit(file, [])
    assert circles == []


def test_no_module_imports_another_by_a_string():
    by_string = {
        str(file.relative_to(SOURCE))
        for file in FILES
        for node in nodes_of(file)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"import_module", "__import__"}
        and "penstock" in "".join(map(ast.unparse, node.args))
    }
    assert by_string <= {"__init__.py", "stores/__init__.py"}


@pytest.mark.parametrize(
    "folder",
    [
        "_backends",
        "_backends/shared",
        "_core",
        "cli",
        "llm",
        "llm/learning",
        "retry",
        "runner",
        "runner/batch",
        "simulator",
        "usage",
    ],
)
def test_a_package_of_many_modules_opens_with_a_map_of_them(folder):
    """So a stranger finds the file of a thing by reading one page."""
    opening = ast.get_docstring(ast.parse((SOURCE / folder / "__init__.py").read_text(encoding="utf-8")))
    modules = {file.stem for file in (SOURCE / folder).glob("*.py")} - {"__init__"}
    assert {module for module in modules if not re.search(rf"(?<!\w){module}(?!\w)", opening)} == set()


@pytest.mark.parametrize("path", ["errors.py", "events.py", "limits.py", "_core/*.py", "llm/learning/*.py"])
def test_the_arithmetic_is_pure(path):
    """No clock, no randomness, no loop, no file: what it needs to know is passed in. And nothing there can wait."""
    files = sorted(SOURCE.glob(path))
    assert files
    for file in files:
        impure = [module for _, module in imports_of(file) if module.split(".")[0] in IMPURE]
        assert impure == [], file
        waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncWith, ast.AsyncFor)
        assert not any(isinstance(node, waits) for node in nodes_of(file)), file


def test_the_core_knows_nothing_of_ours_but_errors_and_limits():
    for file in (file for file in FILES if layer_of(file) == "_core"):
        assert {our_layer(module) for _, module in imports_of(file)} <= {
            None,
            "errors",
            "_text",
            "_numbers",
            "limits",
            "_core",
        }, file


def test_what_is_learned_of_a_server_is_estimated_without_a_service():
    """The estimates know each other alone: no SDK, no headers, no limiter."""
    for file in (SOURCE / "llm" / "learning").glob("*.py"):
        ours = [module for _, module in imports_of(file) if our_layer(module)]
        assert [module for module in ours if not module.startswith("penstock.llm.learning.")] == [], file


def test_events_know_next_to_nothing():
    """They are imported from above and below, so they must not pull anything in."""
    assert {our_layer(module) for _, module in imports_of(SOURCE / "events.py")} <= {None, "errors", "_interruptions"}


def test_only_the_clock_reads_time():
    """Everybody else asks `penstock.clock`, or a virtual clock would not be believed.

    A thread may sleep by itself, and anybody may ask which clock it is (`clock.now is time.monotonic`).
    """
    for file in (file for file in FILES if layer_of(file) not in {"clock", "testing"}):
        nodes = nodes_of(file)
        compared = {
            id(each) for node in nodes if isinstance(node, ast.Compare) for each in (node.left, *node.comparators)
        }
        used = [node for node in nodes if isinstance(node, ast.Attribute) and id(node) not in compared]
        read = [ast.unparse(node) for node in used if isinstance(node.value, ast.Name) and node.value.id == "time"]
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
    """The reader of imports sees lazy and relative ones, those of types, and what hides behind the package."""
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
        "limits.py:5",
        "limits.py:7",
        "limits.py:8",
        "limits.py:9",
    ]
