"""A copy of an SDK's client that sends through other HTTP clients, wherever the SDK keeps its own.

    copied(client, replace)    the copy, or None if no HTTP client is found in it
    http_clients_in(client)    those that it has
    Carrying(executor)         the same threads, which know the blocks that a call is made in

Some SDKs have `copy(http_client=…)`; most keep their HTTP client some objects deep, and hand it around as bound methods
and closures. So the objects between the client and its HTTP clients are copied, and what they refer to is moved to the
copies. Everything else is shared: keys, settings, locks, executors. The original is not changed.
"""

from __future__ import annotations

import contextvars
import functools
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

__all__ = ["Carrying", "copied", "http_clients_in", "library_of", "uncollected"]

_COMMON = frozenset({"builtins", "abc", "typing", "collections", "contextlib", "enum", "pydantic"})
_DEEPEST = 12


def copied(client: Any, replace: Callable[[Any], Any]) -> Any | None:
    """A copy of `client` in which `replace(http_client)` stands for each HTTP client. None: there is none in it."""
    found = _found_in(client)
    affected = found.leading_to_http_clients()
    if id(client) not in affected:
        return None
    copies: dict[int, Any] = {id(each): replace(each) for each in found.http_clients.values()}
    for number, each in affected.items():
        copies[number] = _shallow(each)
    move = _Mover(copies)
    for number in affected:
        for name, value in _held_by(copies[number]).items():
            _set(copies[number], name, move(value))
    return copies[id(client)]


def http_clients_in(client: Any) -> list[Any]:
    """The HTTP clients that a client sends through; itself, if it is one."""
    return [client] if library_of(client) is not None else list(_found_in(client).http_clients.values())


def _found_in(client: Any) -> _Found:
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__} - _COMMON
    found = _Found(packages)
    found.walk(client)
    return found


def library_of(client: Any) -> str | None:
    """The library whose client this is: "httpx2" or "httpx", whichever has the class it is made of."""
    for base in type(client).__mro__:
        if base.__name__ in {"Client", "AsyncClient"} and base.__module__.partition(".")[0] in {"httpx", "httpx2"}:
            return base.__module__.partition(".")[0]
    return None


@functools.cache
def uncollected(kind: type) -> type:
    """A subclass whose objects do nothing when they are collected: a copy must not close what the original uses."""
    return type(
        kind.__name__, (kind,), {"__del__": lambda _: None, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )


class Carrying(Executor):
    """The threads that a client sends from, as Cohere's does to embed many texts: with the caller's context in them."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have something done by one of the threads."""
        return self._inner.submit(contextvars.copy_context().run, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads."""
        self._inner.shutdown(wait, cancel_futures=cancel_futures)


class _Found:
    """The objects of an SDK that hang together, and the HTTP clients among them."""

    def __init__(self, packages: set[str]) -> None:
        self.objects: dict[int, Any] = {}
        self.http_clients: dict[int, Any] = {}
        self._packages = packages
        self._users: dict[int, list[int]] = {}  # per object, by its id: the objects that refer to it

    def walk(self, start: Any) -> None:
        waiting = [start]
        while waiting:
            each = waiting.pop()
            if id(each) in self.objects:
                continue
            self.objects[id(each)] = each
            for value in _held_by(each).values():
                for inner in _referred(value):
                    if library_of(inner) is not None:
                        self.http_clients[id(inner)] = inner
                    elif self._is_of_the_sdk(inner):
                        waiting.append(inner)
                    else:
                        continue
                    self._users.setdefault(id(inner), []).append(id(each))

    def _is_of_the_sdk(self, value: Any) -> bool:
        return not isinstance(value, (type, types.ModuleType, types.FunctionType)) and any(
            base.__module__.partition(".")[0] in self._packages for base in type(value).__mro__
        )

    def leading_to_http_clients(self) -> dict[int, Any]:
        affected: dict[int, Any] = {}
        waiting = list(self.http_clients)
        while waiting:
            for user in self._users.get(waiting.pop(), ()):
                if user not in affected:
                    affected[user] = self.objects[user]
                    waiting.append(user)
        return affected


def _referred(value: Any, depth: int = 0) -> Iterator[Any]:
    """What a value is, or holds, or is bound to."""
    if depth > _DEEPEST:
        return
    inner: Any = ()
    if isinstance(value, types.MethodType):
        inner = (value.__self__,)
    elif isinstance(value, functools.partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.FunctionType):
        inner = [cell for each in value.__closure__ or () if (cell := _content(each)) is not None]
    elif type(value) in {list, tuple}:
        inner = value
    elif type(value) is dict:
        inner = list(value.values())  # which may change meanwhile
    else:
        yield value
    for each in inner:
        yield from _referred(each, depth + 1)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled
        return None


def _shallow(value: Any) -> Any:
    """A copy of an object, made without asking it: it may well answer for attributes that it does not have yet."""
    kind: Any = type(value)
    made: Any = object.__new__(uncollected(kind) if hasattr(kind, "__del__") else kind)
    for name, inner in _held_by(value).items():
        _set(made, name, inner)
    return made


def _held_by(value: Any) -> dict[str, Any]:
    """What an object holds, by the names of its attributes: those of its `__dict__`, and those in slots."""
    held = dict(getattr(value, "__dict__", {}))
    kind: Any = type(value)
    for name in _slots_of(kind):
        try:
            held[name] = object.__getattribute__(value, name)
        except AttributeError:  # not filled
            continue
    return held


def _set(target: Any, name: str, value: Any) -> None:
    kind: Any = type(target)
    if name in _slots_of(kind):
        object.__setattr__(target, name, value)
    else:
        vars(target)[name] = value


@functools.cache
def _slots_of(kind: Any) -> frozenset[str]:
    """The names of a class's slots, as attributes have them."""
    names = set()
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            is_private = slot.startswith("__") and not slot.endswith("__")
            names.add(f"_{base.__name__.lstrip('_')}{slot}" if is_private else slot)
    return frozenset(names - {"__dict__", "__weakref__"})


class _Mover:
    """Makes whatever refers to an original refer to its copy."""

    def __init__(self, copies: dict[int, Any]) -> None:
        self._copies = copies

    def __call__(self, value: Any, depth: int = 0) -> Any:
        known = self._copies.get(id(value))
        if known is not None or depth > _DEEPEST:
            return value if known is None else known
        if isinstance(value, types.MethodType):
            owner = self(value.__self__, depth + 1)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            inside = [self(each, depth + 1) for each in value.args]
            named = {name: self(each, depth + 1) for name, each in value.keywords.items()}
            return functools.partial(self(value.func, depth + 1), *inside, **named)
        if isinstance(value, types.FunctionType) and value.__closure__:
            return self._closed_over(value, depth)
        if type(value) in {list, tuple}:
            moved = [self(each, depth + 1) for each in value]
            changed = any(new is not old for new, old in zip(moved, value, strict=True))
            return type(value)(moved) if changed else value
        if type(value) is dict:
            entries = {key: self(each, depth + 1) for key, each in value.items()}
            return entries if any(entries[key] is not value[key] for key in value) else value
        return value

    def _closed_over(self, function: types.FunctionType, depth: int) -> Any:
        before = [_content(cell) for cell in function.__closure__ or ()]
        after = [self(each, depth + 1) for each in before]
        if all(new is old for new, old in zip(after, before, strict=True)):
            return function
        cells = tuple(
            types.CellType(new) if new is not old else cell
            for new, old, cell in zip(after, before, function.__closure__ or (), strict=True)
        )
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return functools.update_wrapper(made, function)
