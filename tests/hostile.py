"""Exceptions of which nothing can be read."""

from __future__ import annotations

import asyncio


class NotAnException(BaseException):
    """Neither an Exception nor a signal: a property may raise this as well."""


RAISED = [ZeroDivisionError, asyncio.CancelledError, NotAnException, RecursionError, StopIteration]


def error_whose(name, raised):
    """An exception class, one attribute or method of which raises."""

    def fail(self, *_):
        raise raised

    plain = {
        "__str__",
        "__repr__",
        "add_note",
        "__setattr__",
        "__reduce__",
        "__eq__",
        "__hash__",
        "__bool__",
        "__len__",
    }
    return type("Hostile", (Exception,), {name: fail if name in plain else property(fail)})


NAMES = [
    "__str__", "__repr__", "__notes__", "add_note", "__setattr__", "__reduce__", "__eq__", "__hash__", "__bool__",
    "__len__", "__getattribute__", "__class__", "__cause__", "__context__", "__traceback__", "with_traceback",
    "__dict__", "response", "retry_after", "headers", "status_code", "exceptions",
]  # fmt: skip
