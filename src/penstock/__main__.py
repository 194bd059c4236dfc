"""`python -m penstock`: the command line, for where the script `penstock` is not on PATH. What it does is in `cli`."""

from __future__ import annotations

import signal
import sys

from penstock import __version__


def main() -> int:
    """Run the command line, or say in one line what it takes to have it; return the exit code of the process."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return _run()
    finally:
        # All is on disk. One Ctrl-C more, while Python takes itself down, would only change the exit code that tells
        # so.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(*_: object) -> None:
    """End by the first Ctrl-C: a second one, on the way out, would end in a traceback. `cli` has its own way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run() -> int:
    if sys.argv[1:] == ["--version"]:  # needs no extra
        print(__version__)
        return 0
    try:
        from penstock.cli import main as run

        return run()
    except KeyboardInterrupt:  # Ctrl-C while all of it was still being loaded
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "penstock":
            raise
        print(f'penstock: the command line needs {error.name}: pip install "penstock[cli]"', file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
