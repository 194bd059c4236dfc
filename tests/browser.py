"""A headless browser, where there is one, that shows a page of a file and may ask nobody for anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_a_browser = pytest.mark.skipif(
    BROWSER is None
    and "GITHUB_ACTIONS" not in os.environ,  # whose machines have one: there it is missed, and not skipped
    reason="needs chromium",
)


def shown(page: Path, profile: Path) -> str:
    """What a page holds once it is shown. It says nothing on its console; every name of a server would be an error."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout
