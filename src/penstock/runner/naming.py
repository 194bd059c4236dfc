"""What an option is called where it was given: on the command line, or in a program."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Naming", "as_argument", "as_flag"]


class Naming(Protocol):
    """Names an option, and a value of it."""

    def __call__(self, option: str, value: str | None = None) -> str:
        """The option in the words of its user."""
        ...


def as_flag(option: str, value: str | None = None) -> str:
    """`--on-ambiguous=fail`."""
    name = "--" + option.replace("_", "-")
    return name if value is None else f"{name}={value}"


def as_argument(option: str, value: str | None = None) -> str:
    """`on_ambiguous="fail"`."""
    return option if value is None else f'{option}="{value}"'
