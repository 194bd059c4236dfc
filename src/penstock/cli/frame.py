"""The application of the command line: each command adds itself to it."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock import __version__
from penstock.cli.terminal import write

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    name="penstock",
    help="Run calls as fast as their limits allow, and never faster.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _penstock(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    if version:
        write(__version__)
        raise typer.Exit
