"""Waiting works while another thread is in the middle of importing an event loop's library."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
