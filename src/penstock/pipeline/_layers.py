"""Shared by the layers of a pipeline: which functions they refuse.

The kinds of function are told apart in `_introspect`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, TypeVar

from penstock._introspect import decorable_kind, kind_of, name_of
from penstock._run_inside import run_inside
from penstock._text import repr_of

_F = TypeVar("_F", bound=Callable[..., Any])

_KINDS = {
    "sync": "not an async function",
    "stream": "an async generator",
    "generator": "a generator",
    "async context": "an async context manager",
    "context": "a context manager",
}

_ITEMS_ARE_OUT = "when it fails, items may have been handed out already"
_BLOCK_HAS_RUN = (
    "when its block fails, the block has run already. "
    "Decorate the function below @contextmanager or @asynccontextmanager"
)


def refuse(layer: object, fn: Callable[..., Any], why: str) -> NoReturn:
    """Raise the error of a layer that cannot be put around a function."""
    raise TypeError(f"{repr_of(layer)} cannot be put around {name_of(fn)}, which is {_KINDS[kind_of(fn)]}: {why}")


def check_async(layer: object, fn: Callable[..., Any], why: str) -> None:
    """Refuse all but async functions. That a plain callable returns an awaitable shows too late."""
    kind = decorable_kind(fn)
    if kind == "sync":
        refuse(layer, fn, f"{why}. If what it returns is to be awaited, decorate an async function that awaits it")
    if kind != "async":
        refuse(layer, fn, why)


def check_callable_once(layer: object, fn: Callable[..., Any]) -> str:
    """Refuse generators and context managers; return the kind of the function, "async" or "sync"."""
    kind = decorable_kind(fn)
    if kind in {"stream", "generator"}:
        refuse(layer, fn, _ITEMS_ARE_OUT)
    if kind in {"async context", "context"}:
        refuse(layer, fn, _BLOCK_HAS_RUN)
    return kind


def watched(layer: object, fn: _F, watch: Callable[[], AbstractContextManager[None]]) -> _F:
    """Enter the context manager of `watch`, which never waits, around every call: for layers that look at its end."""
    if kind_of(fn) == "generator":
        refuse(layer, fn, "put it around what that calls")
    return run_inside(fn, lambda _args, _kwargs: watch())
