"""An OpenAI-shaped server whose limits libraries of others decide.

    python -m judges.serving PORT     serves on loopback until it is told to end

The path says which judge and what it tells, `/JUDGE/STYLE/RUN/v1/chat/completions`; the first request of a run makes
its judge. `/ledgers/RUN` is what it decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import uvicorn
from judges.judging import JUDGES, Ledger, headers_of
from judges.names import AMOUNT, ANSWER, LATENCY, REFUSAL, SECONDS
from judges.ports import free_port, wait_for
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def app() -> Starlette:
    """The server, with judges that have decided nothing yet."""
    ledgers: dict[str, Ledger] = {}

    async def complete(request: Request) -> JSONResponse:
        judge, style, run = (request.path_params[name] for name in ("judge", "style", "run"))
        with contextlib.suppress(ClientDisconnect):
            await request.body()
        ledger = ledgers.get(run)
        if ledger is None:
            ledger = ledgers[run] = Ledger(JUDGES[judge](AMOUNT, SECONDS))
        verdict = ledger.decide()
        headers = headers_of(verdict, style)
        if not verdict.admitted:
            return JSONResponse(REFUSAL, 429, headers)
        await asyncio.sleep(LATENCY)
        return JSONResponse(ANSWER, 200, headers)

    async def totals(request: Request) -> JSONResponse:
        ledger = ledgers[request.path_params["run"]]
        return JSONResponse({"admitted": ledger.admitted, "refused": ledger.refused})

    return Starlette(
        routes=[
            Route("/{judge}/{style}/{run}/v1/chat/completions", complete, methods=["POST"]),
            Route("/ledgers/{run}", totals),
        ]
    )


def address(port: int, judge: str, style: str, run: str) -> str:
    """The base URL of one run."""
    return f"http://127.0.0.1:{port}/{quote(judge)}/{style}/{run}/v1"


@contextmanager
def served() -> Iterator[int]:
    """The server in a process of its own, on a port that was free."""
    port = free_port()
    here = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-m", "judges.serving", str(port)], cwd=here) as server:
        try:
            wait_for(port)
            yield port
        finally:
            server.terminate()


if __name__ == "__main__":
    uvicorn.run(
        app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", backlog=4096, timeout_keep_alive=60
    )
