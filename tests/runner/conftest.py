"""What the runner's tests share; the service they talk to is in `tests.runner.service`."""

from __future__ import annotations

import uuid

import pytest

from tests.stores import servers


@pytest.fixture
def anyio_backend():
    """asyncio is what the command line runs on; the parts below run on more, and their own tests hold that."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="session")
def valkey():
    """The URL of a Valkey server."""
    with servers.one_server() as url:
        yield url


@pytest.fixture
def prefix():
    """What the keys of one test begin with."""
    return f"test-{uuid.uuid4().hex[:8]}"
