"""Test runs beside each other share the tests, a file at a time. `make test` starts them:

    PENSTOCK_PARTS=an/empty/folder python -m pytest -p tests.parts

Each run collects all tests. It runs the files that it is the first to claim, by making a file of that name in the
folder; so no run is idle while another still has much to do. What a file shares (a fixture of the module, of the
session) stays within one run, which is an ordinary one: its tests have the main thread and no other beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LONGEST = (
    "cli/test_interruptions.py",
    "llm/test_learning_table.py",
    "cli/test_shared.py",
    "llm/test_transport_learning.py",
    "cli/test_cli.py",
    "stores/test_contract.py",
    "stores/test_leases.py",
    "stores/test_booking_twin.py",
    "stores/test_identity.py",
)
"""The files that take more than ten seconds. They come first, or else the last of them would keep all waiting."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    places = {config.rootpath / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtestloop(session):
    """pytest's own loop, over the tests of the files that this run has claimed."""
    if session.testsfailed or session.config.option.collectonly:
        return None  # which says what could not be collected
    items = claimed(session.items, Path(os.environ["PENSTOCK_PARTS"]), session.config.rootpath)
    item = next(items, None)
    while item is not None:
        following = next(items, None)  # what the two share is kept
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def claimed(items, folder, root):
    """Those of the items whose file nobody else has claimed. A file is claimed when its first item is asked for."""
    mine = {}
    for item in items:
        if item.path not in mine:
            mine[item.path] = claim(folder / str(item.path.relative_to(root)).replace(os.sep, "+"))
        if mine[item.path]:
            yield item


def claim(file):
    """Whether we are the first."""
    try:
        file.open("x").close()
    except FileExistsError:
        return False
    return True
