"""A client of a simulated service in this process: no sockets, so virtual time works."""

from __future__ import annotations

import httpx2

from penstock.simulator import Simulation, create_app

CHAT = "/v1/chat/completions"


class Client:
    """A client of a simulated service, in-process."""

    def __init__(self, **simulation):
        self.app = create_app(Simulation(**simulation))
        self.account = self.app.state.account
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.app), base_url="http://simulated", headers={"authorization": "Bearer k"}
        )

    async def post(self, path, body, **more):
        return await self.http.post(path, json=body, **more)

    async def ask(self, text="hello", **more):
        return await self.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": text}], **more})


def limits_of(reply):
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in reply.headers.items()
        if name.startswith("x-ratelimit-")
    }
