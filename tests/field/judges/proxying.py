"""LiteLLM's proxy in front of a service that answers everything.

    python -m judges.proxying PORT     the service, until it is told to end

A key says what it may do, `sk-RPM-TPM-NAME`: the proxy asks a function of ours, and so needs no database.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn
from judges.names import ANSWER, LATENCY
from judges.ports import free_port, wait_for
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

CONFIG = """
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
general_settings: {{custom_auth: keys.allowed}}
"""

KEYS = """
from litellm.proxy._types import UserAPIKeyAuth


async def allowed(request, api_key):
    rpm, tpm = (int(number) for number in api_key.split("-")[1:3])
    return UserAPIKeyAuth(api_key=api_key, rpm_limit=rpm, tpm_limit=tpm)
"""

USAGE = {"prompt_tokens": 10, "completion_tokens": 240}

HERE = Path(__file__).resolve().parent.parent


def app() -> Starlette:
    """The service."""

    async def complete(request: Request) -> JSONResponse:
        await request.body()
        await asyncio.sleep(LATENCY)
        return JSONResponse(ANSWER | {"usage": USAGE | {"total_tokens": sum(USAGE.values())}})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


@contextmanager
def proxied() -> Iterator[str]:
    """The base URL of a proxy, until the block ends."""
    service, proxy = free_port(), free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "config.yaml").write_text(CONFIG.format(port=service))
        (folder / "keys.py").write_text(KEYS)
        # Without the first it looks for prices in the network, and without the second it does not start.
        settings = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": f"sk-{secrets.token_urlsafe(32)}"}
        litellm = [Path(sys.executable).with_name("litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
        for command, where in (
            ([sys.executable, "-m", "judges.proxying", str(service)], HERE),
            ([*litellm, "--port", str(proxy), "--telemetry", "False"], folder),
        ):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            stack.callback(subprocess.Popen(command, cwd=where, env=os.environ | settings, **quiet).terminate)
        wait_for(service)
        wait_for(proxy)
        yield f"http://127.0.0.1:{proxy}/v1"


if __name__ == "__main__":
    uvicorn.run(app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", backlog=4096)
