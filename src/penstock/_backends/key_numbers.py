"""Settle and cancel a charge of a key that is kept as plain numbers, without making meters of them.

Both are one step, and called with the lock held: the result is worked out first, and replaces the old numbers only if
they are still there, with no call in between. See `keyed`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from penstock import clock
from penstock._backends.base import Backend, Grant
from penstock._backends.keyed import KeyStates
from penstock._core.charging import Charges, Receipts
from penstock._core.limit_state import LimitState

_EXACT = 2**53
"""Whole numbers below are exact as floats."""


def settle(keys: KeyStates, key: Hashable, backend: Backend, grant: Grant, true_cost: Mapping[str, Any]) -> bool:
    """Settle a grant, whose backend goes on; False where that takes meters.

    It takes none where no charge has come since, and no earlier one is open or the limit was full before. Then all of
    it can be charged anew: no other charge has anything to be given back, for which a meter would have to remember more
    (`refunds`). It is what `Bucket.give_back` and `Bucket.top_up` come to, without an offset.
    """
    binding, tats = grant.binding, grant.receipts
    used = _numbers_of(keys, key, grant)
    if binding is None or used is None or not tats:
        return False
    where = binding.charge.where
    if used[where[0]] != tats[0]:
        return False  # others came since, as nearly all calls are charged on the first limit
    at, now, alone = grant.granted_at, clock.now(), used[-1] == 1
    fresh, units = [*used[:-1], max(used[-1] - 1, 0)], {*true_cost}
    charges: list[tuple[LimitState, float]] = []
    receipts: Receipts = []
    for index, charged, tat in zip(where, binding.charge.charges, tats, strict=False):
        (state, amount), meter, rate = charged, keys.meters[index], keys.rates[index]
        true = true_cost.get(state.unit)
        if true is None:
            charges.append(charged)
            receipts.append((meter, (tat, at)))
            continue
        if used[index] != tat or not (alone or tat == at * rate + amount) or not _are_whole(true, amount):
            return False
        units.discard(state.unit)
        more, refill = true - amount, now * rate
        back = amount if tat - refill >= amount else max(0.0, tat - refill)  # what could come back of it
        if more <= 0:
            fresh[index] = tat - min(back, -more)
            charges.append((state, true))
            receipts.append((meter, (fresh[index], at)))
        else:  # the rest of it is spent for good
            fresh[index] = max(tat, refill) + more
            charges += (state, amount - back), (state, back + more)
            receipts += (meter, (tat - back, at)), (meter, (fresh[index], now))
    return not units and _put(keys, key, backend, grant, used, tuple(fresh), charges, receipts)


def cancel(keys: KeyStates, key: Hashable, backend: Backend, grant: Grant) -> bool:
    """Take a charge back, as `Bucket.undo` where no other has come since; False where that takes meters."""
    binding, tats = grant.binding, grant.receipts
    used = _numbers_of(keys, key, grant)
    if binding is None or used is None or not tats:
        return False
    fresh, now = [*used[:-1], max(used[-1] - 1, 0)], clock.now()
    for index, (_, amount), tat in zip(binding.charge.where, binding.charge.charges, tats, strict=False):
        if used[index] != tat or not _are_whole(amount):
            return False
        fresh[index] = tat - max(0.0, min(amount, tat - now * keys.rates[index]))
    return _put(keys, key, backend, grant, used, tuple(fresh), (), [], cancelled=True)


def _numbers_of(keys: KeyStates, key: Hashable, grant: Grant) -> tuple[float, ...] | None:
    """What a key has used, where it is numbers, and receipts of the grant are on their scale."""
    if keys.store.deciding or key in keys.live or keys.whole_since(key, grant.granted_at):
        return None
    used = keys.known.get(key)
    used = keys.old.get(key) if used is None else used
    return used if used.__class__ is tuple else None


def _put(
    keys: KeyStates,
    key: Hashable,
    backend: Backend,
    grant: Grant,
    used: tuple[float, ...],
    fresh: tuple[float, ...],
    charges: Charges,
    receipts: Receipts,
    *,
    cancelled: bool = False,
) -> bool:
    """Put other numbers in the place of those of a key, and of what a grant was charged; False: others came."""
    known, old, binding = keys.known, keys.old, grant.binding
    # No call from here on.
    if (
        binding is None
        or key in keys.live
        or (known[key] if key in known else old[key] if key in old else None) is not used  # noqa: SIM401
    ):
        return False
    known[key] = fresh
    if key in old:
        del old[key]
    grant.binding, grant.backend, grant.info = None, backend, binding.info
    grant.charges, grant.receipts = charges, receipts
    if cancelled:
        grant.ended = True
        binding.info.cancelled += 1
    return True


def _are_whole(*amounts: Any) -> bool:
    """Whether these are plain whole numbers, whose sums are exact."""
    for amount in amounts:
        if not (type(amount) is int or type(amount) is float) or not 0 <= amount < _EXACT or amount % 1:
            return False
    return True
