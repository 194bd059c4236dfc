"""What the pages of reference are generated from: docstrings, the options of the command line, and exit codes.

Docstrings are Markdown, with the sections that Google's style has. Sphinx reads reStructuredText, so what differs is
rewritten.

    ```{eval-rst}
    .. commands::              every command of `penstock`, its options, their defaults, and its exit codes
    ```
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, get_args, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer import Typer
from typer.models import OptionInfo

from penstock.cli.commands import app as command_line
from penstock.cli.frame import EXIT_CODES
from penstock.cli.run import EXIT_CODES as CODES_OF_RUN

__all__ = ["setup"]

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
CODE = re.compile(r"(?<![`\w:])`([^`\n]+)`(?!`)(?=(\w?))")


def _as_restructured_text(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring in place, before napoleon reads its sections."""
    rewritten: list[str] = []
    section = code = False
    for line in lines:
        indented = line.startswith("    ")
        after_blank = bool(rewritten) and not rewritten[-1].strip()
        if line.strip() and not indented:
            section = bool(SECTION.match(line))
            code = False
        if indented and not section and after_blank and not code:
            rewritten += ["::", ""]
            code = True
        rewritten.append(line if code else CODE.sub(_as_literal, line).replace("**cost", r"\*\*cost"))
    lines[:] = rewritten


def _as_literal(code: re.Match[str]) -> str:
    return f"``{code[1]}``" + ("\\ " if code[2] else "")  # what follows right behind it must be told apart


class Commands(SphinxDirective):
    """Every command of the command line: its options as the source has them, their defaults, and the exit codes."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Write the text and let Sphinx read it."""
        lines: list[str] = []
        for name, callback in sorted(_commands_of(command_line)):
            lines += [f".. rubric:: penstock {name}", "", _escaped(inspect.getdoc(callback) or ""), ""]
            signature = inspect.signature(callback, eval_str=True)
            lines += _table([_row_of(parameter) for parameter in signature.parameters.values()])
        for commands, codes in (("every command", EXIT_CODES), ("penstock run", CODES_OF_RUN)):
            lines += [f".. rubric:: Exit codes of {commands}", ""]
            lines += _table([(f"``{code}``", _escaped(meaning)) for code, meaning in codes.items()])
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "commands"), 0, container)
        return list(container.children)


def _commands_of(app: Typer, before: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command's name, with that of its group before it, and its function."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{before}{command.name}", command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from _commands_of(group.typer_instance, f"{before}{group.name} ")


def _row_of(parameter: inspect.Parameter) -> tuple[str, str]:
    """The names of an option or argument, and what is said of it."""
    kind, info = get_args(parameter.annotation)
    told, default = _escaped(info.help or ""), parameter.default
    if not isinstance(info, OptionInfo):
        return f"``{info.metavar or parameter.name.upper()}``", told
    # Of an annotation, the first name that is given stands where a default would.
    given = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    names = ", ".join(given or ["--" + parameter.name.replace("_", "-")])
    choices = [str(each) for part in (kind, *get_args(kind)) if get_origin(part) is Literal for each in get_args(part)]
    value = info.metavar or " | ".join(choices)
    if default is not parameter.empty and default is not None and default is not False and default != "":
        told += f" Default: ``{default:g}``." if isinstance(default, float) else f" Default: ``{default}``."
    elif default is parameter.empty:
        told += " Must be given."
    return f"``{names} {value}".rstrip() + "``", told


def _escaped(text: str) -> str:
    return re.sub(r"([*`|\\_])", r"\\\1", " ".join(text.split()))


def _table(rows: list[tuple[str, str]]) -> list[str]:
    lines = [".. list-table::", "   :widths: 30 70", ""]
    for first, second in rows:
        lines += [f"   * - {first}", f"     - {second}"]
    return [*lines, ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=100)  # before napoleon
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
