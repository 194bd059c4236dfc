"""Run calls as fast as their limits allow, never faster, and lose nothing.

The public names are listed in `_names.py`. See the README for what they are for, and `docs/` for how to use them.

Each name is loaded when it is first asked for, so that `import penstock` costs a program that only retries nothing for
limits.
"""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder
from types import SimpleNamespace
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULES = {"clock", "events", "llm", "openai", "stores", "testing"}
"""Those that need no import of their own."""

if TYPE_CHECKING:
    from penstock._names import *
else:  # a type checker that saw __getattr__ would take any name for one of ours

    def _homes():
        """The module of each public name: `_names.py`, run with an `__import__` that loads nothing and notes them."""
        homes = {}

        def note(module, _globals, _locals, names, _level):
            homes.update(dict.fromkeys(names, module))
            return SimpleNamespace(**dict.fromkeys(names))

        spec = PathFinder.find_spec("penstock._names", __spec__.submodule_search_locations)
        names = {"__name__": spec.name, "__builtins__": {"__import__": note}}  # the former for those that trace modules
        exec(spec.loader.get_code(spec.name), names)  # noqa: S102 - it is our own file
        return homes

    _HOME = _homes()
    __all__ = sorted(_HOME)  # noqa: PLE0605 - a list, though not a literal one

    def __getattr__(name):
        if name in _HOME:
            value = getattr(import_module(_HOME[name]), name)
        elif name in _MODULES:
            value = import_module(f"penstock.{name}")
        else:
            raise AttributeError(f"module 'penstock' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
