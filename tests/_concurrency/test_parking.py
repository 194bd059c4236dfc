"""A parker is of the loop that runs here; waiting works while another thread is importing an event loop's library."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from weakref import ref

import pytest

from penstock._concurrency import parking


async def _home():
    return parking.here().home


async def _is_of_this_loop():
    return await _home() is await _home() is asyncio.get_running_loop()


def test_a_parker_is_of_the_loop_that_runs_here_and_not_of_one_that_ran_before():
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        for loop in (one, other, one, one):
            assert loop.run_until_complete(_home()) is loop
            assert parking.here().home is parking.THREADS
    finally:
        one.close()
        other.close()


@pytest.mark.asyncio
async def test_a_parker_of_another_thread_is_not_of_the_loop_that_runs_beside_it():
    assert parking.here().home is asyncio.get_running_loop()
    assert (await asyncio.to_thread(parking.here)).home is parking.THREADS
    assert await asyncio.to_thread(asyncio.run, _is_of_this_loop())
    assert parking.here().home is asyncio.get_running_loop()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio enters no task inside another from 3.14 on")
@pytest.mark.asyncio
async def test_a_loop_that_is_run_inside_another_has_its_own_parkers():
    """Programs and libraries such as nest_asyncio do that, each in its own way."""
    outer, inner = asyncio.get_running_loop(), asyncio.new_event_loop()
    assert parking.here().home is outer
    asyncio._set_running_loop(None)
    try:
        home = inner.run_until_complete(_home())
    finally:
        asyncio._set_running_loop(outer)
        inner.close()
    assert home is inner
    assert parking.here().home is outer


def test_a_loop_that_was_run_is_freed():
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(_is_of_this_loop())
    loop.close()
    freed = ref(loop)
    del loop
    gc.collect()
    assert freed() is None


FORK = """
import asyncio, os
from penstock._concurrency import parking

async def home():
    return parking.here().home, asyncio.get_running_loop()

async def fork():
    mine, running = await home()
    assert mine is running
    child = os.fork()
    if child == 0:
        assert parking.here().home is parking.THREADS
        mine, running = asyncio.run(home())
        os._exit(0 if mine is running else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(asyncio.run(fork()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_child_of_a_fork_has_no_parkers_of_its_parents_loop():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


BETWEEN = "import __main__; __main__.begun.set(); __main__.go_on.wait(60)"

HALF_IMPORTED = {
    "nothing defined yet": {"trio/__init__.py": BETWEEN},
    "its submodule half done": {"trio/__init__.py": "from . import lowlevel", "trio/lowlevel.py": BETWEEN},
    "an empty namespace": {"trio/__init__.py": f"import types; lowlevel = types.SimpleNamespace(); {BETWEEN}"},
    "sniffio": {"trio/__init__.py": "import sniffio", "sniffio/__init__.py": BETWEEN},
    "anyio's backend": {
        "trio/__init__.py": "import fake; fake.load()",
        "fake.py": """
import sys, types
def load():
    sys.modules["anyio._backends._asyncio"] = types.ModuleType("anyio._backends._asyncio")
    """
        + BETWEEN,
    },
}

PROGRAM = """
import sys, threading
begun, go_on = threading.Event(), threading.Event()
# penstock and anyio first, so that only the loop's library is missing
import penstock
from penstock import Adaptive, Limiter, Pipeline, Retry, circuit_breaker, pausing
from penstock._concurrency import parking, tasks
sys.path.insert(0, sys.argv[1])
if (sniffio := sys.argv[2]) == "sniffio":
    sys.modules.pop("sniffio", None)

def use():
    limiter = Limiter(requests="100/s burst 1")
    layers = Retry(on=OSError), limiter(), circuit_breaker(on=OSError), pausing(limiter, on=OSError)
    call = Pipeline(*layers)(lambda: "value")
    assert [call() for _ in range(3)] == ["value"] * 3        # the second and the third wait
    with limiter(), Adaptive(limiter):
        pass
    assert not parking.loop_running_here()

importer = threading.Thread(target=__import__, args=["trio"], daemon=True)
importer.start()
assert begun.wait(60)
failed = []
def user():
    try:
        use()
    except BaseException as error:
        failed.append(repr(error))
user()
thread = threading.Thread(target=user)
thread.start()
thread.join()

if sniffio != "anyio's backend":
    import asyncio
    async def in_loop():
        limiter = Limiter(requests="100/s burst 1")
        for _ in range(3):
            async with limiter():
                pass
        assert tasks.running_loop() is asyncio.get_running_loop()
    asyncio.run(in_loop())
print(*failed or ["all went"])
go_on.set()
"""


@pytest.mark.parametrize("case", HALF_IMPORTED)
def test_threads_and_loops_go_on_while_another_thread_imports_trio(case, tmp_path):
    for name, source in HALF_IMPORTED[case].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), case], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("all went", "")
