"""Tell exceptions that interrupt running code from outside apart from those that the code raises.

A function of the user that runs beside a call, such as a hook, may raise anything: the error is logged, and the call
goes on. But KeyboardInterrupt, or what a signal handler raises, is not an error of that function: it only happens to
strike there, and must reach the program.
"""

from __future__ import annotations

from contextlib import suppress

ENDS_A_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Raised while we read a user's object, these come from a signal or a closing generator, and not from the object."""

_TRACEBACK = BaseException.__dict__["__traceback__"]  # a subclass may have a property of that name


def is_an_interruption(error: BaseException) -> bool:
    """Whether an exception that was raised while a user's code ran is not that code's."""
    if isinstance(error, ENDS_A_PROGRAM):
        return True
    handlers = _codes_of_signal_handlers()
    trace = _TRACEBACK.__get__(error)
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _codes_of_signal_handlers() -> set[object]:
    import signal  # only what is broken needs it

    codes = set()
    for number in signal.valid_signals():
        # getsignal() shows the handler to itself, and asyncio's shows the main task with the error that it waits for:
        # if their `__repr__` raises, we cannot have this handler.
        with suppress(Exception):
            codes.add(_code_of(signal.getsignal(number)))
    return codes


def _code_of(handler: object) -> object:
    """The code of a signal handler in Python; of any other, such as the default one, something that no frame has."""
    if not callable(handler):
        return None
    function = getattr(handler, "func", handler)  # of a partial
    if not hasattr(function, "__code__"):  # a method has that of its function
        function = type(function).__call__
    return getattr(function, "__code__", None)
