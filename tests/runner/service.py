"""What the runner's tests share: a simulated service in this process, and a run over some rows, in virtual time."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import anyio
import httpx2

from penstock import clock, simulator
from penstock.llm.tokens import by_bytes
from penstock.runner.client import Lost, Reply
from penstock.runner.engine import Run
from penstock.runner.output import Results, beside
from penstock.runner.place import Place
from penstock.runner.settings import Settings
from penstock.runner.source import Lines, read_row
from penstock.runner.summary import summarise
from penstock.simulator import Simulation

LIMITS = {"requests": "900/min burst 20", "tokens": "90k/min burst 6000"}


def chat(number, size=100, model="m"):
    return {
        "custom_id": f"row-{number}",
        "body": {"model": model, "messages": [{"role": "user", "content": f"{number:0{size}}"}]},
    }


ANSWER = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()


class Service:
    """A client whose server is the simulated service, and a record of what it was asked.

    `script` answers in its stead as long as it lasts: replies as (status, headers, content), or what is raised:
    `NotSent` before the request leaves, all others after. `answer` is a function that does so for ever. `way` is how
    many seconds a request takes to get there.
    """

    def __init__(self, simulation=None, script=(), answer=None, way=0.0):
        self.app = simulator.create_app(simulation or Simulation())
        self.account = self.app.state.account
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app),
            base_url="http://test",
            headers={"authorization": "Bearer key"},
        )
        self.script = list(script)
        self.answer = answer
        self.way = way
        self.asked = []
        self.bodies = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def connect(self):
        """What happens before a request leaves; may raise `NotSent`."""

    async def send(self, path, body, left):
        await self.connect()
        said = self.script.pop(0) if self.script else None
        if said is None and self.answer is not None:
            said = self.answer(json.loads(body))
        if isinstance(said, Exception) and not isinstance(said, Lost):
            raise said
        left()
        self.bodies.append(json.loads(body))
        self.asked.append((clock.now(), self.bodies[-1]["messages"][0]["content"].lstrip("0") or "0"))
        if isinstance(said, Exception):
            raise said
        if said is not None:
            status, headers, content = said
            return Reply(status, headers, content)
        await anyio.sleep(self.way)
        response = await self.http.post(path, content=body)
        return Reply(response.status_code, response.headers, response.content)


@contextmanager
def prepared(
    folder,
    rows,
    service,
    *,
    limits=LIMITS,
    others=(),
    overwrite=False,
    order="completed",
    changed=None,
    servers=(),
    **settings,
):
    """A run over these rows; its results are read with `.results()` and `.errors()`."""
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    descriptor = os.open(source, os.O_RDONLY)
    rates = Simulation(**limits).limits
    chosen = Settings(**{"cost": by_bytes, **settings})
    said = []
    try:
        errors = beside(out, ".errors.jsonl")
        with Results(out, errors, overwrite=overwrite, order=order, changed=changed, servers=servers) as results:
            places = [Place(each, lambda _: ("", rates), f"server-{n}") for n, each in enumerate((service, *others), 1)]
            run = Run(Lines(descriptor), results, chosen, places, say=said.append)

            def only_failed():
                run._settings = dataclasses.replace(chosen, only=results.failed)

            yield SimpleNamespace(
                run=run,
                only_failed=only_failed,
                all_results=results,
                examine=lambda: results.examine(
                    run._lines, partial(read_row, cost=by_bytes, change=chosen.change, salt=chosen.salt), chosen.salt
                ),
                said=said,
                out=out,
                counts=run.counts,
                results=lambda: [json.loads(line) for line in out.read_text().splitlines()],
                errors=lambda: [json.loads(line) for line in beside(out, ".errors.jsonl").read_text().splitlines()],
                summary=lambda: summarise(
                    run.counts, {name: group.allowances for name, group in run.groups.items()}, run.concurrency
                ),
            )
    finally:
        os.close(descriptor)


async def soon(seconds, act):
    """Do something a little later, while something else goes on."""
    await anyio.sleep(seconds)
    return act()
