"""The dict that records show: what was true at one moment, and cannot be changed. Pure."""

from __future__ import annotations

from typing import Any


class FrozenDict(dict[str, Any]):
    """A dict that stays as it is. Unlike a `MappingProxyType` it can be copied, pickled and given to `asdict`."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this is what was true when you asked: it cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)
