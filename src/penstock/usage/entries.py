"""From events to entries: what is known of a call, put together as it becomes known.

Nothing here does I/O or reads a clock. Events come one after the other, with the moment at which each happened.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.events import Answered, Granted, Reconfigured, Refused, Settled, Withdrawn
from penstock.limits import Rate, Sliding

_MOST_OPEN = 10_000
"""Calls of which later events are expected. Of more, the oldest are taken for complete."""

LimitNote = tuple[float, str, str, float, float]
"""(moment, model or limiter, unit, amount, seconds) of a limit that calls are under."""

CallInDollars = Callable[[str, Mapping[str, float], Mapping[str, float]], "float | None"]
"""(model, units charged, usage) → what that costs; None: unknown."""


@dataclass(slots=True, eq=False)
class CallEntry:
    """What is known of one call. `id` is its number in the file; None before it is written."""

    at: float
    limiter: str | None
    user: str | None
    outcome: str
    estimated: Mapping[str, float]
    dollars: float | None
    model: str | None = None
    status: int | None = None
    waited: float = 0.0
    elapsed: float | None = None
    settled: dict[str, float] | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    id: int | None = None


class Entries:
    """Entries that are to be written.

    Attributes:
        new: Those that are not in the file.
        changed: Those that are, and of which more is known since.
        limits: Limits that were told.
    """

    def __init__(self, dollars_of: CallInDollars) -> None:
        self.new: list[CallEntry] = []
        self.changed: dict[int, CallEntry] = {}
        self.limits: list[LimitNote] = []
        self._open: dict[int, CallEntry] = {}
        self._dollars_of = dollars_of

    def written(self) -> None:
        """All of it is in the file."""
        self.new, self.changed, self.limits = [], {}, []

    def hear(self, at: float, event: Any) -> None:
        """Take an event in. What is no event of a call is passed over."""
        kind = type(event)
        if kind is Granted:
            entry = self._begin(at, event, "granted", event.call)
            entry.waited = event.waited
        elif kind is Answered:
            self._answered(at, event)
        elif kind is Settled:
            self._settled(event)
        elif kind is Withdrawn:
            self._withdrawn(at, event)
        elif kind is Refused:
            self._begin(at, event, "refused", 0)
        elif kind is Reconfigured:
            self._note_limits(at, event)

    def _begin(self, at: float, event: Any, outcome: str, call: int) -> CallEntry:
        user, cost = _text(getattr(event, "flow", None)), event.cost
        entry = CallEntry(at, _text(event.limiter), user, outcome, cost, cost.get("dollars"))
        self.new.append(entry)
        if call:
            opened = self._open
            opened.pop(call, None)  # the number is used again: that one is over
            if len(opened) >= _MOST_OPEN:
                del opened[next(iter(opened))]
            opened[call] = entry
        return entry

    def _find(self, call: int) -> CallEntry | None:
        entry = self._open.get(call) if call else None
        if entry is not None and entry.id is not None:
            self.changed[entry.id] = entry
        return entry

    def _settled(self, event: Settled) -> None:
        entry = self._find(event.call)
        if entry is not None:
            entry.settled = {**(entry.settled or entry.estimated), **event.cost}
            if "dollars" in entry.settled:
                entry.dollars = entry.settled["dollars"]
            elif entry.model is not None and not entry.usage:
                entry.dollars = self._dollars_of(entry.model, entry.settled, entry.usage)

    def _withdrawn(self, at: float, event: Withdrawn) -> None:
        entry = self._find(event.call)
        if entry is None:
            entry = self._begin(at, event, "withdrawn", 0)
        elif entry.outcome == "granted":
            entry.outcome = "withdrawn"
        else:
            return  # it was answered: the limiter has taken it back
        entry.settled = dict.fromkeys(entry.estimated, 0.0)
        entry.dollars = None

    def _answered(self, at: float, event: Answered) -> None:
        entry = self._find(event.call)
        if entry is None:
            entry = self._begin(at, event, "granted", 0)
            entry.at = at - event.elapsed
            entry.waited = event.waited
        entry.status, entry.elapsed, entry.usage = event.status, event.elapsed, event.usage
        entry.model = _text(event.model)
        if entry.user is None:
            entry.user = _text(event.flow)
        entry.outcome = _outcome(event.status)
        charged = {**event.cost, **(entry.settled or entry.estimated)}
        if event.usage:
            charged["tokens"] = event.usage.get("input_tokens", 0.0) + event.usage.get("output_tokens", 0.0)
            entry.settled = charged
        elif entry.settled is not None or charged != entry.estimated:
            entry.settled = charged
        if "dollars" not in charged:
            is_paid = event.model is not None and entry.outcome in {"answered", "lost"}
            entry.dollars = self._dollars_of(entry.model or "", charged, event.usage) if is_paid else None

    def _note_limits(self, at: float, event: Reconfigured) -> None:
        for unit, limits in event.limits.items():
            self.limits += [
                (at, _text(event.limiter) or "", _text(unit) or "", float(limit.amount), float(limit.per))
                for limit in limits
                if isinstance(limit, Rate | Sliding)
            ]


def _outcome(status: int) -> str:
    if not status:
        return "lost"
    return "answered" if status < 400 else "rejected" if status == 429 else "failed"


def _text(name: Hashable) -> str | None:
    """A name as the file has it: what can be written as UTF-8, and is not endless."""
    if name is None:
        return None
    try:
        return str(name)[:1_000].encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - an object of the user's that cannot show itself
        return f"<{type(name).__name__}>"
