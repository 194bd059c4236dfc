"""Files that a run writes: opened once, and only ever added to.

They are watched, since others may delete or replace them meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.runner.system import BINARY, NO_LINKS, pread, try_lock

__all__ = [
    "Appended",
    "KeptError",
    "OutputError",
    "Pipe",
    "ReplacedError",
    "beside",
    "cannot_write",
    "create_beside",
    "is_special",
    "journal_of",
    "remove_drafts",
    "truncate_at_last_line",
    "write_beside",
    "write_summary",
]


class OutputError(PenstockError):
    """A file cannot be written, or is not ours to write."""


class KeptError(OutputError):
    """A result cannot be written where it should go, and the journal has it."""


class ReplacedError(OutputError):
    """A file was deleted or replaced while the run was writing it."""


def beside(path: Path, ending: str) -> Path:
    """The file next to `path` that belongs to it alone: `results.jsonl` → `results.errors.jsonl`.

    Names with another ending, or none, keep it, so that no two outputs share a file: `results.json` →
    `results.json-errors.jsonl`.
    """
    return path.with_suffix(ending) if path.suffix == ".jsonl" else path.with_name(f"{path.name}-{ending.lstrip('.')}")


def journal_of(out: Path) -> Path:
    """Where the journal of a results file is."""
    return out.with_name(out.name + ".journal")


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for a file that the system does not let us write."""
    return OutputError(f"cannot write {path}: {error.strerror or error}")


class Appended:
    """A file that grows: regular, or a pipe or device that only takes.

    Attributes:
        descriptor: Of the open file.
        is_regular: Whether it is a regular file, which can be read again, cut and locked.
        size: Bytes in it, as far as we wrote them.
        status: As it was when it was opened.
    """

    def __init__(self, path: Path, option: str, *, descriptor: int | None = None, read_again: bool = False) -> None:
        """Open a file for adding to it, and lock it.

        Args:
            path: Where it is; made if it is not there.
            option: The option that names it, for errors.
            descriptor: It is open already, as this; then it is not closed.
            read_again: Only a regular file will do. To open a pipe would wait for its reader.

        Raises:
            OutputError: It cannot be opened, or another run is writing it.
        """
        if read_again and is_special(path):
            raise OutputError(f"{option}: {path} is not a regular file, so nothing could be read there again")
        self.path = path
        self._is_ours = descriptor is None
        try:
            self.descriptor: int = _open(path) if descriptor is None else descriptor
        except OSError as error:
            raise cannot_write(path, error) from None
        self.status: os.stat_result = os.fstat(self.descriptor)
        self.is_regular: bool = stat.S_ISREG(self.status.st_mode)
        self.size: int = self.status.st_size if self.is_regular else 0
        try:
            self._lock(option)
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Add `data`, all of it or nothing.

        Raises:
            OutputError: The disk is full or gone.
        """
        written = 0
        try:
            while written < len(data):
                written += os.write(self.descriptor, data[written:] if written else data)
        except OSError as error:
            if written and self.is_regular:
                with contextlib.suppress(OSError):  # the next run repairs it
                    os.ftruncate(self.descriptor, self.size)
            raise cannot_write(self.path, error) from None
        self.size += written

    def truncate(self, size: int) -> None:
        """Cut it to `size` bytes; a pipe has nothing to cut, and what others opened is not ours to cut."""
        if not self.is_regular or not self._is_ours:
            return
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.size = size

    def check(self) -> None:
        """See that the file is still where it was opened.

        One that was deleted is written there again, with its folder, out of what is open; what comes later goes there.

        Raises:
            ReplacedError: It was deleted, or something else has its name.
            OutputError: It became shorter.
        """
        if not self.is_regular or not self._is_ours:
            return
        try:
            there = self.path.stat()
        except FileNotFoundError:
            why = self._restore()
            lost = f", and what it held is lost: it cannot be written again ({why})" if why else ""
            raise ReplacedError(f"{self.path} was deleted while this run was writing it{lost}") from None
        except OSError as error:
            raise cannot_write(self.path, error) from None
        if not os.path.samestat(there, self.status):
            raise ReplacedError(f"{self.path} was replaced by another file while this run was writing it")
        if there.st_size < self.size:
            raise ReplacedError(f"{self.path} was cut while this run was writing it")

    def _restore(self) -> str:
        """Write the file again, and go on there: what was sent is answered later. Why that is impossible, if it is."""
        mode, flags = stat.S_IMODE(self.status.st_mode), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | BINARY
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            copy = os.open(self.path, flags, mode)
            try:
                at = 0
                while chunk := pread(self.descriptor, 1 << 20, at):
                    at += os.write(copy, chunk)
                os.dup2(copy, self.descriptor, inheritable=False)
            finally:
                os.close(copy)
        except OSError as error:
            return error.strerror or str(error)
        try_lock(self.descriptor)
        self.status = os.fstat(self.descriptor)
        return ""

    def sync(self) -> None:
        """Let the disk have all of it.

        Raises:
            OutputError: The disk did not take it.
        """
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:  # pipes have nothing to sync
                raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Sync and close.

        Raises:
            OutputError: The disk did not take it.
        """
        if self.descriptor < 0:
            return
        try:
            self.sync()
        finally:
            descriptor, self.descriptor = self.descriptor, -1  # first: its number may be another's at once
            if self._is_ours:
                os.close(descriptor)

    def _lock(self, option: str) -> None:
        if self.is_regular and self._is_ours and not try_lock(self.descriptor):
            raise OutputError(f"another run is writing {self.path}: wait for it, or give another {option}")


class Pipe:
    """Writes results into a pipe or device in a thread of its own, since its reader may be slow, or stop for ever."""

    def __init__(self, file: Appended) -> None:
        self._file = file
        self._queue: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        self._error: tuple[OutputError] | None = None
        self._thread: threading.Thread | None = None
        self.waiting: int = 0

    def put(self, line: bytes) -> None:
        """Write a line, some time.

        Raises:
            OutputError: There is no reader any more.
        """
        self.check()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="penstock-pipe", daemon=True)
            self._thread.start()
        self.waiting += len(line)
        self._queue.put(line)

    def check(self) -> None:
        """Raise what went wrong.

        Raises:
            OutputError: There is no reader any more.
        """
        if self._error is not None:
            raise self._error[0]

    def give_up(self) -> None:
        """Wait for the reader no more."""
        self._error = self._error or (OutputError(f"cannot write {self._file.path}: given up"),)

    def drain(self) -> None:
        """Return when all is written, or cannot be."""
        if self._thread is not None:
            done = threading.Event()
            self._queue.put(done)
            while not done.wait(0.05):
                if self._error is not None or not self._thread.is_alive():
                    break
        self.check()

    def end(self) -> None:
        """Return when all is written, or cannot be. Before the file is closed: its number may soon be another's."""
        self._queue.put(None)
        while self._thread is not None and self._thread.is_alive() and self._error is None:
            self._thread.join(0.05)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._file.append(line)
            except OutputError as error:
                self._error = (error,)
                return
            self.waiting -= len(line)


def _open(path: Path) -> int:
    try:
        there = stat.S_IFMT(path.stat().st_mode)
    except OSError:
        there = stat.S_IFREG
    if there not in {stat.S_IFREG, stat.S_IFDIR}:
        # A process that also holds the reading end of a pipe never hears that it has no reader any more.
        return os.open(path, os.O_WRONLY | os.O_APPEND)
    # Appending: a write goes to the end whatever else happened, and is one step.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | BINARY, 0o666)


def truncate_at_last_line(file: Appended) -> int:
    """Cut off what follows the last line end; return how many bytes that were."""
    size = file.size if file.is_regular else 0
    end = size
    while end:
        begin = max(0, end - 65_536)
        at = pread(file.descriptor, end - begin, begin).rfind(b"\n")
        end = begin if at < 0 else begin + at + 1
        if at >= 0:
            break
    if end < size:
        file.truncate(end)
    return size - end


def create_beside(path: Path) -> tuple[Path, int]:
    """A new file in the folder of `path`, which no other program can have put there: its path and descriptor.

    It has the permissions to read of the file that is at `path`.

    Raises:
        OutputError: None can be made there.
    """
    while True:
        draft = path.with_name(f".{path.name[:100]}.{os.urandom(6).hex()}")
        try:
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINKS | BINARY, _mode_of(path))
            try_lock(file)
            return draft, file
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(path, error) from None


def remove_drafts(path: Path) -> None:
    """Remove what `create_beside` made for a file of ours, and a process that was killed there has left."""
    name = re.compile(rf"\.{re.escape(path.name[:100])}\.[0-9a-f]{{12}}")
    with contextlib.suppress(OSError):
        for draft in path.parent.iterdir():
            if not name.fullmatch(draft.name) or draft.is_symlink() or not draft.is_file():
                continue
            file = os.open(draft, os.O_RDONLY | NO_LINKS | BINARY)
            try:
                # One that begins otherwise is none of ours, and one that is locked is being written.
                is_left = pread(file, 1, 0) in {b"", b"{", b"\0"} and try_lock(file)
            finally:
                os.close(file)
            if is_left:
                draft.unlink()


def _mode_of(path: Path) -> int:
    try:
        there = path.lstat().st_mode
    except OSError:
        return 0o666
    return stat.S_IMODE(there) if stat.S_ISREG(there) else 0o666


def is_special(path: Path) -> bool:
    """Whether there is something at a path that is neither a file nor a folder: a pipe, a terminal, a device.

    Links are followed. To put a file in its place would take it from everybody on the machine.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return False
    return kind not in {stat.S_IFREG, stat.S_IFDIR}


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, all of it or nothing: a reader never sees half.

    Raises:
        OutputError: It cannot be written.
    """
    write_beside(path, (json.dumps(summary, indent=2) + "\n").encode())


def write_beside(path: Path, text: bytes) -> None:
    """Write a file, all of it or nothing: a reader never sees half. A pipe or a device is written to as it is.

    Raises:
        OutputError: It cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: Is a directory")
    if is_special(path):
        try:
            # A pipe that nobody reads is an error, and nothing to wait for at the end of a run.
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | BINARY)
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "wb") as device:
                device.write(text)
        except OSError as error:
            raise cannot_write(path, error) from None
        return
    draft, descriptor = create_beside(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise cannot_write(path, error) from None
