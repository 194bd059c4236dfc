"""What operating systems differ in, in one place: places in files, locks, pipes, signals.

Each function does what is best here, and the next best where the system lacks it. Windows has no `pread`, no `flock`,
opens files in text mode unless told otherwise, can `select` sockets only, and gives an event loop no signals.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import anyio

from penstock._concurrency.locks import new_lock

_fcntl: Any
_msvcrt: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None
try:
    import msvcrt as _msvcrt
except ImportError:  # everywhere else
    _msvcrt = None

__all__ = [
    "BINARY",
    "NO_LINKS",
    "ending_signals",
    "free_bytes",
    "growth_left",
    "in_binary",
    "is_readable",
    "pread",
    "signals_here",
    "sync_data",
    "try_lock",
]

BINARY: int = getattr(os, "O_BINARY", 0)
"""A flag for `os.open`: bytes as they are. Needed where text mode is the default."""

NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)
"""A flag for `os.open`: no symbolic link is followed, where the system has that."""

_seeking = new_lock()


def in_binary(file: int) -> int:
    """The same file, which was opened by others (standard input), with its bytes as they are."""
    if _msvcrt is not None:
        _msvcrt.setmode(file, BINARY)
    return file


def free_bytes(file: int) -> float:
    """Bytes for which there is room on the disk of an open file; infinity where the system does not say."""
    try:
        found = os.fstatvfs(file)
    except (AttributeError, OSError):  # Windows
        return math.inf
    return found.f_bavail * found.f_frsize if found.f_blocks else math.inf


def growth_left(file: int) -> float:
    """Bytes by which an open file may grow before it is as large as this process may write (`ulimit -f`)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return math.inf
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return math.inf if most == resource.RLIM_INFINITY else most - os.fstat(file).st_size


def pread(file: int, size: int, at: int) -> bytes:
    """Read at most `size` bytes at the place `at` of a file; the place at which reading goes on stays.

    Where the system cannot do that in one step, nothing else of this process that goes through here comes between.
    """
    if hasattr(os, "pread"):
        return os.pread(file, size, at)
    with _seeking:
        place = os.lseek(file, 0, os.SEEK_CUR)
        try:
            os.lseek(file, at, os.SEEK_SET)
            return os.read(file, size)
        finally:
            os.lseek(file, place, os.SEEK_SET)


def sync_data(file: int) -> None:
    """Let the disk have what was written.

    Raises:
        OSError: It did not take it.
    """
    getattr(os, "fdatasync", os.fsync)(file)


def try_lock(file: int) -> bool:
    """Keep other processes from locking a file; False if one has.

    True also where the system, or the file system, has no such locks.
    """
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def is_readable(file: int, seconds: float) -> bool:
    """Whether a pipe or terminal has something to read, or has ended, within `seconds`.

    True at once where the system cannot tell: then the read itself waits.
    """
    try:
        return bool(select.select([file], [], [], seconds)[0])
    except OSError:  # it knows sockets only
        return True


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end: SIGINT, SIGTERM, and SIGHUP unless the parent ignores it (nohup)."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]


@contextmanager
def signals_here(*numbers: signal.Signals) -> Iterator[AsyncIterator[signal.Signals]]:
    """Let this task receive signals, one after the other: `async for number in signals`.

    Where an event loop takes none, Python's own handlers pass them on, and are what they were before at the end.
    """
    try:
        receiver = anyio.open_signal_receiver(*numbers)
        signals = receiver.__enter__()
    except NotImplementedError:
        with _through_handlers(numbers) as signals:
            yield signals
        return
    try:
        yield signals
    finally:
        receiver.__exit__(None, None, None)


@contextmanager
def _through_handlers(numbers: tuple[signal.Signals, ...]) -> Iterator[AsyncIterator[signal.Signals]]:
    loop = asyncio.get_running_loop()  # trio has receivers everywhere
    came: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def handle(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(came.put_nowait, signal.Signals(number))

    async def receive() -> AsyncIterator[signal.Signals]:
        while True:
            yield await came.get()

    before: list[tuple[signal.Signals, Callable[[int, FrameType | None], Any] | int | None]] = []
    try:
        before += [(number, signal.signal(number, handle)) for number in numbers]
        yield receive()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
