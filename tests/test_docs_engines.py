"""The recipes for joblib and Celery, as printed: real workers share one limit. `make field` runs others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_examples import examples_of, text_of
from tests.stores import servers

RECIPE = re.compile(r"```py\n(# .*?)```", re.DOTALL)

JOBLIB = """
if __name__ == "__main__":
    import os, tempfile, time
    store = SQLiteStore(os.path.join(tempfile.mkdtemp(), "limits.db"))
    limiter = Limiter(requests="50/s burst 10", name="api", store=store)
    numbers = range(40)
    began = time.monotonic()
{recipe}
    print(answers == list(numbers), time.monotonic() - began >= 0.59)
    store.close()
"""

CLIENT = """
import time
from tasks import fetch

began = time.monotonic()
waiting = [fetch.delay(number) for number in range(40)]
print([one.get(timeout=60) for one in waiting] == list(range(40)), time.monotonic() - began >= 0.59)
"""


def recipe(page, begin):
    (found,) = [block for block in RECIPE.findall(text_of(page)) if block.startswith(begin)]
    return found


def printed(program, folder, **variables):
    (folder / "program.py").write_text(program, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.stdout, run.stderr


def test_workers_of_joblib_share_one_limit(tmp_path):
    """40 calls at 50 a second, ten of them at once, take 0.6 s at least."""
    whole, _ = examples_of("docs/many-machines.md")[1]
    function, _, _ = whole.partition("if __name__")
    recipe_ = "".join(f"    {line}\n" for line in recipe("docs/many-machines.md", "# joblib").splitlines())
    assert printed(function + JOBLIB.format(recipe=recipe_), tmp_path) == ("True True\n", "")


@pytest.fixture
def server():
    with servers.one_server() as url:
        yield url


def test_workers_of_celery_share_one_limit(server, tmp_path):
    """Two processes; the broker is real, and keeps the limit as well."""
    (tmp_path / "tasks.py").write_text(recipe("docs/in-celery.md", "# tasks.py"), encoding="utf-8")
    options = ["--concurrency", "2", "--loglevel", "warning", "--without-mingle", "--without-gossip"]
    variables = {"REDIS_URL": server}
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "tasks", "worker", *options],
            cwd=tmp_path,
            env=os.environ | variables,
            stdout=log,
            stderr=log,
        )
    try:
        assert printed(CLIENT, tmp_path, **variables) == ("True True\n", ""), Path(tmp_path, "log").read_text()
    finally:
        worker.terminate()
        code = worker.wait(100)
    assert code == 0, Path(tmp_path, "log").read_text()
