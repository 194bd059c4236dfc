"""`penstock simulate`, and the embedded server of `penstock run --simulate`. The server itself is in `simulator`."""

from __future__ import annotations

import inspect
import math
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer

from penstock._numbers import number_of
from penstock.cli.frame import app
from penstock.cli.limits import SIMULATED, UNITS, check_window, server_limits
from penstock.cli.terminal import Fault, write
from penstock.limits import Calendar, Rate, parse, sliding
from penstock.runner.place import Limits

__all__ = ["app", "simulated", "simulation_of"]


@app.command("simulate")
def _simulate(
    limits: Annotated[
        str,
        typer.Option(
            metavar="LIMITS",
            help="Limits of requests, tokens, images, output_tokens, each like 60/min, 60/min burst 5, 60/min window "
            "or 60/min sliding. A limit with hidden after it is in no header.",
        ),
    ] = SIMULATED,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    latency: Annotated[float, typer.Option(min=0.0, help="Median seconds until an answer.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Seed of the random latencies.")] = 0,
    dialect: Annotated[
        Literal["openai", "azure", "anthropic", "groq", "mistral", "together", "gemini", "cohere", "vllm"],
        typer.Option(help="Whose headers, refusals and errors the server imitates."),
    ] = "openai",
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ODDS", help="What goes wrong, and how often: server_error=0.02, gzip=1…"),
    ] = None,
    charge: Annotated[
        str,
        typer.Option(
            metavar="RULE", help="What a request is charged: input, sum or largest; with a factor: input*1.15."
        ),
    ] = "input",
    stranger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAKES", help="Another client of the account: requests=100, tokens=30000, begin=60, end=120."
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHEN", help="How the limits change: at=60, factor=0.5. With unit=tokens only that limit."
        ),
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="Requests that are worked on at once; one more is refused.")
    ] = None,
    tell: Annotated[
        Literal["openai", "remaining", "none"], typer.Option(help="What the headers of answers say about the limits.")
    ] = "openai",
    hints: Annotated[
        Literal["all", "retry-after", "date", "duration", "milliseconds", "message", "none"],
        typer.Option(help="How a refusal says how long to wait."),
    ] = "all",
) -> int:
    """Serve an OpenAI-compatible API that enforces real limits, until Ctrl-C or SIGTERM."""
    simulator = _simulator()
    simulation = simulation_of(
        server_limits(limits, dict.fromkeys((*UNITS, "output_tokens"), _limit)),
        latency,
        seed,
        faults=_made("--fault", simulator.Faults, [",".join(fault or ())]),
        charge=_made("--charge", lambda: simulator.charge_rule(charge)),
        strangers=tuple(_made("--stranger", simulator.Stranger, [text]) for text in stranger or ()),
        changes=tuple(_made("--change", simulator.Change, [text]) for text in change or ()),
        in_flight=in_flight,
        headers=tell,
        hints=hints,
        dialect=dialect,
    )
    try:
        statistics = simulator.run(simulation, host, port, on_ready=lambda url: write(f"OPENAI_BASE_URL={url}"))
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while attempting")[0]  # which says the address once more
        raise Fault(f"cannot listen on {host}:{port}: {reason}") from None
    write(f"{number_of(statistics.admitted, 'request')} admitted, {sum(statistics.refused.values())} refused")
    return 0


def _limit(text: Any) -> Any:
    """A limit out of `60/min`, `60/min window`, `10/10s sliding hidden`.

    Raises:
        ValueError: It cannot be read.
    """
    simulator = _simulator()
    check_window(text)
    words = text.split() if isinstance(text, str) else []
    kinds: set[str] = set()
    while words and words[-1] in {"window", "sliding", "hidden"}:
        kinds.add(words.pop())
    limit = parse(" ".join(words) if words else text)
    if {"window", "sliding"} <= kinds:
        raise ValueError(f"{text.strip()!r}: write window or sliding, not both")
    if not isinstance(limit, Rate):
        raise ValueError("leave out a unit that is unlimited")
    if kinds & {"window", "sliding"}:
        kind: Any = simulator.Window if "window" in kinds else sliding
        limit = kind(limit.amount, limit.per)
    return simulator.Hidden(limit) if "hidden" in kinds else limit


def _made(option: str, kind: Callable[..., Any], texts: Sequence[str] = ()) -> Any:
    """A value out of `name=number,name=number`.

    Raises:
        Fault: It cannot be read.
    """
    values: dict[str, Any] = {}
    names = inspect.signature(kind).parameters
    for pair in filter(None, (part.strip() for text in texts for part in text.split(","))):
        name, value = (part.strip() for part in pair.partition("=")[::2])
        if name not in names:
            raise Fault(f"{option}: there is no {name!r}; there are {', '.join(names)}")
        if name in values:
            raise Fault(f"{option}: {name} is given twice")
        try:
            values[name] = value if name == "unit" else float(value)
        except ValueError:
            raise Fault(f"{option}: cannot read {pair!r}: write it like name=0.5") from None
    missing = [name for name, each in names.items() if each.default is each.empty and name not in values]
    if missing:
        raise Fault(f"{option}: it needs {' and '.join(f'{name}=…' for name in missing)}")
    after = values.get("insufficient_quota_after")
    if after is not None and after.is_integer():
        values["insufficient_quota_after"] = int(after)
    try:
        return kind(**values)
    except ValueError as error:
        raise Fault(f"{option}: {error}") from None


def _simulator() -> Any:
    try:
        from penstock import simulator
    except ImportError as error:  # it says which extra brings what is missing
        raise Fault(str(error)) from None
    return simulator


def simulation_of(limits: Limits, latency: float, seed: int, **more: Any) -> Any:
    """What an embedded server simulates.

    Raises:
        Fault: It cannot.
    """
    simulator = _simulator()
    if not math.isfinite(latency):
        raise Fault(f"--latency: {latency} is not a number of seconds until an answer; write it like 0.4")
    by_clock = simulator.Window
    kept = {
        unit: [by_clock(each.amount, each.per) if isinstance(each, Calendar) else each for each in several]
        for unit, several in limits.items()
    }
    return simulator.Simulation(
        requests=kept.get("requests"),
        tokens=kept.get("tokens"),
        output=kept.get("output_tokens"),
        images=kept.get("images"),
        latency=simulator.Latency(median=latency, sigma=0.4),
        seed=seed,
        **more,
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
