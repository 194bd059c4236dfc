"""What an installed extra must be able to do, with only the wheel and the packages that the extra brings.

python -I tools/smoke.py EXTRA
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from pathlib import Path

SCRIPT = Path(sysconfig.get_path("scripts"), "penstock" + (".exe" if os.name == "nt" else ""))
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


def base() -> None:
    """The core needs anyio alone, and every public name can be loaded with it."""
    import penstock

    daily = penstock.calendar(2_000_000, "day")  # needs time zone data, also where the system has none
    limiter = penstock.Limiter(requests="100/s", tokens=["90k/min", daily], calls=penstock.in_flight(2))

    async def call() -> None:
        async with limiter(tokens=5) as permit:
            permit.settle(tokens=3)

    asyncio.run(call())
    with limiter(tokens=5):
        assert limiter.statistics().granted == 2
    for name in penstock.__all__:
        getattr(penstock, name)
    said = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == penstock.__version__, said


def openai() -> None:
    """A client of the SDK takes a limiter; a wait above `max_wait` is the SDK's own error."""
    from openai import AsyncOpenAI, RateLimitError

    from penstock import Limiter
    from penstock.openai import limit_client

    limiter = Limiter(requests="1/h", tokens="90k/min")
    client = limit_client(
        AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", max_retries=0), limits=limiter, max_wait=0.1
    )
    limiter.acquire_nowait(tokens=1)

    async def call() -> None:
        try:
            await client.chat.completions.create(**HELLO)
        except RateLimitError as error:
            assert "penstock" in str(error) or "requests" in str(error), error  # noqa: PT017
        else:
            raise AssertionError("no limit held")

    asyncio.run(call())


def redis() -> None:
    """A store that is not there is said to be so, within the time asked for."""
    from penstock import Limiter, PenstockError
    from penstock.stores import RedisStore

    async def call() -> None:
        with contextlib.closing(RedisStore("redis://127.0.0.1:9/0")) as store:
            limiter = Limiter(requests="10/s", name="smoke", store=store)
            with contextlib.suppress(PenstockError):
                await limiter.acquire(max_wait=1)
                raise AssertionError("granted by nobody")

    asyncio.run(call())


def otel() -> None:
    """Without an SDK of OpenTelemetry, telemetry is silent and the calls go on."""
    from penstock import Limiter
    from penstock.otel import Telemetry

    telemetry = Telemetry()
    limiter = Limiter(requests="10/s", name="smoke", on_event=telemetry)
    telemetry.watch(limiter)
    with limiter:
        assert limiter.statistics().granted == 1


def cli() -> None:
    """The commands show their help, with defaults, and plan a file."""
    said = subprocess.run([SCRIPT, "run", "--help"], capture_output=True, text=True, check=True)
    assert "default" in said.stdout, said.stdout
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requests.jsonl")
        row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": HELLO}
        file.write_text(json.dumps(row) + "\n")
        subprocess.run(
            [SCRIPT, "plan", file, "--limits", "requests=10/s,tokens=90k/min"], check=True, capture_output=True
        )
    from penstock import runner

    assert callable(runner.run)


def simulator() -> None:
    """A server of ours answers over a socket."""
    from penstock import simulator as simulated

    with simulated.serve(simulated.Simulation(requests="100/s", tokens="90k/min")) as server:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{server.base_url}/chat/completions",
            json.dumps(HELLO).encode(),
            {"content-type": "application/json", "authorization": "Bearer any"},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
            assert json.load(io.TextIOWrapper(reply))["choices"]


def everything() -> None:
    """All of them at once, and a file that is run."""
    for check in (openai, redis, otel, cli, simulator):
        check()
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "requests.jsonl"), Path(folder, "out.jsonl")
        file.write_text("".join(json.dumps({"body": HELLO}) + "\n" for _ in range(5)))
        subprocess.run([SCRIPT, "run", file, "-o", out, "--simulate"], check=True, capture_output=True)
        assert len(out.read_text().splitlines()) == 5


CHECKS = {
    "": [],
    "openai": [openai],
    "redis": [redis],
    "cli": [cli],
    "simulator": [simulator],
    "otel": [otel],
    "all": [everything],
}

if __name__ == "__main__":
    extra = sys.argv[1] if len(sys.argv) > 1 else ""
    base()
    for check in CHECKS[extra]:
        check()
