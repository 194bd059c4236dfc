"""What a queue is tested with: a limit, and a count of all that it remembers."""

from __future__ import annotations

from collections import Counter

from penstock._core.queue import Queue


class Counted:
    """One limit, as far as a queue knows it."""

    def __init__(self, throughput: float = 1.0) -> None:
        self.throughput = throughput
        self.queued = 0.0


def check_books(queue: Queue) -> None:
    """What a queue remembers beside the order is what can be counted: who stands where once, who is gone, who waits of
    a flow."""
    everybody, of_flow = list(queue), Counter()
    assert len(everybody) == len(set(everybody)) == len(queue)
    subqueues = [
        subqueue
        for shape in queue._shapes.values()
        for level in shape.levels.values()
        for subqueue in level.subqueues.values()
    ]
    for subqueue in subqueues:
        entries = [*subqueue.run, *(waiter for _, waiter in subqueue.strays)]
        here = [waiter for waiter in entries if waiter.subqueue is subqueue]
        assert subqueue.gone == len(entries) - len(here)
        assert len(entries) <= max(len(here) + 64, 2 * len(here))
        assert [waiter.number for waiter in subqueue.run] == sorted(waiter.number for waiter in subqueue.run)
        of_flow[subqueue.flow.name] += len(here)
    for shape in queue._shapes.values():
        of_shape = sum(waiter.subqueue.level.shape is shape for waiter in everybody)
        assert of_shape == 1 or not shape.alone()
    assert sum(of_flow.values()) == len(queue)
    for flow in queue._flows.values():
        assert flow.count == of_flow[flow.name]
