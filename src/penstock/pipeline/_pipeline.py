"""`Pipeline`: layers around a call, as one decorator. Each layer of ours is in a file of its own."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from penstock._introspect import decorable_kind, kind_of, name_of, refuse_awaitable, to_be_awaited
from penstock._run_inside import run_inside
from penstock._text import repr_of

_F = TypeVar("_F", bound=Callable[..., Any])


class PipelineOrderWarning(UserWarning):
    """The layers of a pipeline stand in an order that cannot be meant."""


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Pipeline:
    """Layers around a call, outermost first: a frozen value, and a decorator like each of its layers.

    Pipelines nest: one inside another counts as its layers.

    Args:
        around: The layers: decorators of a function, or context managers to enter around every call (async ones for
            async functions).
        layers: More of them, inside the others: what `dataclasses.replace(pipeline, layers=...)` gives.

    Raises:
        TypeError: A layer is neither, or a class of ours in the place of an instance.

    Warns:
        PipelineOrderWarning: A limiter stands outside a retry or a hedge and none inside it. Servers count every
            attempt; this limiter would count the call once.
    """

    layers: tuple[Any, ...]

    _penstock_kind: ClassVar[str] = "pipeline"

    def __init__(self, *around: Any, layers: Iterable[Any] = ()) -> None:
        given = *around, *layers
        flat = tuple(part for layer in given for part in (layer.layers if isinstance(layer, Pipeline) else (layer,)))
        for number, layer in enumerate(flat, 1):
            if not callable(layer) and not isinstance(layer, AbstractAsyncContextManager | AbstractContextManager):
                raise TypeError(
                    f"layer {number} of the pipeline, {repr_of(layer)}, is neither a decorator nor a context manager"
                )
            if isinstance(layer, type) and layer.__module__.startswith("penstock."):
                raise TypeError(
                    f"layer {number} of the pipeline is the class {layer.__name__}: give one made with its arguments, "
                    f"{layer.__name__}(…)"
                )
        object.__setattr__(self, "layers", flat)
        kinds = [getattr(layer, "_penstock_kind", "") for layer in flat]
        repeating = {"retry": "retry", "hedge": "hedge(...)"}  # what makes several attempts of a call
        innermost = max((number for number, kind in enumerate(kinds) if kind in repeating), default=0)
        if "limiter" in kinds[:innermost] and "limiter" not in kinds[innermost:]:
            limiter = flat[kinds.index("limiter")]
            warnings.warn(
                f"{_shown(limiter)} is outside {_shown(flat[innermost])}: "
                "it would charge a call once, however often it is tried, and servers count every attempt. "
                f"Put it inside: Pipeline({repeating[kinds[innermost]]}, limiter(...), ...)",
                PipelineOrderWarning,
                stacklevel=2,
            )

    def __call__(self, fn: _F, /) -> _F:
        """Put the layers around `fn`, and return a function of the same kind.

        Raises:
            TypeError: A layer cannot be put around this kind of function.
        """
        wrapped: Any = fn
        for number, layer in reversed(list(enumerate(self.layers, 1))):
            inner, wrapped = wrapped, (layer(wrapped) if callable(layer) else _entered_around(layer, wrapped))
            if not callable(wrapped):
                raise TypeError(
                    f"layer {number} of the pipeline, {_shown(layer)}, made {repr_of(wrapped)} of {name_of(inner)}: "
                    "a decorator returns a function"
                )
        return cast("_F", wrapped)

    def describe(self) -> str:
        """Return what is in the pipeline, a line per layer, for tests and logs."""
        lines = [f"  {number}. {_shown(layer)}" for number, layer in enumerate(self.layers, 1)]
        return "\n".join(["Pipeline, outermost first:", *lines])

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(_shown, self.layers))})"


def _shown(layer: object) -> str:
    if not callable(layer):
        shown = repr_of(layer)
        return type(layer).__qualname__ if shown.startswith("<") else shown
    return name_of(layer) if hasattr(layer, "__qualname__") or isinstance(layer, functools.partial) else repr_of(layer)


def _entered_around(manager: Any, fn: _F) -> _F:
    """Enter a context manager around each call of a function."""
    is_async = isinstance(manager, AbstractAsyncContextManager)
    if decorable_kind(fn) in {"async", "stream", "async context"}:
        if not is_async:
            raise TypeError(
                f"{_shown(manager)} is not an async context manager: around {name_of(fn)} it would block the event loop"
            )
    elif not isinstance(manager, AbstractContextManager):
        raise TypeError(f"{_shown(manager)} is an async context manager, and {name_of(fn)} is not an async function")
    if is_async:
        return run_inside(fn, lambda *_: manager, lambda *_: manager)
    return run_inside(_never_async(manager, fn), lambda *_: manager)


def _never_async(manager: object, fn: _F) -> _F:
    """Refuse the awaitable that a plain callable returns: the context manager could not be left at its end."""
    if kind_of(fn) != "sync":
        return fn

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        if to_be_awaited(result):
            refuse_awaitable(
                result,
                f"{name_of(fn)} returned an awaitable, and {_shown(manager)} is not an async context manager: "
                "held while others run, it would block the event loop",
            )
        return result

    return cast("_F", checked)
