"""Which loops a test that starts one itself runs on."""

from __future__ import annotations

import pytest

LOOPS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "use_uvloop": True},
    "trio": {"backend": "trio"},
}


@pytest.fixture(scope="session", params=LOOPS.values(), ids=LOOPS)
def loop(request):
    """Options of `testing.run`."""
    return request.param
