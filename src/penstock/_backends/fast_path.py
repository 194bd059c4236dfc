"""The fast path: charging a call that need not wait, in a function written for the shape of its charge.

The shape of a charge is what it is made of: so many buckets charged whole units, so many charged fractions, so many limits
of places. For each shape `_write` writes two functions from one template, as attrs writes `__init__`; they do what
`turns.charge_if_ready` and `turns.give_back` do, with the loops unrolled and nothing looked up twice.

**Why it needs no lock.** CPython changes threads, and runs signal handlers, at the start of a function, after a call and at a backward
jump, and the garbage collector runs when a container is made. Between the look at `clearance.given` and the last assignment there
is none of these, so no thread and no handler can come between: the block is one step. (A tracer is called between lines: the
whole function is one line.) Whoever decides with the lock held withdraws the clearance first, so a call never charges
into the middle of a decision. Without the GIL the same block runs with the lock held. `tests/_backends/test_fast_path.py` takes the
functions apart and looks.

A limit leaves its last place to the general path, which writes down who took it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from penstock import clock
from penstock._backends.base import Binding, Charge, Grant
from penstock._core.bucket import Bucket
from penstock._core.meter import Unmetered
from penstock._core.places import Places
from penstock._core.turns import LimitState

__all__ = ["fits_keys", "look_closer", "prepare", "prepare_key"]

_MOST = 6
"""Limits of one charge up to which functions are written; more take the general path."""

_FULL_SINCE_EVER = -1e300
"""The `tat` of a bucket of which nothing was ever used."""

_SAME_LINE = 0x80 | 13 << 3
"""The entry of CPython's line table for one to eight instructions on the line of those before (Objects/locations.md)."""

_HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


def prepare(charge: Charge) -> None:
    """Give a charge the functions of its shape, if every part of it can be written so."""
    shape = "".join([_kind(state.meter, amount) for state, amount in charge.charges])
    if shape and "?" not in shape and len(shape) <= _MOST:
        charge.grant, charge.release = _write(shape, locked=not _HAS_GIL)
        charge.parts = tuple([part for state, amount in charge.charges for part in (state.meter, float(amount))])


def fits_keys(states: list[LimitState]) -> bool:
    """Whether a key with these limits can be kept as a tuple of numbers, and charged in it."""
    return len(states) <= _MOST and all(type(state.meter) is Bucket and not state.meter.overdraft for state in states)


def prepare_key(charge: Charge, states: list[LimitState]) -> None:
    """Give a charge what it takes to charge a key of these limits in its tuple of numbers; whole units only."""
    amounts = {id(state): float(amount) for state, amount in charge.charges}
    charged = tuple([index for index, state in enumerate(states) if id(state) in amounts])
    whole = not any(amount % 1 for amount in amounts.values())
    charge.grant = _write_keyed(len(states), charged) if whole and charged else look_closer
    charge.parts = tuple([part for index in charged for part in (states[index].meter, amounts[id(states[index])])])


def look_closer(_: Binding, __: Grant) -> bool:
    """The grant of a charge that the fast path has no answer for."""
    return False


def _kind(meter: Any, amount: float) -> str:
    if type(meter) is Bucket and not meter.overdraft:
        return "f" if amount % 1 else "w"
    if type(meter) is Unmetered:
        return "u"
    return "p" if type(meter) is Places and meter.ttl is None else "?"


@lru_cache(256)
def _write(shape: str, *, locked: bool) -> tuple[Callable[[Binding, Grant], bool], Callable[[Grant], bool] | None]:
    """The functions for a shape: a letter per limit, `w` or `f` for a bucket charged whole units or fractions, `p` for places, `u` for none."""
    names: dict[str, Any] = {"clock": clock}
    _run(_grant_source(shape, locked=locked), names)
    if "p" in shape:
        _run(_release_source(shape, locked=locked), names)
    return names["grant"], names.get("release")


@lru_cache(256)
def _write_keyed(count: int, charged: tuple[int, ...]) -> Callable[[Binding, Grant], bool]:
    """The function that charges these buckets of a key that has so many."""
    names: dict[str, Any] = {"clock": clock, "new": (_FULL_SINCE_EVER,) * count}
    _run(_keyed_source(count, charged), names)
    return names["grant"]  # type: ignore[no-any-return]  # that is what the source defines


def _run(source: str, names: dict[str, Any]) -> None:
    """Define the one function of a source, with all of it on one line: a tracer is not called in its middle.

    The line table is written here, and not by way of a tree: `ast.parse` in two threads at once raises SystemError in CPython 3.11.
    """
    exec(compile(source, "<penstock fast path>", "exec"), names)  # noqa: S102 - of our own template alone
    function = names[source[len("def ") : source.index("(")]]
    units, rest = divmod(len(function.__code__.co_code) // 2, 8)
    table = bytes([_SAME_LINE | 7, 0]) * units + (bytes([_SAME_LINE | rest - 1, 0]) if rest else b"")
    function.__code__ = function.__code__.replace(co_linetable=table)


def _grant_source(shape: str, *, locked: bool) -> str:
    parts = ", ".join(f"m{i}, c{i}" for i in range(len(shape)))
    receipts = ", ".join("0.0" for _ in shape)
    look: list[str] = []
    ready = ["clearance.given"]
    take: list[str] = []
    for i, kind in enumerate(shape):
        if kind == "u":
            continue  # nothing binds
        if kind == "p":
            ready.append(f"m{i}.taken + c{i} < m{i}.amount")
            take += [f"m{i}.taken += c{i}", f"m{i}.holders += 1"]
            continue
        look.append(f"r{i} = now * m{i}.rate + m{i}.offset")
        if kind == "w":
            look += [f"t{i} = m{i}.tat", f"t{i} = (r{i} if t{i} < r{i} else t{i}) + c{i}"]
            take.append(f"m{i}.tat = receipts[{i}] = t{i}")
        else:  # with what the last additions rounded away, as `Bucket.charge` does
            look += [
                f"b{i} = m{i}.tat",
                f"e{i} = c{i} if b{i} <= r{i} else c{i} - m{i}.rounding",
                f"b{i} = r{i} if b{i} <= r{i} else b{i}",
                f"t{i} = b{i} + e{i}",
            ]
            take += [f"m{i}.tat = receipts[{i}] = t{i}", f"m{i}.rounding = (t{i} - b{i}) - e{i}"]
        ready.append(f"t{i} - m{i}.ceiling <= r{i}")
    step = [*look, f"if {' and '.join(ready)}:", *(f"    {line}" for line in take)]
    step += ["    caller.granted += 1", "    grant.granted_at = now", "    return True"]
    return "\n".join([
        "def grant(binding, grant):",
        f"    {parts} = binding.charge.parts",
        "    clearance = binding.clearance; caller = binding.caller",
        f"    grant.receipts = receipts = [{receipts}]",
        "    grant.binding = binding; grant.ended = False",
        "    now = clock.now()",
        *_indented(step, locked=locked),
        "    return False",
    ])  # fmt: skip


def _keyed_source(count: int, charged: tuple[int, ...]) -> str:
    """As `_grant_source`, of a tuple in `KeyStates.known`. A user's key may have a Python `__eq__`, so it is done with the lock held."""
    parts = ", ".join(f"m{i}, c{i}" for i in charged)
    used = ", ".join(f"t{i}" for i in range(count))
    step: list[str] = []
    ready: list[str] = []
    for i in charged:
        step += [f"r{i} = now * m{i}.rate", f"t{i} = (r{i} if t{i} < r{i} else t{i}) + c{i}"]
        ready.append(f"t{i} - m{i}.ceiling <= r{i}")
    return "\n".join([
        "def grant(binding, grant):",
        f"    {parts} = binding.charge.parts",
        "    backend = binding.backend; key = backend.key; states = backend.states",
        "    with states.store.lock:",
        "        if key in states.live: return False",
        "        now = clock.now()",  # no call comes after it: a signal handler may use this key too
        "        known = states.known; old = states.old",
        "        if key in known: used = known[key]",
        "        elif key in old:",
        "            used = known[key] = old[key]",
        "            del old[key]",
        "        else: used = new",
        "        if used.__class__ is not tuple: return False",
        f"        {used}, = used",
        *(f"        {line}" for line in step),
        f"        if {' and '.join(ready)}:",
        f"            fresh = ({used},)",  # it may have collected garbage, and finalised what used this key
        "            if (known[key] if key in known else new) is not used: return False",
        "            known[key] = fresh",
        "            grant.binding = binding; grant.ended = False",
        f"            grant.receipts = [{', '.join(f't{i}' for i in charged)}]",
        "            grant.granted_at = now",
        "            binding.caller.granted += 1",
        "            return True",
        "    return False",
    ])  # fmt: skip


def _release_source(shape: str, *, locked: bool) -> str:
    places = [i for i, kind in enumerate(shape) if kind == "p"]
    step = ["if clearance.given and not grant.ended:"]
    for i in places:
        step += [
            f"    m{i}.taken -= c{i}",
            f"    m{i}.holders -= 1",
            f"    if not m{i}.holders: m{i}.taken = 0.0",
        ]
    step += ["    grant.ended = True", "    return True"]
    return "\n".join([
        "def release(grant):",
        "    binding = grant.binding; clearance = binding.clearance; parts = binding.charge.parts",
        *(f"    m{i} = parts[{2 * i}]; c{i} = parts[{2 * i + 1}]" for i in places),
        *_indented(step, locked=locked),
        "    return False",
    ])  # fmt: skip


def _indented(step: list[str], *, locked: bool) -> list[str]:
    """The step that must not be interrupted: by itself, or with the lock held where there is no GIL."""
    if not locked:
        return [f"    {line}" for line in step]
    return ["    with binding.backend.store.lock:", *(f"        {line}" for line in step)]
