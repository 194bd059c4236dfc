"""Puts Python for the browser, and the packages that penstock's core needs, into the site: for the page "Try it".

`python tools/try_it.py build/site` after Sphinx has built it; needs npm, and its registry the first time.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/pyodide"
PYODIDE = "pyodide@314.0.7"
FILES = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "pyodide-lock.json", "python_stdlib.zip")
PACKAGES = ("penstock", "anyio", "idna", "typing_extensions")


def main(site: Path) -> int:
    """Copy Pyodide and zip the packages of this environment."""
    there = CACHE / "node_modules/pyodide"
    if not (there / FILES[0]).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm")
        if npm is None:
            print('the page "Try it" needs npm, which is not on PATH', file=sys.stderr)
            return 1
        options = ["--prefix", CACHE, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run([npm, "install", *options, PYODIDE], check=True)
    target = site / "_static/pyodide"
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(there / name, target / name)
    with zipfile.ZipFile(target / "packages.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            _add(archive, package)
    print(f"{site / 'try-it.html'}: serve it with python -m http.server -d {site}")
    return 0


def _add(archive: zipfile.ZipFile, package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        archive.write(origin, origin.name)
        return
    for file in sorted(origin.parent.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            archive.write(file, file.relative_to(origin.parent.parent))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
