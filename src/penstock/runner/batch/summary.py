"""What a run by the Batch API did, in numbers and sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock._numbers import number_of
from penstock.runner.batch.parts import Part
from penstock.runner.settings import Stopped
from penstock.runner.summary import Counts, cost_in_words, of_rows

__all__ = ["Ended", "batch_sentences", "batch_summary"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A batch whose answers are merged.

    Attributes:
        batch: Its id.
        model: Of its rows.
        rows: How many.
        status: How it ended.
        answered: Rows that it answered.
        failed: Rows that it gave up.
        again: Rows that go into a further batch.
    """

    batch: str
    model: str
    rows: int
    status: str
    answered: int
    failed: int
    again: int


def batch_summary(
    counts: Counts,
    ended: Sequence[Ended],
    parts: Sequence[Part],
    *,
    stopped: Stopped | None = None,
    priced: bool = False,
) -> dict[str, Any]:
    """The summary as it is written next to the results.

    Args:
        counts: What happened.
        ended: The batches that are merged.
        parts: The others.
        stopped: Why the run ended before its file did; None if it did not.
        priced: Whether prices are known.
    """
    return {
        "via": "batch",
        **of_rows(counts),
        "possibly_billed_twice": counts.ambiguous,
        "dollars": round(counts.dollars, 6) if priced else None,
        "unpriced": counts.unpriced if priced else None,
        "makespan": round(counts.makespan, 3),
        "batches": [
            {
                "id": one.batch,
                "model": one.model,
                "rows": one.rows,
                "status": one.status,
                "answered": one.answered,
                "failed": one.failed,
                "again": one.again,
            }
            for one in ended
        ],
        "under_way": [
            {"id": part.batch, "model": part.model, "rows": len(part), "status": part.status or "unknown"}
            for part in parts
            if part.may_exist
        ],
        "stopped": None if stopped is None else asdict(stopped),
    }


def batch_sentences(summary: Mapping[str, Any]) -> list[str]:
    """The summary as lines for people."""
    counted = [f"{summary['answered']} answered", f"{summary['failed']} failed"]
    words = (("skipped", "skipped (answered before)"), ("left_out", "left out"), ("untouched", "untouched"))
    counted += [f"{summary[name]} {word}" for name, word in words if summary[name]]
    lines = [
        f"{summary['rows']} {_rows(summary['rows'])}{' read' if summary['stopped'] else ''}: {', '.join(counted)}",
        f"{summary['sent']} {_rows(summary['sent'])} submitted, {summary['retries']} of them again",
        f"{number_of(len(summary['batches']), 'batch', 'batches')} merged in {summary['makespan']:,.0f} s",
    ]
    known = [one for one in summary["under_way"] if one["id"] is not None]
    unheard = [one for one in summary["under_way"] if one["id"] is None]
    if known:
        go = "goes" if len(known) == 1 else "go"
        lines.append(f"{_rows_in(known)} {go} on at the service; the same command merges them")
    if unheard:
        it = "it" if len(unheard) == 1 else "them"
        lines.append(f"{_rows_in(unheard)} may have been created unheard; the same command looks for {it}")
    if summary["possibly_billed_twice"]:
        lines.append(
            f"{summary['possibly_billed_twice']} {_rows(summary['possibly_billed_twice'])} may have been billed twice: "
            "what became of them first is not known"
        )
    return lines + cost_in_words(summary, "for the answers, at the Batch API's prices")


def _rows_in(batches: Sequence[Mapping[str, Any]]) -> str:
    rows = number_of(sum(one["rows"] for one in batches), "row")
    return f"{number_of(len(batches), 'batch', 'batches')} with {rows}"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"
