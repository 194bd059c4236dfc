"""Draws the pictures of the docs into docs/images: none is drawn by hand. `make pictures`.

    python tools/pictures.py [usual-ways queue …]     all of them, or these

`usual-ways` shows what benchmarks/RESULTS.md says; the others show a run in virtual time. Both are the same on every machine, so
a test compares what is in docs/images with what this draws.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from drawing import BAD, FAINT, INK, OTHERS, OURS, Drawing

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs/images"


def usual_ways() -> str:
    """Quota used, refusals and lost calls of a batch, beside the usual ways to send it."""
    rows = _table_of("usual_ways.py")
    height = 62 + 34 * len(rows) + 28
    drawing = Drawing(900, height, "Quota used, 429s and lost calls: penstock beside the usual ways")
    most = max(_number(row[2]) for row in rows)
    left, used, refused = 330, 180, 130
    for x, words in ((left, "quota used"), (left + used + 70, "429s"), (left + used + refused + 180, "calls lost")):
        drawing.text(x, 34, words, bold=True)
    for number, (name, share, refusals, lost, _) in enumerate(rows):
        y = 52 + 34 * number
        ours = name.startswith("penstock")
        drawing.text(left - 14, y + 16, name, anchor="end", bold=ours)
        width = used * _number(share) / 100
        drawing.box(left, y + 3, used, 18, "#eef1f3")
        drawing.box(left, y + 3, width, 18, OURS if ours else OTHERS)
        drawing.text(left + used + 8, y + 16, share, colour=INK)
        drawing.box(left + used + 70, y + 3, refused * _number(refusals) / most, 18, BAD)
        drawing.text(left + used + 76 + refused * _number(refusals) / most, y + 16, refusals)
        drawing.text(left + used + refused + 180, y + 16, lost, bold=lost != "0", colour=BAD if lost != "0" else INK)
    words = "1,500 calls; 1,200 requests and 400,000 tokens a minute; python benchmarks/usual_ways.py"
    drawing.text(14, height - 12, words, colour=FAINT, size=11)
    return drawing.svg()


def _table_of(benchmark: str) -> list[list[str]]:
    """The rows of the first table that a benchmark printed."""
    text = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    section = text.split(f"## `python benchmarks/{benchmark}`", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


def _number(text: str) -> float:
    return float(text.replace(",", "").rstrip("%"))


PICTURES: dict[str, Callable[[], str]] = {"usual-ways": usual_ways}


def main(names: list[str]) -> int:
    """Draw them."""
    for name in names or PICTURES:
        path = IMAGES / f"{name}.svg"
        path.write_text(PICTURES[name](), encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
