"""The fast path does what the general one does, in one step that nothing can interrupt."""

from __future__ import annotations

import dis
import gc
import inspect
import itertools
import math
import sys
import threading
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Keyed, Limiter, Rate, RateLimited, calendar, in_flight, sliding
from penstock._backends import fast_path
from penstock._backends.wait import LOOP, emit_grant, wait
from penstock._call import DONE, Call, with_lock
from penstock.limits import Unlimited
from penstock.permit import EnteredPermit, Permit
from penstock.stores import MemoryStore
from penstock.testing import manual_clock

SHAPES = ["".join(shape) for length in range(1, 5) for shape in itertools.product("wfp", repeat=length)]

LOOKS = ("LOAD", "COPY", "PUSH", "COMPARE", "BINARY", "UNARY", "POP", "STORE", "SWAP", "IS_OP", "TO_BOOL", "NOP", "CACHE", "EXTENDED_ARG",
         "PRECALL", "RETURN", "JUMP_FORWARD", "CONTAINS_OP", "DELETE_SUBSCR", "UNPACK", "NOT_TAKEN", "END")  # fmt: skip
"""What neither calls a function of Python's, nor goes back, nor makes what the garbage collector counts."""


def of_meters(name):
    """Whether a name is that of a meter: m0, m1…"""
    return isinstance(name, str) and name[:1] == "m" and name[1:].isdigit()


def step_of(function):
    """The instructions from the first look at a meter, or at the clearance, to the last assignment of an attribute."""
    code = list(dis.get_instructions(function, show_caches=False))
    # `__aenter__` looks at the clearance once before, to spare what would be undone: the look that counts comes after.
    code = code[next((index for index, now in enumerate(code) if now.argval == "now"), 0) :]
    begin = next(
        index
        for index, now in enumerate(code)
        if (now.opname.startswith("LOAD_FAST") and reads_a_meter(code, index)) or now.argval == "given"
    )
    end = max(index for index, now in enumerate(code) if now.opname == "STORE_ATTR" and now.argval != "receipts")
    return code[begin : end + 1]


def reads_a_meter(code, index):
    """Whether an instruction loads a meter of which the next one reads an attribute."""
    name = code[index].argval
    names = name if isinstance(name, tuple) else (name,)
    return any(map(of_meters, names)) and any(after.opname == "LOAD_ATTR" for after in code[index + 1 : index + 3])


def names_in(step):
    """The names of a step. CPython 3.13 loads two at once."""
    return {name for now in step for name in (now.argval if isinstance(now.argval, tuple) else (now.argval,))}


def may_be_interrupted(instruction):
    """Whether a thread, a signal handler or the garbage collector may come at this instruction."""
    name = instruction.opname
    if name.startswith("POP_JUMP"):
        return "BACKWARD" in name
    return not name.startswith(LOOKS) or "BACKWARD" in name


@pytest.mark.parametrize("shape", SHAPES)
def test_from_the_look_to_the_charge_nothing_can_come_between(shape):
    grant, release = fast_path._write(shape, locked=False)
    methods = fast_path.enter_and_leave(shape, {}, locked=False)
    for function in (grant, methods["__aenter__"]):
        step = step_of(function)
        assert "given" in {now.argval for now in step}
        assert "granted_at" in {now.argval for now in step}
        assert [now for now in step if may_be_interrupted(now)] == []
    if "p" in shape:
        assert release is not None
        for function in (release, methods["__aexit__"]):
            step = step_of(function)
            assert {"given", "ended", "taken", "holders"} <= {now.argval for now in step}
            assert [now for now in step if may_be_interrupted(now)] == []
    else:
        assert release is None


@pytest.mark.parametrize("shape", ["k10", "k201", "k21", "k6012345"])
def test_from_the_look_at_a_plain_key_to_its_charge_nothing_can_come_between(shape):
    """Older CPythons may collect garbage where the new tuple is made: after that the key is looked at again."""
    enter = fast_path.enter_and_leave(shape, {})["__aenter__"]
    for function in (fast_path._write(shape, locked=False)[0], enter):
        code = list(dis.get_instructions(function))
        begin = next(index for index, now in enumerate(code) if now.argval == "plain")
        end = max(index for index, now in enumerate(code) if now.argval == "granted" and now.opname == "STORE_ATTR")
        step = code[begin : end + 1]
        assert {"live", "known", "old", "moving", "granted_at"} <= {now.argval for now in step}
        found = [index for index, now in enumerate(step) if may_be_interrupted(now)]
        assert {step[index].opname for index in found} <= {"BUILD_TUPLE", "STORE_SUBSCR"}
        for made in (index for index in found if step[index].opname == "BUILD_TUPLE"):
            later = [now.argval for now in step[made:]]
            assert sys.version_info >= (3, 12) or {"new", "live"} <= set(later), "it is looked at again"


@pytest.mark.parametrize("kinds", ["w", "f", "p", "wfp", "wwu", "wpwpwf"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with others"])
def test_from_the_look_at_the_meters_of_a_key_to_its_charge_nothing_can_come_between(kinds, beside):
    where = tuple(None if beside and index % 2 else index for index in range(len(kinds)))
    grant, release = fast_path._write_metered(kinds, where, len(kinds) + 1, joint=beside, locked=False)
    code = list(dis.get_instructions(grant))
    begin = max(index for index, now in enumerate(code) if now.argval == "plain")
    end = max(index for index, now in enumerate(code) if now.argval == "granted_at" and now.opname == "STORE_ATTR")
    step = code[begin : end + 1]
    assert {"live", "known", "given", "granted"} <= names_in(step)
    assert [now for now in step if may_be_interrupted(now)] == []
    assert (release is None) == ("p" not in kinds)
    if release is not None:
        step = step_of(release)
        assert {"given", "ended", "live", "taken", "holders"} <= {now.argval for now in step}
        assert [now for now in step if may_be_interrupted(now)] == []


@pytest.mark.parametrize("function", fast_path._write("wfp", locked=False), ids=["grant", "release"])
def test_a_tracer_sees_one_line(function):
    """It is called between lines, and could call anything."""
    assert {line for *_, line in function.__code__.co_lines() if line} == {1}


def test_a_call_waits_in_the_loop_of_wait():
    """It is written once more in the methods of a shape, where it needs no coroutine of its own."""
    source = [line.split("  #")[0] for line in inspect.getsource(wait).splitlines()]
    loop = dedent("\n".join(source[source.index("    try:") : source.index("        raise") + 1]))
    written = "\n".join(fast_path._waiting("Permit"))
    begin, end = written.index("    try:"), written.index("    if (binding")
    assert dedent(written[begin:end]).replace("Permit()", "new()").strip() == loop.strip()


class Finalised:
    """Garbage in a cycle, whose finaliser gives other threads the time to come in between."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        for _ in range(50):
            pass


def test_threads_may_meet_new_shapes_at_the_same_time(many_interruptions):
    """The first call of a shape writes its functions: two threads that did so at once got a SystemError of CPython
    3.11's."""
    fast_path._write.cache_clear()
    errors = []

    def write():
        try:
            for shape in SHAPES:
                Finalised()
                fast_path._write(shape, locked=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.fixture
def many_interruptions():
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


def test_what_could_be_interrupted_is_recognised():
    def bad(binding, m0):
        if m0.tat and binding.given:
            for _ in (1, 2):
                m0.tat = len([1])
        binding.granted_at = 1

    found = {now.opname for now in step_of(bad) if may_be_interrupted(now)}
    assert any("CALL" in name for name in found)
    assert any("BACKWARD" in name for name in found)
    assert "BUILD_LIST" in found


@pytest.mark.parametrize("locked", [False, True], ids=["with the GIL", "without the GIL"])
@pytest.mark.parametrize("shape", SHAPES[:12])
def test_the_function_of_a_shape_charges_with_and_without_the_gil(shape, locked):
    units = {f"u{index}": in_flight(5) if kind == "p" else Rate(5, 1.0) for index, kind in enumerate(shape)}
    cost = {f"u{index}": 0.5 if kind == "f" else 2 for index, kind in enumerate(shape)}
    with manual_clock():
        limiter = Limiter(units)
        binding = limiter._call_of(cost)._binding
        binding.charge.grant, binding.charge.release = fast_path._write(shape, locked=locked)
        with limiter(cost):
            levels = [now.level for now in limiter.statistics().limits.values()]
            assert levels == [5 - amount for amount in cost.values()]
        assert limiter.statistics().in_flight == 0


class Watched:
    """A lock that knows whether it is held, and does something before the thread that asks for it next gets it."""

    def __init__(self):
        self.lock, self.depth, self.before = threading.RLock(), 0, None

    def __enter__(self):
        before, self.before = self.before, None
        if before is not None:
            before()
        self.lock.acquire()
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1
        self.lock.release()


def calls_without_the_gil(limiter, written):
    """A call of a limiter, as calls are without the GIL; `written` gets whether the lock was held at each note."""
    slot = Call.__dict__["_entered"]

    def note(call, value):
        written.append(limiter._backend.store.lock.depth > 0)
        slot.__set__(call, value)

    call = limiter()
    names = {"Permit": Permit, "EnteredPermit": EnteredPermit, "emit_grant": emit_grant, "DONE": DONE, **LOOP}
    methods = fast_path.enter_and_leave(call._binding.charge.shape, names, locked=True)
    kind = type("Call", (Call,), {"__slots__": (), "_entered": property(slot.__get__, note), **methods})
    with_lock(kind)
    call.__class__ = kind
    return call


@pytest.mark.anyio
async def test_without_the_gil_a_call_notes_who_is_inside_with_the_lock_held():
    """Threads may share it, and a permit that is not noted would give its place back at once."""
    limiter, written = Limiter(calls=in_flight(9), store=MemoryStore()), []
    limiter._backend.store.lock = Watched()
    call = calls_without_the_gil(limiter, written)
    async with call:
        pass
    with call:
        pass
    assert len(written) == 4
    with call, call:
        async with call, call:
            assert limiter.statistics().in_flight == 4
        assert limiter.statistics().in_flight == 2
    async with call:
        assert limiter.statistics().in_flight == 1
    assert limiter.statistics().in_flight == 0
    assert all(written)


@pytest.mark.anyio
async def test_without_the_gil_a_thread_that_enters_while_another_leaves_keeps_its_place():
    limiter = Limiter(calls=in_flight(9), store=MemoryStore())
    lock = limiter._backend.store.lock = Watched()
    call = calls_without_the_gil(limiter, [])
    async with call:
        lock.before = call.__enter__  # in another thread, just before this one has the lock
    assert limiter.statistics().in_flight == 1
    call.__exit__(None, None, None)
    assert limiter.statistics().in_flight == 0


# The same as the general path

LIMITS = {"w": Rate(5, 1.0, 12), "f": Rate(4, 1.0, 6), "p": in_flight(7), "l": Rate(3, 1.0, 1)}
COSTS = {"w": st.integers(0, 13), "f": st.sampled_from([0, 0.1, 0.25, 1.5, 3]), "p": st.sampled_from([0, 1, 2.5, 7]), "l": st.sampled_from([0, 0.5, 1])}  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("sleep"), st.sampled_from([0.001, 0.1, 0.3, 1.0, 7.0])),
    st.tuples(st.just("settle"), st.integers(0, 20), st.sampled_from([0, 0.5, 1, 5, 20])),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("close"), st.integers(0, 20)),
    st.tuples(st.just("observe"), st.integers(0, 20), st.integers(0, 12)),
    st.tuples(st.just("pause"), st.sampled_from([0.1, 1.5])),
    st.tuples(st.just("resume")),
    st.tuples(st.just("change"), st.integers(1, 20)),
)


def do(limiter, permits, step, unit):
    kind, *numbers = step
    if kind == "pause":
        limiter.pause(*numbers)
    elif kind == "resume":
        limiter.resume()
    elif kind == "change":
        limiter.reconfigure({unit: Rate(numbers[0], 1.0, 12) if unit[0] != "p" else in_flight(numbers[0])})
    elif permits:
        permit = permits[numbers[0] % len(permits)]
        if kind == "settle":
            permit.settle({unit: numbers[1]})
        elif kind == "observe":
            permit.observe(remaining={unit: numbers[1]})
        else:
            getattr(permit, kind)()


def shown(limiter):
    now = limiter.statistics()
    levels = {unit: (status.level, status.capacity) for unit, status in now.limits.items()}
    return levels, now.granted, now.refused, now.cancelled, now.in_flight, now.paused_for


@given(data=st.data())
def test_every_shape_does_what_the_general_path_does(data):
    """The same trace gives the same grants, refusals, waits and levels after every step."""
    shape = data.draw(st.text("wfpl", min_size=1, max_size=4))
    units = {f"{kind}{index}": LIMITS[kind] for index, kind in enumerate(shape)}
    with manual_clock() as at:
        quick, general = Limiter(units), Limiter(units)
        general._backend.fast = False
        assert (
            quick._call_of(dict.fromkeys(units, 1))._binding.charge.grant
            is not general._call_of(dict.fromkeys(units, 1))._binding.charge.grant
        )
        permits = [], []
        for _ in range(data.draw(st.integers(0, 25))):
            if data.draw(st.booleans()):
                cost = {unit: data.draw(COSTS[unit[0]]) for unit in units}
                answers = [acquire(limiter, cost) for limiter in (quick, general)]
                assert alike(answers[0][1:], answers[1][1:])
                for mine, (permit, *_) in zip(permits, answers, strict=True):
                    mine.extend([permit] if permit else [])
            else:
                step = data.draw(STEPS)
                if step[0] == "sleep":
                    at.advance(step[1])
                else:
                    unit = data.draw(st.sampled_from(sorted(units)))
                    for limiter, mine in zip((quick, general), permits, strict=True):
                        do(limiter, mine, step, unit)
            assert alike(shown(quick), shown(general))
            assert [permit.cost for permit in permits[0]] == [permit.cost for permit in permits[1]]


def alike(one, other):
    """Whether all is the same, but for the last bit of a number: the two paths add up in another order."""
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def acquire(limiter, cost):
    """The permit, if there is one, and what can be compared."""
    try:
        permit = limiter.acquire_nowait(cost)
    except RateLimited as late:
        return None, late.retry_after, late.blocked_by, type(late)
    except ValueError as wrong:
        return None, type(wrong), str(wrong)
    return permit, permit.granted_at, permit.cost


# Keys in tuples of numbers

KEY_LIMITS = {"tokens": Rate(5, 1.0, 12), "requests": Rate(4, 1.0, 6)}
MORE_LIMITS = [
    {},
    {"calls": in_flight(3)},
    {"calls": in_flight(1)},
    {"images": sliding(9, 1.0, default=1)},
    {"images": calendar(9, "minute", default=0.5)},
    {"images": Rate(2, 1.0, overdraft=True, default=3), "calls": in_flight(2.5)},
    {"images": Unlimited(default=1), "calls": in_flight(7)},
]
"""What keys may have beside, which cannot be kept as numbers."""

KEY_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.integers(0, 12), st.sampled_from([0, 1, 2])),
        st.tuples(st.just("acquire"), st.sampled_from([0.5, 1.5]), st.just(1)),
        st.tuples(st.just("forget")),
        st.tuples(st.just("look")),
        STEPS.filter(lambda step: step[0] != "change"),
    ),
    max_size=40,
)


@given(steps=KEY_STEPS, more=st.sampled_from(MORE_LIMITS), plain=st.booleans())
def test_a_key_is_what_a_limiter_of_its_own_would_be(steps, more, plain):
    """Through settling, cancelling, pauses, time, and being put away, forgotten and taken out again in between."""
    limits = {**KEY_LIMITS, **more}
    with manual_clock() as at:
        per_user, own = Keyed(limits), Limiter(limits)
        if not plain:
            per_user[("a", "tuple")]
        permits = [], []
        for step in steps:
            if step[0] == "acquire":
                cost = {"tokens": step[1], "requests": step[2]}
                answers = [acquire(limiter, cost) for limiter in (per_user["alice"], own)]
                assert (
                    answers[0][1] == pytest.approx(answers[1][1])
                    if answers[1][0] is None
                    else answers[0][0] is not None
                )
                for mine, (permit, *_) in zip(permits, answers, strict=True):
                    mine.extend([permit] if permit else [])
            elif step[0] == "sleep":
                at.advance(step[1])
            elif step[0] == "forget":
                for other in range(60):
                    per_user[other]
            elif step[0] == "look":
                assert per_user["alice"].forecast(tokens=12, requests=3).wait == pytest.approx(
                    own.forecast(tokens=12, requests=3).wait, abs=1e-6
                )
            else:
                do(per_user["alice"], permits[0], step, "tokens")
                do(own, permits[1], step, "tokens")
            assert [permit.cost for permit in permits[0]] == [permit.cost for permit in permits[1]]
        levels = [
            {unit: status.level for unit, status in limiter.statistics().limits.items()}
            for limiter in (per_user["alice"], own)
        ]
        assert levels[0] == pytest.approx(levels[1], abs=1e-6)
        for mine in permits:
            for permit in mine:
                permit.close()
        assert per_user["alice"].statistics().in_flight == own.statistics().in_flight == 0
        at.advance(math.ceil(1e6))


@given(steps=KEY_STEPS, more=st.sampled_from(MORE_LIMITS[:4]), first=st.booleans())
def test_a_key_beside_others_is_what_two_limiters_would_be(steps, more, first):
    """`organisation & per_user[key]` is decided by what all keys share: as if the key had a limiter of its own."""
    limits = {**KEY_LIMITS, **more}
    others = {"tokens": Rate(4, 1.0, 15), "calls": in_flight(2), "units": Rate(3, 1.0, 5, default=0.5)}
    with manual_clock() as at:
        per_user, own = Keyed(limits), Limiter(limits)
        org, other_org = Limiter(others), Limiter(others)

        def joint(limiter, of):
            return of & limiter if first else limiter & of

        permits = [], []
        for step in steps:
            if step[0] == "acquire":
                cost = {"tokens": step[1], "requests": step[2]}
                pairs = ((per_user["alice"], org), (own, other_org))
                answers = [acquire(joint(*pair), cost) for pair in pairs]
                assert (answers[0][0] is None) == (answers[1][0] is None)
                if answers[1][0] is None:
                    assert answers[0][1] == pytest.approx(answers[1][1], abs=1e-6)
                for mine, (permit, *_) in zip(permits, answers, strict=True):
                    mine.extend([permit] if permit else [])
            elif step[0] == "sleep":
                at.advance(step[1])
            elif step[0] == "forget":
                for other in range(60):
                    per_user[other]
            elif step[0] != "look":
                do(joint(per_user["alice"], org), permits[0], step, "tokens")
                do(joint(own, other_org), permits[1], step, "tokens")
            assert [permit.cost for permit in permits[0]] == [permit.cost for permit in permits[1]]
        levels = [
            [{unit: status.level for unit, status in limiter.statistics().limits.items()} for limiter in pair]
            for pair in ((per_user["alice"], org), (own, other_org))
        ]
        for mine, theirs in zip(*levels, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
