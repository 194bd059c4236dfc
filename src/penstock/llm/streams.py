"""Streams of SDKs that are left before their end: their places come back at once, and their connections are closed.

    minding(client, limited)    the same client, whose streams are minded, and those of its copies

Streams of OpenAI's SDK, and of those that are generated alike, refer to a generator that refers to them. So nothing
ends when the last reader goes: only the garbage collector, some time later, closes what is not read. A minded stream
is a copy that the generator does not know. When the loop over it is left, its place in flight comes back, and it may
still be read on; when it is dropped itself, its connection is closed.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["ANSWER", "minding"]

ANSWER = "penstock.answer"
"""Where a response's extensions have what ends with it."""


def minding(client: Any, limited: Callable[[Any], Any]) -> Any:
    """Change an SDK's client, so that streams of it, and of what its `copy` returns, are minded.

    Its type stays the same. `limited` makes the HTTP client under limits that a copy with another one sends through.
    """
    request: Any = client.request

    async def minded(*args: Any, **options: Any) -> Any:
        return _minded(await request(*args, **options))

    def minded_in_thread(*args: Any, **options: Any) -> Any:
        return _minded(request(*args, **options))

    replaced = {"request": minded if inspect.iscoroutinefunction(request) else minded_in_thread}
    for name in ("copy", "with_options"):
        if hasattr(client, name):
            replaced[name] = _minding_copies(getattr(client, name), limited)
    for name, function in replaced.items():
        vars(client)[name] = functools.wraps(getattr(client, name))(function)
    return client


def _minding_copies(copy: Any, limited: Callable[[Any], Any]) -> Any:
    def copied(*args: Any, **options: Any) -> Any:
        if "http_client" in options:
            options["http_client"] = limited(options["http_client"])
        return minding(copy(*args, **options), limited)

    return copied


def _minded(result: Any) -> Any:
    """A stream that is minded; whatever else a request returned as it is."""
    response: Any = getattr(result, "response", None)
    if not hasattr(result, "_iterator") or ANSWER not in getattr(response, "extensions", ()):
        return result
    was: Any = type(result)
    kind = _stream(was)
    stream = kind.__new__(kind)
    vars(stream).update(vars(result))
    weakref.finalize(stream, response.extensions[ANSWER].abandon, response).atexit = False
    return stream


@functools.cache
def _stream(kind: Any) -> Any:
    class Minded(kind):  # type: ignore[misc]  # a class of the SDK's
        def __iter__(self) -> Any:
            return _Reading(self)

        def __aiter__(self) -> Any:
            return _AsyncReading(self)

    Minded.__name__, Minded.__qualname__, Minded.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    Minded.__doc__ = kind.__doc__
    return Minded


class _Reading:
    """One loop over a stream. No generator: one that is left waits for its loop to close it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        weakref.finalize(self, stream.response.extensions[ANSWER].left).atexit = False

    def __iter__(self) -> _Reading:
        return self

    def __next__(self) -> Any:
        return next(self._stream._iterator)


class _AsyncReading:
    """The same of an async stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        weakref.finalize(self, stream.response.extensions[ANSWER].left).atexit = False

    def __aiter__(self) -> _AsyncReading:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._stream._iterator)
