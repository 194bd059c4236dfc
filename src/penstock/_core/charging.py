"""All or nothing: charge a call on several limits at one instant, or on none, and take a charge back.

Which waiter may be charged when is left to `turns`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter

Charges = Sequence[tuple[LimitState, float]]
Receipts = list[tuple[Meter, Any]]
"""What a charge left behind: the meter that was charged, and its receipt."""


def ready_at(charges: Charges, now: float) -> tuple[float, LimitState | None]:
    """The earliest moment at which all of `charges` could be made, and the state that is ready last."""
    return ready_behind(charges, {}, now)


def ready_behind(charges: Charges, ahead: Mapping[Any, float], now: float) -> tuple[float, LimitState | None]:
    """`ready_at` for a waiter behind others that want so much of each state in all, and go first."""
    latest, last = now, None
    for state, amount in charges:
        before = ahead.get(state)
        ready = state.meter.ready_behind(before, amount, now) if before else state.meter.ready_at(amount, now)
        ready = max(ready, state.paused_until)
        if ready > latest:
            latest, last = ready, state
    return latest, last


def when_ready(charges: Charges, now: float) -> float:
    """The moment of `ready_at` alone: cheaper, where the state is not asked for."""
    latest = now
    for state, amount in charges:
        ready = state.meter.ready_at(amount, now)
        if ready > latest:
            latest = ready
        if state.paused_until > latest:
            latest = state.paused_until
    return latest


def charge_if_ready(charges: Charges, now: float, due: float = math.inf) -> Receipts | None:
    """`charge`, if all of it is ready now; else None.

    Then nothing is charged, and nothing either if an exception strikes in between.

    Args:
        due: When the call should have been charged; a limit that spaces calls evenly then counts the next interval from
            there, as far as its `catch_up` allows.
    """
    receipts: Receipts = []
    receipt = None
    try:
        for state, amount in charges:
            meter = state.meter
            if state.paused_until > now or not (meter.predictable or when_ready(charges[len(receipts) :], now) <= now):
                break
            receipt = meter.charge_if_ready(amount, now if due >= now else max(due, now - meter.catch_up))
            if receipt is None:
                break
            receipts.append((meter, receipt))
        else:
            return receipts
        receipt = None
        _take_back(charges, receipts, now)
    except BaseException:
        if receipt is not None and not (receipts and receipts[-1][1] is receipt):
            receipts.append((charges[len(receipts)][0].meter, receipt))
        _take_back(charges, receipts, now)
        raise
    return None


def _take_back(charges: Charges, receipts: Receipts, now: float) -> None:
    """Undo the charges that have receipts; receipts that are left after an exception are those not undone yet."""
    while receipts:
        _, amount = charges[len(receipts) - 1]
        meter, receipt = receipts[-1]
        # In one statement, so that nothing is undone twice: signal handlers do not run where a Python function returns.
        _ = (meter.undo(amount, receipt, now), receipts.pop())  # type: ignore[func-returns-value]


def charge(charges: Charges, now: float) -> Receipts:
    """Charge all of it; return what giving back needs, in the same order."""
    return [(state.meter, state.meter.charge(amount, now)) for state, amount in charges]


def undo(charges: Charges, receipts: Receipts, now: float) -> None:
    """Take back all that `charge` charged for a call, and all that was charged for it later; the latest first."""
    for (state, amount), (meter, receipt) in zip(reversed(charges), reversed(receipts), strict=True):
        if state.meter is meter:
            meter.undo(amount, receipt, now)


def give_back(charges: Charges, receipts: Receipts, now: float) -> None:
    """Give back that much of what `charge` charged."""
    for (state, amount), (meter, receipt) in zip(charges, receipts, strict=True):
        if state.meter is meter:  # else another kind of limit has taken over, which cannot read this receipt
            meter.give_back(amount, receipt, now)


def postponed(charges: Charges, receipts: Receipts, at: float, now: float) -> Receipts:
    """Count a call as if charged at `at`, where that makes a difference; return its receipts from now on."""
    return [
        (meter, meter.postpone(amount, receipt, at, now) if state.meter is meter else receipt)
        for (state, amount), (meter, receipt) in zip(charges, receipts, strict=True)
    ]
