"""What a run did, in numbers, and how near that came to the best that its limits allow.

Pure: counts in, numbers and sentences out. The optimum is a true lower bound: with this order of sending, nothing beats

    T* = max( max over limits of (work - burst)+ / rate + tail latency,  sum of latencies / concurrency )

where burst is what the limit held when the run began: all of it, unless an earlier run had just used it up.
A request cannot be sent before the limits have let it and all the work before it through, and then it has to be
answered. The tail latency is what the answer that ends last then adds to the time that the limits take. Work is what
the rows cost once: what is sent again is not work, so retries show as lost time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from penstock._numbers import number_of, show_dollars
from penstock.limits import Rate
from penstock.runner.histogram import Histogram
from penstock.runner.settings import Stopped

__all__ = [
    "Allowance",
    "Allowances",
    "Counts",
    "cost_in_words",
    "failures_in_words",
    "optimum",
    "sentences",
    "summarise",
]


class Allowance(NamedTuple):
    """What one limit allows a run.

    Attributes:
        limit: What was promised.
        at_start: Units that it held when the run began; at most the burst.
        is_window: Whether all of it comes back at once, a period after it was used.
        by_clock: Whether that may be at any moment for the first time.
    """

    limit: Rate
    at_start: float
    is_window: bool = False
    by_clock: bool = False

    def shortest(self, work: float) -> float:
        """Seconds that it takes at least to let `work` through."""
        missing = max(0.0, work - self.at_start)
        if not self.is_window:
            return missing / self.limit.rate
        windows = math.ceil(missing / self.limit.amount)
        # What an earlier run had used up may be back at any moment.
        return self.limit.per * (windows if self.at_start and not self.by_clock else max(0, windows - 1))


MOST_CODES = 100
"""Codes of failures that are counted one by one; a server may invent any number of them."""

OTHER_CODES = "other codes"

_SHOWN_CODES = 5

Allowances = Mapping[str, tuple[Allowance, ...]]
"""Unit → what its limits allow."""


@dataclass(slots=True)
class Counts:
    """What happened so far. Only the run adds to it.

    Attributes:
        rows: Rows of the file that were read, bad ones and skipped ones included; blank lines are none.
        answered: Rows that this run answered.
        failed: Rows and lines that are in the errors file.
        skipped: Rows that an earlier run had answered.
        sent: Attempts that left for the server.
        retries: Attempts beyond the first of their row.
        status_429: Answers with status 429.
        left_out: Rows that were not asked for: `--only`, `--shard`.
        lost: Attempts that left and have no answer: the connection broke, or time ran out.
        ambiguous: Attempts of rows that may have been billed by an attempt before.
        in_doubt: Rows that were sent last with no answer that is kept, and were not given up when the run ended.
        dollars: What the answers of this run cost, where prices are known.
        unpriced: Attempts that may have been billed, and of which nothing says how much they cost.
        waiting: Rows that wait for the limits now.
        in_flight: Requests that wait for their answer now.
        began: When the run began.
        ended: When the last attempt was over.
        last_sent: When the attempt was granted that was granted last.
        latency_sum: Seconds that all attempts took, from the grant to the answer.
        best_end: Seconds from the beginning before which the answers that came could not all have been there.
        work: What the rows that were sent cost, per group of models and unit, each row counted once.
        spent: What all attempts cost, per group of models and unit.
        failures: Rows that failed, by the code of their error.
        latencies: Seconds from the grant of an attempt to its answer.
        waits: Seconds in the queue for the limits, of each attempt.
    """

    rows: int = 0
    answered: int = 0
    failed: int = 0
    skipped: int = 0
    sent: int = 0
    retries: int = 0
    status_429: int = 0
    left_out: int = 0
    lost: int = 0
    ambiguous: int = 0
    in_doubt: int = 0
    dollars: float = 0.0
    unpriced: int = 0
    waiting: int = 0
    in_flight: int = 0
    began: float = 0.0
    ended: float = 0.0
    last_sent: float = 0.0
    latency_sum: float = 0.0
    best_end: float = 0.0
    work: dict[tuple[str, str], float] = field(default_factory=dict)
    spent: dict[tuple[str, str], float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    latencies: Histogram = field(default_factory=Histogram)
    waits: Histogram = field(default_factory=Histogram)

    @property
    def makespan(self) -> float:
        """Seconds from the beginning to the end of the last row; 0 before that."""
        return max(0.0, self.ended - self.began)

    def spend(self, group: str, cost: Mapping[str, float], *, first: bool) -> None:
        """Count an attempt's cost: it is work if it is the first of its row."""
        for unit, units in cost.items():
            key = (group, unit)
            self.spent[key] = self.spent.get(key, 0.0) + units
            if first:
                self.work[key] = self.work.get(key, 0.0) + units

    def earliest(self, group: str, allowances: Allowances) -> float:
        """Seconds, from the beginning, that the limits made all the work until now take at least."""
        return max(
            (each.shortest(self.work.get((group, unit), 0.0)) for unit, those in allowances.items() for each in those),
            default=0.0,
        )

    def paid(self, dollars: float | None, share: float = 1.0) -> None:
        """Count a share of what an attempt cost by the list; None: nothing says how much."""
        self.dollars += (dollars or 0.0) * share
        self.unpriced += dollars is None

    def gave_up(self, code: str) -> None:
        """Count a row that failed."""
        self.failed += 1
        self.failures[code if code in self.failures or len(self.failures) < MOST_CODES else OTHER_CODES] += 1

    def took(self, earliest: float, latency: float) -> None:
        """Count the latency of an attempt that could have been sent after `earliest` seconds."""
        self.latency_sum += latency
        self.latencies.add(latency)
        self.best_end = max(self.best_end, earliest + latency)


def optimum(counts: Counts, concurrency: int) -> float:
    """Seconds that the work would take at best; 0 if nothing was sent."""
    return max(counts.best_end, counts.latency_sum / concurrency)


def of_rows(counts: Counts) -> dict[str, Any]:
    """How the rows ended, as every summary begins."""
    ended = counts.answered + counts.failed + counts.skipped + counts.left_out + counts.in_doubt
    return {
        "rows": counts.rows,
        "answered": counts.answered,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "left_out": counts.left_out,
        "in_doubt": counts.in_doubt,
        "untouched": max(0, counts.rows - ended),
        "sent": counts.sent,
        "retries": counts.retries,
        "failures": dict(counts.failures.most_common()),
    }


def cost_in_words(summary: Mapping[str, Any], what: str) -> list[str]:
    """What a run cost, as far as it is known; nothing without prices."""
    if summary["dollars"] is None:
        return []
    unpriced = summary["unpriced"]
    more = f"; not counted: {number_of(unpriced, 'attempt')} whose cost nothing tells" if unpriced else ""
    return [f"{show_dollars(summary['dollars'], 4)} {what}{more}"]


def failures_in_words(summary: Mapping[str, Any]) -> str:
    """What rows failed of, the most frequent first: `2 × invalid_json, 1 × http_404`."""
    codes = [f"{count:,} × {code}" for code, count in summary["failures"].items()]
    return ", ".join([*codes[:_SHOWN_CODES], *(["others"] if len(codes) > _SHOWN_CODES else [])])


def summarise(
    counts: Counts,
    groups: Mapping[str, Allowances],
    concurrency: int,
    *,
    stopped: Stopped | None = None,
    priced: bool = False,
) -> dict[str, Any]:
    """The summary as it is written next to the results.

    Args:
        counts: What happened.
        groups: What the limits allow, by the models that share them; `""` where all do.
        concurrency: Requests that could be in flight at once.
        stopped: Why the run ended before its file did; None if it did not.
        priced: Whether prices are known.
    """
    best = optimum(counts, concurrency)
    by_limits = max((counts.earliest(group, allowances) for group, allowances in groups.items()), default=0.0)
    makespan = counts.makespan
    # After the last grant there was nothing left to use a limit for.
    sending = max(0.0, counts.last_sent - counts.began)
    used: dict[str, list[dict[str, Any]]] = {}
    for group, allowances in groups.items():
        for unit, those in allowances.items():
            work, spent = (total.get((group, unit), 0.0) for total in (counts.work, counts.spent))
            used.setdefault(unit, []).extend(
                {
                    "limit": str(each.limit),
                    "models": group or None,
                    "work": round(work, 3),
                    "spent": round(spent, 3),
                    "share": round(spent / (each.at_start + each.limit.rate * sending), 6) if spent else 0.0,
                    "shortest": round(each.shortest(work), 3),
                }
                for each in those
            )
    return {
        **of_rows(counts),
        "status_429": counts.status_429,
        "lost": counts.lost,
        "possibly_billed_twice": counts.ambiguous,
        "dollars": round(counts.dollars, 6) if priced else None,
        "unpriced": counts.unpriced if priced else None,
        "makespan": round(makespan, 3),
        "optimum": round(best, 3),
        "efficiency": round(best / makespan, 6) if makespan > 0 else 1.0,
        "tail_latency": round(max(0.0, counts.best_end - by_limits), 3),
        "mean_latency": round(counts.latency_sum / counts.sent, 3) if counts.sent else 0.0,
        "concurrency": concurrency,
        "limits": used,
        "stopped": None if stopped is None else asdict(stopped),
    }


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for people."""
    counted = [f"{summary['answered']} answered", f"{summary['failed']} failed"]
    if summary["skipped"]:
        counted.append(f"{summary['skipped']} skipped (answered before)")
    if summary["left_out"]:
        counted.append(f"{summary['left_out']} left out")
    if summary["in_doubt"]:
        counted.append(f"{summary['in_doubt']} in doubt")
    if summary["untouched"]:
        counted.append(f"{summary['untouched']} untouched")
    sent, again, refused = summary["sent"], summary["retries"], summary["status_429"]
    rows = f"{summary['rows']} row{'' if summary['rows'] == 1 else 's'}{' read' if summary['stopped'] else ''}"
    lines = [
        f"{rows}: {', '.join(counted)}",
        f"{sent} request{'' if sent == 1 else 's'} sent, {again} of them again; {refused} answered with 429",
    ]
    if summary["in_doubt"]:
        rows = number_of(summary["in_doubt"], "row was", "rows were")
        lines.append(
            f"{rows} sent and no answer is kept: they may have been billed, and will be again if they are sent again"
        )
    if summary["possibly_billed_twice"]:
        lines.append(
            f"{summary['possibly_billed_twice']} sent again whose first answer was lost: "
            "they may have been billed twice"
        )
    lines += cost_in_words(summary, "for the answers")
    if summary["answered"]:
        lines.append(
            f"{summary['makespan']:.2f} s, {summary['efficiency']:.1%} of the optimum "
            f"({summary['optimum']:.2f} s, of which {summary['tail_latency']:.2f} s for the last answers)"
        )
    lines += [
        f"{unit}{' of ' + one['models'] if one['models'] else ''} ({one['limit']}): "
        f"{one['spent']:,.0f} used, {one['share']:.1%} of the quota; this limit alone takes {one['shortest']:.2f} s"
        for unit, limits in summary["limits"].items()
        for one in limits
        if summary["sent"]
    ]
    return lines
