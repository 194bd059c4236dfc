"""A headless browser, where there is one, that shows a page of a file and may ask nobody for anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNPACKED = Path(__file__).resolve().parents[1] / ".cache/browser"
"""Where `make environment` unpacks Debian's."""


def _browser():
    """A browser that can be started here; or why there is none."""
    installed = [path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path]
    if installed:
        return installed[0], ""
    if (UNPACKED / "run").exists():
        return str(UNPACKED / "run"), ""
    why = UNPACKED / "why-not"
    return None, why.read_text().strip() if why.exists() else "run `make environment`, which unpacks Chromium"


BROWSER, WHY_NOT = _browser()

needs_a_browser = pytest.mark.skipif(BROWSER is None, reason=WHY_NOT)


def shown(page: Path, profile: Path) -> str:
    """What a page holds once it is shown. It says nothing on its console; every name of a server would be an error."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout
