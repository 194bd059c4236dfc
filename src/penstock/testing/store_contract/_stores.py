"""Shared by all parts of the contract: the stores under test, and how late a machine may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from penstock.stores.contract import Store

LATE = 3.0
"""Seconds by which a busy machine may be late."""

SOON = 20.0
"""Seconds in which another process hears of what was said, however busy the machine: it would wait for minutes."""


class StoreTests:
    """Has the fixture `stores`, which is made of the subclass's `make_store`."""

    @pytest.fixture
    def stores(self, make_store: Callable[..., Store]) -> Iterator[Callable[..., Store]]:
        """`make_store`, with everything closed in the end."""
        made: list[Store] = []

        def make(**options: Any) -> Store:
            made.append(make_store(**options))
            return made[-1]

        yield make
        for store in made:
            store.close()


@dataclass(slots=True)
class Stopwatch:
    """How long a block took, in seconds of real time; 0 until it has ended."""

    seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Stopwatch]:
    """Measure the block."""
    begin = time.monotonic()
    watch = Stopwatch()
    yield watch
    watch.seconds = time.monotonic() - begin
