"""The URL of a Redis server: taken apart, shown without secrets, and as it travels to other processes.

Connections are made in `_redis_server`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote

from penstock.stores.contract import FromEnvironment

_ESCAPES = (
    "the user and the password in a URL must be percent-encoded: "
    "/ as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D, @ as %40 (urllib.parse.quote does it)"
)

_SHORT = 3
"""Characters of a password that may be a part of any word."""

_FORGOTTEN = "Is there an @ between the password and the host?"

_AN_ADDRESS = re.compile(r"(?!sqlite:)[a-z][a-z0-9+.-]+://|(?:redis|valkey)s?[:+]")


def is_address(text: str) -> bool:
    """Whether a text is meant as the address of a server, right or wrong, and not as the path of a file."""
    return _AN_ADDRESS.match(text) is not None


def made_from(server: Any) -> str | FromEnvironment | None:
    """The address as it travels to other processes; None if it is a client."""
    if not isinstance(server, str):
        return None
    secrets = _written_secrets(server)
    if not secrets:
        return server
    names = [
        name for name, value in os.environ.items() if value in server and all(_spot(one, value) for one in secrets)
    ]
    whole = max(names, key=lambda name: (len(os.environ[name]), name), default=None)
    if whole is not None:  # the whole address, or as much of it as can be
        before, _, behind = server.partition(os.environ[whole])
        return FromEnvironment([before, (whole, False), behind])
    parts: list[str | tuple[str, bool]] = []
    rest = server
    for secret in secrets:
        known = [name for name, value in sorted(os.environ.items()) if value == unquote(secret)]
        spot = _spot(secret, rest)
        assert spot is not None, "it was found there before"
        parts += [rest[: spot.start()], (known[0], True) if known else secret]
        rest = rest[spot.end() :]
    if all(isinstance(part, str) for part in parts):
        return server
    return FromEnvironment([*parts, rest])


def _spot(secret: str, text: str) -> re.Match[str] | None:
    """Where a password stands in a URL: behind a colon or an equals sign."""
    return re.search(rf"(?<=[:=]){re.escape(secret)}(?=[@&]|$)", text)


def _written_secrets(url: str) -> list[str]:
    """The passwords in a URL as they are written there, in their order."""
    rest, _, query = url.partition("://")[2].partition("?")
    found = [rest.rpartition("@")[0].partition(":")[2]]
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if "password" in unquote(name):
            found.append(value)
    return [secret for secret in found if secret]


def without(secrets: Iterable[str], text: str) -> str:
    """A text with all secrets struck out, the longest first; a short one only where a password stands.

    Three letters are in many words: "Abstr***ctConnection" is of no help, and tells which letter it is.
    """
    for secret in sorted({*secrets} - {""}, key=len, reverse=True):
        written = re.escape(secret)
        if len(secret) <= _SHORT:
            written = rf"(?<=[:=/'\"]){written}(?=[@&'\",)}}\]\s]|$)"
        text = re.sub(written, "***", text)
    return text


def host_and_port(text: str, port: int) -> tuple[str, int]:
    """A host, and its port or the usual one. The brackets around an IPv6 address are no part of it."""
    name, separator, behind = text.rpartition(":")
    if not separator or "]" in behind:
        name, behind = text, ""
    return name.strip("[]"), int(behind or port)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


class Address:
    """A URL, taken apart without ever showing its secrets.

    Attributes:
        shown: The URL without user, password and options.
        user, password: As they are, without percent signs.
        hosts: Host and port; several for Sentinels.
        options: What stands behind the question mark, by name.
        secrets: All passwords in it, as they are and as they are written.
    """

    def __init__(self, url: str) -> None:
        self.scheme, separator, rest = url.partition("://")
        if not separator or not rest:
            lacks = "ends with its ://" if separator else "has no ://"
            raise ValueError(f"the address of a Redis server is a URL, such as redis://host:6379/0; this one {lacks}")
        before = re.match(r"[^/?#]*", rest)
        front = before.group() if before else ""
        behind = rest[len(front) :]
        if "@" in behind and front:  # where the password ends cannot be told, so nothing is shown
            raise ValueError(f"the address {self.scheme}://… has an @ behind a / ? or #: {_ESCAPES}")
        credentials, _, self.hosts = front.rpartition("@")
        where, _, query = behind.partition("#")[0].partition("?")
        self.path = where
        self.shown = f"{self.scheme}://{self.hosts}{self.path}"
        if any(character in credentials for character in "[]@"):
            raise ValueError(f"{self.shown!r}: {_ESCAPES}")
        user, _, password = credentials.partition(":")
        self.user, self.password = unquote(user), unquote(password)
        options = parse_qsl(query, keep_blank_values=True)
        self.options = dict(options)
        written = _written_secrets(url)
        self.secrets: set[str] = {credentials, *written, *map(unquote, written)} - {""}
        twice = {name for name, _ in options if [other for other, _ in options].count(name) > 1}
        if twice:  # redis-py would take the first of them
            raise ValueError(f"{self.shown!r} has the option {without(self.secrets, min(twice))!r} twice")
        if self.scheme != "unix":
            self._check_ports()
        elif self.hosts:
            raise ValueError(
                f"'unix://…': a socket's path begins with a slash, as in unix:///run/redis.sock. {_FORGOTTEN}"
            )
        behind_host = where.strip("/") if self.scheme in ("redis", "rediss") else ""
        if not _is_number(behind_host or "0"):
            raise ValueError(
                f"'{self.scheme}://{self.hosts}/…': what stands behind the host is the number of a db, such as /0"
            )
        if not _is_number(self.options.get("db") or "0"):
            raise ValueError(f"{self.shown!r}: db must be the number of a db, such as 0")
        if "ssl" in self.options and not self.scheme.endswith("sentinel"):
            raise ValueError(f"{self.shown!r} has the option ssl: write rediss:// for TLS, and redis:// for none")

    def _check_ports(self) -> None:
        """Refuse hosts and ports that are none, unnamed: where an @ was forgotten, they are a password."""
        for host in self.hosts.split(","):
            bracketed, _, behind = host.rpartition("]")
            name, _, port = behind.partition(":")
            if "%" in name:
                raise ValueError(f"'{self.scheme}://…' has a % in the name of its host. {_FORGOTTEN}")
            if port and not (_is_number(port) and 0 < int(port) < 65536):
                shown = f"{bracketed}]" if bracketed else name
                raise ValueError(
                    f"'{self.scheme}://{shown}:…': the port must be a number from 1 to 65535. {_FORGOTTEN}"
                )
