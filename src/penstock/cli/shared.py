"""Limits that several runs share: `--store`, and the part of the rows that is one run's: `--shard`.

The stores themselves are in `stores`.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

from penstock import Limiter
from penstock.cli.terminal import Fault
from penstock.llm.endpoints import Endpoint
from penstock.llm.shared_limits import learned_in
from penstock.runner.client import Server
from penstock.runner.place import LimitsOf
from penstock.stores import Store

__all__ = ["file_of_store", "shard_of", "shared"]

PATIENCE = {"file": 60.0, "server": 10.0}
"""Seconds for which a run waits for its store: a busy disk holds up a file, and a Redis server that fails is replaced,
but an address may be wrong."""

LONGEST_CLOSE = 5.0
"""Seconds in which the store is told what is left to say, at the end."""


def shard_of(text: str | None) -> tuple[int, int]:
    """Read `2/4`: the second of four parts.

    Raises:
        Fault: It is not that.
    """
    if text is None:
        return 1, 1
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise Fault(f"--shard: {text!r} is not a part of a whole: write it like 2/4, from 1/4 to 4/4")
    return int(found[1]), int(found[2])


def file_of_store(url: str | None) -> Path | None:
    """The file of a store that has one."""
    kind, _, rest = (url or "").partition(":")
    return Path(rest) if kind == "sqlite" and rest.strip("/") else None


def shared(url: str, limits_of: LimitsOf, server: Server, stack: ExitStack) -> LimitsOf:
    """The same limits, in a store: all runs that name it, and ask the same server with the same key, use them together.

    Args:
        url: `sqlite:FILE`, or what a `RedisStore` takes.
        limits_of: What the limits are; None for those that the server's answers will tell.
        server: The server that has those limits.
        stack: Closes the store at its end.

    Raises:
        Fault: There is no such store, or what it needs is not installed.
    """
    try:
        store = _open(url)
    except ImportError as error:
        raise Fault(f'--store: {error}: pip install "penstock[redis]"') from None
    except (OSError, ValueError) as error:
        raise Fault(f"--store: {error}") from None
    stack.callback(store.close, LONGEST_CLOSE)
    account = hashlib.blake2b(b"\n".join((server.base_url.encode(), *server.secrets)), digest_size=8).hexdigest()
    made: dict[str, Limiter | Endpoint] = {}

    def shared_of(model: str) -> tuple[str, Limiter | Endpoint]:
        name, limits = limits_of(model)
        if name not in made:
            if limits is None:
                made[name] = learned_in(store, f"run-{account}", name)
            else:
                assert isinstance(limits, dict)
                given = {unit: list(rates) for unit, rates in limits.items()}
                made[name] = Limiter(given, name=f"run-{account}-{name}", store=store)
        return name, made[name]

    return shared_of


def _open(url: str) -> Store:
    kind, _, rest = url.partition(":")
    if kind == "sqlite":
        from penstock.stores import SQLiteStore

        if not rest.strip("/"):
            raise ValueError("sqlite: names no file; write it like sqlite:limits.db")
        return SQLiteStore(rest, patience=PATIENCE["file"])
    from penstock.stores import RedisStore
    from penstock.stores._redis_url import is_address

    if not is_address(url):
        raise ValueError(f"{url!r} is not a store; write it like sqlite:limits.db or redis://host")
    return RedisStore(url, patience=PATIENCE["server"])
