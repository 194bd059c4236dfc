"""`with penstock.turn(flow="alice"):` flow, priority and longest wait of all limited calls in a block.

It is for calls to which no argument can be passed, such as an SDK's.

It is a context variable, so it holds for the tasks and threads that the block starts with a copy of its context, and
for nothing else. Only calls that have to wait look at it: a call that goes at once overtakes none.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from typing import NamedTuple

from penstock._numbers import Seconds
from penstock._validation import read_flow, read_priority, read_wait


class TurnOptions(NamedTuple):
    """What a block says of its calls; None: nothing."""

    max_wait: float | None = None
    priority: int | None = None
    flow: Hashable = None


NOTHING = TurnOptions()
"""What is said where no block is entered."""


class _Here(NamedTuple):
    """The blocks that are entered in a context, the outermost first, and what they say together."""

    blocks: tuple[turn, ...] = ()
    turn: TurnOptions = NOTHING

    def without(self, block: object) -> _Here:
        """The same without this block, where it was entered last."""
        blocks = list(self.blocks)
        for index in reversed(range(len(blocks))):
            if blocks[index] is block:
                del blocks[index]
                break
        rest = NOTHING
        for each in blocks:
            rest = rest._replace(**each._said)
        return _Here(tuple(blocks), rest)


_here: ContextVar[_Here] = ContextVar("penstock.turn", default=_Here())  # noqa: B039 - it does not change


def turn_here() -> TurnOptions:
    """What the innermost blocks say of the calls made here."""
    return _here.get().turn


class turn:  # noqa: N801 - it reads as a word: with turn(priority=10)
    """Set flow, priority and longest wait of the limited calls inside.

    Of SDKs, HTTP clients, decorated functions, any limiter.

        with penstock.turn(priority=10, flow="alice", max_wait=5):
            reply = await client.chat.completions.create(...)

    Blocks nest: an inner one changes what it names, and leaves the rest. Arguments of a call itself go first. One
    object may be entered many times, by several tasks and threads at once too: `URGENT = turn(priority=10)`.

    Args:
        priority: A whole number; higher goes first.
        flow: The flow that the calls belong to.
        max_wait: Longest wait, in seconds or as a timedelta, 0 or more.

    Raises:
        ValueError: One of these is wrong.
    """

    __slots__ = ("_said",)

    def __init__(self, *, priority: int | None = None, flow: Hashable = None, max_wait: Seconds | None = None) -> None:
        said = TurnOptions(read_wait(max_wait), None if priority is None else read_priority(priority), read_flow(flow))
        self._said = {name: value for name, value in said._asdict().items() if value is not None}

    def __enter__(self) -> None:
        here = _here.get()
        try:
            _here.set(_Here((*here.blocks, self), here.turn._replace(**self._said)))
        except BaseException:
            _here.set(here)  # a signal handler has raised, and `__exit__` will not be called
            raise

    def __exit__(self, *_: object) -> None:
        # By a token this could not be done where a block ends in another context than it began in, as in a generator
        # that a framework runs in threads.
        here = None
        try:
            here = _here.get()
            _here.set(here.without(self))
        except BaseException:
            _here.set((here or _here.get()).without(self))  # as above
            raise
