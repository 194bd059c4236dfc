"""A client that is told no limits, against servers of many kinds. Twenty seeds of it: benchmarks/learning.py."""

from __future__ import annotations

import pytest

from benchmarks.learning import COLUMNS, run


@pytest.mark.parametrize("name", COLUMNS)
def test_whatever_the_server_is_its_quota_is_used_and_next_to_nothing_is_refused(name):
    column = COLUMNS[name]
    result = run(column, seed=1)
    # One seed varies more than the mean of twenty does.
    assert result.refused <= column.most + 2.5
    assert result.used >= column.least - 0.01


def test_four_clients_that_know_nothing_of_each_other_share_evenly():
    result = run(COLUMNS["four clients"], seed=1)
    assert max(result.clients) <= 4 * min(result.clients)


def test_after_a_drop_the_rate_is_back_within_ten_seconds():
    """Nothing is told, the quota halves for a minute, and comes back at 300 s."""
    result = run(COLUMNS["no headers, a drop"], seed=1, seconds=330.0)
    assert sum(310 <= at < 320 for at in result.admitted) >= 0.85 * 500
