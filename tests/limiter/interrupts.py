"""Signal handlers at every point of a call at which CPython would run one.

CPython runs signal handlers, and raises asynchronous exceptions, where a Python function begins, after a call of a
function in C and where a loop goes back. A profile function is called at the first two and a trace function at the
third, so they can stand for a handler that comes at just one of these points: the tests go through all, one after
another.
"""

from __future__ import annotations

import sys
import threading
from itertools import count
from opcode import opname

from penstock._backends import memory_store

_OURS = ("penstock", threading.__file__)


LOCK = memory_store(None).lock


class Interrupted(BaseException):
    """What the handler raises: like a KeyboardInterrupt, no `Exception`."""


def raise_interrupted():
    raise Interrupted


def at_point(number, handler, function):
    """Call `function` with `handler` at its point of that number; return the point, or None if there are not so
    many."""
    point = None
    passed = jump = 0

    def ours(frame):
        return any(part in frame.f_code.co_filename for part in _OURS)

    def arrive(frame, event):
        nonlocal point, passed
        passed += 1
        if passed > number and point is None:
            sys.setprofile(None)
            sys.settrace(None)
            point = f"{frame.f_code.co_qualname} ({event})"
            handler()

    def profile(frame, event, _):
        if event in {"call", "c_return"} and ours(frame):
            arrive(frame, event)

    def trace(frame, event, _):
        if point is None and event == "call" and ours(frame):
            frame.f_trace_opcodes = True
            return trace_inside
        return None

    def trace_inside(frame, event, _):
        nonlocal jump
        if point is None and event == "opcode":
            # After the jump: what a loop asks before it goes on has been asked, and may be so no more.
            if jump and frame.f_lasti < jump:
                arrive(frame, "loop")
            jump = frame.f_lasti if "BACKWARD" in opname[frame.f_code.co_code[frame.f_lasti]] else 0
        return trace_inside

    before = sys.gettrace()  # that of coverage, which would measure nothing from here on
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        function()
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
        sys.settrace(before)
    return point


def every_point(handler, make, function, check):
    """Do `function(thing)` to a new thing again and again, with the handler at each of its points; then `check(thing)`.

    Returns:
        The points at which the check found something, with what it found; and how many there were.
    """
    found = {}
    point = ""
    numbers = count()
    while point is not None:
        number = next(numbers)
        thing = make()
        point = at_point(number, lambda thing=thing: handler(thing), lambda thing=thing: function(thing))
        assert not LOCK._is_owned(), f"after an exception at {point}, the lock of the process is held for ever"
        wrong = check(thing)
        if wrong:
            found[point] = wrong
    return found, number
