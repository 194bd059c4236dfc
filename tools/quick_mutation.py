"""Mutation testing of `src/penstock/_core` by its pure tests alone: all 6,000 mutants in an hour and not in days.

    python tools/quick_mutation.py [files]        such as `flows decision`; all of `_core` unless given

mutmut makes the mutants, and would choose one by an environment variable at each call of each function. Here a function
gets the code of its mutant instead, so that nothing else is slower. One process imports the tests once and calls those
that reach the function, as plain functions, until one fails: first those that took little and noticed much of it.

What needs a fixture, a server, an event loop or more than a second is left out, so what survives here may still be
killed by `tools/mutation.py`.
With SAMPLE=150 in the environment it tries so many of each file, chosen at random, and the same at every run.

Prints the table of that tool, and each survivor as a difference. Ends with 0 in any case.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "mutants"
CORE = MUTANTS / "src/penstock/_core"

LONGEST = 1.0
"""Seconds that a test may take to be among those that are tried."""

MORE = {  # beside tests/_core/test_NAME*.py
    "batch": (
        "_core/test_decision",
        "_core/test_bookings",
        "_core/test_flows",
        "stores/test_decisions",
        "stores/test_flows",
    ),
    "bookings": ("_core/test_decision",),
    "bucket": ("_core/test_refunds",),
    "budget": ("retry/test_budget",),
    "entries": ("_core/test_decision", "stores/test_decisions"),
    "flows": ("_core/test_decision",),
    "charging": ("_core/test_turns", "_core/test_late_turns", "_core/test_bucket", "_core/test_interrupted"),
    "decision": ("stores/test_decisions",),
    "limit_state": ("_core/test_turns", "_core/test_late_turns", "_core/test_bucket"),
    "meter": ("_core/test_bucket", "_core/test_windows", "_core/test_places", "_core/test_turns"),
    "places": ("_core/test_turns",),
    "queue": ("_core/test_shapes", "_core/test_turns"),
    "refunds": ("_core/test_bucket",),
    "row_limits": ("_core/test_rows", "_core/test_batch", "_core/test_decision", "stores/test_decisions"),
    "rows": ("_core/test_row_limits", "_core/test_decision", "_core/test_bookings", "stores/test_decisions"),
    "shapes": ("_core/test_queue", "_core/test_queue_model", "_core/test_turns"),
    "subqueues": ("_core/test_queue", "_core/test_queue_model", "_core/test_shapes", "_core/test_turns"),
    "turns": ("_core/test_late_turns", "_core/test_queue", "_core/test_queue_model", "_core/test_shapes"),
}

FUNCTIONS: dict[str, FunctionType] = {}
"""Each function of `_core` that has mutants, by the name that its mutants begin with."""


@dataclass(eq=False)
class Call:
    """A test with its arguments: how many seconds it takes, and which functions it reaches."""

    test: Callable[..., object]
    arguments: dict[str, Any]
    seconds: float = 0.0
    reached: set[str] = field(default_factory=set)


class Hung(BaseException):
    """A test has taken many times as long as it takes."""


def make_mutants() -> None:
    """Have mutmut write the mutants of every file, and run nothing."""
    import mutmut.__main__ as tool

    os.chdir(ROOT)
    MUTANTS.mkdir(exist_ok=True)
    tool.set_mutant_under_test("mutant_generation")
    for step in (tool.copy_src_dir, tool.copy_also_copy_files, tool.setup_source_paths):
        step()
    tool.store_lines_covered_by_tests()
    tool.create_mutants(1)


def keep_functions(mutants: dict[str, FunctionType], **_: bool) -> Callable[[FunctionType], FunctionType]:
    """Stand in for mutmut's decorator: leave the function as it is, and remember it."""

    def keep(function: FunctionType) -> FunctionType:
        FUNCTIONS[f"{function.__module__}.{function.__qualname__}"] = function
        function.mutants = mutants  # type: ignore[attr-defined]
        return function

    return keep


def modules_for(name: str) -> Iterator[ModuleType]:
    """The test modules of a file of `_core`."""
    own = [file.relative_to(ROOT / "tests").with_suffix("") for file in (ROOT / "tests/_core").glob(f"test_{name}*.py")]
    for path in dict.fromkeys([*map(str, sorted(own)), *MORE.get(name, ())]):
        yield importlib.import_module("tests." + path.replace("/", "."))


def cases(test: Callable[..., object]) -> Iterator[dict[str, Any]]:
    """The arguments of each of its cases."""
    lists = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            given, values = mark.args[:2]
            names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
            several = len(names) > 1
            rows = [one.values if hasattr(one, "marks") else one if several else (one,) for one in values]
            lists.append([dict(zip(names, row, strict=True)) for row in rows])
    for chosen in itertools.product(*lists):
        yield {name: value for one in chosen for name, value in one.items()}


def patched(test: Callable[..., object]) -> Callable[..., object]:
    """A test with the one fixture that needs nothing else."""

    def call(**arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(monkeypatch=monkeypatch, **arguments)

    return call


def bounded(call: Call, seconds: float) -> None:
    """Run a test, and raise `Hung` when it takes longer.

    Seconds of this process, since others may want the machine; and again some later, since a callback of the garbage
    collector swallows what is raised in it.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds, 3.0)
    try:
        call.test(**call.arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def reached(call: Call) -> set[str]:
    """The functions with mutants that a test enters."""
    names = {function.__code__: name for name, function in FUNCTIONS.items()}
    found = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in names:
            found.add(names[frame.f_code])

    sys.setprofile(note)
    try:
        bounded(call, 60)
    finally:
        sys.setprofile(None)
    return found


def calls_for(name: str) -> list[Call]:
    """The calls that pass without a mutant, and take less than `LONGEST`."""
    found: list[Call] = []
    for module in modules_for(name):
        for test in [one for label, one in vars(module).items() if label.startswith("test_")]:
            if not inspect.isfunction(test) or inspect.iscoroutinefunction(test):
                continue
            for arguments in cases(test):
                fixtures = inspect.signature(test).parameters.keys() - arguments.keys()
                if fixtures - {"monkeypatch"}:
                    break
                call = Call(patched(test) if fixtures else test, arguments)
                begin = time.process_time()
                bounded(call, 60)
                call.seconds = time.process_time() - begin
                if call.seconds < LONGEST:
                    call.reached = reached(call)
                    found.append(call)
    return found


def fate_of(calls: list[Call], noticed: Counter[Call]) -> str:
    """What the first test says that notices a mutant; `noticed`: how many of its function each did before."""
    try:
        for call in sorted(calls, key=lambda call: call.seconds / (1 + noticed[call])):
            bounded(call, max(3.0, 40 * call.seconds))
    except Hung:
        return "hung"
    except BaseException:  # noqa: BLE001 - however the test fails
        noticed[call] += 1
        return "killed"
    return "survived"


def fates_of(function: FunctionType, names: list[str], calls: list[Call]) -> dict[str, str]:
    """What becomes of these mutants of a function."""
    original = function.__code__, function.__defaults__, function.__kwdefaults__
    noticed: Counter[Call] = Counter()
    fates = {}
    for name in names:
        mutant = function.mutants[name]  # type: ignore[attr-defined]
        function.__code__, function.__defaults__, function.__kwdefaults__ = (
            mutant.__code__, mutant.__defaults__, mutant.__kwdefaults__
        )  # fmt: skip
        try:
            fates[name] = fate_of(calls, noticed)
        finally:
            function.__code__, function.__defaults__, function.__kwdefaults__ = original
    return fates


def look_at(name: str) -> None:
    """Try the mutants of one file; print its row of the table, and what survived."""
    sys.path[:0] = [str(MUTANTS / "src"), str(ROOT)]

    def hang(_: int, __: FrameType | None) -> None:
        raise Hung

    signal.signal(signal.SIGPROF, hang)
    import hypothesis
    import mutmut.mutation.trampoline as tool

    tool.wrap_in_trampoline = keep_functions

    quick = {"derandomize": True, "database": None, "deadline": None, "max_examples": 30}
    hypothesis.settings.register_profile("mutants", suppress_health_check=list(hypothesis.HealthCheck), **quick)
    hypothesis.settings.load_profile("mutants")
    source = (CORE / f"{name}.py").read_text(encoding="utf-8")
    names = re.findall(r"^\s*def (x[^ (]*__mutmut_\d+)\(", source, re.MULTILINE)
    shown_name, sample = name, int(os.environ.get("SAMPLE", len(names)))
    if sample < len(names):
        shown_name = f"{name}, {sample} of {len(names)}"
        names = random.Random(name).sample(names, sample)  # noqa: S311 - no secret
    calls = calls_for(name)
    chosen, fates = set(names), {}
    own = {one: label for label, one in FUNCTIONS.items() if one.__module__ == f"penstock._core.{name}"}
    for function, label in own.items():
        mutants = [one for one in function.mutants if one in chosen]  # type: ignore[attr-defined]
        fates |= fates_of(function, mutants, [call for call in calls if label in call.reached])
    counts = Counter(fates.values())
    killed, hung, survived = (counts[fate] for fate in ("killed", "hung", "survived"))
    share = 100 * (killed + hung) / max(1, len(names))
    print(f"| {shown_name} | {len(names)} | {killed} | {hung} | {survived} | {share:.1f} % |")
    for mutant in [one for one, fate in fates.items() if fate == "survived"]:
        mutants = next(one.mutants for one in own if mutant in one.mutants)  # type: ignore[attr-defined]
        before, after = (inspect.getsource(mutants[one]).splitlines()[1:] for one in ("_mutmut_orig", mutant))
        lines = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
        print(f"  {mutant}", *lines, sep="\n    ")


def main() -> None:
    """Make the mutants, and look at each file in a process of its own."""
    if sys.argv[1:2] == ["--one"]:
        look_at(sys.argv[2])
        return
    make_mutants()
    files = sys.argv[1:] or [file.stem for file in sorted(CORE.glob("*.py")) if "__mutmut_1(" in file.read_text()]
    print("| file | mutants | killed | hung | survived | killed or hung |\n|---|---:|---:|---:|---:|---:|", flush=True)
    for name in files:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
