"""The entries of a limit in a row: what a bucket was given back, and what a window has charged.

Nothing here waits, reads a clock or does I/O. An entry is three numbers: receipt, 0 and amount of a bucket's refunds;
end, owner and amount of a window's charges. Entries are kept in the order of their first number, and an owner's charges
of one moment are one entry: which of them is given back first makes no difference.
"""

from __future__ import annotations

from bisect import bisect_right

from penstock._core.rows import RENEWED

REFUNDS = 32
"""Refunds that a bucket remembers; of more, the two with the lowest receipts become one, which gives back a little
less."""

LONGEST_LOG = 256
"""Entries of a window beyond which neighbours are merged into the later one: that keeps the limit and frees the earlier
part late."""

Log = list[list[float]]


def held(log: Log) -> float:
    """Units in all entries."""
    return sum([entry[2] for entry in log])


def add(log: Log, until: float, owner: float, amount: float) -> None:
    """Note a charge."""
    behind = at = bisect_right(log, until, key=_first)
    while at and log[at - 1][0] == until:
        at -= 1
        if log[at][1] == owner:
            log[at][2] += amount
            return
    log.insert(behind, [until, owner, amount])


def in_order(log: Log) -> None:
    """Sort the entries by their first number; equals stay as they are."""
    log.sort(key=_first)


def _first(entry: list[float]) -> float:
    return entry[0]


def remember(refunds: Log, receipt: float, amount: float) -> None:
    """Note that `amount` of the charge of that receipt was given back."""
    index = len(refunds)
    while index and refunds[index - 1][0] > receipt:
        index -= 1
    if index and refunds[index - 1][0] == receipt:
        refunds[index - 1][2] += amount
        return
    refunds.insert(index, [receipt, 0.0, amount])
    if len(refunds) > REFUNDS:
        refunds[0][2] += refunds[1][2]  # the lower receipt: only charges before both may count on either
        del refunds[1]


def merge(log: Log) -> None:
    """Halve a log: each entry of two goes into its later neighbour."""
    merged = [[later[0], later[1], earlier[2] + later[2]] for earlier, later in zip(log[::2], log[1::2], strict=False)]
    if len(log) % 2:
        merged.append(log[-1])
    log[:] = merged


def release(log: Log, amount: float, owner: float, receipt: float, mode: float) -> None:
    """Take `amount` out of the first entry that can be the one of that owner and receipt; `mode`: of the window.

    No entry of the owner's ends so late if the clock was put back, or the window became shorter: all that were there
    end earlier now. Then it is taken out of those that end first, so what is left comes back too late, never too early.
    """
    own = [entry for entry in log if entry[1] == owner]
    for entry in [entry for entry in own if mode == RENEWED or entry[0] >= receipt][:1] or own:
        taken = min(amount, entry[2])
        entry[2] -= taken
        amount -= taken
    log[:] = [entry for entry in log if entry[2] > 0]
