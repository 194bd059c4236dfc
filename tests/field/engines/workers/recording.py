"""Writes down what a shared store admits, in every process of an engine: so a recipe runs as printed, and is observed.

`begin()` makes the stores of this process append a line for each admission (the limiter's name, and the store's time
of it) to a file of the process, in the folder that the environment variable PENSTOCK_ADMISSIONS names. `read` gathers
them. Nothing gives up in these tests, so each admission is a grant.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
FOLDER = "PENSTOCK_ADMISSIONS"


def begin():
    from penstock.stores import RedisStore, SQLiteStore

    spec = importlib.util.spec_from_file_location("_admissions", ROOT / "tests/stores/admissions.py")
    admissions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(admissions)
    for store in (RedisStore, SQLiteStore):
        store.decide = _recording(store.decide, admissions.admissions_of)


def _recording(decide, admissions_of):
    def recording(self, batch):
        reply = decide(self, batch)
        lines = [f"{name}\t{moment:.6f}\n" for (name, *_), moment in admissions_of(batch, reply)]
        if lines:
            with Path(os.environ[FOLDER], str(os.getpid())).open("a") as file:
                file.write("".join(lines))
        return reply

    return recording


def read(name):
    """The moments at which calls of a limiter were admitted, in order, for each process."""
    found = {}
    for file in Path(os.environ[FOLDER]).iterdir():
        lines = (line.split("\t") for line in file.read_text().splitlines())
        moments = sorted(float(moment) for other, moment in lines if other == name)
        if moments:
            found[int(file.name)] = moments
    return found
