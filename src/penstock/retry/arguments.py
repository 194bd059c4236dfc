"""Arguments that an attempt has used up, so that another attempt would silently send nothing.

`call` decides what follows from that.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import opcode
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import Any

from penstock._introspect import name_of

_ENDLESS = (itertools.count, itertools.cycle, itertools.repeat)


def consumed_argument(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return a clause that names an argument that the last attempt has used up; None if there is none.

    Generators and coroutines tell whether they have begun. The iterators of builtins and itertools do not, so they
    count as used. Other iterators may well be fit for another attempt, as database cursors and files are: they are left
    alone.
    """
    while isinstance(fn, functools.partial):
        args, kwargs, fn = (*fn.args, *args), {**fn.keywords, **kwargs}, fn.func
    positions: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for position, value in positions:
        if (kind := _used_up(value)) is not None:
            return f"the last attempt used up the argument {_named(fn, position)}, {kind}"
    return None


def _used_up(value: object) -> str | None:
    """Return what `value` is, with its article, if it can be read once only and reading it has begun."""
    kind = type(value).__name__
    if isinstance(value, Generator) and hasattr(value, "gi_frame"):
        return None if inspect.getgeneratorstate(value) == inspect.GEN_CREATED else "a generator"
    if isinstance(value, AsyncGenerator) and hasattr(value, "ag_frame"):
        return None if _not_begun(value) else "an async generator"
    if isinstance(value, Coroutine) and hasattr(value, "cr_frame"):
        return None if inspect.getcoroutinestate(value) == inspect.CORO_CREATED else "a coroutine"
    if isinstance(value, Iterator) and type(value).__module__ in {"builtins", "itertools"}:
        return None if isinstance(value, _ENDLESS) else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    return None


def _not_begun(items: Any) -> bool:
    """Return whether nothing was ever asked of an async generator."""
    if sys.version_info >= (3, 12):
        return inspect.getasyncgenstate(items) == inspect.AGEN_CREATED
    frame = items.ag_frame  # it stands at the instruction that made the generator
    return frame is not None and frame.f_code.co_code[frame.f_lasti] == opcode.opmap["RETURN_GENERATOR"]


def _named(fn: Callable[..., Any], position: int | str) -> str:
    """Return how the function itself calls an argument, or its number from 1."""
    if isinstance(position, str):
        return position
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # many builtins have no signature
        parameters = []
    if position < len(parameters) and parameters[position].kind is not inspect.Parameter.VAR_POSITIONAL:
        return parameters[position].name
    return f"{position + 1} of {name_of(fn)}"
