"""Rows that may go to several places, and where each goes: to the one that can take it first.

Each place has limits of its own, and is learned and waited for by itself. The rows wait in one mix, and a place takes
one whenever it has room in its limiter's queue; so a place with twice the limits does twice the work, and one that is
down does none.
"""

from __future__ import annotations

import math
from typing import Any

from penstock.errors import CostError
from penstock.runner.group import Group
from penstock.runner.mix import Mix
from penstock.runner.place import Place
from penstock.runner.source import Row
from penstock.runner.work import Work

__all__ = ["Pool", "settle"]


class Pool:
    """The rows of models that share limits, and the places that take them.

    Attributes:
        mix: The rows that wait.
        groups: The limits, one for each place.
    """

    def __init__(self) -> None:
        self.mix: Mix = Mix()
        self.groups: list[Group] = []

    def add(self, name: str, limits: Any, idle: float, place: Place) -> Group:
        """Let a place take rows; see `Group`."""
        group = Group(name, limits, idle, place=place, mix=self.mix)
        self.groups.append(group)
        return group

    def too_large(self, row: Row) -> str | None:
        """Why a row can never be sent anywhere; None if it can, as far as is known."""
        reasons = [group.too_large(row) for group in self.groups]
        return reasons[0] if all(reasons) else None

    def next_group(self) -> Group | None:
        """Where the next row should wait; None: no place has room. A place that is down gets one row, as a probe."""
        if len(self.groups) == 1:
            return self.groups[0] if self.groups[0].wants_more else None
        return min(filter(_has_room, self.groups), key=lambda group: group.rows, default=None)


def settle(work: Work) -> None:
    """Let a row wait where it can be taken first, as things are now."""
    current = work.group
    fit = [group for group in work.groups if not group.place.closed and group not in work.unfit]
    up = [group for group in fit if group.place.is_up]
    up = [group for group in up if group is not work.avoid] or up
    outage = current.place.outage
    if not up:
        if fit and current not in fit:
            work.move(fit[0])
    elif current not in fit or current is work.avoid or outage.since is None or outage.is_probed:
        waits = {group: _wait(group, work.row) for group in up}
        best = min(up, key=lambda group: (waits[group], group is not current, group.rows))
        if best is not current:
            work.move(best)


def _has_room(group: Group) -> bool:
    place = group.place
    is_to_be_probed = not place.closed and not place.outage.is_probed and not group.queued
    return group.wants_more and (place.is_up or is_to_be_probed)


def _wait(group: Group, row: Row) -> float:
    limiter, charge = group.endpoint.ask(row.cost)
    try:
        return limiter.forecast(charge).wait
    except CostError:
        return math.inf
