"""The artifact that users get, not the source tree that we look at."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as pip would, but offline: the build back end is the one of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """Every file of the package, so py.typed, data and scripts for a store too; no tests, no examples."""
    package = {
        str(file.relative_to(SOURCE))
        for file in (SOURCE / "penstock").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "penstock/py.typed" in package
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == package


def test_the_wheel_asks_for_anyio_alone(wheel):
    """Everything else stands behind an extra."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(metadata))
    asked = [line for line in message.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line.partition(">")[0].strip() for line in asked] == ["anyio"]
    assert set(message.get_all("Provides-Extra")) == {"openai", "redis", "cli", "simulator", "report", "otel", "all"}


def test_the_wheel_works_on_its_own(wheel):
    """Imported out of the archive, before any source tree."""
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); import penstock; print(penstock.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(wheel))
