"""What every store with a connection does about it. How to connect is the store's own."""

from __future__ import annotations

from weakref import finalize


def outlive(store: object, connection: object) -> finalize[[object], object]:
    """Let a connection outlive its store, until the result is told to `detach`.

    A store without references closes its connection in `__del__`. The garbage collector frees what belongs
    together in any order: without this, it may come to a socket before that, which then warns that it was not closed.
    """
    kept = finalize(store, _freed, connection)
    kept.atexit = False
    return kept


def _freed(_: object) -> None:
    """The store is about to be freed, and its `__del__` comes next."""
