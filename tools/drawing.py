"""Draw the pictures of the docs, as SVG: the same on every machine, and readable on light and dark pages."""

from __future__ import annotations

from html import escape

INK, FAINT, GRID = "#1f2933", "#66727f", "#dde3e8"
OURS, OTHERS, WAITS, BAD = "#1f6f8b", "#9aa7b2", "#e3ded2", "#c2512f"
FLOWS = {"alice": "#1f6f8b", "bob": "#d08a2e", "": "#7a5ea8"}


class Drawing:
    """A picture of a fixed size that grows element by element."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.title = title
        self._parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
                f'font-family="system-ui, sans-serif" font-size="13" role="img">'
            ),
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#fdfdfb"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str = INK,
        anchor: str = "start",
        size: int = 13,
        bold: bool = False,
    ) -> None:
        """Write a line; `y` is its base line."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}"{weight}>'
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1) -> None:
        """Fill a rectangle."""
        clear = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" '
            f'rx="2" fill="{colour}"{clear}/>'
        )

    def line(self, points: list[tuple[float, float]], colour: str, *, width: float = 1.5, dashed: bool = False) -> None:
        """Connect points."""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 4) -> None:
        """Fill a circle."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')

    def svg(self) -> str:
        """The whole picture."""
        return "\n".join([*self._parts, "</svg>", ""])


class Axes:
    """Two scales in a part of a drawing, with their grid lines and labels."""

    def __init__(
        self,
        drawing: Drawing,
        area: tuple[float, float, float, float],
        x: tuple[float, float, float],
        y: tuple[float, float, float],
        *,
        labels: tuple[str, str] = ("", ""),
    ) -> None:
        """`area` is left, top, width and height; `x` and `y` are from, to, and the step of their labels."""
        self.drawing, self.area, self._x, self._y = drawing, area, x, y
        left, top, width, height = area
        for value in _steps(*y):
            drawing.line([(left, self.y(value)), (left + width, self.y(value))], GRID, width=1)
            if labels[1]:
                drawing.text(left - 6, self.y(value) + 4, f"{value:,g}", colour=FAINT, anchor="end", size=11)
        for value in _steps(*x):
            drawing.text(self.x(value), top + height + 16, f"{value:,g}", colour=FAINT, anchor="middle", size=11)
        drawing.text(left + width, top + height + 32, labels[0], colour=FAINT, anchor="end", size=11)
        drawing.text(left - 6, top - 10, labels[1], colour=FAINT, size=11)

    def x(self, value: float) -> float:
        """Where a value of the horizontal scale is."""
        low, high, _ = self._x
        return self.area[0] + (value - low) / (high - low) * self.area[2]

    def y(self, value: float) -> float:
        """Where a value of the vertical scale is."""
        low, high, _ = self._y
        return self.area[1] + self.area[3] - (value - low) / (high - low) * self.area[3]

    def curve(
        self, points: list[tuple[float, float]], colour: str, *, width: float = 1.8, dashed: bool = False
    ) -> None:
        """Connect points that are given in the scales."""
        self.drawing.line([(self.x(x), self.y(y)) for x, y in points], colour, width=width, dashed=dashed)


def _steps(low: float, high: float, step: float) -> list[float]:
    return [low + step * number for number in range(int((high - low) / step + 1e-9) + 1)]
