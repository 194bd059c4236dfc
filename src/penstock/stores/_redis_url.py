"""The URL of a Redis server: taken apart, shown without secrets, and as it travels to other processes."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

from penstock.stores.contract import FromEnvironment

__all__ = ["Address", "made_from"]


def made_from(server: Any) -> str | FromEnvironment | None:
    """The address as it travels to other processes; None if it is a client."""
    if not isinstance(server, str):
        return None
    secret = server.partition("://")[2].rpartition("@")[0].partition(":")[2]
    if not secret:
        return server
    whole = [name for name, value in os.environ.items() if secret in value and value in server]
    if whole:  # the whole address, or as much of it as can be
        name = max(whole, key=lambda name: (len(os.environ[name]), name))
        before, _, behind = server.partition(os.environ[name])
        return FromEnvironment(before, name, behind, quoted=False)
    for name, value in sorted(os.environ.items()):
        if value == unquote(secret):
            before, _, behind = server.partition(f":{secret}@")
            return FromEnvironment(f"{before}:", name, f"@{behind}", quoted=True)
    return server


class Address:
    """A URL, taken apart without ever showing its secrets.

    Attributes:
        shown: The URL without user, password and options.
        credentials: What stands before the host.
        hosts: Host and port; several for Sentinels.
    """

    def __init__(self, url: str) -> None:
        self.scheme, _, rest = url.partition("://")
        self.credentials, _, where = rest.rpartition("@")
        self.hosts, _, behind = where.partition("?")[0].partition("/")
        self.path = f"/{behind}" if behind else ""
        self.shown = f"{self.scheme}://{self.hosts}{self.path}"
        self._secret = self.credentials.partition(":")[2]
        if not rest:
            raise ValueError("the address of a Redis server is a URL, such as redis://host:6379/0; this one has no ://")
        if any(character in self.credentials for character in "/?#[]@"):
            raise ValueError(
                f"{self.shown!r}: the user and the password in a URL must be percent-encoded: / as %2F, ? as %3F, # as %23, "
                "[ as %5B, ] as %5D, @ as %40 (urllib.parse.quote does it)"
            )
        if self.scheme != "unix":
            self._check_ports()
        if self.scheme in ("redis", "rediss") and behind and not behind.strip("/").isdecimal():
            raise ValueError(f"{self.shown!r}: what stands behind the host is the number of a db, not {behind!r}")

    def _check_ports(self) -> None:
        for host in self.hosts.split(","):
            port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
            if port and not (port.isdecimal() and 0 < int(port) < 65536):
                raise ValueError(f"{self.shown!r}: the port must be a number from 1 to 65535, not {port!r}")

    def without_secrets(self, text: str) -> str:
        """A text of somebody else's, safe to be shown."""
        for secret in {self.credentials, self._secret, unquote(self._secret)} - {""}:
            text = text.replace(secret, "***")
        return text
