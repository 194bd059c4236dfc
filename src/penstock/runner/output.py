"""The files a run writes: results, errors, and the summary; and how an interrupted run finds its place again.

A result is on disk (handed to the operating system, whole lines only) before anything else happens for its row: there is
no other record of what was done. So a run that was killed at any instruction is continued by reading its results. What
fails goes to a file of its own, which each run begins anew: the rows in it have no result, so they are tried again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock import clock
from penstock.errors import PenstockError
from penstock.runner.source import IdSet, Lines, Rejected, Row, custom_id_digest, dump_json, load_json

if sys.platform != "win32":
    import fcntl

__all__ = ["OutputError", "Results", "beside"]


class OutputError(PenstockError):
    """A file cannot be written, or is not ours to write."""


def beside(path: Path, ending: str) -> Path:
    """The file next to `path` with another ending: `results.jsonl` → `results.errors.jsonl`."""
    return path.with_suffix(ending)


class Results:
    """The results and the errors of a run, open for writing; a context manager.

    Attributes:
        answered: The custom_ids that have a result, from earlier runs and from this one.
        found: How many results earlier runs left.
        idle: Seconds since an earlier run wrote its last result, dropped by now or not; `inf` if it left none.
        repaired: Bytes of a torn last line that were taken off the results.
    """

    def __init__(self, out: Path, errors: Path, *, overwrite: bool = False) -> None:
        """Open both files, repair the results and read what is answered.

        Args:
            out: Where results go; they are added to those that are there.
            errors: Where errors go; those of an earlier run are dropped.
            overwrite: Begin the results anew too, and either file whatever it holds.

        Raises:
            OutputError: A file cannot be written, is in use by another run, or holds something else than results.
        """
        self.out_path, self.errors_path = out, errors
        self.answered = IdSet()
        self.repaired = 0
        self._out = _open(out)
        try:
            _lock(self._out, out, "-o")
            status = os.fstat(self._out)
            if overwrite:
                os.ftruncate(self._out, 0)
            self._read_answered()
            self.found = len(self.answered)
            # What is dropped now, or was torn off, has been paid for all the same.
            self.idle = (
                max(0.0, clock.wall() - status.st_mtime)
                if stat.S_ISREG(status.st_mode) and status.st_size
                else math.inf
            )
            self._errors = _open(errors)
            try:
                _lock(self._errors, errors, "--errors")
                self._begin_errors(anything=overwrite)
            except BaseException:
                os.close(self._errors)
                raise
        except BaseException:
            os.close(self._out)
            raise

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> None:
        """Write the result of a row, whose `body` is JSON as `dump_json` makes it.

        Raises:
            OutputError: The disk is full or gone. Nothing of the line is left in the file.
        """
        line = b'{"id":%b,"custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n' % (
            dump_json(_result_id(row)),
            dump_json(row.custom_id),
            status_code,
            dump_json(request_id),
            body,
        )
        _append(self._out, line, self.out_path)
        self.answered.add(row.custom_id)

    def fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        """Write down why a row has no result.

        Args:
            row: Which one.
            code: A word for programs: the service's own, or one of ours.
            message: A sentence for people.
            more: What else is known: `status_code`, `attempts`, `body`.

        Raises:
            OutputError: The disk is full or gone.
        """
        error = {"code": code, "message": message, **more}
        line = dump_json({"line": row.line, "custom_id": row.custom_id, "error": error})
        _append(self._errors, line + b"\n", self.errors_path)

    def close(self) -> None:
        """Let the disk have all of it, and close.

        Raises:
            OutputError: The disk did not take it.
        """
        failed: OutputError | None = None
        for file, path in ((self._out, self.out_path), (self._errors, self.errors_path)):
            try:
                os.fsync(file)
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:  # pipes have nothing to sync
                    failed = cannot_write(path, error)
            os.close(file)
        if failed is not None:
            raise failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_answered(self) -> None:
        """Learn what is answered, and cut off a last line that a killed run, or a full disk, left unfinished."""
        if not stat.S_ISREG(os.fstat(self._out).st_mode):
            return  # a pipe: there is nothing to go on from
        os.lseek(self._out, 0, os.SEEK_SET)
        size = os.fstat(self._out).st_size
        ends_whole = size == 0 or os.pread(self._out, 1, size - 1) == b"\n"
        lines = Lines(self._out)
        torn: int | None = None
        for number, line in lines:
            if torn is not None:
                raise self._foreign(torn)
            custom_id = None if line is None else _answered_id(line)
            if custom_id is None:
                torn = number
            else:
                self.answered.add(custom_id)
        if torn is None and not ends_whole:
            os.pwrite(self._out, b"\n", size)  # whole but for its end
        elif torn is not None:
            if ends_whole or (not len(self.answered) and not _begins_like_a_result(self._out)):
                raise self._foreign(torn)
            keep = _end_of_last_whole_line(self._out, size)
            os.ftruncate(self._out, keep)
            self.repaired = size - keep
        os.lseek(self._out, 0, os.SEEK_END)

    def _begin_errors(self, *, anything: bool) -> None:
        """Cut the errors of earlier runs off; nothing else, unless it may be `anything`."""
        if not stat.S_ISREG(os.fstat(self._errors).st_mode):
            return  # a terminal or pipe, which has nothing to cut off
        begin = os.pread(self._errors, len(_ERROR_BEGINNING), 0)
        # A run that was killed may have left half a line, and a power failure zeros.
        if not anything and begin.strip(b"\0") and not _ERROR_BEGINNING.startswith(begin):
            raise OutputError(
                f"{self.errors_path} exists, and its line 1 is not an error of a run: "
                "give another --errors, or --overwrite to begin it anew"
            )
        os.ftruncate(self._errors, 0)

    def _foreign(self, number: int) -> OutputError:
        return OutputError(
            f"{self.out_path} exists, and its line {number} is not a result of a run: "
            "give another -o, or --overwrite to begin it anew"
        )


_BEGINNING = b'{"id":"batch_req_'
_ERROR_BEGINNING = b'{"line":'


def _begins_like_a_result(file: int) -> bool:
    begin = os.pread(file, len(_BEGINNING), 0)
    return _BEGINNING.startswith(begin)


def _answered_id(line: bytes) -> str | int | None:
    """The custom_id of a result; None if the line is none."""
    try:
        result = load_json(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("response"), dict):
        return None
    custom_id = result.get("custom_id")
    return custom_id if isinstance(custom_id, str | int) else None


def _end_of_last_whole_line(file: int, size: int) -> int:
    """Bytes up to and including the last line end."""
    end = size
    while end:
        begin = max(0, end - 65_536)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            return begin + at + 1
        end = begin
    return 0


def _result_id(row: Row) -> str:
    """The same row gets the same id in every run."""
    return f"batch_req_{custom_id_digest(row.custom_id):016x}"


def _open(path: Path) -> int:
    try:
        # Appending: a write goes to the end whatever else happened, and is one step.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from None


def _lock(file: int, path: Path, option: str) -> None:
    if sys.platform == "win32" or not stat.S_ISREG(os.fstat(file).st_mode):
        return  # two runs on one file are not kept apart there
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another run is writing {path}: wait for it, or give another {option}") from None
    except OSError:  # a file system without locks
        return


def _append(file: int, data: bytes, path: Path) -> None:
    written = 0
    try:
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError as error:
        if written:
            _cut(file, written)
        raise cannot_write(path, error) from None


def _cut(file: int, torn: int) -> None:
    """Take the beginning of a line off again that the disk had no room for."""
    try:
        os.ftruncate(file, os.fstat(file).st_size - torn)
    except OSError:
        return  # the next run repairs it


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for a file that the system does not let us write."""
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, all of it or nothing: a reader never sees half.

    Raises:
        OutputError: It cannot be written.
    """
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise cannot_write(path, error) from None
