"""Install the wheel with each extra, as a user would, on every Python of this machine, and try it.

    python tools/matrix.py [--this] [EXTRA]

With --this only on the Python that runs it.

The oldest Python gets the oldest versions that pyproject.toml allows, the others get the newest. tools/smoke.py says
what each extra must then be able to do. Prints a table, and ends with 1 if anything did not work.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = shutil.which("uv") or ROOT / ".cache/uv/bin/uv"
OLDEST = (3, 11)
NEWEST = (3, 14)


def pythons() -> dict[str, Path]:
    """The interpreters on this machine from the oldest supported version on, one for each version.

    On PATH, of pyenv, of uv.
    """
    found: dict[str, Path] = {}
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        version = f"3.{minor}"
        candidates = [python for home in homes for python in sorted(home.glob(f"{version}.*/bin/python"))]
        on_path = shutil.which(f"python{version}")
        for python in [*candidates, *([Path(on_path)] if on_path else [])]:
            if works(python):
                found.setdefault(version, python)
    return found


def works(python: Path) -> bool:
    """Whether that is a Python and no shim of one that is not installed."""
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


def extras() -> list[str]:
    """Those of pyproject.toml, and none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return ["", *project["optional-dependencies"]]


def build(folder: Path) -> Path:
    """The wheel, made by the back end of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def attempt(python: Path, wheel: Path, extra: str, resolution: str) -> str:
    """Install and try one combination; return what went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
        install = [UV, "pip", "install", "--quiet", "--python", inside, "--only-binary", ":all:"]
        if resolution == "highest":  # as a user does
            installs = [[*install, f"penstock{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"]]
        else:  # what a wheel asks for is not direct, so its oldest versions would not be taken
            asked = ["-r", ROOT / "pyproject.toml", *(["--extra", extra] if extra else [])]
            installs = [[*install, "--resolution", resolution, *asked], [*install, "--no-deps", wheel]]
        steps = [
            [UV, "venv", "--quiet", "--python", python, folder],
            *installs,
            [inside, "-I", ROOT / "tools/smoke.py", extra],
        ]
        for step in steps:
            done = subprocess.run(
                step, capture_output=True, text=True, check=False, env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
            )
            if done.returncode:
                return re.sub(r"\s+", " ", done.stderr.strip()[-600:])
    return ""


def main(wanted: list[str]) -> int:
    """Try every combination; return the exit code."""
    this = "--this" in wanted
    here = {f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable)} if this else pythons()
    wanted = [extra for extra in wanted if extra != "--this"]
    faults = []
    print("| Python | versions | extra | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        for version, python in here.items():
            resolution = "lowest-direct" if version == ".".join(map(str, OLDEST)) else "highest"
            for extra in wanted or extras():
                fault = attempt(python, wheel, extra, resolution)
                faults += [fault] * bool(fault)
                print(f"| {version} | {resolution} | {extra or '–'} | {fault or 'works'} |", flush=True)
    missing = [f"3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1) if f"3.{minor}" not in here]
    print(f"\nNot on this machine: {', '.join(missing) or 'none'}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
