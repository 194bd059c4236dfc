"""How a request reaches the server, and what can become of it on the way.

    reply = await client.send("/v1/chat/completions", body, left)

A client sends; it judges nothing. Four things can happen, and only the first is a reply:

    Reply         the server answered, whatever it said
    NotSent       no connection: not one byte of the request left, so nothing was used and nothing can be billed
    Lost          the request left, and no whole answer came back: it may have been billed
    Unreadable    the same, as the answer breaks HTTP: the next one would too

The one for servers is in `http`; tests bring their own.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from penstock._numbers import read_seconds

__all__ = [
    "SECRETS",
    "Client",
    "Lost",
    "NotSent",
    "Reply",
    "Server",
    "Unreadable",
    "headers_of",
    "is_address",
    "url_of",
]

SECRETS = frozenset({"authorization", "api-key", "x-api-key", "proxy-authorization", "cookie"})
"""Headers that a redirect to another host must not take along, and whose values are never written anywhere."""


class Reply(NamedTuple):
    """What the server answered.

    Attributes:
        status: As sent, 100 to 599.
        headers: Names in any case.
        content: The body, decompressed where that was possible.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


class NotSent(Exception):  # noqa: N818 - it is no error of the program
    """There was no connection, so no byte of the request left.

    Attributes:
        is_lasting: Whether the next attempt will meet the same, as with a certificate that is not trusted.
    """

    def __init__(self, message: str, *, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class Lost(Exception):  # noqa: N818
    """The request left, and there is no whole answer."""


class Unreadable(Lost):
    """There was an answer, and it breaks HTTP: two lengths, a header without a name. It may well have been billed."""


class Client(Protocol):
    """What a run sends through; an async context manager."""

    async def send(self, path: str, body: bytes, left: Callable[[], None]) -> Reply:
        """Post `body`, JSON, to an endpoint, and wait for the whole answer.

        Args:
            path: Of the endpoint, as rows name it: `/v1/chat/completions`.
            body: The bytes.
            left: Called once when the first byte is about to leave.

        Raises:
            NotSent: There was no connection. `left` was not called, unless that was to where a server redirects.
            Lost: The request left, and no whole answer came.
            Unreadable: The request left, and its answer breaks HTTP.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go.

    Attributes:
        base_url: As SDKs want it: `https://api.openai.com/v1`. It may end in a query: `?api-version=2024-10-21`.
        headers: Sent with every request: the key, an organisation.
        timeout: Seconds that an attempt may take, from its connection to the last byte of its answer; above 0. It may
            be given as a `timedelta`.
        direct: Past any proxy that the environment names.

    Raises:
        ValueError: `base_url` is no address, a header cannot be sent, or `timeout` is not above 0.
    """

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    direct: bool = False

    def __post_init__(self) -> None:
        seconds = read_seconds(self.timeout)
        if seconds is None or seconds <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0, or a timedelta, not {self.timeout!r}")
        object.__setattr__(self, "timeout", seconds)
        if not is_address(self.base_url):
            raise ValueError(
                f"{self.base_url!r} is not the address of a server; write it like http://localhost:8000/v1"
            )
        if "#" in self.base_url:
            raise ValueError(f"{self.base_url!r} has a #, and what follows it is never sent: leave it out")
        given: Mapping[Any, Any] = self.headers
        for name, value in given.items():
            if not isinstance(name, str) or not _is_header(name):
                raise ValueError(f"no header is called {name!r}: write it like X-Team")
            if not isinstance(value, str) or not value.isprintable():  # the value may be a secret
                raise ValueError(f"the value of {name} must be text of characters that can be printed")

    @property
    def name(self) -> str:
        """What tells the server from others, and may be written down: of a query, which may hold a key, a digest."""
        address, _, query = self.base_url.partition("?")
        digest = hashlib.blake2b(query.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        return address.rstrip("/") + (f"?{digest}" if query else "")

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What must not be written down: the values of headers that carry keys."""
        values = (value for name, value in self.headers.items() if name.lower() in SECRETS)
        words = (value.removeprefix("Bearer ").strip() for value in values)
        return tuple(word.encode("utf-8", "surrogateescape") for word in words if word)


def is_address(url: str) -> bool:
    """Whether requests can be sent to a URL: a web address with a host, and a port that is one if it has any."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_web = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        return False
    return is_web and " " not in url and url.isprintable()


def _is_header(name: str) -> bool:
    return bool(name) and name.isascii() and name.isprintable() and not set(name) & set(' "(),/:;<=>?@[]{}\\')


def url_of(base_url: str, path: str) -> str:
    """The address of an endpoint.

    `https://host/v1` and `/v1/chat/completions` meet in `/v1`; a base without any path takes the whole of it. The
    queries of both are kept.
    """
    base, _, query = base_url.partition("?")
    path, _, more = path.partition("?")
    base = base.rstrip("/")
    if "/" in base.partition("://")[2] and (path == "/v1" or path.startswith("/v1/")):
        path = path[len("/v1") :]
    both = "&".join(filter(None, (query, more)))
    return f"{base}{path}?{both}" if both else base + path


def headers_of(pairs: Iterable[str]) -> dict[str, str]:
    """Read `Name: value` pairs.

    Raises:
        ValueError: One of them is none.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _is_header(name):
            raise ValueError(f"cannot read {pair.partition(':')[0]!r}: write it like 'X-Team: search'")
        if not value.isprintable():
            raise ValueError(f"the value of {name} holds a character that no header may have")
        found[name] = value
    return found
