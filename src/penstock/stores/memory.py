"""State in this process: for every task, thread and event loop of it.

One lock guards all limiters of a store. What it guards takes a microsecond, and limiters that are joined (`a & b`) must be
decided together anyway, so finer locks would buy little and cost an order to take them in.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from penstock.errors import ConfigurationConflict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock._gate import Part
    from penstock.limits import Limit

__all__ = ["MemoryStore"]


class MemoryStore:
    """The limits of one process.

    Limiters of the same name in one store share their state, for as long as one of them is alive. Every limiter that is
    given no store lives in one store that belongs to the process.
    """

    __slots__ = ("_parts", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._parts: WeakValueDictionary[str, Part] = WeakValueDictionary()

    def find(self, name: str, limits: Mapping[str, tuple[Limit, ...]]) -> Part | None:
        """The living part of that name, or None.

        Raises:
            ConfigurationConflict: It has other limits.
        """
        part = self._parts.get(name)
        if part is not None and part.limits() != limits:
            raise ConfigurationConflict(
                f'two limiters are named "{name}" but have different limits: {_show(part.limits())} there, '
                f"{_show(limits)} here. Use one name for one set of limits, or reconfigure() the first"
            )
        return part

    def keep(self, name: str, part: Part) -> None:
        """Let others find `part` under its name while it lives."""
        self._parts[name] = part


def _show(limits: Mapping[str, tuple[Limit, ...]]) -> str:
    return ", ".join(f"{unit}={' and '.join(map(str, kinds))}" for unit, kinds in limits.items())
