"""Draws the pictures of the docs into docs/images: none is drawn by hand. `make pictures`.

    python tools/pictures.py [usual-ways queue …]     all of them, or these

`usual-ways` shows what benchmarks/RESULTS.md says, and `peers` what docs/field/peers.md says; the others show a run in
virtual time. All are the same on every machine, so a test compares what is in docs/images with what this draws.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from drawing import BAD, FAINT, FLOWS, INK, OTHERS, OURS, Axes, Drawing
from tables import ROOT, tables, value

from penstock import Limiter, clock, per_minute, per_second
from penstock.testing import virtual_time

IMAGES = ROOT / "docs/images"


def usual_ways() -> str:
    """Quota used, refusals and lost calls of a batch, beside the usual ways to send it."""
    rows = tables("benchmarks/RESULTS.md", "`python benchmarks/usual_ways.py`")[0].rows
    height = 62 + 34 * len(rows) + 28
    drawing = Drawing(900, height, "Quota used, 429s and lost calls: penstock beside the usual ways")
    most = max(value(row[2]) for row in rows)
    left, used, refused = 330, 180, 130
    for x, words in ((left, "quota used"), (left + used + 70, "429s"), (left + used + refused + 180, "calls lost")):
        drawing.text(x, 34, words, bold=True)
    for number, (name, share, refusals, lost, _) in enumerate(rows):
        y = 52 + 34 * number
        ours = name.startswith("penstock")
        drawing.text(left - 14, y + 16, name, anchor="end", bold=ours)
        width = used * value(share) / 100
        drawing.box(left, y + 3, used, 18, "#eef1f3")
        drawing.box(left, y + 3, width, 18, OURS if ours else OTHERS)
        drawing.text(left + used + 8, y + 16, share, colour=INK)
        drawing.box(left + used + 70, y + 3, refused * value(refusals) / most, 18, BAD)
        drawing.text(left + used + 76 + refused * value(refusals) / most, y + 16, refusals)
        drawing.text(left + used + refused + 180, y + 16, lost, bold=lost != "0", colour=BAD if lost != "0" else INK)
    words = "1,500 calls; 1,200 requests and 400,000 tokens a minute; python benchmarks/usual_ways.py"
    drawing.text(14, height - 12, words, colour=FAINT, size=11)
    return drawing.svg()


def peers() -> str:
    """How long a job takes beside what its limits allow, what is refused, what is lost: penstock run and its peers."""
    rows = tables("docs/field/peers.md", "Measured: other ways to send one job")[0].rows
    rows.sort(key=lambda row: (not row[0].startswith("**"), value(row[3]), value(row[1])))
    drawing = Drawing(
        900, 62 + 34 * len(rows) + 28, "Time, 429s, lost rows and CPU of one job: penstock run beside its peers"
    )
    longest, most = max(value(row[1]) for row in rows), max(value(row[2]) for row in rows)
    left, wide, refused = 400, 130, 110
    lost = left + wide + 60 + refused + 70
    for x, words in ((left, "time / optimum"), (left + wide + 60, "429s"), (lost, "rows lost"), (lost + 80, "CPU s")):
        drawing.text(x, 34, words, bold=True)
    for number, (name, times, refusals, rows_lost, cpu, _) in enumerate(rows):
        y = 52 + 34 * number
        ours = name.startswith("**")
        drawing.text(left - 14, y + 16, name.strip("*"), anchor="end", bold=ours)
        for x, width, share, text, colour in (
            (left, wide, value(times) / longest, times, OURS if ours else OTHERS),
            (left + wide + 60, refused, value(refusals) / most, refusals, BAD),
        ):
            drawing.box(x, y + 3, width * share, 18, colour)
            drawing.text(x + width * share + 6, y + 16, text)
        drawing.text(lost, y + 16, rows_lost, bold=rows_lost != "0", colour=BAD if rows_lost != "0" else INK)
        drawing.text(lost + 80, y + 16, cpu)
    words = "600 rows; 600 requests and 200,000 tokens a minute; make field WHAT=peers"
    drawing.text(14, 62 + 34 * len(rows) + 16, words, colour=FAINT, size=11)
    return drawing.svg()


def queue() -> str:
    """Who waits how long in one queue: flows that share, a large call that is not starved, small ones that pass it."""
    waits = _in_virtual_time(_queue)
    drawing = Drawing(760, 78 + 22 * len(waits), "One queue: flows share, a large call waits its turn, small ones pass")
    axes = Axes(drawing, (190, 42, 540, 22 * len(waits)), (0, 5, 1), (1, 1.5, 1), labels=("seconds", ""))
    for number, (name, flow, arrived, granted) in enumerate(waits):
        y = 42 + 22 * number
        drawing.text(178, y + 15, name, anchor="end", colour=FLOWS[flow], bold="large" in name or "no tokens" in name)
        drawing.box(axes.x(arrived), y + 4, axes.x(granted) - axes.x(arrived), 14, FLOWS[flow], opacity=0.25)
        drawing.dot(axes.x(granted), y + 11, FLOWS[flow])
    x = 190.0
    for flow, words in (("alice", "alice"), ("bob", "bob"), ("", "no flow")):
        drawing.dot(x, 20, FLOWS[flow])
        drawing.text(x + 9, 24, words, size=12)
        x += 90
    drawing.text(x, 24, "bar: waits, dot: is charged and goes", colour=FAINT, size=12)
    return drawing.svg()


async def _queue() -> list[tuple[str, str, float, float]]:
    limiter = Limiter(requests=per_second(100), tokens=per_second(10))
    await limiter.acquire(tokens=10)
    begun, waits = clock.now(), []

    async def call(name: str, flow: str, after: float, tokens: float) -> None:
        await asyncio.sleep(after)
        arrived = clock.now()
        await limiter.acquire(tokens=tokens, flow=flow or None)
        waits.append((name, flow, arrived - begun, clock.now() - begun))

    calls = [call(f"alice {number + 1}: 4 tokens", "alice", 0, 4) for number in range(6)]
    calls += [call(f"bob {number + 1}: 4 tokens", "bob", 0.2, 4) for number in range(3)]
    calls += [call("large: 10 tokens", "", 0.3, 10), call("no tokens", "", 0.5, 0), call("no tokens", "", 3.0, 0)]
    await asyncio.gather(*calls)
    return sorted(waits, key=lambda wait: (wait[3], wait[0]))


def bucket() -> str:
    """The level of a bucket while calls come, wait and go."""
    levels, grants = _in_virtual_time(_bucket)
    drawing = Drawing(760, 300, "A bucket: ten at once, then one a second, and full again when nobody calls")
    axes = Axes(drawing, (50, 40, 680, 200), (0, 40, 5), (0, 10, 2), labels=("seconds", "level of 60/min burst 10"))
    axes.curve(levels, OURS)
    for at, waited in grants:
        drawing.dot(axes.x(at), axes.y(0) - 6, BAD if waited else OTHERS, 3.5)
    drawing.text(730, 26, "dots: calls that go; red ones had to wait", colour=FAINT, anchor="end", size=12)
    return drawing.svg()


async def _bucket() -> tuple[list[tuple[float, float]], list[tuple[float, bool]]]:
    limiter = Limiter(requests=per_minute(60, burst=10))
    begun, levels, grants = clock.now(), [], []

    async def watch() -> None:
        while clock.now() - begun < 40:
            levels.append((clock.now() - begun, limiter.statistics().limits["requests"].level))
            await asyncio.sleep(0.25)

    async def call(after: float) -> None:
        await asyncio.sleep(after)
        arrived = clock.now()
        await limiter.acquire()
        grants.append((clock.now() - begun, clock.now() > arrived))

    arrivals = [2.1] * 15 + [22.1, 22.6, 23.1, 30.1, 30.1, 30.1]
    await asyncio.gather(watch(), *(call(after) for after in arrivals))
    return levels, grants


def refunds() -> str:
    """What is let through when refunds are added to the level, and by penstock, under the bound of the limit."""
    ours, naive = _in_virtual_time(_refunds), _naive_refunds()
    drawing = Drawing(760, 320, "Refunds: added to the level they break the limit; penstock's do not")
    axes = Axes(drawing, (56, 44, 520, 220), (0, 240, 60), (0, 1000, 200), labels=("seconds", "tokens let through"))
    axes.curve([(0, 100), (240, 500)], INK, dashed=True)
    axes.curve(_steps(naive), BAD)
    axes.curve(_steps(ours), OURS, width=2.4)
    drawing.text(588, axes.y(naive[-1][1]) + 4, "added to the level", colour=BAD, size=12)
    drawing.text(588, axes.y(500) - 4, "burst + rate × time", colour=INK, size=12)
    drawing.text(588, axes.y(ours[-1][1]) + 14, "penstock", colour=OURS, bold=True, size=12)
    return drawing.svg()


MINUTES = (60, 120, 180, 240)


async def _refunds() -> list[tuple[float, float]]:
    """100 tokens a minute. Each call of 100 turns out, a minute later, to have been sent for nothing."""
    limiter = Limiter(tokens=per_minute(100))
    begun, let_through = clock.now(), [(0.0, 100.0)]
    permits = [await limiter.acquire(tokens=100)]
    for minute in MINUTES:
        await asyncio.sleep(begun + minute - clock.now())
        permits.append(await limiter.acquire(tokens=100))
        let_through.append((float(minute), let_through[-1][1] + 100))
        permits[-2].cancel()
        if limiter.forecast(tokens=100).wait == 0:
            permits.append(await limiter.acquire(tokens=100))
            let_through.append((float(minute), let_through[-1][1] + 100))
    return let_through


def _naive_refunds() -> list[tuple[float, float]]:
    let_through = [(0.0, 100.0)]
    for minute in MINUTES:  # the level is full again, is spent, is given back, and is spent once more
        let_through += [(float(minute), let_through[-1][1] + 100), (float(minute), let_through[-1][1] + 200)]
    return let_through


def _steps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A curve that stays until it jumps."""
    stairs = [points[0]]
    for x, y in points[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    return stairs


def learning() -> str:
    """What a client sends that was told no limit, while the service cuts its quota by half and raises it again."""
    sys.path.append(str(ROOT / "benchmarks"))
    from learning import Column, run

    from penstock.simulator import Change

    changes = (Change(100, 0.5), Change(200, 2.0))
    result = run(Column({"changes": changes}, mean=400), 1, 300)
    drawing = Drawing(760, 300, "Learned limits: what was let through, and the quota, which nobody told")
    axes = Axes(drawing, (56, 44, 560, 200), (0, 300, 60), (0, 900, 300), labels=("seconds", "requests a minute"))
    quota = [(0.0, 500.0), (100.0, 500.0), (100.0, 250.0), (200.0, 250.0), (200.0, 500.0), (300.0, 500.0)]
    axes.curve(quota, INK, dashed=True)
    span = 10
    sent = [
        (at + span / 2, 6.0 * sum(at <= each < at + span for each in result.admitted)) for at in range(0, 300, span)
    ]
    axes.curve([(at, min(rate, 900.0)) for at, rate in sent], OURS, width=2.4)
    drawing.text(626, axes.y(500) + 4, "quota", size=12)
    drawing.text(626, axes.y(sent[-1][1]) + 20, "let through", colour=OURS, bold=True, size=12)
    drawing.text(axes.x(24), axes.y(840), "the burst, which goes beyond this scale", colour=FAINT, size=11)
    drawing.text(616, 26, f"{result.refused:.1f} refusals per 1,000 requests", colour=FAINT, anchor="end", size=12)
    return drawing.svg()


def _in_virtual_time(run: Callable[[], Any]) -> Any:
    with virtual_time():
        return asyncio.run(run())


PICTURES: dict[str, Callable[[], str]] = {
    "usual-ways": usual_ways,
    "peers": peers,
    "queue": queue,
    "bucket": bucket,
    "refunds": refunds,
    "learning": learning,
}


def main(names: list[str]) -> int:
    """Draw them."""
    for name in names or PICTURES:
        path = IMAGES / f"{name}.svg"
        path.write_text(PICTURES[name](), encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
