"""Where the tests of engines, and the workers that engines start, find what they import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKERS = str(HERE / "workers")

sys.path[:0] = [WORKERS, str(HERE), str(HERE.parents[2])]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [WORKERS, os.environ.get("PYTHONPATH")]))
