"""Permit: the proof that a call was charged. It settles the true cost, cancels, and gives back what is held.

Its backend does the arithmetic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import CodeType
from typing import NoReturn

from penstock._backends.base import Backend, Binding, Grant, LimiterInfo
from penstock._concurrency.parking import who_am_i
from penstock._core.charging import Receipts
from penstock._core.places import Hold
from penstock._introspect import users_frame
from penstock._numbers import Number, Seconds, read_seconds
from penstock._validation import exact_heard, merge_given
from penstock.events import Observed, Settled, Withdrawn, emit

__all__ = ["EnteredPermit", "Permit", "WatchedPermit"]


class Permit(Grant):
    """The proof that a call was charged.

    It ends when its context ends, or by `close()`: what it only held (places in flight) is given back, what it spent
    stays spent, also if the call failed. Safe to use from any thread. After its end it can still be settled or
    cancelled.

    Attributes:
        granted_at: The moment of the grant, by `penstock.clock.now()`.
    """

    __slots__ = ()

    @property
    def cost(self) -> dict[str, float]:
        """What is charged now, per unit: after its end without what it held. Empty after `cancel()`."""
        return self._decider().cost(self)

    def settle(self, cost: Mapping[str, Number] | None = None, /, **true_cost: Number) -> None:
        """Say what the call really took.

        Less than charged: the difference is given back, as far as that cannot break the limit. More: it becomes a debt,
        which later calls wait for. Units not named stay as they are, and so do places once the permit has ended. May be
        called again: the last word counts.

        Args:
            cost: Amount per unit, as one mapping; or by keyword.
            true_cost: Amount per unit.

        Raises:
            UnknownUnit: The limiter has no such unit.
            CostError: Not a number, negative or infinite. Nothing has changed then.
        """
        settled = dict(merge_given("costs", cost, true_cost))
        self._decider().settle(self, settled)
        info = self._info()
        if info.on_event is not None:
            emit(info.on_event, Settled(info.name, settled, id(self)))

    def cancel(self) -> None:
        """Say that the call was never sent: everything comes back, and the permit ends. Again: nothing happens."""
        try:
            cost = self.cost
            info = self._info()
            if self._decider().cancel(self) and info.on_event is not None:
                emit(info.on_event, Withdrawn(info.name, cost, id(self)))
        except BaseException:
            self._decider().cancel(self)  # as in `close`; the second time it does nothing
            raise

    def close(self) -> None:
        """End the permit: give back what it holds. Again: nothing happens."""
        try:
            binding = self.binding
            if binding is None:
                self.backend.close(self)
            elif binding.charge.release is None:
                self.ended = True  # it holds nothing
            elif not binding.charge.release(self):
                binding.backend.close(self)
        except BaseException:
            # A signal handler has raised: the places come back before its exception goes on.
            self._decider().close(self)
            raise

    def observe(
        self, *, remaining: Mapping[str, Number] | None = None, reset: Mapping[str, Number | Seconds] | None = None
    ) -> None:
        """Say what the server said in its answer to this call.

        `remaining` was true when the server admitted the call: what was charged since then is subtracted, what was
        refilled since then is added. The level is only ever lowered to that, never raised. See `Limiter.observe`.
        """
        left = exact_heard("what remains of", remaining)
        resets = exact_heard("the seconds until the reset of", reset, read_seconds)
        self._decider().observe(left, resets, self)
        info = self._info()
        if info.on_event is not None:
            emit(info.on_event, Observed(info.name, left, resets))

    def _decider(self) -> Backend:
        return self.backend if self.binding is None else self.binding.backend

    def _info(self) -> LimiterInfo:
        return self.info if self.binding is None else self.binding.info

    def _leave(self, travel: float) -> None:
        """Count it in windows as the server does, as its call leaves only now and arrives within `travel` seconds."""
        self._decider().postpone(self, travel)

    def _end(self) -> None:
        """End it, because the call that it was granted to is left."""
        self.close()

    def _undo(self) -> None:
        """Give back a grant that never reached the call: an exception came in between."""
        if self.granted:
            self.cancel()

    def _hand_on(self) -> None:
        """Others than the task, or thread, that entered it may end it."""
        for _, receipt in self.charged()[1]:
            if type(receipt) is Hold:
                receipt.holder = None

    def _enter(self) -> None:
        """This task, or thread, ends it: so the places that it may be missed for are known as its own."""
        try:
            _claim(self.receipts)  # no loop here: 3.13 has an instruction in loops that belongs to no `try`
        except BaseException:
            self.close()  # a signal handler has raised, and `__exit__` will not be called
            raise

    def __enter__(self) -> Permit:
        if self.binding is None:
            self._enter()
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        try:
            self.close()
        except BaseException:
            self.close()  # as there: it may have come before the first line
            raise

    async def __aenter__(self) -> Permit:
        if self.binding is None:
            self._enter()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        try:
            self.close()
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled or copied: "
            "it is the proof of one charge, to be settled and ended where it was granted. Send its cost"
        )

    def __repr__(self) -> str:
        if not self.granted:
            return "<Permit, not granted>"
        return f"<Permit {', '.join(f'{unit}={amount:g}' for unit, amount in self.cost.items()) or 'of nothing'}>"


class EnteredPermit(Permit):
    """A permit that holds places, of a call that is entered: leaving the call ends it.

    If an exception keeps the call from leaving (a signal handler may raise at the first instruction of `__exit__`), the
    permit gives its places back when it is collected: the block of the call is over then.
    """

    __slots__ = ()

    entered = True

    def _end(self) -> None:
        """End it, and drop its finaliser, which would swallow the exception of a signal handler that raises in it."""
        self.close()
        self.__class__ = Permit  # type: ignore[assignment]  # of the same form

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        try:  # when the interpreter ends, modules are taken apart, and no call waits
            if not getattr(self, "ended", True) and not is_finalizing() and self.granted:
                self.close()
        except BaseException:  # a signal handler has raised once more
            if not getattr(self, "ended", True) and self.granted:
                self.close()
            raise


class WatchedPermit(Permit):
    """A permit that holds places and must be closed by its owner.

    Collected unclosed, it holds them for ever: its call may still run. The next call that has to wait for them warns of
    it.
    """

    __slots__ = ("_where",)

    _where: tuple[CodeType, int]  # the code that acquired it, and the instruction there: cheaper than a line

    def __init__(self) -> None:
        frame = users_frame()
        self._where = frame.f_code, frame.f_lasti

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # As nearly all are ended, that comes first.
        if not getattr(self, "ended", True) and not is_finalizing() and self.granted:
            code, instruction = self._where
            lines = [line for start, end, line in code.co_lines() if start <= instruction < end]
            self._decider().lose(self, (code.co_filename, (lines and lines[0]) or code.co_firstlineno))


def permits_of(binding: Binding) -> type[Permit]:
    """The class of permits that their owners must close: watched, if nothing else would free what they hold."""
    return WatchedPermit if binding.charge.watched else Permit


def _claim(receipts: Receipts) -> None:
    """What is held is this task's, or thread's, own."""
    for _, receipt in receipts:
        if type(receipt) is Hold and receipt.where is not None:
            receipt.holder = who_am_i()
