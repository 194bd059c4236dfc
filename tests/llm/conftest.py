"""Which HTTP library a test of limited clients runs with."""

from __future__ import annotations

import httpx
import httpx2
import pytest


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def lib(request):
    return request.param
