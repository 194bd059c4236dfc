"""Ports of servers that are processes of their own."""

from __future__ import annotations

import socket
import time

__all__ = ["free_port", "wait_for"]

PATIENCE = 300.0
"""Seconds until a server must listen: some import a lot first, on a machine that does other work."""


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int) -> None:
    """Return when somebody listens there."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return
