"""A run as one HTML page: numbers, and pictures of them over time. It holds all it needs and loads nothing.

Pure: numbers in, text out. Every figure carries its value, `data-figure="answered" data-value="300"`, so that programs
read what people see.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from penstock.runner.histogram import Histogram
from penstock.runner.summary import Counts
from penstock.runner.timeline import Timeline

__all__ = ["render"]

_FIGURES = {
    "rows": "rows",
    "answered": "answered",
    "failed": "failed",
    "skipped": "answered before",
    "in_doubt": "in doubt",
    "untouched": "untouched",
    "sent": "requests sent",
    "retries": "sent again",
    "status_429": "answered with 429",
    "lost": "lost answers",
    "possibly_billed_twice": "perhaps billed twice",
    "dollars": "dollars",
    "unpriced": "attempts not priced",
    "makespan": "seconds",
    "optimum": "seconds at best",
    "efficiency": "of the optimum",
}

_CSS = """
:root{--ink:#1b2733;--soft:#5b6b7a;--line:#d5dde5;--paper:#fff;--fill:#2f7fb8;--warm:#c8553d;--bar:#e8f1f8}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9fb0c0;--line:#33414f;--paper:#12181f;--fill:#58a6d6;--warm:#e5806b;--bar:#1d2a36}}
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem;font:15px/1.5 system-ui,sans-serif}
body{color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}p{margin:.3rem 0 1rem;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.6rem;margin-top:1.2rem}
.figures div{border:1px solid var(--line);border-radius:.4rem;padding:.5rem .7rem}
.figures b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums}
.figures span{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}th{font-weight:600;color:var(--soft);font-size:.85rem}
figure{margin:1rem 0 1.6rem}figcaption{font-size:.9rem;margin-bottom:.3rem}
figcaption em{color:var(--soft);font-style:normal}
svg{width:100%;height:auto;display:block}.area{fill:var(--fill)}.warm{fill:var(--warm)}.grid{stroke:var(--line)}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}.back{fill:var(--bar)}
""".strip()

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 800, 130, 64, 20


def render(summary: Mapping[str, Any], counts: Counts, timeline: Timeline, *, title: str) -> str:
    """The page.

    Args:
        summary: As it is written next to the results.
        counts: What happened, for what the summary does not hold.
        timeline: How it went.
        title: What was run.
    """
    name = html.escape(title)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>penstock: {name}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_CSS}</style></head><body><main><h1>{name}</h1>",
        *_verdict(summary),
        *_figures(summary),
        *_batches(summary),
        *_over_time(summary, counts, timeline),
        *_limits(summary, timeline),
        *_times("Latency", "from the moment a request was granted to its whole answer", counts.latencies, "latency"),
        *_times("Waits", "in the queue for the limits, before each request", counts.waits, "wait"),
        *_failures(counts),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


# Numbers --------------------------------------------------------------------------------------------------------------


def _verdict(summary: Mapping[str, Any]) -> Iterator[str]:
    stopped = summary["stopped"]
    words = "every row was read" if stopped is None else f"ended early: {stopped['message']}"
    yield f"<p>{html.escape(words)}</p>"


def _figures(summary: Mapping[str, Any]) -> Iterator[str]:
    yield '<section class="figures">'
    for name, words in _FIGURES.items():
        value = summary.get(name)
        if value is not None:
            yield f"<div>{_figure(name, value)}<span>{words}</span></div>"
    yield "</section>"


def _figure(name: str, value: float, tag: str = "b") -> str:
    shown = f"{value:.1%}" if name == "efficiency" or name.startswith("share") else _number(value)
    return f'<{tag} data-figure="{name}" data-value="{value!r}">{shown}</{tag}>'


def _batches(summary: Mapping[str, Any]) -> Iterator[str]:
    batches = [*summary.get("batches", ()), *summary.get("under_way", ())]
    if not batches:
        return
    rows = [
        [
            one["id"] or "",
            one["model"],
            one["status"],
            *(one.get(name, "") for name in ("rows", "answered", "failed", "again")),
        ]
        for one in batches
    ]
    yield "<h2>Batches</h2>"
    yield from _table(["batch", "model", "status", "rows", "answered", "failed", "again"], rows, numbers=3)


def _limits(summary: Mapping[str, Any], timeline: Timeline) -> Iterator[str]:
    limits = [(unit, one) for unit, those in summary.get("limits", {}).items() for one in those]
    if limits:
        yield "<h2>Limits</h2><p>Share: of all that a limit allowed while requests were sent.</p>"
        yield "<table><tr><th>limit</th><th class=n>used</th><th class=n>share</th>"
        yield "<th class=n>seconds at least</th></tr>"
        for unit, one in limits:
            words = html.escape(f"{unit}{' of ' + one['models'] if one['models'] else ''} ({one['limit']})")
            cells = [
                _figure(f"{name}:{unit}:{one['models'] or ''}", one[name], "span")
                for name in ("spent", "share", "shortest")
            ]
            yield f"<tr><td>{words}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        yield "</table>"
    for (name, unit, limit), shares in timeline.limits():
        label = f"{unit}{' of ' + name if name else ''} ({limit})"
        most = max((share for share in shares if share is not None), default=0.0)
        # What a bucket had saved up is used at once: more than its rate for a moment, and no more than it allows.
        yield _chart(
            f"Quota used: {label}", "share of the rate; above 100 % out of what the bucket had saved", shares,
            max(1.0, min(most, 4.0)), timeline, percent=True, line=1.0,
        )  # fmt: skip


def _times(title: str, words: str, times: Histogram, name: str) -> Iterator[str]:
    if not times.count:
        return
    yield f"<h2>{title}</h2><p>{words}</p>"
    yield "<table><tr><th class=n>p50</th><th class=n>p95</th><th class=n>p99</th><th class=n>longest</th></tr><tr>"
    values = {
        "p50": times.quantile(0.5),
        "p95": times.quantile(0.95),
        "p99": times.quantile(0.99),
        "max": times.longest,
    }
    yield "".join(
        f"<td class=n>{_figure(f'{name}_{which}', round(value, 4), 'span')} s</td>" for which, value in values.items()
    )
    yield "</tr></table>"
    bins = list(times.bins())
    yield _bars([(f"{_number(end)} s", count) for end, count in bins], f"{title}: how many took how long")


def _failures(counts: Counts) -> Iterator[str]:
    if not counts.failures:
        return
    yield "<h2>Failures</h2><p>By their code; the errors file has each of them.</p>"
    yield "<table><tr><th>code</th><th class=n>rows</th></tr>"
    for code, count in counts.failures.most_common():
        shown = html.escape(code)
        yield f"<tr><td>{shown}</td><td class=n>{_figure('failure:' + shown, count, 'span')}</td></tr>"
    yield "</table>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int) -> Iterator[str]:
    def kind(column: int) -> str:
        return ' class="n"' if column >= numbers else ""

    yield "<table><tr>" + "".join(f"<th{kind(n)}>{html.escape(word)}</th>" for n, word in enumerate(head)) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td{kind(n)}>{html.escape(str(cell))}</td>" for n, cell in enumerate(row)) + "</tr>"
    yield "</table>"


# Pictures -------------------------------------------------------------------------------------------------------------


def _over_time(summary: Mapping[str, Any], counts: Counts, timeline: Timeline) -> Iterator[str]:
    spans = timeline.spans
    yield "<h2>Over time</h2>"

    def rate(name: str) -> list[float | None]:
        # What a service took back was submitted before: the sum is right, and one step may be below nothing.
        return [max(0.0, getattr(span, name)) / span.seconds * 60 if span.seconds else None for span in spans]

    in_flight = [span.in_flight for span in spans]
    if summary.get("via") == "batch":
        yield _chart("Submitted", "rows a minute", rate("sent"), None, timeline)
        yield _chart("In batches", "rows that the service had", in_flight, None, timeline)
        yield _chart("Answers", "merged, a minute", rate("answered"), None, timeline)
    else:
        yield _chart("Answers", "a minute", rate("answered"), None, timeline)
        yield _chart("In flight", "requests that waited for their answer", in_flight, None, timeline)
        mean = [span.latency_sum / span.answered if span.answered else None for span in spans]
        yield _chart("Latency", "mean seconds per answer", mean, None, timeline)
    for name, words in (("status_429", "Answers with 429"), ("failed", "Rows given up"), ("retries", "Sent again")):
        if getattr(counts, name):
            yield _chart(words, "a minute", rate(name), None, timeline, kind="warm")
    for name, words in (("paused", "Paused by the server"), ("away", "Server away")):
        if any(getattr(span, name) for span in spans):
            shares = [getattr(span, name) / span.seconds if span.seconds else None for span in spans]
            yield _chart(words, "share of the time", shares, 1.0, timeline, percent=True, kind="warm")
    if summary.get("dollars"):
        total, sums = 0.0, list[float | None]()
        for span in spans:
            total += span.dollars
            sums.append(total)
        yield _chart("Cost", "dollars until then", sums, None, timeline)


def _chart(
    title: str,
    words: str,
    values: Sequence[float | None],
    most: float | None,
    timeline: Timeline,
    *,
    percent: bool = False,
    kind: str = "area",
    line: float | None = None,
) -> str:
    """Steps over time. Where nothing was recorded, there is nothing."""
    known = [value for value in values if value is not None]
    top = most or max(known, default=0.0) or 1.0
    step, height = _WIDTH / max(1, len(values)), _HEIGHT - _BOTTOM
    path = "".join(
        f"M{_LEFT + n * step:.1f} {height}v-{min(value, top) / top * (height - 8):.1f}h{step + 0.05:.2f}V{height}z"
        for n, value in enumerate(values)
        if value
    )
    shown = f"{top:.0%}" if percent else _number(top)
    seconds = len(values) * timeline.width
    rule = height - (0 if line is None else line / top * (height - 8))
    label = html.escape(f"{title}, {words}: at most {shown}")
    return (
        f"<figure><figcaption>{html.escape(title)} <em>{html.escape(words)}</em></figcaption>"
        f'<svg viewBox="0 0 {_LEFT + _WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<rect class="back" x="{_LEFT}" y="0" width="{_WIDTH}" height="{height}"/><path class="{kind}" d="{path}"/>'
        f'<path class="grid" fill="none" d="M{_LEFT} {height}h{_WIDTH}M{_LEFT} {rule:.1f}h{_WIDTH}"/>'
        f'<text x="{_LEFT - 6}" y="12" text-anchor="end">{shown}</text>'
        f'<text x="{_LEFT - 6}" y="{height}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">0 s</text>'
        f'<text x="{_LEFT + _WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{_span(seconds)}</text></svg></figure>'
    )


def _bars(bars: Sequence[tuple[str, int]], label: str) -> str:
    most = max(count for _, count in bars)
    step, height = _WIDTH / len(bars), _HEIGHT - _BOTTOM
    marks = "".join(
        f'<rect class="area" x="{_LEFT + n * step:.1f}" y="{height - count / most * (height - 8):.1f}" '
        f'width="{max(1.0, step - 1):.1f}" height="{count / most * (height - 8):.1f}">'
        f"<title>{count:,} up to {words}</title></rect>"
        for n, (words, count) in enumerate(bars)
    )
    return (
        f'<figure><svg viewBox="0 0 {_LEFT + _WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f'<rect class="back" x="{_LEFT}" y="0" width="{_WIDTH}" height="{height}"/>{marks}'
        f'<text x="{_LEFT - 6}" y="12" text-anchor="end">{most:,}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">up to {bars[0][0]}</text>'
        f'<text x="{_LEFT + _WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">up to {bars[-1][0]}</text></svg></figure>'
    )


def _number(value: float) -> str:
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.4g}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.3g} s"
    return f"{seconds / 60:,.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
