"""The fast path: charging a call that need not wait, in a function written for the shape of its charge.

The shape of a charge is what it is made of: so many buckets charged whole units, so many charged fractions, so many
limits of places. For each shape `_write` writes two functions from one template, as attrs writes `__init__`; they do
what `charging.charge_if_ready` and `charging.give_back` do, with the loops unrolled and nothing looked up twice. The
same template writes the methods by which `async with limiter(...)` enters and leaves (`enter_and_leave`): there the
charge is no call of its own.

**Why it needs no lock.** CPython changes threads, and runs signal handlers, at the start of a function, after a call
and at a backward jump, and the garbage collector runs when a container is made. Between the look at `clearance.given`
and the last assignment there is none of these, so no thread and no handler can come between: the block is one step. (A
tracer is called between lines: the whole function is one line.) Code that decides with the lock held withdraws the
clearance first, so a call never charges into the middle of a decision. Without the GIL the same block runs with the
lock held. `tests/_backends/test_fast_path.py` takes the functions apart and looks.

A limit leaves its last place to the general path, which writes down its holder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

from penstock import clock
from penstock._backends.base import HAS_GIL, Binding, Charge, Grant
from penstock._core.bucket import Bucket
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter, Unmetered
from penstock._core.places import Places

_MOST = 6
"""Limits of one charge up to which functions are written, of one figure; more take the general path."""

_KEYED, _KEYED_LOCKED = "k", "K"
"""What the shape of a key's charge begins with where it is charged in a tuple of numbers: of plain keys, which are
charged without the lock, and of all others."""

_FILE = __file__.replace("fast_path.py", "<fast path>")
"""The file that written functions are said to be in: one of this package, as everything that looks for the user's code
passes over."""

_FULL_SINCE_EVER = -1e300
"""The `tat` of a bucket of which nothing was ever used."""


def prepare(charge: Charge) -> None:
    """Give a charge the functions of its shape, if functions can be written for each of its limits."""
    shape = "".join([_kind(state.meter, amount) for state, amount in charge.charges])
    if shape and "?" not in shape and len(shape) <= _MOST:
        charge.shape = shape
        charge.grant, charge.release = _write(shape, locked=not HAS_GIL)
        charge.operands = tuple([each for state, amount in charge.charges for each in (state.meter, float(amount))])


def new_key(states: list[LimitState]) -> tuple[float, ...] | None:
    """What a key has used of these limits that was never seen, as numbers; None where that cannot be numbers.

    A `tat` per limit, and how many charges may still be settled.
    """
    fits = len(states) <= _MOST and all(type(state.meter) is Bucket for state in states)
    return (*(_FULL_SINCE_EVER,) * len(states), 0) if fits else None


def prepare_key(
    charge: Charge, states: list[LimitState], meters: list[Meter], *, joint: bool, numbers: bool, locked: bool
) -> None:
    """Give a charge what it takes to charge a key of these limits.

    `meters`: those of a key that was never seen. `joint`: other limits may be charged beside the key's. `numbers`: keys
    are kept as numbers while they can be. `locked`: keys may have a Python `__eq__`, so they are charged with the lock
    held.
    """
    index = {id(state): at for at, state in enumerate(states)}
    # In the key's list; None: beside it.
    charge.where = where = tuple([index.get(id(state)) for state, _ in charge.charges])
    both = [
        (state.meter if at is None else meters[at], float(amount))
        for (state, amount), at in zip(charge.charges, where, strict=True)
    ]
    kinds = "".join([_kind(meter, amount) for meter, amount in both])
    charge.operands = tuple([each for pair in both for each in pair])
    charge.release = look_closer if charge.held else None
    if "?" in kinds or max(len(states), len(kinds)) > _MOST:
        return
    if numbers and not joint and set(kinds) == {"w"}:
        charge.shape = f"{_KEYED_LOCKED if locked else _KEYED}{len(states)}{''.join(map(str, where))}"
        charge.grant, charge.release = _write(charge.shape, locked=locked)
    else:
        charge.grant, charge.release = _write_metered(kinds, where, len(states), joint=joint, locked=locked)


def look_closer(*_: object) -> bool:
    """The grant, and the release, of a charge that the fast path has no answer for."""
    return False


def _kind(meter: Any, amount: float) -> str:
    if type(meter) is Bucket and not meter.overdraft:
        return "f" if amount % 1 else "w"
    if type(meter) is Unmetered:
        return "u"
    return "p" if type(meter) is Places and meter.ttl is None else "?"


@lru_cache(256)
def _write(shape: str, *, locked: bool) -> tuple[Callable[[Binding, Grant], bool], Callable[[Grant], bool] | None]:
    """The functions for a shape.

    A letter per limit, `w` or `f` for a bucket charged whole units or fractions, `p` for places, `u` for none. Or of a
    key: `_KEYED`, how many buckets it has, and which of them are charged.
    """
    names: dict[str, Any] = {"clock": clock, **_metered_of(shape)}
    define(_grant_source(shape, locked=locked), names)
    if "p" in shape:
        define(_release_source(shape, locked=locked), names)
    return names["grant"], names.get("release")


@lru_cache(256)
def _write_metered(
    kinds: str, where: tuple[int | None, ...], size: int, *, joint: bool, locked: bool
) -> tuple[Callable[[Binding, Grant], bool], Callable[[Grant], bool] | None]:
    """The functions that charge a key in its meters.

    A letter per charged limit, as in `_write`, and where its meter is in the key's list of that size; None: it is that
    of a limit beside the key's, as there may be where it is `joint`.
    """
    names: dict[str, Any] = {"clock": clock}
    define(_metered_source(kinds, where, size, joint=joint, locked=locked), names)
    if "p" in kinds:
        define(_metered_release_source(kinds, joint=joint, locked=locked), names)
    return names["grant"], names.get("release")


def _metered_of(shape: str) -> dict[str, Any]:
    """What charges a key of that shape whose tuple of numbers has become meters."""
    if shape[0] not in {_KEYED, _KEYED_LOCKED}:
        return {}
    where = tuple(map(int, shape[2:]))
    locked = shape[0] == _KEYED_LOCKED
    return {"metered": _write_metered("w" * len(where), where, int(shape[1]), joint=False, locked=locked)[0]}


def define(source: str, names: dict[str, Any]) -> None:
    """Define in `names` the functions of a source that a template has made."""
    exec(_in_one_line(compile(source, _FILE, "exec")), names)  # noqa: S102 - of our own template alone


def _in_one_line(code: CodeType) -> CodeType:
    """The same code, said to be one line: a tracer is not called in the middle."""
    entries, rest = divmod(len(code.co_code) // 2, 8)
    # CPython's location table: entries of 8 instructions, or fewer at the end, on the same line as those before, with
    # no columns.
    table = b"\xef\x00" * entries + (bytes([0xE8 + rest - 1, 0]) if rest else b"")
    constants = tuple([_in_one_line(each) if isinstance(each, CodeType) else each for each in code.co_consts])
    return code.replace(co_firstlineno=1, co_linetable=table, co_consts=constants)


def _grant_source(shape: str, *, locked: bool) -> str:
    if shape[0] in {_KEYED, _KEYED_LOCKED}:
        charge = [*_before_keyed(shape), *_keyed_step(shape, "return True", "return False")]
        return "\n".join(["def grant(binding, grant):", *charge, "    return metered(binding, grant)"])
    step = [*_charge_step(shape), f"    {_receipts(shape)}", "    return True"]
    charge = [*_before_charge(shape), *_indented(step, locked=locked)]
    last = f"return {_last_place(shape)}" if "p" in shape else "return False"
    return "\n".join(["def grant(binding, grant):", *charge, f"    {last}"])


def _last_place(shape: str) -> str:
    """Whether a call was charged that may have the last place of a limit, whose holder is written down."""
    free = "".join([f"m{i}.taken + c{i} <= m{i}.amount and " for i, kind in enumerate(shape) if kind == "p"])
    return f"clearance.given and {free}binding.charge.closer(binding, grant)"


def enter_and_leave(shape: str, names: dict[str, Any], *, locked: bool = not HAS_GIL) -> dict[str, Any]:
    """The methods `__aenter__` and `__aexit__` of calls whose charge is of this shape.

    `names`: what they use of the layers above: the classes of permits, `emit_grant`, the `LOOP` of `wait`, and `DONE`.
    `locked`: whether the charge is made with the lock held.
    """
    names = {**names, "clock": clock, **_metered_of(shape)}
    define(_enter_source(shape, locked=locked), names)
    define(_leave_source(shape, locked=locked), names)
    return {name: names[name] for name in ("__aenter__", "__aexit__")}


def _enter_source(shape: str, *, locked: bool) -> str:
    if shape[0] in {_KEYED, _KEYED_LOCKED}:
        return _keyed_enter_source(shape)
    held = "p" in shape
    note = ["    if self._entered is None: self._entered = grant", "    else: self._note(grant)"] if held else []
    granted = [
        "    if info.on_event is not None: emit_grant(binding, 0.0, grant, self._options.flow)",
        "    return grant",
    ]  # fmt: skip
    step = [*_charge_step(shape), *note, f"    {_receipts(shape)}", *granted]
    last = [f"if {_last_place(shape)}:", "    self._note(grant)", *granted] if held else []
    charge = [
        f"    grant = {'EnteredPermit' if held else 'Permit'}()",
        *_before_charge(shape, given="try:"),
        *(f"    {line}" for line in _indented(step, locked=locked)),
        *(f"        {line}" for line in last),
        *_WITHDRAW,
    ]
    return "\n".join([
        "async def __aenter__(self):",
        "    binding = self._binding",
        # Where others wait, what follows would be undone, and its numbers stay in the frame while this call waits.
        "    if binding.clearance.given:",
        *(f"    {line}" for line in charge),
        *_waiting("EnteredPermit" if held else "Permit"),
    ])  # fmt: skip


def enter_by_waiting(names: dict[str, Any]) -> Callable[..., Any]:
    """The method `__aenter__` of calls that hold nothing and always ask their backend. `names`: as above."""
    names = {**names}
    define("\n".join([
        "async def __aenter__(self):",
        "    binding = self._binding",
        *_waiting("Permit"),
    ]), names)  # fmt: skip
    method: Callable[..., Any] = names["__aenter__"]
    return method


_WITHDRAW = ["    except BaseException:", "        self._withdraw(grant)", "        raise"]
"""What an exception does to a grant that is being charged."""


def _waiting(permit: str) -> list[str]:
    """How `__aenter__` ends where the call was not charged at once, with the class of the permit: as `wait.wait`."""
    return [
        "    options = self._options",
        "    if binding.later is not None or not binding.backend.current(binding): binding = binding.current()",
        "    request = grant = None",
        "    try:",
        "        parker = here()",
        "        if options is PLAIN and turn_here() is NOTHING:",
        "            request = binding.backend.request_type(binding, parker, None, parker.time_left())",
        "        else:",
        "            request = request_of(binding, parker, options)",
        "        if request.time_left == -inf:",
        "            await checkpoint()",
        "        seconds = binding.backend.enter(request)",
        "        while True:",
        "            if seconds is None:",
        "                break",
        "            await request.parker.park(seconds)",
        "            seconds = binding.backend.advance(request)",
        f"        grant = {permit}()",
        "        if request.error is not None or binding.info.on_event is not None:",
        "            fill_in(binding, request, grant, options.flow)",
        "        else:",
        "            binding.backend.hand_over(request, grant)",
        "    except BaseException as error:",
        "        give_up(binding, request, grant, error, options.flow)",
        "        raise",
        # The limits may have changed while it waited.
        "    if (binding.charge.held or grant.charges is not binding.charge.charges) and grant.held:",
        "        self._note_or_undo(grant)",
        "    return grant",
    ]


def _leave_source(shape: str, *, locked: bool) -> str:
    if "p" not in shape:
        release = []
    else:
        # What this call has noted may be another's until the lock is held.
        noted = " and self._entered is grant" if locked else ""
        done = ["    self._entered = None", "    grant.__class__ = Permit", "    return DONE"]
        step = [*_release_step(shape, noted), *done]
        release = [
            "    if grant.__class__ is EnteredPermit and grant.binding is self._binding:",
            *(f"    {line}" for line in (*_before_release(shape), *_indented(step, locked=locked))),
        ]
    return "\n".join([
        "def __aexit__(self, kind, error, trace, /):",
        "    grant = self._entered",
        *release,
        "    if grant is not None: self._leave()",
        "    return DONE",
    ])  # fmt: skip


# Steps and what comes before them


def _before_charge(shape: str, given: str = "") -> list[str]:
    """What comes before the step that must not be interrupted, and fills in of a grant what needs an object."""
    operands = ", ".join(f"m{i}, c{i}" for i in range(len(shape)))
    return [
        f"    {operands} = binding.charge.operands",
        "    clearance = binding.clearance; info = binding.info",
        "    grant.binding = binding; grant.ended = False",
        *([f"    {given}"] if given else []),
        f"    {'    ' if given else ''}now = clock.now()",
    ]


def _charge_step(shape: str) -> list[str]:
    """The step: look, and charge all or nothing."""
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
        if kind == "w":  # a full bucket holds it: the binding has seen to that
            look.append(f"t{i} = m{i}.tat")
            ready.append(f"(t{i} <= r{i} or t{i} + c{i} - m{i}.ceiling <= r{i})")
            take.append(f"m{i}.tat = t{i} = (r{i} if t{i} <= r{i} else t{i}) + c{i}")
        else:  # with what the last additions rounded away, as `Bucket.charge` does
            look += [
                f"b{i} = m{i}.tat",
                f"e{i} = c{i} if b{i} <= r{i} else c{i} - m{i}.rounding",
                f"b{i} = r{i} if b{i} <= r{i} else b{i}",
                f"t{i} = b{i} + e{i}",
            ]
            take += [f"m{i}.tat = t{i}", f"m{i}.rounding = (t{i} - b{i}) - e{i}"]
            ready.append(f"t{i} - m{i}.ceiling <= r{i}")
    step = [*look, f"if {' and '.join(ready)}:", *(f"    {line}" for line in take)]
    return [*step, "    info.granted += 1", "    grant.granted_at = now"]


def _receipts(shape: str) -> str:
    """The receipt of each limit. After the step: garbage may be collected where a tuple is made."""
    return f"grant.receipts = ({''.join('0.0, ' if kind in 'pu' else f't{i}, ' for i, kind in enumerate(shape))})"


def _keyed_enter_source(shape: str) -> str:
    return "\n".join([
        "async def __aenter__(self):",
        "    binding = self._binding",
        "    grant = Permit()",
        *_before_keyed(shape),
        "    try:",
        "        charged = None",
        *(f"    {line}" for line in _keyed_step(shape, "charged = True", "if charged is None: charged = False")),
        "        if charged is None: charged = metered(binding, grant)",
        "        if charged:",
        "            if mine.on_event is not None: emit_grant(binding, 0.0, grant, self._options.flow)",
        "            return grant",
        *_WITHDRAW,
        *_waiting("Permit"),
    ])  # fmt: skip


def _before_keyed(shape: str) -> list[str]:
    return [
        f"    {', '.join(f'm{i}, c{i}' for i in shape[2:])} = binding.charge.operands",
        "    mine = binding.backend; key = mine.key; states = mine.states",
        "    grant.binding = binding; grant.ended = False",
    ]


def _keyed_step(shape: str, charged: str, not_ready: str) -> list[str]:
    """As `_charge_step`, of a tuple in `KeyStates.known`.

    Of plain keys it is one step, as that is. A user's key may have a Python `__eq__`, so it is done with the lock held.
    """
    limits = shape[2:]
    locked = shape[0] == _KEYED_LOCKED
    used = "".join(f"t{i}, " for i in range(int(shape[1])))
    look = [f"r{i} = now * m{i}.rate; t{i} = (r{i} if t{i} < r{i} else t{i}) + c{i}" for i in limits]
    receipts = "fresh" if len(limits) == int(shape[1]) else f"({''.join(f't{i}, ' for i in limits)})"
    put = [
        "known[key] = fresh",
        "grant.granted_at = now",
        "binding.info.granted += 1",
        f"grant.receipts = {receipts}",
        charged,
    ]
    # Where a tuple is made, CPython before 3.12 may collect garbage, and finalise what uses this key: look again.
    if locked or sys.version_info < (3, 12):
        again = "if (known[key] if key in known else states.new) is used and key not in states.live:"
        put = [again, *(f"    {line}" for line in put)]
    return _indented([
        "now = clock.now()",  # no call comes after it: a signal handler may use this key too
        f"if {'' if locked else 'states.plain and '}key not in states.live:",
        "    known = states.known; old = states.old",
        "    if key in known: used = known[key]",
        "    elif key in old:",
        "        used = known[key] = old[key]",
        "        del old[key]",
        "    elif states.moving: used = None",
        "    else: used = states.new",
        "    if used.__class__ is tuple:",
        f"        {used}open = used",
        *(f"        {line}" for line in look),
        f"        if {' and '.join(f't{i} - m{i}.ceiling <= r{i}' for i in limits)}:",
        f"            fresh = ({used}open + 1)",
        *(f"            {line}" for line in put),
        f"        {not_ready}",
    ], locked=locked, lock="states.store.lock")  # fmt: skip


def _metered_source(kinds: str, where: tuple[int | None, ...], size: int, *, joint: bool, locked: bool) -> str:
    """As `_charge_step`, of the meters of a key: a list in `KeyStates.known`."""
    operands = "".join([f"{f'm{i}' if at is None else '_'}, c{i}, " for i, at in enumerate(where)])
    names = {at: f"m{i}" for i, at in enumerate(where)}
    receipts = "".join(
        [("0.0" if kind == "u" else f"{'m' if kind == 'p' else 't'}{i}") + ", " for i, kind in enumerate(kinds)]
    )
    same = f"{'' if locked else 'states.plain and '}key not in states.live and key in known and known[key] is meters"
    found = [
        "    known = states.known",
        "    meters = known[key] if key in known else None",
        "    if meters.__class__ is not list: meters = states.meters_of(key)",
    ]  # fmt: skip
    return "\n".join([
        "def grant(binding, grant):",
        f"    {operands} = binding.charge.operands" if operands else "    pass",
        *_key_of(joint=joint),
        "    info = binding.info; grant.binding = binding; grant.ended = False",
        *(["    meters = states.meters_of(key)"] if locked else found),
        "    if meters is None: return False",
        f"    {''.join([names.get(at, '_') + ', ' for at in range(size)])} = meters",
        *_indented([
            "now = clock.now()",
            "known = states.known",
            f"if {same}{_BESIDE if joint else ''}:",
            *(f"    {line}" for line in _charge_step(kinds)),
            f"        grant.receipts = ({receipts})",
            "        return True",
        ], locked=locked, lock="states.store.lock"),
        "    return binding.charge.closer(binding, grant)",
    ])  # fmt: skip


_BESIDE = " and beside.given"
"""What a step looks at besides, where limits beside a key's are charged."""


def _key_of(*, joint: bool) -> list[str]:
    """How a function finds the key of a binding, and what keeps it."""
    return [
        f"    mine = binding.backend; key = mine.key; states = mine.states{'.keys' if joint else ''}",
        f"    clearance = states.clearance{'; beside = binding.charge.clearance' if joint else ''}",
    ]


def _metered_release_source(kinds: str, *, joint: bool, locked: bool) -> str:
    places = [i for i, kind in enumerate(kinds) if kind == "p"]
    return "\n".join([
        "def release(grant):",
        "    binding = grant.binding; operands = binding.charge.operands; receipts = grant.receipts",
        *_key_of(joint=joint),
        *(f"    m{i} = receipts[{i}]; c{i} = operands[{2 * i + 1}]" for i in places),
        *_indented(
            [
                *_release_step(kinds, f" and key not in states.live{_BESIDE if joint else ''}"),
                "    return True",
            ],
            locked=locked,
            lock="states.store.lock",
        ),
        "    return False",
    ])  # fmt: skip


def _release_source(shape: str, *, locked: bool) -> str:
    return "\n".join([
        "def release(grant):",
        *_before_release(shape),
        *_indented([*_release_step(shape), "    return True"], locked=locked),
        "    return False",
    ])  # fmt: skip


def _before_release(shape: str) -> list[str]:
    places = [i for i, kind in enumerate(shape) if kind == "p"]
    return [
        "    binding = grant.binding; clearance = binding.clearance; operands = binding.charge.operands",
        *(f"    m{i} = operands[{2 * i}]; c{i} = operands[{2 * i + 1}]" for i in places),
    ]


def _release_step(shape: str, also: str = "") -> list[str]:
    """The step that gives places back."""
    step = [f"if clearance.given and not grant.ended{also}:"]
    for i, kind in enumerate(shape):
        if kind == "p":
            step += [
                f"    m{i}.taken -= c{i}",
                f"    m{i}.holders -= 1",
                f"    if not m{i}.holders: m{i}.taken = 0.0",
            ]
    return [*step, "    grant.ended = True"]


def _indented(step: list[str], *, locked: bool, lock: str = "binding.backend.store.lock") -> list[str]:
    """The step that must not be interrupted: by itself, or with the lock held where there is no GIL."""
    if not locked:
        return [f"    {line}" for line in step]
    return [f"    with {lock}:", *(f"        {line}" for line in step)]
