"""The programs in examples/ run as they are, offline, and end well."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs_examples import ROOT


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("decorator", r"30 calls in \d+\.\d\d s, 20 of them kind\ntokens: 510 charged at first, 240 in the end\n"),
        (
            "context_manager",
            r"(\d+\.\d s: (task|thread) \d\n){6}refused at once: queries in 0\.\d s\n6 granted, 1 refused, 0.*\n",
        ),
        ("pipeline", r"100 replies in \d+\.\d s, 120 attempts\nall there: True\n"),
    ],
)
def test_a_program_runs_and_says_what_it_did(program, says):
    file = ROOT / "examples" / f"{program}.py"
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(says, done.stdout), done.stdout
