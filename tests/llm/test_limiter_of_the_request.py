"""Limits that a function of the request returns: what is known of a server is known of the same limits next time."""

from __future__ import annotations

import pytest

from penstock import Keyed, Limiter, per_minute
from tests.llm.clients import CHAT, HELLO, Server, limited, refusal

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "made_anew",
    [
        lambda org, users: org & users["alice"],
        lambda org, users: Limiter(requests=per_minute(6_000), name="the organisation's"),
        lambda org, users: users["alice"],
    ],
    ids=["joint", "named", "of a key"],
)
async def test_a_limiter_that_is_made_anew_for_every_request_is_known(lib, made_anew, virtual_time):
    """Each was met as a stranger: a service that says nothing was left alone for a second each time."""
    org, users = Limiter(requests=per_minute(6_000)), Keyed(requests=per_minute(6_000))
    server = Server(lib, *(refusal(lib) for _ in range(3)))
    client = limited(lib, server, lambda _: made_anew(org, users))
    for seconds in (1, 2, 4):
        await client.post(CHAT, json=HELLO)
        assert seconds <= made_anew(org, users).statistics().paused_for <= seconds * 1.1 + 0.02
