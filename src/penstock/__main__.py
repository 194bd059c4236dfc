"""`python -m penstock`: the command line, for where the script `penstock` is not on PATH."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, or say in one line what it takes to have it."""
    try:
        from penstock.cli import main as run
    except KeyboardInterrupt:  # Ctrl-C while all of it was still being loaded
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "penstock":
            raise
        print(f'penstock: the command line needs {error.name}: pip install "penstock[cli]"', file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
