"""`penstock run`: its exit codes and its help. What it does is in `running`, which is loaded when it is asked for."""

from __future__ import annotations

from penstock.cli.frame import app, command
from penstock.cli.run_options import PANELS, RunOptions

__all__ = ["EXIT_CODES", "app"]

EXIT_CODES = {
    0: "every row is answered",
    2: "the command cannot be carried out as it is: an option, a file, the environment, a disk that is full",
    3: "some rows failed; they are in the errors file",
    4: "the account takes no more requests; the same command resumes later",
    5: "the server cannot be reached; the same command resumes later",
    6: "--deadline, --max-cost or --cancel ended the run; the same command resumes",
    130: "interrupted; the same command resumes",
}

EPILOG = "Exit codes: " + ";\n\n".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."
"""An empty line begins a new one on the screen."""


@command("run", RunOptions, epilog=EPILOG, panels=PANELS)
def _run(options: RunOptions) -> int:
    """Send a file of requests as fast as the limits allow. The same command resumes a run that was interrupted."""
    from penstock.cli.running import carry_out

    return carry_out(options)
