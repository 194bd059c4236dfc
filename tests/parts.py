"""Test runs beside each other share the tests, a file at a time. `make test` starts them:

    PENSTOCK_PARTS=an/empty/folder python -m pytest -p tests.parts

Each run sees the names of all files. It imports and runs those that it is the first to claim, by making a file of that
name in the folder; so no run is idle while another still has much to do, and none reads what another one runs. What a
file shares (a fixture of the module, of the session) stays within one run, which is an ordinary one: its tests have the
main thread and no other beside it.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

LONGEST = (
    "cli/test_interruptions.py",
    "llm/test_learning_table.py",
    "cli/test_shared.py",
    "llm/test_transport_learning.py",
    "cli/test_cli.py",
    "stores/test_order.py",
    "stores/test_flows.py",
    "stores/test_turns.py",
    "stores/test_contract.py",
    "stores/test_leases.py",
    "stores/test_booking_twin.py",
    "stores/test_identity.py",
)
"""Long files that come first, or else the last of them would keep all waiting. Those that mostly wait are not here: they
cost least beside others that calculate."""


class File(pytest.Item):
    """A file of tests that nobody has read so far."""

    def tests(self):
        """Read it; its tests, without those that the command line leaves out."""
        module = pytest.Module.from_parent(self.parent.parent, path=self.path)
        tests = list(self.session.genitems(module))
        self.config.hook.pytest_collection_modifyitems(session=self.session, config=self.config, items=tests)
        gc.collect()
        gc.freeze()  # as tests/conftest.py says
        return tests

    def runtest(self):
        raise AssertionError("a file is read, and its tests are run")


class Unread(pytest.File):
    """What pytest takes for a file of tests; it has one item, which stands for all of them."""

    def collect(self):
        return [File.from_parent(self, name="tests")]


def pytest_pycollect_makemodule(module_path, parent):
    return Unread.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks and fixtures are those of tests: other plugins do not see the files as such."""
    places = {config.rootpath / "tests" / name: place for place, name in enumerate(LONGEST)}
    files = sorted(
        (item for item in items if isinstance(item, File)), key=lambda file: places.get(file.path, len(places))
    )
    items[:] = [item for item in items if not isinstance(item, File)]
    yield
    items += files


def pytest_runtestloop(session):
    """pytest's own loop, over the tests of the files that this run has claimed."""
    if session.testsfailed or session.config.option.collectonly:
        return None  # which says what could not be collected
    tests = claimed(session, Path(os.environ["PENSTOCK_PARTS"]))
    test = next(tests, None)
    while test is not None:
        following = next(tests, None)  # what the two share is kept
        test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        test = following
    return True


def claimed(session, folder):
    """The tests of those files that nobody else has claimed. A file is claimed when its first test is asked for."""
    for file in session.items:
        if claim(folder / str(file.path.relative_to(session.config.rootpath)).replace(os.sep, "+")):
            yield from file.tests()


def claim(file):
    """Whether we are the first."""
    try:
        file.open("x").close()
    except FileExistsError:
        return False
    return True
