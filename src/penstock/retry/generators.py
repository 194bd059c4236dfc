"""Whether a `with attempt:` block can yield to a consumer.

Then the consumer runs inside the block, and is no part of it.

Python has no hook for "a generator was suspended". But its bytecode says which blocks contain a `yield`, and that is
known when the block is entered. The look at the bytecode is taken once per block, and only where the block is in a
generator.
"""

from __future__ import annotations

import inspect
import opcode
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_RESUME, _WITH_EXCEPT = opcode.opmap["RESUME"], opcode.opmap["WITH_EXCEPT_START"]
_AFTER_YIELD = {1, 2}  # what RESUME says of the instruction before it: `yield`, `yield from`; 3 is `await`


def frame_that_yields(frame: FrameType | None) -> FrameType | None:
    """Return the frame that enters the block now, if it is a generator's and the block can yield; else None.

    Args:
        frame: The caller of `__enter__`. An `ExitStack` counts as the function that uses it.
    """
    direct = True
    while frame is not None and frame.f_globals.get("__name__") == "contextlib":
        frame, direct = frame.f_back, False
    if frame is None or not frame.f_code.co_flags & _GENERATOR:
        return None
    # Nothing says where an ExitStack is closed: any `yield` may come before that.
    return frame if _can_yield(frame.f_code, frame.f_lasti if direct else None) else None


@lru_cache(maxsize=1024)
def _can_yield(code: CodeType, entered_at: int | None) -> bool:
    """Whether there is a `yield` in the `with` block that the instruction at `entered_at` enters; None: anywhere."""
    instructions = code.co_code
    yields = [
        at - 2
        for at in range(2, len(instructions), 2)
        if instructions[at] == _RESUME and instructions[at + 1] & 3 in _AFTER_YIELD
    ]
    handlers = list(_handlers(code))
    block = next(
        (
            handler
            for start, _, handler in handlers
            if entered_at is not None and start > entered_at and instructions[handler + 2] == _WITH_EXCEPT
        ),
        None,
    )
    return any(block is None or block in _around(at, handlers) for at in yields)


def _around(at: int, handlers: list[tuple[int, int, int]]) -> Iterator[int]:
    """Iterate over the handlers of the blocks around an instruction, from the inside."""
    seen: set[int] = set()
    while True:
        handler = next((handler for start, end, handler in handlers if start <= at < end), None)
        if handler is None or handler in seen:
            return
        seen.add(handler)
        yield handler
        at = handler


def _handlers(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Read the exception table: the first and the last (excluded) instruction of a range, and its exception handler."""
    table = iter(code.co_exceptiontable)

    def number(first: int) -> int:
        value, more = first & 63, first & 64
        while more:
            byte = next(table)
            value, more = value << 6 | byte & 63, byte & 64
        return value

    for byte in table:
        start = number(byte) * 2
        size, handler, _ = (number(next(table)) for _ in range(3))
        yield start, start + size * 2, handler * 2
