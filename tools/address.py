"""Set the address of the repository in every file that has it: `make address TO=https://github.com/you/penstock`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("pyproject.toml", "README.md")
"""All that name the address. The README is the page on PyPI too, so its links are whole."""


def place(address: str) -> str:
    """`you/penstock`, which addresses of pages, raw files and badges have in common.

    Raises:
        SystemExit: It is not the address of a repository.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)
    if found is None:
        raise SystemExit(
            f"{address!r} is not the address of a repository: write it like https://github.com/you/penstock"
        )
    return found[1]


def moved(new: str) -> dict[Path, str]:
    """The files, with the new address in place of the one that pyproject.toml has."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    old = re.compile(rf"(?<=/){re.escape(place(urls['Repository']))}(?![\w-])")
    return {ROOT / name: old.sub(place(new), (ROOT / name).read_text(encoding="utf-8")) for name in FILES}


if __name__ == "__main__":
    for file, text in moved(sys.argv[1] if len(sys.argv) > 1 else "").items():
        file.write_text(text, encoding="utf-8")
