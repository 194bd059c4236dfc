"""Where the state of limits lives: in this process, in a file of this machine, or on a server.

    MemoryStore    every task, thread and event loop of one process; what a limiter has unless it is given another
    SQLiteStore    the processes of one machine
    RedisStore     machines

`Store` is the contract of the last two, for stores of your own. Each is loaded when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.stores.memory import MemoryStore

if TYPE_CHECKING:
    from penstock.stores.contract import Store
    from penstock.stores.redis import RedisStore
    from penstock.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore", "RedisStore", "SQLiteStore", "Store"]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from penstock.stores.contract import Store

        return Store
    if name == "SQLiteStore":
        from penstock.stores.sqlite import SQLiteStore

        return SQLiteStore
    if name == "RedisStore":
        from penstock.stores.redis import RedisStore

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
