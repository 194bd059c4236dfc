"""`pausing`: one refusal by the server pauses the limiter for all its calls.

It reads errors and makes no call wait: that is the limiter's part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from penstock import _log
from penstock._introspect import check_plain, show_defaults
from penstock._numbers import Seconds, show, show_seconds, span
from penstock._retry_after import retry_after
from penstock._text import repr_of
from penstock._user_errors import On, check_on, seconds_asked, shown_on, verdict
from penstock.pipeline._layers import watched

_F = TypeVar("_F", bound=Callable[..., Any])


class _Pausable(Protocol):
    """A limiter, as far as `pausing` needs one."""

    def pause(self, seconds: float, /) -> None: ...


class pausing:  # noqa: N801 - used like a function
    """Pause a limiter when a call fails with an error that says for how long: one 429 stops all calls, once.

        pipe = Pipeline(Retry(on=TooMany), limiter(tokens=count), pausing(limiter, on=TooMany))

    A retry around it waits too, but for its own call alone; all others would go on, to be refused one by one. It stands
    inside the limiter, where the server's errors come from. A pause is never shortened by another.

    Args:
        limiter: The limiter to pause: itself, not a call of it. Any object that has `pause(seconds)`.
        on: Which errors are the server's word: exception types, or a function of the error that says True, False, or
            for how many seconds; there is no default.
        hint: A function that finds the seconds in the error, where `on` says True.
        max_pause: The longest pause that one error can cause; seconds or a `timedelta`, above 0. A wrong header would
            stop all calls for years otherwise. The first error that asks for more is logged as a warning
            (`penstock.pipeline`).

    Raises:
        TypeError: `limiter` cannot be paused, `on` is neither exception types nor a plain function, or `hint` is no
            plain function.
        ValueError: `max_pause` is not above 0.
    """

    __slots__ = ("_hint", "_limiter", "_max_pause", "_on", "_warned")

    _penstock_kind = "layer"

    def __init__(
        self,
        limiter: _Pausable,
        *,
        on: On,
        hint: Callable[[Exception], Seconds | None] = retry_after,
        max_pause: Seconds = 3600,
    ) -> None:
        if not callable(getattr(limiter, "pause", None)):
            raise TypeError(f"pausing({repr_of(limiter)}): give the limiter itself, which can be paused")
        check_on("pausing", on)
        check_plain("pausing", "hint", hint)
        self._limiter = limiter
        self._on = on
        self._hint = hint
        self._max_pause = span("pausing(max_pause={})", max_pause, forever=True)
        self._warned = False

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, a function, an async generator function, or a context manager."""
        return watched(self, fn, lambda: self)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        says = verdict("pausing", self._on, error)
        seconds = seconds_asked("pausing", self._hint, error) if says is True else says
        if seconds and seconds < math.inf:
            self._limiter.pause(self._bounded(seconds, error))

    def _bounded(self, seconds: float, error: Exception) -> float:
        if seconds <= self._max_pause:
            return seconds
        if not self._warned:
            self._warned = True
            _log.write(
                logging.getLogger("penstock.pipeline"),
                logging.WARNING,
                "pausing: %s asks for a pause of %s, and max_pause=%s s is the longest. "
                "Longer ones are cut in silence from now on; max_pause= says where",
                repr_of(error),
                show_seconds(seconds),
                show(self._max_pause),
                extra={"penstock": {"asked": seconds, "max_pause": self._max_pause}},
            )
        return self._max_pause

    def __repr__(self) -> str:
        return f"pausing({self._limiter!r}, on={shown_on(self._on)})"


show_defaults(pausing.__init__, hint="retry_after")
