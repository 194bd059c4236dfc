"""Writes the table "Measured" of docs/how-to-choose.md from benchmarks/RESULTS.md. `make pictures`.

None of its numbers is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tables import ROOT, Table, tables, value

PAGE = ROOT / "docs/how-to-choose.md"
HEAD = "| command | what | penstock | beside it |\n|---|---|---|---|\n"

Row = tuple[str, str, str]
"""What was measured, penstock's number, and those of others."""


def measured() -> str:
    """The table."""
    lines = [HEAD]
    for rows in (usual_ways, shapes, keyed, waiters, stores, retry_overhead, outage, import_time, throughput):
        benchmark = f"{rows.__name__}.py"
        command = f"`benchmarks/{benchmark}`"
        for what, ours, others in rows(*tables("benchmarks/RESULTS.md", f"`python benchmarks/{benchmark}`")):
            lines.append(f"| {command} | {what} | {ours} | {others} |\n")
            command = ""
    return "".join(lines)


def usual_ways(ways: Table) -> Iterator[Row]:
    """Quota used, refusals and lost calls of one job."""

    def of(way: str) -> str:
        used = value(ways.cell("quota used", way))
        return f"{used:.0f} %; {ways.cell('429s', way)}; {ways.cell('calls lost', way)}"

    paced, alone = of("aiolimiter × 2 at 90 %, half the bursts, tenacity"), of("tenacity, 6 attempts")
    yield (
        "1,500 calls to a service: quota used; 429s; calls lost",
        of("penstock, limits given"),
        f"two aiolimiters at 90 %, with tenacity: {paced}. Tenacity alone: {alone}",
    )


def shapes(calls: Table) -> Iterator[Row]:
    """CPU of a call that need not wait."""
    for what, row, by_hand in (
        ("a call that need not wait, one rate: CPU", "one rate, `async with limiter`", "aiolimiter"),
        (
            "requests, tokens and places in flight",
            "the README's: two rates and in_flight(64)",
            "two aiolimiters and a semaphore",
        ),
        (
            "one key of 100,000, two rates",
            "`per_user[key](tokens=5)`, 100,000 keys",
            "a dict of two aiolimiters that never forgets",
        ),
    ):
        yield what, f"{calls.cell('ratio', row)} ×", f"{by_hand}: 1 ×"


def keyed(keys: Table) -> Iterator[Row]:
    """Memory of a key."""
    others = value(keys.cell("bytes a key", "two aiolimiters in a dict", "100,000"))
    ours = keys.cell("bytes a key", "penstock", "100,000")
    yield "bytes a key, 100,000 keys, two limits", ours, f"two aiolimiters in a dict: {others:,.0f}"


def waiters(slow: Table, _: Table, fast: Table) -> Iterator[Row]:
    """CPU and order of 100,000 waiters."""
    ours, peer, leaky = "penstock, two limits", "aiolimiter, one limit", "asynciolimiter (leaky), one limit"

    def in_order(row: str) -> str:
        return f"{value(slow.cell('CPU s', row)):.1f}; {value(slow.cell('inversions', row)):.0f} %"

    def in_time(row: str) -> str:
        return f"{value(fast.cell('CPU s', row)):.1f}; {value(fast.cell('wall/ideal', row)):.2f} ×"

    for what, of in (
        ("100,000 waiters, 10,000 grants/s: CPU s; out of order", in_order),
        ("50,000 grants/s: CPU s; time over the ideal", in_time),
    ):
        yield what, of(ours), f"aiolimiter: {of(peer)}. asynciolimiter: {of(leaky)}"


def stores(once: Table, rounds: Table, _: Table) -> Iterator[Row]:
    """Grants a second over a shared store."""
    many = {name: rounds.cell("median", name) for name in ("valkey", "limits", "throttled", "pyrate")}
    single = {name: once.cell("grants/s", name, "1", "1") for name in many}
    for what, rates in (("Redis protocol, 50 tasks, one process: grants/s", many), ("the same with 1 task", single)):
        ours = rates.pop("valkey")
        yield what, ours, "; ".join(f"{name} {rate}" for name, rate in rates.items())


def retry_overhead(decorated: Table, *_: Table) -> Iterator[Row]:
    """CPU of a retry that does nothing."""
    others = "; ".join(f"{name} {decorated.cell('µs', name)}" for name in ("backoff", "stamina", "tenacity"))
    yield "a decorated call that succeeds: µs of CPU", decorated.cell("µs", "penstock"), others


def outage(clients: Table) -> Iterator[Row]:
    """Calls that reach a service while it is down."""

    def load(*names: str) -> str:
        loads = sorted(value(clients.cell("load while down, × usual", name)) for name in names)
        return " to ".join(f"{each:.1f}" for each in loads[:: max(1, len(loads) - 1)]) + " ×"

    tenacity = load(*(row[0] for row in clients.rows if row[0].startswith("tenacity")))
    yield (
        "load on a service that is down, with a budget",
        load("penstock, Budget()"),
        f"tenacity: {tenacity}; stamina: {load('stamina, its defaults')}",
    )


def import_time(imports: Table) -> Iterator[Row]:
    """CPU of an import."""
    others = ("aiolimiter", "pyrate-limiter", "limits", "throttled-py")
    yield (
        "import of the limiter: CPU ms",
        f"{imports.cell('CPU ms, median', 'penstock, and its Limiter')}, anyio included",
        "; ".join(f"{name} {imports.cell('CPU ms, median', name)}" for name in others),
    )


def throughput(_: Table, mapped: Table) -> Iterator[Row]:
    """CPU and memory of a function over many items."""

    def of(way: str) -> str:
        spent = value(mapped.cell("µs of CPU an item", "asyncio", way))
        return f"{spent:.0f}; {value(mapped.cell('memory grown, MiB', 'asyncio', way)):.0f} MiB"

    ours, others = of("amap, as they come"), of("gather and a semaphore")
    yield "a function over 100,000 items: µs an item; memory", ours, f"`gather` and a semaphore: {others}"


def page() -> str:
    """The page, with the table as RESULTS.md has it now."""
    table = re.compile(rf"^{re.escape(HEAD)}(?:\|.*\|\n)+", re.MULTILINE)
    text, times = table.subn(lambda _: measured(), PAGE.read_text(encoding="utf-8"))
    assert times == 1, f"{PAGE.name} has {times} such tables"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
