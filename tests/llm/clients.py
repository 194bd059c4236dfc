"""Clients under limits, and servers made of a script, for the tests of what happens between the two."""

from __future__ import annotations

import itertools
from dataclasses import replace

import anyio

from penstock.llm.clients import limit_client
from penstock.simulator import create_app

CHAT = "http://api.test/v1/chat/completions"
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}  # 2 + 4 tokens
FOUR = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 4 * 96}]}  # 96 + 4 tokens


_keys = itertools.count(1)


def limited(lib, handler, limits="auto", *, hold=False, kind="AsyncClient", key=None, **options):
    """A client whose requests `handler` answers, with limits under it; what is refused comes back, unless it is held.

    It has a key of its own, unless it is given one: clients of one key share what they learn.
    """
    transport = handler if isinstance(handler, lib.AsyncBaseTransport) else lib.MockTransport(handler)
    headers = {"authorization": f"Bearer {key or next(_keys)}"}
    client = limit_client(getattr(lib, kind)(transport=transport, headers=headers), limits, **options)
    client._transport._rules = replace(client._transport._rules, hold=hold)
    return client


class Server:
    """Answers in the order of a script, then with 200; notes when each request came."""

    def __init__(self, lib, *script, latency=0.0, headers=None):
        self.lib, self.script, self.latency, self.headers = lib, list(script), latency, headers or {}
        self.times, self.bodies = [], []

    async def __call__(self, request):
        self.times.append(anyio.current_time())
        self.bodies.append(request.content)
        answer = self.script.pop(0) if self.script else None
        await anyio.sleep(self.latency)
        if isinstance(answer, Exception):
            raise answer
        return answer or self.lib.Response(200, json={}, headers=self.headers)


def refusal(lib, message="Rate limit reached. Please try again later.", code="rate_limit_exceeded", **headers):
    body = {"error": {"message": message, "type": "requests", "code": code}}
    return lib.Response(429, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def levels(limiter):
    return {name: limit.level for name, limit in limiter.statistics().limits.items()}


async def at_once(*calls):
    """The results of calls made at the same time."""
    results = [None] * len(calls)

    async def one(index, call):
        results[index] = await call

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(one, index, call)
    return results


def account(lib, simulation):
    """A simulated account, and the way to its server."""
    app = create_app(simulation)
    return app.state.account, lib.ASGITransport(app=app)
