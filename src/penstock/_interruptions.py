"""Exceptions that come over running code from outside, and are not that code's.

A function of the user's that we call beside a call of theirs may raise what it likes: that is logged, and the call goes
on. But KeyboardInterrupt, and whatever a signal handler raises, only happens to strike there. It is the program's.
"""

from __future__ import annotations

ENDS_A_PROGRAM = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Raised while we read a user's object, these come from a signal or a closing generator, and not from the object."""

_TRACEBACK = BaseException.__dict__["__traceback__"]  # a subclass may have a property of that name


def is_an_interruption(error: BaseException) -> bool:
    """Whether an exception that was raised while a user's code ran is not that code's."""
    if isinstance(error, ENDS_A_PROGRAM):
        return True
    import signal  # only what is broken needs it

    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = _TRACEBACK.__get__(error)
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: object) -> object:
    """The code of a signal handler in Python; of any other, such as the default one, something that no frame has."""
    if not callable(handler):
        return None
    function = getattr(handler, "func", handler)  # of a partial
    if not hasattr(function, "__code__"):  # a method has that of its function
        function = type(function).__call__
    return getattr(function, "__code__", None)
