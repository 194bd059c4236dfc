"""Runs that share the tests: each test once, and those of other runs are not even read."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.docs_examples import ROOT

FILES = {
    "test_mine.py": """
import pytest

def test_one():
    pass

@pytest.mark.slow
def test_two():
    pass

def test_three():
    assert 0
""",
    "test_theirs.py": "raise AssertionError('claimed by another run, and read')",
    "test_wrong.py": "import nothing_of_that_name",
}


def test_a_run_takes_the_files_that_nobody_has_claimed_and_the_tests_that_are_asked_for(tmp_path):
    files, claims = tmp_path / "files", tmp_path / "claims"
    for folder in (files, claims):
        folder.mkdir()
    for name, text in FILES.items():
        (files / name).write_text(text)
    (claims / "test_theirs.py").touch()

    def run():
        command = [sys.executable, "-m", "pytest", "-p", "tests.parts", "--rootdir", files, "-c", os.devnull, files]
        variables = os.environ | {"PENSTOCK_PARTS": str(claims), "PYTHONPATH": str(ROOT)}
        options = ["-q", "-m", "not slow", "-W", "ignore"]
        return subprocess.run([*command, *options], env=variables, capture_output=True, text=True, check=False)

    first, second = run(), run()
    assert "1 failed, 1 passed, 1 deselected, 1 error" in first.stdout, first.stdout
    assert first.returncode == 1
    assert {claim.name for claim in claims.iterdir()} == set(FILES)
    assert (second.returncode, "no tests ran" in second.stdout) == (0, True), second.stdout
