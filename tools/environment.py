"""Make folders hold exactly what files of pins say, and do nothing to a folder that already does.

    python tools/environment.py .venv=requirements/dev.txt .cache/ranks=requirements/ranks.txt

A folder named `.venv…` becomes a virtual environment with this project in it. Any other folder gets the unpacked
packages, of which tests read single files. uv installs everything, by hash alone; pip installs uv, by hash too.
This program does what uv leaves to its caller: it brings uv, it starts again after an interrupted run, it lets two runs
at once take turns, and it takes only milliseconds if nothing has changed. Any Python >= 3.11 runs it; the environments
get the same Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
STAMP = "made-of"
"""A file in each folder, there only while the folder is whole: a digest of all that it was made of."""

UV = CACHE / "uv"
UV_PINS = ROOT / "requirements/uv.txt"
PYTHON = getattr(sys, "_base_executable", sys.executable)
"""The interpreter itself, if an environment of it runs this: that one may be about to be made anew."""


def main(arguments: list[str]) -> int:
    """Bring these folders up to date; return the exit code."""
    pairs = [argument.partition("=") for argument in arguments]
    wanted = {ROOT / folder: ROOT / pins for folder, _, pins in pairs}
    try:
        if not all(is_current(folder, pins) for folder, pins in wanted.items()):
            CACHE.mkdir(exist_ok=True)
            with (CACHE / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits here, and then finds that all is done
                make(UV, UV_PINS)
                with ThreadPoolExecutor() as pool:  # they wait for downloads and disks, and not for each other
                    list(pool.map(make, *zip(*wanted.items(), strict=True)))
    except subprocess.CalledProcessError as error:
        print(f"penstock: setting up failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 2
    return 0


def is_current(folder: Path, pins: Path) -> bool:
    """Whether a folder is whole, and made of these pins."""
    return is_whole(folder) and (folder / STAMP).read_text() == stamp_of(folder, pins)


def is_whole(folder: Path) -> bool:
    """Whether a folder was finished, where it is now, and its Python, if it has one, is still installed."""
    stamp, python = folder / STAMP, folder / "bin/python"
    return (
        stamp.exists() and stamp.read_text().startswith(f"{folder}\n") and (python.exists() or not python.is_symlink())
    )


def stamp_of(folder: Path, pins: Path) -> str:
    """Where a folder is, since its scripts contain that, and a digest of all else that it depends on."""
    inputs = [pins, Path(__file__)]
    if is_environment(folder):
        inputs.append(ROOT / "pyproject.toml")
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in inputs))
    return f"{folder}\n{digest.hexdigest()}\n"


def is_environment(folder: Path) -> bool:
    """Whether that shall be an environment with this project in it."""
    return folder.name.startswith(".venv")


def make(folder: Path, pins: Path) -> None:
    """Make a folder of these pins, if it is not.

    An environment that is whole is changed, all else is made from nothing.
    """
    if is_current(folder, pins):
        return
    print(f"penstock: installing {pins.relative_to(ROOT)} into {folder.relative_to(ROOT)}", flush=True)
    keep = is_environment(folder) and is_whole(folder)
    (folder / STAMP).unlink(missing_ok=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    if folder == UV:
        install_uv()
    elif is_environment(folder):
        fill(folder, pins, new=not keep)
    else:
        unpack(folder, pins)
    (folder / STAMP).write_text(stamp_of(folder, pins))


def install_uv() -> None:
    """Let pip install uv, into an environment of its own."""
    run(PYTHON, "-m", "venv", UV)
    pip = (UV / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir")
    run(*pip, "--require-hashes", "--only-binary", ":all:", "-r", UV_PINS)


def fill(folder: Path, pins: Path, *, new: bool) -> None:
    """Let uv install the pins and nothing else, and then the project in place."""
    if new:
        run(UV / "bin/uv", "venv", "--quiet", "--python", PYTHON, folder)
    here = ("--quiet", "--python", folder / "bin/python")
    run(UV / "bin/uv", "pip", "sync", *here, "--require-hashes", pins)
    # The build back end is among the pins, so nothing is built by what nobody pinned.
    run(UV / "bin/uv", "pip", "install", *here, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def unpack(folder: Path, pins: Path) -> None:
    """Let uv unpack wheels that are built for one version of Python, but whose files do not care."""
    wheels = ("--only-binary", ":all:", "--python", PYTHON, "--python-version", "3.11", "--no-deps")
    run(UV / "bin/uv", "pip", "install", "--quiet", "--target", folder, *wheels, "--require-hashes", "-r", pins)


def run(*command: str | Path) -> None:
    """Run a step; uv and pip find their caches and certificates, and never download a Python."""
    variables = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
    variables.setdefault("UV_SYSTEM_CERTS", "true")  # as pip does, so that both work behind a company's proxy
    if not can_cache():
        variables.setdefault("UV_CACHE_DIR", str(CACHE / "downloads"))
    subprocess.run(command, check=True, cwd=ROOT, env=variables)


def can_cache() -> bool:
    """Whether uv can keep what it fetches at home.

    Tried, not asked: root may write everywhere, but not on every file system.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):  # RuntimeError: there is no home at all
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
