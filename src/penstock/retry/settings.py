"""The fields of a policy: their types, checks and text. Its methods are in `policy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any, cast

from penstock._chance import CHANCE
from penstock._core.backoff import Backoff, exponential
from penstock._introspect import check_plain, name_of, show_defaults
from penstock._numbers import Seconds, read_count, read_flag, span
from penstock._retry_after import retry_after
from penstock._text import repr_of
from penstock._user_errors import On, check_on, shown_on
from penstock.events import RetryEvent
from penstock.retry.budget import Budget


def _drawn() -> float:
    # A function, as a policy that is sent to other processes takes its name along, and no generator's state.
    return CHANCE.random()


@dataclass(frozen=True, slots=True, repr=False)
class RetrySettings:
    """The fields of a `Retry`, which documents them. Spans of time are numbers of seconds once they are in here."""

    on: On
    _: KW_ONLY
    attempts: int | None = 6
    within: Seconds | None = 300
    backoff: Backoff = field(default_factory=exponential)
    budget: Budget | None = None
    on_result: Callable[[Any], bool | Seconds] | None = None
    hint: Callable[[Exception], Seconds | None] | None = retry_after
    max_hint: Seconds | None = None
    attempt_timeout: Seconds | None = None
    on_event: Callable[[RetryEvent], object] | None = None
    nested: bool = False
    random: Callable[[], float] = _drawn

    def __post_init__(self) -> None:
        check_on("Retry", self.on)
        for name in ("on_result", "hint", "on_event", "random"):
            if getattr(self, name) is not None:
                check_plain("Retry", name, getattr(self, name))
        _check_parts(self.backoff, self.budget)
        if self.attempts is not None:
            attempts = read_count(self.attempts)
            if attempts is None:
                raise ValueError(
                    f"Retry(attempts={repr_of(self.attempts)}): a whole number from 1, the first attempt included; "
                    "or None"
                )
            object.__setattr__(self, "attempts", attempts)
        object.__setattr__(self, "nested", read_flag("nested", self.nested))
        for name in ("within", "attempt_timeout", "max_hint"):
            given = getattr(self, name)
            if given is not None:
                seconds = span(f"Retry({name}={{}})", given, zero=name == "max_hint", forever=True)
                object.__setattr__(self, name, seconds)

    @property
    def seconds_per_attempt(self) -> float | None:
        """`attempt_timeout`, whose type says that it is seconds by now."""
        return cast("float | None", self.attempt_timeout)

    @property
    def shown(self) -> str:
        """The policy as one writes it, without the settings that have their default."""
        shown = [
            f"on={shown_on(self.on)}",
            f"attempts={self.attempts}",
            f"within={self.within}",
            f"backoff={repr_of(self.backoff)}",
        ]
        shown += [
            f"{each.name}={name_of(value) if callable(value) else repr(value)}"
            for each in fields(self)[len(shown) : -1]  # not `random`
            if (value := getattr(self, each.name)) is not each.default
        ]
        return f"Retry({', '.join(shown)})"


RetrySettings.__init__.__qualname__ = "Retry.__init__"  # which Python's own errors name: an argument that is missing
show_defaults(RetrySettings.__init__, backoff="exponential()", hint="retry_after", random="SystemRandom().random")


def _check_parts(backoff: object, budget: object) -> None:
    """Refuse a wrong backoff or budget where it is written, and not at the first failure."""
    if not isinstance(backoff, Backoff):
        shown = name_of(backoff) if callable(backoff) else repr_of(backoff)
        raise TypeError(
            f"Retry(backoff={shown}): exponential(...), constant(...), or an object with `delay` and `jitter`"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"Retry(budget={repr_of(budget)}): a Budget(...), or None")
