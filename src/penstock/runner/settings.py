"""How a run is to go, and why it ended. They are acted on in `engine` and `batch.run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from penstock._numbers import read_count, read_seconds
from penstock.llm.tokens import Cost
from penstock.runner.naming import Naming, as_flag
from penstock.runner.prices import Prices
from penstock.runner.source import Change, Row, custom_id_digest

__all__ = ["DAY", "HOUR", "Settings", "Stopped"]

DAY = 86_400.0
HOUR = 3_600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run.

    Attributes:
        cost: What a request takes, of (path, body).
        max_in_flight: Rows that are worked on at once, those between two attempts included.
        attempts: Attempts per row that may fail, the first included. A request to wait is not a failure.
        give_up_after: Seconds that the server may ask a row to wait, or may be away. This and `max_pause` may
            be given as a `timedelta`.
        max_pause: Longest wait that the server may ask of all rows, in seconds.
        idle: Seconds since an earlier run used these limits up; `inf`: they are whole.
        on_ambiguous: How a row is treated that was sent and may have been billed: "rerun" sends it again, "fail" gives
            it up.
        change: What is done to each body before it is sent.
        salt: Stands for `change`: rows that are changed otherwise are other rows.
        rows: How many rows of the file are done, at most; None: all.
        shard: (I, N): of N parts of the file the I-th is done, from 1, and line L is in part (L - 1) % N + 1.
        only: Rows that are done, and no others: digests of their custom_ids, or of `line-N`; None: all.
        deadline: Seconds after which nothing more is sent; None: never.
        prices: What answers cost; None: not asked for.
        max_cost: Dollars that answers may cost; a row that might go beyond is not sent. None: no bound.
        on_event: Is told of each attempt when it is over, and of limits (`penstock.events`); it must not raise.
        secrets: Keys that must not be written down when a server repeats them.
        named: What options are called in messages.

    Raises:
        ValueError: `max_in_flight` or `attempts` is below 1, `give_up_after` or `max_pause` is below 0, or
            `on_ambiguous` is another word.
    """

    cost: Cost
    max_in_flight: int = 1000
    attempts: int = 8
    give_up_after: float = DAY
    max_pause: float = HOUR
    idle: float = math.inf
    on_ambiguous: Literal["rerun", "fail"] = "rerun"
    change: Change | None = None
    salt: bytes = b""
    rows: int | None = None
    shard: tuple[int, int] = (1, 1)
    only: frozenset[int] | None = None
    deadline: float | None = None
    prices: Prices | None = None
    max_cost: float | None = None
    on_event: Callable[[object], object] | None = None
    secrets: tuple[bytes, ...] = ()
    named: Naming = as_flag

    def __post_init__(self) -> None:
        for name, count in (("max_in_flight", self.max_in_flight), ("attempts", self.attempts)):
            if read_count(count) is None:
                raise ValueError(f"{name} must be a whole number, 1 or more, not {count!r}")
        for name, seconds in (("give_up_after", self.give_up_after), ("max_pause", self.max_pause)):
            span = read_seconds(seconds)
            if span is None or span < 0:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, or a timedelta, not {seconds!r}")
            object.__setattr__(self, name, span)
        if self.on_ambiguous not in ("rerun", "fail"):
            raise ValueError(f'on_ambiguous must be "rerun" or "fail", not {self.on_ambiguous!r}')

    def wants(self, row: Row) -> bool:
        """Whether a row is one of `only`."""
        return self.only is None or row.name in self.only or custom_id_digest(f"line-{row.line}") in self.only

    def of(self, lines: int) -> int:
        """How many rows of a file of so many lines are done, at most."""
        part, parts = self.shard
        lines = lines if self.rows is None else min(lines, self.rows)
        there = len(range(part, lines + 1, parts))
        return there if self.only is None else min(there, len(self.only))

    def has(self, line: int) -> bool:
        """Whether a line is in the part of the file that is done."""
        part, parts = self.shard
        return (line - part) % parts == 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a run ended before its file did.

    Attributes:
        code: `interrupted`, `account`, `output`, `input`, `changed`, `unreachable`, `deadline` or `cost`.
        message: A sentence.
        status: The HTTP status of the answer that ended it; None: none did.
    """

    code: str
    message: str
    status: int | None = None
