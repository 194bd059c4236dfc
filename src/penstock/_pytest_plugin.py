"""The pytest fixture `virtual_time`, for tests run by anyio's plugin, by pytest-asyncio, or by themselves.

Pytest loads this file in every run, so it imports nothing before a test asks for virtual time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from penstock.testing import VirtualTime


@pytest.fixture(name="virtual_time")
def _virtual_time() -> Iterator[VirtualTime]:
    """Hours pass in milliseconds. See `penstock.testing`."""
    from penstock.testing import virtual_time

    with virtual_time() as time:
        yield time


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Begin virtual time before any other fixture of the test: an async one starts the event loop."""
    asked_for = "virtual_time" in request.fixturenames and fixturedef.argname != "virtual_time"
    if asked_for and fixturedef.scope == "function":
        request.getfixturevalue("virtual_time")
    return (yield)
