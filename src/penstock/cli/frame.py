"""The application of the command line: each command adds itself to it.

A command of many options is a function of one dataclass: each field is an argument or an option, and what the command
does gets all of them as one value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import typer

from penstock import __version__
from penstock.cli.terminal import write

__all__ = ["EXIT_CODES", "app", "command"]

EXIT_CODES = {
    0: "it is done",
    1: "a mistake of penstock's own; PENSTOCK_TRACEBACK=1 shows where",
    2: "the command cannot be carried out as it is: an option, a file, an extra that is missing",
    130: "interrupted",
}
"""Those of every command. Where a command has others, its help says so."""

_Options = TypeVar("_Options")

app: typer.Typer = typer.Typer(
    name="penstock",
    help="Run calls as fast as their limits allow, and never faster.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _penstock(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        write(__version__)
        raise typer.Exit


def command(
    name: str, options: type[_Options], *, epilog: str = "", panels: Mapping[str, Sequence[str]] | None = None
) -> Callable[[Callable[[_Options], int]], Callable[[_Options], int]]:
    """Add a command: a decorator of a function that takes its options and returns an exit code.

    Args:
        name: What it is called on the command line.
        options: A dataclass, each of whose fields is `Annotated` with a `typer.Argument` or a `typer.Option`.
        epilog: What its help says at the end.
        panels: The headings of its help, and the names of the fields below each.
    """
    hints = get_type_hints(options, include_extras=True)
    for heading, names in (panels or {}).items():
        for each in names:
            get_args(hints[each])[1].rich_help_panel = heading
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(cast("Any", options))
    ]

    def add(function: Callable[[_Options], int]) -> Callable[[_Options], int]:
        def called(**given: Any) -> int:
            return function(options(**given))

        called.__doc__, called.__annotations__ = function.__doc__, hints
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name, epilog=epilog)(called)
        return function

    return add
