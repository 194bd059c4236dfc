"""How the benchmarks print: tables in Markdown, and a line that says where they were measured."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version


def where(*distributions):
    """Print the date, the machine, the versions, and how busy the machine was: numbers of a shared machine are
    ratios."""
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    print(
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Python {platform.python_version()}, {os.cpu_count()} cores "
        f"({platform.machine()}), shared with other programs, load average {load:.1f}. {versions}\n"
    )


def table(head, rows):
    """Print a table in Markdown: the first column to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for number, row in enumerate(cells):
        padded = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"| {' | '.join(padded)} |")
        if not number:
            print(f"|{'|'.join('-' * (width + 1) + (':' if column else '-') for column, width in enumerate(widths))}|")
    print(flush=True)


def verdict(what, value, bound):
    """Print whether `value` keeps under `bound`."""
    print(f"{what}: {value:.3g}, to reach: ≤ {bound:g}: {'reached' if value <= bound else 'MISSED'}")
