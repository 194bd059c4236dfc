"""A row that is worked on, and what the server said against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

from penstock.llm.failures import Verdict
from penstock.runner.client import Reply
from penstock.runner.group import Group
from penstock.runner.source import Row

__all__ = ["AMBIGUOUS", "Refused", "Work"]

AMBIGUOUS = (
    "It was sent, and what came of it is not known: it may have been billed. It is not sent again (--on-ambiguous=fail)"
)
"""What is said of a row that must not be sent twice."""


class Work:
    """A row that is worked on. It counts as one in the limiter's queue from the moment it is chosen."""

    scope: anyio.CancelScope  # of the task that works on it, once there is one

    __slots__ = (
        "_is_unsent", "answers_then", "avoid", "earliest", "failures", "group", "groups", "is_queued", "is_sending",
        "may_be_billed", "probes", "reserved", "row", "scope", "sent", "status", "unfit", "usage", "wait", "waited",
        "waits", "waits_since",
    )  # fmt: skip

    def __init__(self, group: Group, row: Row, groups: Sequence[Group] = ()) -> None:
        """A row that was chosen for a group; it may move to another one of `groups`, if there are any."""
        self.groups: Sequence[Group] = groups
        self.group: Group = group
        self.row: Row = row
        self.is_sending: bool = False
        self.sent: int = 0  # attempts that left
        self.failures: int = 0  # those that count
        self.waits: int = 0  # how often it was told to wait
        self.waits_since: float | None = None
        self.answers_then: int = 0  # of its group, when it was told to wait last
        self.probes: int = 0  # attempts that failed in an outage
        self.avoid: Group | None = None  # where it failed last
        self.waited: float = 0.0  # seconds in the queue for the last attempt
        self.status: int = 0  # of the last answer; 0: there is none
        self.usage: Mapping[str, float] = {}  # tokens that the last answer says it took
        self.unfit: tuple[Group, ...] = ()  # whose limits it is too large for
        self.reserved: float = 0.0  # dollars
        self.wait: float = 0.0  # seconds before its next attempt
        self.may_be_billed: bool | None = None
        self.earliest: float = 0.0
        self.is_queued: bool = False
        self._is_unsent: bool = False
        group.rows += 1
        self.enter_queue()

    def move(self, group: Group) -> None:
        """Let it wait elsewhere."""
        was_queued = self.is_queued
        self.end()
        self.group = group
        group.rows += 1
        if was_queued:
            self.enter_queue()

    def end(self) -> None:
        """Nothing more is done about it, at least not here."""
        self.leave_queue()
        self.group.rows -= 1

    @property
    def is_unsent(self) -> bool:
        """Whether it was granted its turn and has not left."""
        return self._is_unsent

    @is_unsent.setter
    def is_unsent(self, now: bool) -> None:
        self.group.unsent += now - self._is_unsent
        self._is_unsent = now

    def enter_queue(self) -> None:
        """Count it into the limiter's queue."""
        if not self.is_queued:
            self.is_queued = True
            self.group.enter(self.row.cost, 1)

    def leave_queue(self) -> None:
        """Count it out of the limiter's queue."""
        if self.is_queued:
            self.is_queued = False
            self.group.enter(self.row.cost, -1)


@dataclass(frozen=True, slots=True)
class Refused:
    """The server answered, but not with a result."""

    verdict: Verdict
    reply: Reply
