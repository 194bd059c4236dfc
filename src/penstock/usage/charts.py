"""Pictures of what happened over time, as SVG that stands in a page by itself."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.usage.words import counted

_WIDTH, _HEIGHT = 900, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 12, 26
_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn: (moment, amount), in order of time."""

    title: str
    points: Sequence[tuple[float, float]]


def chart(line: Line, limit: float | None, moment: Callable[[float], str]) -> str:
    """A bar per span of time, as high as its busiest minute, and a line at the limit.

    Args:
        line: What is drawn.
        limit: Where the line is; None: nowhere.
        moment: How a moment is shown.
    """
    points = line.points
    begin = points[0][0] if points else 0.0
    end = points[-1][0] + 60 if points else 60.0
    span = max(60.0, (end - begin) / _MOST_POINTS)
    bars: dict[int, float] = {}
    for at, amount in points:
        index = int((at - begin) // span)
        bars[index] = max(bars.get(index, 0.0), amount)
    top = _round_up(max([limit or 0.0, *bars.values()]))
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    count = max(1, math.ceil((end - begin) / span))

    def y(amount: float) -> float:
        return _TOP + high * (1 - amount / top)

    drawn = [
        f'<text x="{_LEFT - 8}" y="{y(part * top) + 4:.1f}" text-anchor="end">'
        f"{html.escape(counted('', part * top))}</text>"
        f'<path d="M{_LEFT} {y(part * top):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>'
        for part in (0.0, 0.5, 1.0)
    ]
    width = max(0.5, wide / count * 0.9)
    path = "".join(
        f"M{_LEFT + wide * index / count:.1f} {_TOP + high:.1f}V{y(amount):.1f}h{width:.2f}V{_TOP + high:.1f}z"
        for index, amount in sorted(bars.items())
    )
    drawn.append(f'<path d="{path}" fill="var(--blue)"/>')
    if limit is not None:
        drawn.append(
            f'<path d="M{_LEFT} {y(limit):.1f}H{_WIDTH - _RIGHT}" stroke="var(--red)" stroke-dasharray="6 4"/>'
        )
    if points:
        drawn.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{html.escape(moment(begin))}</text>')
        drawn.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{html.escape(moment(end))}</text>'
        )
    label = f"{line.title}: at most {counted('', max(bars.values(), default=0.0))}"
    if limit is not None:
        label += f", limit {counted('', limit)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}" '
        'font-size="12" fill="currentColor">'
        f"<title>{html.escape(label)}</title>{''.join(drawn)}</svg>"
    )


def _round_up(most: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= most * (1 - 1e-9))
