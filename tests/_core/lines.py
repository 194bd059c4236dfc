"""What a line is tested with: a limit, and a count of all that it remembers."""

from __future__ import annotations

from collections import Counter

from penstock._core.line import Line


class Counted:
    """One limit, as far as a line knows it."""

    def __init__(self, throughput: float = 1.0) -> None:
        self.throughput = throughput
        self.queued = 0.0


def check_books(line: Line) -> None:
    """What a line remembers beside the order is what can be counted: who stands where once, who is gone, who waits of a flow."""
    everybody, of_flow = list(line), Counter()
    assert len(everybody) == len(set(everybody)) == len(line)
    lanes = [
        lane for shape in line._shapes.values() for level in shape.levels.values() for lane in level.lanes.values()
    ]
    for lane in lanes:
        entries = [*lane.run, *(waiting for _, waiting in lane.strays)]
        here = [waiting for waiting in entries if waiting.lane is lane]
        assert lane.gone == len(entries) - len(here)
        assert len(entries) <= max(len(here) + 64, 2 * len(here))
        assert [waiting.number for waiting in lane.run] == sorted(waiting.number for waiting in lane.run)
        of_flow[lane.flow.name] += len(here)
    assert sum(of_flow.values()) == len(line)
    for flow in line._flows.values():
        assert flow.waiting == of_flow[flow.name]
