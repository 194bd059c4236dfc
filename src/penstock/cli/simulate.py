"""`penstock simulate`, and the embedded server of `penstock run --simulate`."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from penstock.cli.frame import app
from penstock.cli.options import SIMULATED, Fault, parse_limits
from penstock.cli.terminal import write
from penstock.runner.group import Limits

__all__ = ["simulated", "simulation_of"]


@app.command("simulate")
def _simulate(
    limits: Annotated[str, typer.Option(metavar="LIMITS", help="What the server enforces.")] = SIMULATED,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    latency: Annotated[float, typer.Option(min=0.0, help="Median seconds until an answer.")] = 0.4,
    seed: Annotated[int, typer.Option(help="What latencies are drawn from.")] = 0,
) -> int:
    """Serve an OpenAI-compatible API with faithful limits, until Ctrl-C."""
    simulator = _simulator()
    simulation = simulation_of(parse_limits(limits), latency, seed)
    try:
        statistics = simulator.run(simulation, host, port, on_ready=lambda url: write(f"OPENAI_BASE_URL={url}"))
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while attempting")[0]  # which says the address once more
        raise Fault(f"cannot listen on {host}:{port}: {reason}") from None
    write(f"{statistics.admitted} requests admitted, {sum(statistics.refused.values())} refused")
    return 0


def _simulator() -> Any:
    try:
        from penstock import simulator
    except ImportError as error:  # it says which extra brings what is missing
        raise Fault(str(error)) from None
    return simulator


def simulation_of(limits: Limits, latency: float, seed: int) -> Any:
    """What an embedded server simulates.

    Raises:
        Fault: It cannot.
    """
    simulator = _simulator()
    if not math.isfinite(latency):
        raise Fault(f"--latency: {latency} is no number of seconds until an answer; write it like 0.4")
    if "images" in limits:
        raise Fault("--limits: the simulated server counts requests and tokens, not images")
    return simulator.Simulation(
        requests=limits.get("requests"),
        tokens=limits.get("tokens"),
        latency=simulator.Latency(median=latency, sigma=0.4),
        seed=seed,
    )


@contextmanager
def simulated(simulation: Any) -> Iterator[str]:
    """An embedded server, as long as the context; its base URL."""
    with _simulator().serve(simulation) as server:
        # A server answers its first request late, and what is late at the beginning looks like less of a limit.
        request = urllib.request.Request(  # noqa: S310 - our own address
            f"{server.base_url}/models", headers={"authorization": "Bearer simulated"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            answer.read()
        yield server.base_url
