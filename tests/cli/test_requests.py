"""What a run of single requests asks of the process that it is in."""

from __future__ import annotations

import gc

import pytest

from penstock.cli.requests import COLLECT_AFTER, seldom_collected


@pytest.mark.parametrize(
    ("before", "during"), [(700, COLLECT_AFTER), (2 * COLLECT_AFTER, 2 * COLLECT_AFTER), (0, 0)], ids=str
)
def test_garbage_is_collected_as_often_as_before_once_the_run_is_over(before, during):
    """While it goes on less often; and never, or seldom, where that was so already."""
    kept = gc.get_threshold()
    try:
        gc.set_threshold(before, *kept[1:])
        with pytest.raises(KeyboardInterrupt), seldom_collected():
            assert gc.get_threshold() == (during, *kept[1:])
            raise KeyboardInterrupt
        assert gc.get_threshold() == (before, *kept[1:])
    finally:
        gc.set_threshold(*kept)
