"""Texts that others wrote, as a terminal may show them. Pure."""

from __future__ import annotations


def visible(text: str) -> str:
    """A text of others' on one line: what a terminal would obey, or would not show, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
