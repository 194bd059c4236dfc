"""Where the tests of the command line work."""

from __future__ import annotations

import pytest

from tests.cli.commands import write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with 20 requests in it, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path, range(20))
    return tmp_path
