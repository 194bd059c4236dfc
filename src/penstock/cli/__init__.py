"""The command line: `penstock run`, `plan`, `errors`, `report`, `quota`, `watch` and `simulate`.

The key is read from the environment and nowhere else: every user of a machine can see its command lines.

    frame       the application, to which each command adds itself;  commands: all of them
    run         `penstock run`;  run_options: its options;  running: what it does
    requests    a run that sends each row by itself;  batch: one by the Batch API;  outcome: what both have in common
    plan, report, quota, watch, simulate: the commands of these names
    options     what options mean: limits, servers, changes of requests;  shared: `--store` and `--shard`
    files       the files that a command names
    terminal    messages to people
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import typer

from penstock.cli.terminal import Fault, complain
from penstock.errors import PenstockError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Without the program's name; those of the process unless given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        app = _app_for(given[0] if given else "")
        code = app(args=given or ["--help"], prog_name="penstock", standalone_mode=False)
    except (Fault, PenstockError) as fault:
        return complain(str(fault))
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError:
        raise  # `__main__` says what to install
    except Exception as error:
        # Wrong options arrive as exceptions of the option parser, which typer carries inside since 0.16 and not before.
        show = getattr(error, "format_message", None)
        if show is not None:
            context = getattr(error, "ctx", None)  # of the command whose options are wrong
            path = "penstock" if context is None else context.command_path
            return complain(f"{show().rstrip('.')} (see {path} --help)")
        if os.environ.get("PENSTOCK_TRACEBACK"):
            raise
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.filename is not None:  # a name that is too long, a folder of others
            return complain(f"{error.filename}: {error.strerror or error}")
        if isinstance(error, UnicodeEncodeError) and any(map(_is_no_text, given)):
            return complain(
                "an argument holds a byte that is not UTF-8: look at how the terminal and the shell encode it"
            )
        complain(f"a mistake of penstock's own: {type(error).__name__}: {error} (PENSTOCK_TRACEBACK=1 shows where)")
        return 1
    return code if isinstance(code, int) else 0


def _is_no_text(argument: str) -> bool:
    """Whether it holds bytes that stand for no character; Python carries them along as lone surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in argument)


def _app_for(command: str) -> typer.Typer:
    """The application with one command, or with all of them where it is none, as for help: each loads what it needs."""
    match command:
        case "run":
            from penstock.cli.run import app
        case "plan" | "errors":
            from penstock.cli.plan import app
        case "simulate":
            from penstock.cli.simulate import app
        case _:
            from penstock.cli.commands import app
    return app
