"""What the runner's tests share; the service they talk to is in `tests.runner.service`."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend():
    """asyncio is what the command line runs on; the parts below run on more, and their own tests hold that."""
    return "asyncio", {"use_uvloop": False}
