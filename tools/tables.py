"""The tables of a page in Markdown, for what draws or quotes the numbers in them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["ROOT", "Table", "tables", "value"]

ROOT = Path(__file__).resolve().parent.parent


class Table:
    """One table: its head and its rows, cell by cell."""

    def __init__(self, lines: str) -> None:
        self.head, _, *self.rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()
        ]

    def cell(self, column: str, *first: str) -> str:
        """What stands in this column of the row that begins with these cells.

        Raises:
            LookupError: There is no such column or row, or more than one such row.
        """
        found = [row for row in self.rows if row[: len(first)] == [*first]]
        if len(found) != 1 or column not in self.head:
            raise LookupError(f"{len(found)} rows begin with {first}, and the columns are {self.head}, not {column!r}")
        return found[0][self.head.index(column)]


def tables(page: str, heading: str) -> list[Table]:
    """The tables below a heading of a page, up to the next heading of two signs.

    Raises:
        IndexError: The page has no such heading.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1].split("\n## ", 1)[0]
    return [Table(lines) for lines in re.findall(r"(?:^\|.*\|\n?)+", section, re.MULTILINE)]


def value(text: str) -> float:
    """What a cell says: `1,193`, `97.1%`."""
    return float(text.replace(",", "").rstrip("%"))
