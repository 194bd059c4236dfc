"""`timeout`: cut calls that take too long. Trying again is up to a retry around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from penstock._concurrency.tasks import cut_after
from penstock._introspect import name_of
from penstock._numbers import Seconds, span
from penstock.errors import AttemptTimeout
from penstock.pipeline._layers import check_async

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class timeout:  # noqa: N801 - used like a function
    """Cut calls that take longer than `seconds`, and raise `AttemptTimeout`. A decorator of async functions.

    The layer cancels the call, and the call has ended when the error is raised. Inside a retry and a limiter it bounds
    each attempt without the wait for its turn; outside of them, all of it.

    Args:
        seconds: Seconds or a `timedelta`, above 0. It becomes a number of seconds.

    Raises:
        ValueError: `seconds` is not above 0.
        TypeError: The function is not async.
    """

    seconds: Seconds

    _penstock_kind: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", span("timeout({})", self.seconds, forever=True))

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function."""
        check_async(self, fn, "only what awaits can be cut")
        seconds, name = cast("float", self.seconds), name_of(fn)

        @functools.wraps(fn)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            with cut_after(seconds):
                return await fn(*args, **kwargs)
            raise AttemptTimeout(f"{name} took longer than timeout({seconds:g}) allows", seconds=seconds)

        return cast("_F", timed)

    def __repr__(self) -> str:
        return f"timeout({self.seconds:g})"
