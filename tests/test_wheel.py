"""The artifact that users get, not the source tree that we look at."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


def build(folder):
    """Both archives, built as pip would, but offline: the build back end is the one of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built):
    return built["wheel"]


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
    """Everything else stands behind an extra. Windows has no time zone data of its own, which calendar limits need."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(metadata))
    asked = [line for line in message.get_all("Requires-Dist") if "extra ==" not in line]
    everywhere, windows = asked
    assert everywhere.partition(">")[0] == "anyio"
    assert re.fullmatch(r"tzdata>=[\d.]+; sys_platform == 'win32'", windows)
    assert set(message.get_all("Provides-Extra")) == {"openai", "redis", "cli", "simulator", "otel", "all"}


def test_the_wheel_works_on_its_own(wheel):
    """Imported out of the archive, before any source tree."""
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); import penstock; print(penstock.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(wheel))


def test_a_second_build_gives_the_same_bytes(built, tmp_path):
    again = build(tmp_path)
    for kind, file in built.items():
        assert file.name == again[kind].name
        assert file.read_bytes() == again[kind].read_bytes()


def test_the_source_archive_holds_what_its_own_tests_need(built):
    """Everything that a clone has but what only the repository's host reads."""
    with tarfile.open(built["sdist"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    tracked = {
        name for name in files.split("\0") if name and not name.startswith(".github/") and (ROOT / name).exists()
    }
    assert tracked - held == set()
    assert {"Makefile", "tools/environment.py", "requirements/dev.txt", "tests/conftest.py", ".ci/run"} <= held


def test_the_version_stands_once(wheel):
    """In `penstock/__init__.py`; the wheel and the command say the same, also where no extra is installed."""
    assert f"penstock-{penstock.__version__}-" in wheel.name
    program = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); sys.modules['typer'] = None; "
        "sys.argv = ['penstock', '--version']; from penstock.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{penstock.__version__}\n"
    written = [file for file in ROOT.glob("*.toml") if penstock.__version__ in file.read_text()]
    assert written == []


def test_actions_are_pinned_and_may_read_only():
    """A tag can be moved by others; a commit cannot."""
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        text = file.read_text()
        used = re.findall(r"uses: (\S+)", text)
        assert used
        assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []
        assert "\npermissions:\n  contents: read\n" in text
