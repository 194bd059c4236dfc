"""The simulation of many processes drives the library's own dispatchers, and so it must keep up with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIMULATION = Path(__file__).resolve().parents[2] / "benchmarks" / "scale.py"


def test_ten_simulated_processes_use_all_of_their_limits_and_no_more():
    """On a hundred keys, of which they fight for twenty."""
    done = subprocess.run(
        [sys.executable, str(SIMULATION), "--one", "keys", "100"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["over"] < 0.001
    assert found["used"] > 0.999
