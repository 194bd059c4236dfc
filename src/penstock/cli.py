"""The command line: `penstock run` and `penstock simulate`.

What is wrong with a command is said in one line on stderr, with exit code 2, before anything is sent. What the commands do
is done elsewhere (`runner`, `simulator`); here options are read, checked and put together, and exit codes are decided:

    0    every row is answered
    2    the command cannot be carried out as it is: an option, a file, the environment
    3    some rows failed; they are in the errors file
    4    the service takes no request of this account any more; the same command goes on later
    130  interrupted; the same command goes on

The key is read from the environment and nowhere else: a command line is seen by everybody on the machine.
"""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TextIO

import anyio
import httpx2
import typer

from penstock import Rate
from penstock import limits as _limits
from penstock.llm import tables, tokens
from penstock.runner import progress
from penstock.runner.engine import Limits, LimitsOf, Run, Settings
from penstock.runner.output import OutputError, Results, beside, write_summary
from penstock.runner.source import Lines, Row, open_source, read_row
from penstock.runner.summary import sentences, summarise

__all__ = ["main"]

OPENAI = "https://api.openai.com/v1"
SIMULATED = "requests=3500/min,tokens=90k/min"
"""Limits of `--simulate` unless given: the guide's, for chat."""

UNITS = ("requests", "tokens", "images")

app = typer.Typer(
    name="penstock",
    help="Run calls as fast as their limits allow, and never faster.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Fault(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with the command, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; those of the process unless given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=given or ["--help"], prog_name="penstock", standalone_mode=False)
    except (Fault, OutputError) as fault:
        return _complain(str(fault))
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Wrong options arrive as exceptions of the option parser, which typer carries inside since 0.16 and not before.
        show = getattr(error, "format_message", None)
        if show is not None:
            return _complain(f"{show().rstrip('.')} (see penstock --help)")
        if os.environ.get("PENSTOCK_TRACEBACK"):
            raise
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        _complain(f"a mistake of penstock's own: {type(error).__name__}: {error} (PENSTOCK_TRACEBACK=1 shows where)")
        return 1
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _penstock(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    if version:
        import importlib.metadata

        _print(importlib.metadata.version("penstock"))
        raise typer.Exit


@app.command("run")
def _run(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Requests, one JSON object a line; - for standard input.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where results go. If it exists, the run goes on from there.")
    ],
    errors: Annotated[
        Path | None, typer.Option(help="Where errors go, begun anew by each run. [default: OUT with .errors.jsonl]")
    ] = None,
    limits: Annotated[
        str | None, typer.Option(metavar="LIMITS", help='Such as "requests=3500/min,tokens=90k/min burst 20k".')
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(help="Take the limits that are published for this kind of account: tier-1, pay-as-you-go…"),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The server. [default: OPENAI_BASE_URL, else OpenAI's own]")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Send to an embedded server that enforces the limits.")
    ] = False,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Rows that are worked on at once.")] = 1000,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per row, the first included.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds an attempt may be silent for.")] = 600.0,
    latency: Annotated[float, typer.Option(min=0.0, help="With --simulate: median seconds until an answer.")] = 0.4,
    seed: Annotated[int, typer.Option(help="With --simulate: what latencies are drawn from.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin OUT anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> int:
    """Run a file of requests at full quota; resumable."""
    if limits is not None and account is not None:
        raise Fault("--limits and --account both say what the limits are: give one of them")
    given = None if limits in {None, "auto"} else parse_limits(limits or "")
    if simulate and base_url is not None:
        raise Fault("--simulate brings a server of its own: leave --base-url out")
    address = None if simulate else _address(base_url)
    key = "simulated" if simulate else _key()
    with ExitStack() as stack:
        lines = stack.enter_context(_open_lines(file))
        if given is None and account is not None:
            given = _of_first_row(lines, account) if simulate else None
        elif given is None and simulate and limits is None:
            given = parse_limits(SIMULATED)
        limits_of = _the_same(given) if given is not None else _learned if account is None else _published(account)
        simulation = _simulation(given or parse_limits(SIMULATED), latency, seed) if simulate else None
        try:
            errors, summary = _check_files(lines, out, errors)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise Fault(f"cannot write {error.filename or out}: {error.strerror or error}") from None
        results = stack.enter_context(Results(out, errors, overwrite=overwrite))
        say: Callable[[str], None] = (lambda _: None) if quiet else _say
        if results.repaired:
            say(f"{out} ended in the middle of a line: its last {results.repaired} bytes are taken off")
        if results.found:
            say(f"{results.found:,} rows are answered in {out} already and are skipped; --overwrite begins anew")
        if simulation is not None:
            address = stack.enter_context(_simulated(simulation))
        assert address is not None
        settings = Settings(
            base_url=address,
            api_key=key,
            cost=tokens.by_bytes,
            max_in_flight=_places(max_in_flight, 2 if simulate else 1, say),
            attempts=attempts,
            timeout=timeout,
            idle=math.inf if simulate else results.idle,
            direct=simulate,
        )
        try:
            run = Run(lines, results, settings, limits_of)
        except (
            ImportError,
            OSError,
            ValueError,
        ) as error:  # SOCKS without its package, a certificate file that is not there
            raise Fault(f"the proxies or certificates that the environment names cannot be used: {error}") from None
        numbers, code = _drive(run, lines, quiet=quiet)
    if not quiet:
        _print("\n".join(sentences(numbers)), sys.stderr if _is_stdout(out) else sys.stdout)
    try:
        if summary is not None:
            write_summary(summary, numbers)
    except OutputError as error:
        if (numbers["stopped"] or {}).get("code") != "output":  # else the full disk was named already
            _complain(str(error))
        code = code or 2
    return code


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
    simulation = _simulation(parse_limits(limits), latency, seed)
    try:
        statistics = simulator.run(simulation, host, port, on_ready=lambda url: _print(f"OPENAI_BASE_URL={url}"))
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while attempting")[0]  # which says the address once more
        raise Fault(f"cannot listen on {host}:{port}: {reason}") from None
    _print(f"{statistics.admitted} requests admitted, {sum(statistics.refused.values())} refused")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# What the options mean


def parse_limits(text: str) -> Limits:
    """Read `requests=3500/min,tokens=90k/min burst 20k`; a unit may come more than once.

    Raises:
        Fault: It is not that; or it names what is not counted.
    """
    found: dict[str, tuple[Rate, ...]] = {}
    # A comma may also stand before "burst", and inside no number.
    for part in re.split(r",(?!\s*burst\b)", text):
        unit, equals, rate = part.partition("=")
        unit = unit.strip()
        if not equals:
            raise Fault(f'--limits: cannot read {part.strip()!r}: write it like "requests=3500/min,tokens=90k/min"')
        if unit not in UNITS:
            raise Fault(f"--limits: {unit!r} is not counted; there are {', '.join(UNITS)}")
        try:
            limit = _limits.parse(rate)
            if not isinstance(limit, _limits.Rate):
                raise ValueError("a unit that is unlimited is left out")
            found[unit] = (*found.get(unit, ()), limit)
        except ValueError as error:
            raise Fault(f"--limits: {unit}: {error}") from None
    return found


def _the_same(limits: Limits) -> LimitsOf:
    return lambda _: ("", limits)


def _learned(model: str) -> tuple[str, None]:
    """The server's answers will tell the limits of each model."""
    return model, None


def _published(account: str) -> LimitsOf:
    """The published limits of each model. Dated snapshots share those of their model."""
    _check_account(account)
    known: dict[str, tuple[str, Limits | None]] = {}

    def limits_of(model: str) -> tuple[str, Limits | None]:
        if model not in known:
            known[model] = (tables.family(model), tables.lookup(model, account).limits)
        return known[model]

    return limits_of


def _of_first_row(lines: Lines, account: str) -> Limits:
    """The published limits of the first row's model: a simulated account has one set of them."""
    _check_account(account)
    if not lines.is_regular:
        raise Fault("--simulate with --account looks for the model in FILE first, and cannot in a pipe: give --limits")
    for number, line in lines.again():
        row = read_row(number, line, tokens.by_bytes)
        if isinstance(row, Row):
            try:
                return tables.lookup(row.model, account).limits
            except ValueError as error:
                raise Fault(f"--account: line {number}: {error}") from None
    return parse_limits(SIMULATED)  # nothing will be sent


def _check_account(account: str) -> None:
    known = (*tables.accounts(), *tables.tiers())
    if account not in known:
        raise Fault(f"--account: there is no {account!r}; there are {', '.join(known)}")


def _address(given: str | None) -> str:
    # An empty option is a variable that was not set: the requests, and the key, are not for whoever is the default.
    address = given if given is not None else os.environ.get("OPENAI_BASE_URL") or OPENAI
    where = "--base-url" if given is not None else "OPENAI_BASE_URL"
    try:
        url = httpx2.URL(address)
        is_web = url.scheme in {"http", "https"} and bool(url.host) and 0 <= (url.port or 0) <= 65535
    except httpx2.InvalidURL:
        is_web = False
    if not is_web or " " in address:
        raise Fault(f"{where}: {address!r} is no address of a server; write it like http://localhost:8000/v1")
    if "?" in address or "#" in address:
        raise Fault(
            f"{where}: {address!r} goes on after its path, where the paths of the requests are put: end it there"
        )
    return address


def _key() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise Fault("OPENAI_API_KEY is not set: export it (any value will do for a server that asks for none)")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Fault("OPENAI_API_KEY holds characters that no key has: look at how it was exported")
    return key


@contextmanager
def _open_lines(file: str) -> Iterator[Lines]:
    descriptor = None
    try:
        descriptor = open_source(file)
        lines = Lines(descriptor, name=file)
    except OSError as error:
        raise Fault(f"cannot read {file}: {error.strerror or error}") from None
    try:
        yield lines
    finally:
        if descriptor:
            os.close(descriptor)


def _check_files(lines: Lines, out: Path, errors: Path | None) -> tuple[Path, Path | None]:
    """Where errors and the summary go. Refuses to write over what is read, or one output over another.

    Where OUT is no regular file, nothing is put beside it: there is no summary, and the errors need a name of their own.
    """
    if out.is_dir():
        raise Fault(f"cannot write {out}: Is a directory")
    is_special = out.parent in _SPECIAL or (out.exists() and not out.is_file())
    if errors is None and is_special:
        raise Fault(f"{out} is no regular file, so nothing can be put beside it: give --errors too")
    errors, summary = errors or beside(out, ".errors.jsonl"), None if is_special else beside(out, ".summary.json")
    seen: dict[object, str] = {}
    for name, path in {"-o": out, "--errors": errors, "the summary": summary}.items():
        if path is None:
            continue
        # A terminal may well be read from and written to.
        other = (
            "FILE" if lines.is_regular and lines.come_from(path.resolve()) else seen.setdefault(_identity(path), name)
        )
        if other != name:
            raise Fault(f"{other} and {name} are the same file: {path}")
    if not out.parent.is_dir():
        raise Fault(f"cannot write {out}: the folder {out.parent} is not there")
    if summary is not None and not os.access(summary.parent, os.W_OK):
        raise Fault(f"cannot write {summary if out.exists() else out}: the folder {out.parent} is not ours to write to")
    return errors, summary


_SPECIAL = frozenset({Path("/dev"), Path("/dev/fd")})
"""Folders of names for what was opened by others, regular files among them; nobody's results are beside those."""


def _identity(path: Path) -> object:
    """What tells a file from all others, under whatever names it goes."""
    path = path.resolve()
    if not path.exists():
        return path
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_stdout(out: Path) -> bool:
    """Whether standard output goes where the results go: whoever reads them there wants nothing else among them."""
    try:
        status = os.fstat(1)
        return not stat.S_ISCHR(status.st_mode) and os.path.samestat(status, out.stat())
    except OSError:
        return False


def _places(wanted: int, files_each: int, say: Callable[[str], None]) -> int:
    """As many rows at once as there may be open files for; the system's soft limit is raised for it if it lets us."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    others = 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted * files_each + others
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            wanted = max(1, (soft - others) // files_each)
            say(f"the system allows {hard} open files: at most {wanted} rows are worked on at once")
    return wanted


def _simulator() -> Any:
    try:
        from penstock import simulator
    except ImportError as error:  # it says which extra brings what is missing
        raise Fault(str(error)) from None
    return simulator


def _simulation(limits: Limits, latency: float, seed: int) -> Any:
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
def _simulated(simulation: Any) -> Iterator[str]:
    with _simulator().serve(simulation) as server:
        # A server answers its first request late, and what is late at the beginning looks like less of a limit.
        httpx2.get(f"{server.base_url}/models", headers={"authorization": "Bearer simulated"}, trust_env=False)
        yield server.base_url


# ----------------------------------------------------------------------------------------------------------------------
# A run, watched and interruptible


def _drive(run: Run, lines: Lines, *, quiet: bool) -> tuple[dict[str, Any], int]:
    """Run it; return the summary and the exit code."""
    quiet = quiet or sys.stderr is None
    live = not quiet and progress.redraws(sys.stderr)
    with progress.Rich(sys.stderr) if live else nullcontext(None if quiet else progress.Plain(sys.stderr)) as display:

        async def go() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_obey_signals, run, quiet)
                if display is not None:
                    tasks.start_soon(progress.follow, run, lines, display)
                await run()
                tasks.cancel_scope.cancel()

        anyio.run(go)
    limits = {name: group.allowances for name, group in run.groups.items()}
    stopped = run.stopped
    why = None if stopped is None else {"code": stopped.code, "message": stopped.message}
    numbers = summarise(run.counts, limits, run.concurrency, stopped=why)
    if stopped is None:
        return numbers, 3 if run.counts.failed else 0
    if stopped.code != "interrupted":
        _complain(stopped.message)
    return numbers, {"interrupted": 130, "account": 4}.get(stopped.code, 2)


async def _obey_signals(run: Run, quiet: bool) -> None:
    """First Ctrl-C: what was sent may come back. Second: it may not. A polite kill is the same."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if run.stopped is None:
                run.stop("interrupted", "interrupted")
                if not quiet:
                    _say(f"interrupted: waiting for {run.counts.in_flight} answers; Ctrl-C again drops them")
            else:
                run.abandon()


def _say(text: str) -> None:
    _print(f"penstock: {text}", sys.stderr)


def _print(text: str, file: TextIO | None = None) -> None:
    """Print, if anybody is there to read it: a closed pipe or terminal is no reason to fail."""
    file = file or sys.stdout
    if file is None:  # closed before we began
        return
    try:
        encoding = file.encoding or "utf-8"
        file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        file.flush()
    except (OSError, ValueError):
        # Python would try once more at its end, and complain.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), file.fileno())


def _complain(text: str) -> int:
    """Say in one line what is wrong; return the exit code for it."""
    _say(" ".join(text.split()))
    return 2
