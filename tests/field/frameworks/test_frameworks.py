"""Each framework keeps the limits with the lines that docs/your-framework.md has for it."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from itertools import count
from pathlib import Path

import anyio
import pytest

from penstock import Limiter

sys.path.insert(0, str(Path(__file__).parents[1] / "sdks"))
sys.path.insert(0, str(Path(__file__).parent))
from conftest import Field
from service import service
from uses import USES

CALLS, RUNS = 100, 4
TRUE = "3000/min burst 10"  # the burst of the service is 60: a busy machine bunches calls
PAGE = Path(__file__).resolve().parents[3] / "docs/your-framework.md"
USE = USES[Field.environment]


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    """Whatever asks for an address that is not this machine's fails the test."""
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, *more, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in {None, "", "127.0.0.1", "::1", "localhost"}:
            asked.append(name)
            raise socket.gaierror(socket.EAI_NONAME, "there is no network here")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    assert asked == []


def lines_of(section):
    """The blocks of a section of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


async def many(ask):
    """The errors of as many calls at once."""
    errors = []

    async def one(number):
        try:
            await ask(f"question {number}")
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for number in range(CALLS):
            group.start_soon(one, number)
    return errors


def measured(prepared):
    """Errors, 429s, answers, charged requests, and seconds."""
    limiter = Limiter(requests=TRUE, tokens="1M/min")
    with service() as server:
        os.environ |= {
            **dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY"), "key"),
            **dict.fromkeys(("OPENAI_BASE_URL", "OPENAI_API_BASE"), server.base_url),
            "ANTHROPIC_BASE_URL": server.base_url.removesuffix("/v1"),
        }

        async def run():
            names = {"limiter": limiter}
            exec("from penstock.llm import limit_client", names)
            for block in lines_of(USE.section):
                exec(compile(block, PAGE.name, "exec"), names)
            ask = prepared(names)
            began = time.monotonic()
            errors = await many(ask)
            return errors, time.monotonic() - began

        errors, took = anyio.run(run)
    saw = server.statistics()
    return errors, sum(saw.refused.values()), saw.answered, limiter.statistics().granted, took


@pytest.mark.parametrize("name", USE.asks)
@pytest.mark.filterwarnings("ignore")  # those of frameworks are their own
def test_100_calls_at_once_over_a_limit_that_binds(name, field):
    for run in count(1):  # a machine that does other work bunches calls
        errors, refused, answered, granted, took = measured(USE.asks[name])
        assert errors == []
        if refused <= 2 or run == RUNS:
            break
    assert refused <= 2
    assert answered == CALLS
    assert granted == answered + refused
    columns = {"errors": 0, "429s": refused, "charged": granted, "seconds": f"{took:.1f}", "runs": run}
    field.row(f"{field.version(name)}{USE.beside(name, field)}", columns)
