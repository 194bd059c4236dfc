"""`penstock run`: its exit codes and its help. What it does is in `running`, which is loaded when it is asked for."""

from __future__ import annotations

from penstock.cli.frame import app, command
from penstock.cli.run_options import RunOptions

__all__ = ["EXIT_CODES", "app"]

EXIT_CODES = {
    0: "every row is answered",
    2: "the command cannot be carried out as it is: an option, a file, the environment, a disk that is full",
    3: "some rows failed; they are in the errors file",
    4: "the account takes no request any more; the same command goes on later",
    5: "the server cannot be reached; the same command goes on later",
    6: "--deadline, --max-cost or --cancel ended it; the same command goes on",
    130: "interrupted; the same command goes on",
}

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


@command("run", RunOptions, epilog=EPILOG)
def _run(options: RunOptions) -> int:
    """Run a file of requests at full quota; resumable."""
    from penstock.cli.running import carry_out

    return carry_out(options)
