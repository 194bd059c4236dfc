"""Texts that others wrote, as a terminal may show them, and objects of users, as messages show them. Pure."""

from __future__ import annotations

from penstock._interruptions import is_an_interruption

PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
"""Types whose `repr` and comparisons raise nothing, but for a ValueError of a huge int: else a signal handler did."""


def visible(text: str) -> str:
    """A text of others' on one line: what a terminal would obey, or would not show, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def repr_of(value: object, most: int = 500) -> str:
    """Return the `repr` of a user's object, shortened; its type's name if the `repr` raises.

    It raises of an int of more than 4,300 digits, too.
    """
    try:
        shown = repr(value)
    except BaseException as raised:  # whatever an object of the user's raises
        if is_an_interruption(raised) or (type(value) in PLAIN and not isinstance(raised, ValueError)):
            raise
        return f"<{type(value).__name__}, whose repr raised {type(raised).__name__}>"
    return shown if len(shown) <= most else shown[: most - 3] + "..."
