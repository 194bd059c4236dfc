"""Messages of the command line to people, also where nothing reads them any more. Results go elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Literal, TextIO

from penstock._text import visible

__all__ = ["Fault", "complain", "say", "table", "write"]


class Fault(Exception):  # noqa: N818 - never leaves the command line
    """What is wrong with the command, in one line."""


def say(text: str) -> None:
    """Say a line on stderr."""
    write(f"penstock: {text}", sys.stderr)


def write(text: str, file: TextIO | Literal["stdout"] | None = "stdout") -> None:
    """Print, if it can still be read: a closed pipe or terminal is no reason to fail.

    What a terminal would obey is shown instead: a server says some of it, or a file.
    """
    text = "\n".join(visible(line[:-1]) + "\r" if line.endswith("\r") else visible(line) for line in text.split("\n"))
    file = sys.stdout if file == "stdout" else file
    if file is None:  # closed before we began
        return
    try:
        encoding = file.encoding or "utf-8"
        file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        file.flush()
    except (OSError, ValueError):
        # Python would try once more at its end, and complain.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), file.fileno())


def complain(text: str) -> int:
    """Say in one line what is wrong; return the exit code for it."""
    say(" ".join(text.split()))
    return 2


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[int] = ()) -> str:
    """Columns as wide as what is in them. `right`: those whose texts stand to the right, as numbers do."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if index in right else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
