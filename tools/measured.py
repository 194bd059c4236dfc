"""Write the tables of the docs that quote benchmarks/RESULTS.md: `make pictures`.

No number in them is written by hand, so none comes from a run that RESULTS.md no longer has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tables import ROOT, Table, tables, value

Cells = tuple[str, ...]
Row = tuple[str, str, str]
"""What was measured, penstock's number, and those of others."""


def measured() -> Iterator[Cells]:
    """Of docs/how-to-choose.md."""
    for rows in (usual_ways, shapes, keyed, waiters, stores, retry_overhead, outage, import_time, throughput):
        command = f"`benchmarks/{rows.__name__}.py`"
        for what, ours, others in rows(*of(rows.__name__)):
            yield command, what, ours, others
            command = ""


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


def of(benchmark: str) -> list[Table]:
    """The tables of a benchmark in RESULTS.md."""
    return tables("benchmarks/RESULTS.md", f"`python benchmarks/{benchmark}.py`")


LOOPS = ("asyncio", "uvloop", "trio")


def batches() -> Iterator[Cells]:
    """Of docs/batching.md."""
    rows, _ = of("throughput")
    for what, row in (
        ("`Batcher`, batches of 100: items per second of CPU", "by number"),
        ("the same, bounded by cost", "by number and cost"),
        ("the same, with a limiter", "with a limiter"),
    ):
        yield what, *(rows.cell("items per second of CPU", loop, row) for loop in LOOPS)


def many_calls() -> Iterator[Cells]:
    """Of docs/many-calls.md."""
    _, rows = of("throughput")
    for what, way in (
        ("`amap`, 1,000,000 items", "amap, in order"),
        ("`asyncio.gather` with a semaphore, 100,000 items", "gather and a semaphore"),
    ):
        loops = [loop for loop in LOOPS if any(row[:2] == [loop, way] for row in rows.rows)]
        spent = (rows.cell("µs of CPU an item", loop, way) for loop in loops)
        grown = (value(rows.cell("memory grown, MiB", loop, way)) for loop in loops)
        cells = [f"{time} µs, {memory:.0f} MiB" for time, memory in zip(spent, grown, strict=True)]
        yield what, *cells, *[""] * (len(LOOPS) - len(loops))


def retries() -> Iterator[Cells]:
    """Of docs/retry-others.md."""
    for name in ("tenacity", "stamina", "backoff", "penstock", "penstock, with a budget"):
        kinds = [
            kind.cell("µs", name) if any(row[0] == name for row in kind.rows) else "–" for kind in of("retry_overhead")
        ]
        yield name, *kinds


def shared_stores() -> Iterator[Cells]:
    """Of docs/shared-stores.md."""
    once, rounds, _ = of("stores")
    for what, row in (
        ("penstock, SQLite", "sqlite"),
        ("the same, all on one core", "sqlite-one-core"),
        ("penstock, Valkey 8.1", "valkey"),
        ("the same, all on one core", "valkey-one-core"),
        ("bare futures that a thread answers, without a limiter", "floor"),
        ("the same script, once per grant, redis-py", "evalsha"),
        ("limits 5.8 (fixed window; two calls, not one decision)", "limits"),
        ("throttled-py 3.5 (GCRA; two calls, not one decision)", "throttled"),
        ("pyrate-limiter 4.5 (one limit)", "pyrate"),
    ):
        known = any(each[0] == row for each in once.rows)
        more = [once.cell(column, row, "50", "1") if known else "" for column in ("p50 ms", "p99 ms", "calls/grant")]
        yield what, rounds.cell("median", row), *more


def leases() -> Iterator[Cells]:
    """Of docs/store-leases.md."""
    alone, shared = of("leases")
    for lease in ("no lease", "0.1 s", "0.5 s", "2 s"):
        row = f"valkey, {lease}"
        fast = any(each[0] == row for each in alone.rows)
        yield (
            lease,
            *(alone.cell(column, row) if fast else "" for column in ("grants/s", "calls per grant")),
            *(shared.cell(column, row) for column in ("calls per grant", "of what is left", "worst excess")),
            ", ".join(shared.cell(f"light: {each} ms", row) for each in ("p50", "p99")),
        )


def urgent() -> Iterator[Cells]:
    """Of docs/store-order.md: how long an urgent call waits."""
    *_, rows = of("scale")
    for batch in ("1", "8", "64", "256", "1,000"):
        p50, p90, used, calls = (
            rows.cell(column, "priority", batch) for column in ("p50, ms", "p90, ms", "used", "calls/grant")
        )
        yield batch, f"{p50}, {p90} ms", used, calls


def processes() -> Iterator[Cells]:
    """Of docs/store-order.md: many processes."""
    rows, *_ = of("scale")
    for many in ("1", "2", "10", "30", "100", "1,000"):
        over, used, least, most, calls = (
            rows.cell(column, many) for column in ("over", "used", "share: least", "most", "calls/grant")
        )
        yield many, over, used, least if least == most else f"{least} to {most}", calls


def keys() -> Iterator[Cells]:
    """Of docs/store-order.md: many keys."""
    _, rows, _ = of("scale")
    for many in ("1,000", "10,000", "100,000", "1,000,000"):
        yield many, *(rows.cell(column, many) for column in ("over", "used", "calls/grant", "memory, MB"))


def peers() -> Iterator[Cells]:
    """Of README.md: the ways of docs/field/peers.md that most programs begin with."""
    rows = tables("docs/field/peers.md", "Measured: other ways to send one job")[0]
    for way in (
        "openai", "tenacity", r"aiolimiter .*tenacity", "token-throttle", "the cookbook", "litellm .*Router",
        r"\*\*penstock run, limits given",
    ):  # fmt: skip
        name = next(row[0] for row in rows.rows if re.match(way, row[0]))
        yield name, *(rows.cell(column, name) for column in ("time / optimum", "429s", "rows lost", "CPU s"))


QUOTED: list[tuple[str, str, Callable[[], Iterable[Cells]]]] = [
    ("README", "| | time / optimum | 429s | rows lost | CPU s |", peers),
    ("how-to-choose", "| command | what | penstock | beside it |", measured),
    ("batching", "| | asyncio | uvloop | trio |", batches),
    ("many-calls", "| CPU an item, memory grown | asyncio | uvloop | trio |", many_calls),
    ("retry-others", "| | decorated async function | `async for` | decorated function |", retries),
    ("shared-stores", "| | grants/s | p50 ms | p99 ms | calls per grant |", shared_stores),
    (
        "store-leases",
        "| Valkey | alone: grants/s | calls/grant | shared: calls/grant | used | worst excess | light: p50, p99 ms |",
        leases,
    ),
    ("store-order", "| batch processes | urgent by priority: p50, p90 | used | calls per grant |", urgent),
    ("store-order", "| processes | over | used | share of a process: least to most | calls per grant |", processes),
    ("store-order", "| keys, 10 processes | over | used by the hot keys | calls per grant | memory of all, MB |", keys),
]
"""Page, head and rows of each table in the docs that quotes RESULTS.md."""


def pages() -> dict[Path, str]:
    """The pages, with their tables as RESULTS.md has them now.

    Raises:
        LookupError: A page does not have exactly one table with that head.
    """
    texts: dict[Path, str] = {}
    for name, head, rows in QUOTED:
        page = ROOT / ("README.md" if name == "README" else f"docs/{name}.md")
        lines = "".join("|" + "".join(f" {cell} |".replace("  ", " ") for cell in cells) + "\n" for cells in rows())
        lines = re.sub(r"(\d)%", r"\1 %", lines)
        table = re.compile(rf"^({re.escape(head)}\n\|[-:|]+\|\n)(?:\|.*\|\n)+", re.MULTILINE)
        texts[page], times = table.subn(
            lambda found, lines=lines: found[1] + lines, texts.get(page) or page.read_text(encoding="utf-8")
        )
        if times != 1:
            raise LookupError(f"{page.name} has {times} tables that begin with {head}")
    day = re.compile(r"Measured on \d{4}-\d\d-\d\d")
    measured_on = day.search((ROOT / "docs/field/peers.md").read_text(encoding="utf-8"))
    if measured_on is None:
        raise LookupError("docs/field/peers.md does not say when it was measured")
    texts[ROOT / "README.md"] = day.sub(measured_on[0], texts[ROOT / "README.md"])
    return texts


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(page.relative_to(ROOT))
