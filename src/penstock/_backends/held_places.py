"""Places that may never come back: write down who holds them, and warn a call that has to wait for them.

There are three reasons: a permit outlives its time to live, a permit was collected before it was closed, or a task that
holds the last place waits for another. Each is warned of once, with the line that acquired the permit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from penstock._backends.base import Grant
from penstock._concurrency.parking import who_am_i
from penstock._core.charging import Charges
from penstock._core.limit_state import LimitState
from penstock._core.places import Hold, Places
from penstock._introspect import users_line


def note_holder(grant: Grant) -> bool:
    """Write down the holder of places that may be missed later: those with a time to live, and the last of a limit.

    Returns whether some have a time to live, so that others may have outlived it.
    """
    may_expire = False
    for (state, _), (_, receipt) in zip(*grant.charged(), strict=True):
        meter = state.meter
        if type(receipt) is Hold and isinstance(meter, Places) and (meter.ttl is not None or meter.exhausted):
            receipt.where = users_line()
            receipt.holder = who_am_i() if grant.entered else None  # else it may be handed to others, which end it
            meter.last_hold = receipt
            may_expire = may_expire or meter.ttl is not None
    return may_expire


def note_orphan(grant: Grant, where: tuple[str, int]) -> None:
    """No code can end this grant any more: its permit, acquired at that line, was collected."""
    _, receipts = grant.charged()
    for meter, receipt in receipts:
        if type(receipt) is Hold and isinstance(meter, Places) and meter.ttl is None and receipt.amount:
            receipt.where = where
            meter.orphans.append(receipt)


def warn_of_hang(charges: Charges) -> None:
    """Warn of places that a call waits for and that may never come back."""
    # With no lock held: what shows warnings is the user's, and may take its time, or raise.
    for state, _ in charges:
        meter = state.meter
        if not isinstance(meter, Places) or meter.ttl is not None:
            continue
        last, meter.last_hold = meter.last_hold, None  # each is told of once
        if last is not None and last.amount and last.holder == who_am_i():
            _warn(
                last.where,
                f"this task holds the last place of {state.label}, acquired at {{}}, and waits for another: "
                "it may never come back. Enter the limiter once, or raise the limit",
            )
        for hold in list(meter.orphans):
            where, hold.where = hold.where, None
            if where is not None:
                warn_of_orphan(where, state.label, "for ever")


def expired(states: Iterable[LimitState], now: float) -> list[Hold]:
    """Take the holds that have outlived their time to live, and that were not warned of yet."""
    lost: list[Hold] = []
    for state in states:
        meter = state.meter
        if isinstance(meter, Places):
            meter.used(now)  # it looks for them
            lost += meter.lost
            meter.lost = []
    return lost


def warn_of_expired(lost: list[Hold], name: str | None) -> None:
    """Warn of places that came back by their time to live, as of the lines that acquired them."""
    for hold in lost:
        _warn(
            hold.where,
            f"a permit of {name or 'a limiter'} acquired at {{}} was not closed within its time to live, "
            "so its place was given to others. Use `with await limiter.acquire():`, or close() it",
        )


def warn_of_orphan(where: tuple[str, int] | None, label: str, how_long: str) -> None:
    """Warn of a permit that was collected unclosed, and whose places a call waits for."""
    _warn(
        where,
        f"a permit acquired at {{}} was never closed, so it holds places of {label} {how_long}, "
        "which a call waits for. Use `with await limiter.acquire():`, or close() it",
    )


def _warn(where: tuple[str, int] | None, message: str) -> None:
    """Warn as of a line of the user's, which stands at `{}` in the message."""
    file, line = where or ("<unknown>", 0)
    warnings.warn_explicit(message.replace("{}", f"{file}:{line}", 1), RuntimeWarning, file, line)
