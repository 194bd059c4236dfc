"""Evidence as a document: Markdown, CSV, or one HTML file that asks for nothing else.

The figures are those of `evidence`.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from penstock._numbers import number_of
from penstock._text import visible
from penstock.limits import Rate
from penstock.usage.evidence import Day, Evidence, Projection, Spread, at_most
from penstock.usage.history import Totals
from penstock.usage.words import counted, lasting, moment


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class _Table:
    """`left`: how many columns are texts; the others are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True, slots=True)
class _Picture:
    title: str
    unit: str
    evidence: Evidence


_Block = _Heading | _Table | _Picture | str


def _blocks(found: Sequence[Evidence], name: str, tz: str) -> Iterator[_Block]:
    yield _Heading(1, f"Use of models: {visible(name)}")
    if not found:
        yield "No call was recorded."
        return
    begin, end = min(one.since for one in found), max(one.until for one in found)
    yield (
        f"From {moment(begin, tz)} to {moment(end, tz)}. "
        "Figures per minute are over the minutes in which something was sent."
    )
    if found[0].dropped:
        events = number_of(found[0].dropped, "event is", "events are")
        yield f"{events} missing, which came while the disk was slow or full."
    for one in found:
        yield from _of_subject(one)


def _of_subject(one: Evidence) -> Iterator[_Block]:
    yield _Heading(2, visible(one.subject) or "(no name)")
    yield _Table(("", "p50", "p95", "max", "limit"), [_spread_row(one, "tokens"), _spread_row(one, "requests")])
    yield _Table(("", ""), list(_figures(one)))
    yield _Picture("Tokens a minute", "tokens", one)
    yield _Picture("Requests a minute", "requests", one)
    if one.days:
        yield _Heading(3, f"The last {number_of(len(one.days), 'business day')}")
        head = (
            "day", "requests", "tokens", "requests/min max", "tokens/min p95", "tokens/min max", "users", "429s",
            "waited", "cost",
        )  # fmt: skip
        yield _Table(head, [_day_row(one, day) for day in one.days])
    yield from _ahead(one)


def _spread_row(one: Evidence, unit: str) -> tuple[str, ...]:
    spread: Spread = one.tokens if unit == "tokens" else one.requests
    limits = ", ".join(map(_limit, one.limits.get(unit, ()))) or "not known"
    return f"{unit} a minute", counted(unit, spread.p50), counted(unit, spread.p95), counted(unit, spread.most), limits


_SPANS: dict[float, str] = {1: "s", 60: "min", 3_600: "hour", 86_400: "day"}


def _limit(limit: Rate) -> str:
    return f"{counted('', limit.amount)}/{_SPANS.get(limit.per) or lasting(limit.per)}"


def _figures(one: Evidence) -> Iterator[tuple[str, str]]:
    totals, active = one.totals, len(one.minutes)
    yield "calls", f"{totals.calls:,}"
    yield "users", f"{totals.users:,}"
    yield "active minutes", f"{active:,}"
    for near in one.near:
        share = f" ({near.minutes / active:.1%})" if active else ""
        yield f"minutes at ≥ 90 % of {_limit(near.limit)} {near.unit}", f"{near.minutes:,}{share}"
    mean = f" ({lasting(totals.waited / totals.calls)} a call)" if totals.calls else ""
    yield "time lost waiting", lasting(totals.waited) + mean
    yield "429s", f"{totals.rejected:,}"
    yield "refused before they were sent", f"{totals.refused:,}"
    yield "failed otherwise", f"{totals.failed:,}"
    least = f"at least {counted('dollars', totals.dollars)}" if totals.dollars else "not known"
    yield "cost", f"{least}: give --prices" if one.dollars(totals) is None else _cost(one, totals)


def _cost(one: Evidence, totals: Totals) -> str:
    dollars = one.dollars(totals)
    return "not known" if dollars is None else counted("dollars", dollars)


def _day_row(one: Evidence, day: Day) -> tuple[str, ...]:
    totals = day.totals
    return (
        f"{day.day:%a %Y-%m-%d}", counted("", totals.requests), counted("", totals.tokens),
        counted("", day.requests.most), counted("", day.tokens.p95), counted("", day.tokens.most), f"{totals.users:,}",
        f"{totals.rejected:,}", lasting(totals.waited), _cost(one, totals),
    )  # fmt: skip


def _ahead(one: Evidence) -> Iterator[_Block]:
    yield _Heading(3, "Growth")
    if one.projections:
        weeks = [f"in {ahead} weeks" for ahead, _ in one.projections[0].peaks]
        yield _Table(
            ("busiest minute", "growth a week", *weeks, "limit reached"),
            [_projection_row(each) for each in one.projections],
        )
    else:
        yield "Too little is recorded to say: it takes ten business days, with something sent in both halves."
    if one.hour is not None and one.price is not None:
        yield _Heading(3, "One hour at the full limit")
        limit = at_most(one.limits, "tokens")
        prices = {"input": one.price.input, "output": one.price.output or one.price.input}
        for (kind, price), dollars in zip(prices.items(), one.hour, strict=True):
            per_thousand = f"${price * 1_000:.6g} per 1,000 tokens"
            yield f"All {kind}: {limit:,.0f} tokens a minute × 60 × {per_thousand} = ${dollars:,.2f}."
            if prices["input"] == prices["output"]:
                break


def _projection_row(each: Projection) -> tuple[str, ...]:
    reached = each.reached_in
    when = (
        "not known" if reached is None else "never, at that pace" if reached == math.inf
        else "now" if reached == 0 else f"in {reached:.0f} weeks" if reached >= 2 else f"in {reached * 7:.0f} days"
    )  # fmt: skip
    return each.unit, f"{each.growth - 1:+.0%}", *(counted("", peak) for _, peak in each.peaks), when


# Markdown


def as_markdown(found: Sequence[Evidence], name: str, tz: str) -> str:
    """The report as Markdown: tables, no pictures."""
    parts = []
    for block in _blocks(found, name, tz):
        if isinstance(block, _Heading):
            parts.append("#" * block.level + " " + _marked(block.text))
        elif isinstance(block, _Table):
            rules = ["---" if column < block.left else "---:" for column in range(len(block.head))]
            lines = [map(_marked, block.head), rules, *(map(_marked, row) for row in block.rows)]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        elif isinstance(block, str):
            parts.append(_marked(block))
    return "\n\n".join(parts) + "\n"


def _marked(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


# CSV

_COLUMNS = (
    "model", "period", "calls", "requests", "tokens", "requests_per_min_p50", "requests_per_min_p95",
    "requests_per_min_max", "tokens_per_min_p50", "tokens_per_min_p95", "tokens_per_min_max", "users", "rejected_429",
    "refused", "failed", "waited_seconds", "dollars",
)  # fmt: skip


def as_csv(found: Sequence[Evidence]) -> str:
    """The figures as CSV: per model a row for all of the time, and one for each of the last ten business days."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in found:
        periods = [("all", one.totals, one.requests, one.tokens)]
        periods += [(f"{day.day}", day.totals, day.requests, day.tokens) for day in one.days]
        for period, totals, requests, tokens in periods:
            dollars = one.dollars(totals)
            writer.writerow([
                _cell(one.subject), period, totals.calls, totals.requests, totals.tokens, requests.p50, requests.p95,
                requests.most, tokens.p50, tokens.p95, tokens.most, totals.users, totals.rejected, totals.refused,
                totals.failed, round(totals.waited, 3), "" if dollars is None else round(dollars, 6),
            ])  # fmt: skip
    return out.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


# HTML

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --blue: #2a6fdb; --red: #c33; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
.left { text-align: left; } th { color: var(--quiet); font-weight: 500; }
figure { margin: 1rem 0; } figcaption { color: var(--quiet); } svg { width: 100%; height: auto; }
"""


def as_html(found: Sequence[Evidence], name: str, tz: str) -> str:
    """The report as one HTML file with its pictures in it: no script, and nothing is loaded."""
    parts = []
    for block in _blocks(found, name, tz):
        if isinstance(block, _Heading):
            parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
        elif isinstance(block, _Table):
            parts.append(_html_table(block))
        elif isinstance(block, _Picture):
            parts.append(_figure(block, tz))
        else:
            parts.append(f"<p>{html.escape(block)}</p>")
    title = html.escape(f"Use of models: {visible(name)}")
    body = "\n".join(parts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width">\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html_table(table: _Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if column < table.left else ''}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    head = f"<thead><tr>{row(table.head, 'th')}</tr></thead>\n" if any(table.head) else ""
    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return f"<table>\n{head}<tbody>\n{body}\n</tbody>\n</table>"


def _figure(picture: _Picture, tz: str) -> str:
    one, unit = picture.evidence, picture.unit
    points = [(minute.at, minute.tokens if unit == "tokens" else minute.requests) for minute in one.minutes]
    picture_of = _chart(picture.title, points, at_most(one.limits, unit), lambda at: moment(at, tz))
    return f"<figure>\n<figcaption>{html.escape(picture.title)}</figcaption>\n{picture_of}\n</figure>"


_WIDTH, _HEIGHT = 900, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 12, 26
_MOST_POINTS = 400


def _chart(
    title: str, points: Sequence[tuple[float, float]], limit: float | None, shown: Callable[[float], str]
) -> str:
    """A bar per span of time, as high as its busiest minute, and a line at the limit, as SVG."""
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
        drawn.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{html.escape(shown(begin))}</text>')
        drawn.append(
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{html.escape(shown(end))}</text>'
        )
    label = f"{title}: at most {counted('', max(bars.values(), default=0.0))}"
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
