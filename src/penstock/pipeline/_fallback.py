"""`fallback`: answer with something else when a call fails. It makes no second attempt of the call itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from inspect import isawaitable
from typing import Any, ClassVar, TypeVar, cast

from penstock._introspect import kind_of, name_of, refuse_awaitable, runs_later, to_be_awaited
from penstock._user_errors import On, check_on, shown_on, verdict
from penstock.pipeline._layers import check_callable_once

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class fallback:  # noqa: N801 - used like a function
    """Answer with something else when a call fails.

    Args:
        to: A value; or a function that is called with the call's own arguments, another model or a cache for example.
        on: Which errors: exception types, or a function of the error; there is no default.

    Raises:
        TypeError: The function is a generator or a context manager; or it cannot await and `to` is async.
    """

    to: Any
    _: KW_ONLY
    on: On

    _penstock_kind: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        check_on("fallback", self.on)

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, or a function."""
        wrapper: Any
        if check_callable_once(self, fn) == "async":

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                return await self._finish(fn(*args, **kwargs), args, kwargs)

        else:
            name = name_of(fn)
            if callable(self.to) and kind_of(self.to) == "async":
                raise TypeError(
                    f"{self!r} cannot be put around {name}, which is not an async function: it could not await"
                )

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                try:
                    result = fn(*args, **kwargs)
                except Exception as error:
                    if verdict("fallback", self.on, error) is False:
                        raise
                    return self._answer_plain(name, args, kwargs)
                if to_be_awaited(result):
                    return self._finish(result, args, kwargs)
                if runs_later(result):
                    raise TypeError(
                        f"{self!r} cannot answer for {name}, which returned a {type(result).__name__}: it fails later, "
                        "where this fallback is over. Return a list, or decorate what runs in the end"
                    )
                return result

        return cast("_F", functools.wraps(fn)(wrapper))

    async def _finish(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return await call
        except Exception as error:
            if verdict("fallback", self.on, error) is False:
                raise
            answer = self.to(*args, **kwargs) if callable(self.to) else self.to
            return await answer if isawaitable(answer) else answer

    def _answer_plain(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = self.to(*args, **kwargs) if callable(self.to) else self.to
        if to_be_awaited(answer):
            refuse_awaitable(
                answer,
                f"{self!r} around {name}, which is not an async function, returned an awaitable: nobody would await it",
            )
        return answer

    def __repr__(self) -> str:
        return f"fallback({name_of(self.to) if callable(self.to) else repr(self.to)}, on={shown_on(self.on)})"
