"""Text from users and servers, made safe to show in a terminal, a message or the name of a row in a store. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from penstock._interruptions import is_an_interruption

PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
"""Types whose `repr` and comparisons raise nothing, but for a ValueError of a huge int: else a signal handler did."""

_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"]*@")
"""User and password of a URL, also where they hold what they must not: a slash, an @."""


def visible(text: str) -> str:
    """A text of others' on one line: what a terminal would obey, or would not show, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def repr_of(value: object, most: int = 500) -> str:
    """Return the `repr` of a user's object, shortened, and URLs in it without credentials.

    Where the `repr` raises, as that of an int of more than 4,300 digits does, it is the name of the type.
    """
    shown = _CREDENTIALS.sub("***@", _shown_by(repr, value))
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def text_of(value: object) -> str:
    """A text by itself, of a `(str, Enum)` too, whose `str` and f-string are its name; of other objects their `str`."""
    return str.__str__(value) if isinstance(value, str) else str(value)


def label_of(value: object) -> str:
    """`text_of` for events and messages; where the `str` of a user's object raises, the name of its type."""
    return str.__str__(value) if isinstance(value, str) else _shown_by(str, value)


def _shown_by(show: Callable[[object], str], value: object) -> str:
    try:
        return show(value)
    except BaseException as raised:  # whatever an object of the user's raises
        if is_an_interruption(raised) or (type(value) in PLAIN and not isinstance(raised, ValueError)):
            raise
        return f"<{type(value).__name__}, whose {show.__name__} raised {type(raised).__name__}>"


def read_word(option: str, value: object, words: Iterable[str]) -> str:
    """One of these words; ValueError that names them for anything else."""
    known = tuple(words)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, not {repr_of(value)}")
    return text_of(value)


def without_braces(text: str) -> str:
    """A text as part of a name in a store, which has no braces; `urllib.parse.unquote` reads it back."""
    return text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


_KEY_MARK = "%:"
"""Between a name and a key: nothing that `without_braces` returns has it."""


def name_of_key(name: str, key: str) -> str:
    """What the limits of a key are called in a store: a name that `is_name_of_key`, and no other name and key have."""
    return f"{name}{_KEY_MARK}{without_braces(key)}"


def is_name_of_key(name: str) -> bool:
    """Whether a name in a store is one that `name_of_key` returns."""
    return _KEY_MARK in name
