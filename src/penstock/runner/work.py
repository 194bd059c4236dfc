"""A row that is worked on, and what the server said against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

from penstock.llm.failures import Verdict
from penstock.runner.client import Reply
from penstock.runner.group import Group
from penstock.runner.naming import Naming
from penstock.runner.source import Row

__all__ = ["RefusedReply", "Work", "ambiguous"]


def ambiguous(named: Naming) -> str:
    """What is said of a row that must not be sent twice."""
    return (
        "It was sent, and what came of it is not known: it may have been billed. "
        f"It is not sent again ({named('on_ambiguous', 'fail')})"
    )


class Work:
    """A row that is worked on. It counts as one in the limiter's queue from the moment it is chosen."""

    scope: anyio.CancelScope  # of the task that works on it, once there is one
    is_sending: bool = False
    sent: int = 0  # attempts that left
    in_doubt: bool = False  # the last of them may have been billed, and has no outcome that is kept
    failures: int = 0  # those that count
    waits: int = 0  # how often it was told to wait
    waits_since: float | None = None
    answers_then: int = 0  # of its group, when it was told to wait last
    probes: int = 0  # attempts that failed in an outage
    avoid: Group | None = None  # where it failed last
    waited: float = 0.0  # seconds in the queue for the last attempt
    status: int = 0  # of the last answer; 0: there is none
    usage: Mapping[str, float] = {}
    unfit: tuple[Group, ...] = ()  # whose limits it is too large for
    reserved: float = 0.0  # dollars
    wait: float = 0.0  # seconds before its next attempt
    may_be_billed: bool | None = None
    earliest: float = 0.0

    def __init__(self, group: Group, row: Row, groups: Sequence[Group] = ()) -> None:
        """A row that was chosen for a group; it may move to another one of `groups`, if there are any."""
        self.groups: Sequence[Group] = groups
        self.group: Group = group
        self.row: Row = row
        group.rows += 1
        self.enter_queue()

    def move(self, group: Group) -> None:
        """Let it wait elsewhere."""
        was_queued = id(self) in self.group.queued
        self.end()
        self.group = group
        group.rows += 1
        if was_queued:
            self.enter_queue()

    def end(self) -> None:
        """Nothing more is done about it, at least not here."""
        self.leave_queue()
        self.group.rows -= 1

    def enter_queue(self) -> None:
        """Count it into the limiter's queue."""
        self.group.queued[id(self)] = self.row.cost

    def leave_queue(self) -> None:
        """Count it out of the limiter's queue."""
        self.group.queued.pop(id(self), None)


@dataclass(frozen=True, slots=True)
class RefusedReply:
    """The server answered, but not with a result."""

    verdict: Verdict
    reply: Reply
