"""Open the files that a command names, and refuse two names for one file.

Reading and writing them is up to `runner`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock._numbers import number_of
from penstock.cli.terminal import Fault
from penstock.errors import PenstockError
from penstock.runner.batch.parts import BatchJournal, batches_of
from penstock.runner.files import beside, is_special, journal_of
from penstock.runner.formats import FormatError, Prompt
from penstock.runner.source import Lines, open_source

if TYPE_CHECKING:
    from penstock.usage import Ledger
    from penstock.usage.ledger import DollarsOf

__all__ = [
    "Targets",
    "check_batch_files",
    "check_files",
    "check_place",
    "is_part_of",
    "is_stdout",
    "ledger_of",
    "open_lines",
    "places",
    "refuse_live_batches",
    "unwritten",
]


@dataclass(frozen=True, slots=True)
class Targets:
    """Where a run writes.

    Attributes:
        out: The results.
        errors: The errors.
        summary: The summary; None where nothing is put beside the results.
        journal: The journal; None: there is none.
        descriptor: The results are open already, as this: standard output.
        errors_descriptor: So are the errors, as this: standard error.
    """

    out: Path
    errors: Path
    summary: Path | None
    journal: Path | None
    descriptor: int | None = None
    errors_descriptor: int | None = None


@contextmanager
def open_lines(file: str, prompt: Prompt | None = None) -> Iterator[Lines]:
    """The rows of a file, open as long as the context.

    Raises:
        Fault: It cannot be read.
    """
    descriptor = None
    try:
        descriptor = open_source(file)
        lines = Lines(descriptor, name=file, prompt=prompt)
    except OSError as error:
        raise Fault(f"cannot read {file}: {error.strerror or error}") from None
    except FormatError as error:
        raise Fault(str(error)) from None
    except ValueError:
        raise Fault(f"cannot read {file!r}: no file has a name like that") from None
    try:
        yield lines
    finally:
        if descriptor:
            os.close(descriptor)


@contextmanager
def ledger_of(path: Path, prices: DollarsOf | None) -> Iterator[Ledger]:
    """The ledger that a run writes into; `unwritten` says what it could not.

    Raises:
        Fault: It cannot be written, or is a file of another kind.
    """
    from penstock.usage import Ledger
    from penstock.usage.file import open_writer

    try:
        open_writer(path.absolute(), 2.0).close()
    except (OSError, sqlite3.Error, PenstockError) as error:
        raise Fault(f"--ledger: cannot write {path}: {error}") from None
    ledger = Ledger(path, prices=prices)
    try:
        yield ledger
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of, `unwritten` says
            ledger.close()


def unwritten(ledger: Ledger) -> str:
    """What a ledger that is closed could not write, and why; "": nothing."""
    state = ledger.statistics()
    if not state.pending:
        return ""
    events = number_of(state.pending, "event is", "events are")
    return f"--ledger: {events} lost: {state.error or 'the disk is too slow'}"


def check_files(
    lines: Lines,
    out: Path,
    errors: Path | None,
    journal: Path | None,
    report: Path | None = None,
    ledger: Path | None = None,
    prices: Path | None = None,
    store: Path | None = None,
) -> Targets:
    """Where everything goes. Refuses to write over what is read, or one output over another; nothing is made yet.

    Where OUT is no regular file, nothing is put beside it: there is no summary and no journal, and the errors need a
    name of their own. Where it is standard output, they go to standard error.
    """
    named = {"--errors": errors, "--journal": journal, "--report": report, "--ledger": ledger, "--store": store}
    for option, path in named.items():
        if path is not None:
            check_place(path, option)
    for option, path in {"-o": out, "--errors": errors}.items():
        if path is not None and path.suffix in _COMPRESSED:
            raise Fault(
                f"{option}: {path} would not be compressed: a run goes on from its files, so they are plain lines; "
                f"leave {path.suffix} out, and compress them when the run is over"
            )
    if out in _STDOUTS:
        if sys.stdout is None or (errors is None and sys.stderr is None):  # its number is another file's by now
            raise Fault(f"{out}: standard output is closed, or standard error, where the errors go: name files")
        targets = Targets(out, errors or Path("standard error"), None, journal, 1, None if errors else 2)
        _keep_apart(lines, {"--prices": prices, **named})
        return targets
    if out.is_dir():
        raise Fault(f"cannot write {out}: Is a directory")
    special = out.parent in _SPECIAL or is_special(out)
    if errors is None and special:
        raise Fault(f"{out} is not a regular file, so nothing can be put beside it: give --errors too")
    errors, summary = errors or beside(out, ".errors.jsonl"), None if special else beside(out, ".summary.json")
    if journal is None and not special:
        journal = journal_of(out)
    _keep_apart(
        lines,
        {
            "--prices": prices, "-o": out, "--errors": errors, "the summary": summary, "the journal": journal,
            "--report": report, "--ledger": ledger, "--store": store,
        },
    )  # fmt: skip
    if not out.parent.is_dir():
        raise Fault(f"cannot write {out}: the folder {out.parent} is not there")
    if summary is not None and not os.access(summary.parent, os.W_OK):
        written = summary if out.exists() else out
        raise Fault(f"cannot write {written}: no permission to write in the folder {out.parent}")
    return Targets(out, errors, summary, journal)


def check_place(path: Path, option: str) -> None:
    """See that the file of an option can be where it was named."""
    if path == Path("-"):
        raise Fault(f"{option}: - stands for standard output with -o alone: name a file")
    if path.is_dir():
        raise Fault(f"cannot write {path}: Is a directory")
    if option in {"--journal", "--ledger", "--store"} and is_special(path):
        raise Fault(f"{option}: {path} is not a regular file, so nothing could be read there again")
    if option == "--store" and path.is_file() and not _may_be_a_database(path):
        raise Fault(f"--store: {path} is not an SQLite database")
    folder = _resolved(path).parent
    if not folder.is_dir():
        raise Fault(f"cannot write {path}: the folder {folder if path.is_symlink() else path.parent} is not there")
    if not path.exists() and not os.access(folder, os.W_OK):
        raise Fault(f"cannot write {path}: no permission to write in the folder {path.parent}")


def _may_be_a_database(path: Path) -> bool:
    """Whether a file begins as those of SQLite do, or is empty; or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(16) in {b"", b"SQLite format 3\0"}
    except OSError:
        return True


def _keep_apart(lines: Lines, named: Mapping[str, Path | None]) -> None:
    """See that no two of these are one file, nor the requests."""
    seen: dict[object, str] = {}
    for name, path in named.items():
        if path is None:
            continue
        # A terminal may well be read from and written to.
        is_file = lines.is_regular and lines.come_from(_resolved(path))
        other = "FILE" if is_file else seen.setdefault(_identity(path), name)
        if other != name and not (other == "FILE" and name == "--prices"):
            raise Fault(f"{other} and {name} are the same file: {path}")


def check_batch_files(lines: Lines, journal: Path | None) -> None:
    """See that the Batch API can do what is asked for with these files.

    Raises:
        Fault: It cannot.
    """
    if not lines.is_regular:
        raise Fault("--via batch reads rows that expire once more, and cannot in a pipe: put them into a file")
    if journal is None:
        raise Fault("--via batch needs results that it can go on from: -o must be a regular file")


def refuse_live_batches(out: Path) -> None:
    """Refuse to send rows that are in batches already.

    Raises:
        Fault: There are such rows.
    """
    path = batches_of(out)
    if not path.is_file():
        return
    journal = BatchJournal(path)
    journal.close()
    live = [part for part in journal.parts.values() if part.may_exist]
    if live:
        rows, batches = number_of(sum(map(len, live)), "row is", "rows are"), number_of(len(live), "batch", "batches")
        raise Fault(
            f"{rows} in {batches} of an earlier run, and would be paid twice: "
            "--via batch merges their answers first, --overwrite starts over"
        )


_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz"})
_STDOUTS = frozenset({Path("-"), Path("/dev/stdout"), Path("/dev/fd/1")})
_SPECIAL = frozenset({Path("/dev"), Path("/dev/fd")})
"""Folders of names for what was opened by others, regular files among them; no results are beside those."""


def _resolved(path: Path) -> Path:
    """Where a name leads to, links followed and `..` taken back, also where there is nothing yet."""
    try:
        return path.resolve()
    except RuntimeError:  # links that lead to each other, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def _identity(path: Path) -> object:
    """What tells a file from all others, under whatever names it goes."""
    path = _resolved(path)
    if not path.exists():
        return path
    status = path.stat()
    return status.st_dev, status.st_ino


def is_part_of(path: Path, database: Path) -> bool:
    """Whether a file is this database of SQLite's, or one of the files that it keeps beside it."""
    parts = (database.with_name(database.name + ending) for ending in ("", "-wal", "-shm", "-journal"))
    return _identity(path) in map(_identity, parts)


def is_stdout(out: Path) -> bool:
    """Whether standard output goes where the results go: its reader wants nothing else among them."""
    if out in _STDOUTS:
        return True
    try:
        status = os.fstat(1)
        return not stat.S_ISCHR(status.st_mode) and os.path.samestat(status, out.stat())
    except OSError:
        return False


def places(wanted: int, files_each: int, say: Callable[[str], None]) -> int:
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
