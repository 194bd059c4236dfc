"""The pages about frameworks: their programs print what the page says, and gunicorn's workers share one limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs_examples import examples_of, parts_of


@pytest.mark.parametrize("page", ["in-celery", "in-django", "in-scrapy"])
def test_a_program_prints_what_its_page_says(page, tmp_path, field):
    examples = examples_of(f"docs/{page}.md")
    files, program = parts_of(examples)
    for name, code in {**files, "program.py": program}.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout == "".join(output for _, output in examples), run.stderr
    field.row(field.version(page.removeprefix("in-")), {"page": f"[{page}](../{page}.md)", "as printed": "yes"})


def test_the_cells_of_a_notebook_print_what_the_page_says(field):
    examples = examples_of("docs/in-jupyter.md")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code, _ in examples])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    printed = ["".join(each.text for each in cell.outputs if each.output_type == "stream") for cell in notebook.cells]
    assert printed == [output for _, output in examples]
    field.row(field.version("ipykernel"), {"page": "[in-jupyter](../in-jupyter.md)", "as printed": "yes"})


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["forked first", "preloaded"])
def test_workers_of_gunicorn_share_one_limit(options, tmp_path, field):
    """30 requests to three workers, of which 10 a minute may go: at most 11 do, and never none."""
    (code, _), *_ = examples_of("docs/under-gunicorn.md")
    (tmp_path / "app.py").write_text(code.replace("max_wait=1", "max_wait=0.1"), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "-w", "3", "-b", f"127.0.0.1:{port}", *options, "app:app"]
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"LIMITS": str(tmp_path / "limits.db")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        began = time.monotonic()
        _wait_for(port)
        with ThreadPoolExecutor(10) as threads:
            found = list(threads.map(lambda _: _status(port), range(30)))
        took = time.monotonic() - began
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    most = 10 + int(took / 6) + 1
    assert 10 <= found.count(200) <= most, found
    field.row(
        f"gunicorn {metadata.version('gunicorn')} {' '.join(options)}".strip(),
        {
            "page": "[under-gunicorn](../under-gunicorn.md)",
            "as printed": f"{found.count(200)} of 30 within 10 a minute",
        },
    )


def _wait_for(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError


def _status(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
