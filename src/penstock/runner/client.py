"""How a request reaches the server, and what can become of it on the way.

    reply = await client.send("/v1/chat/completions", body, left)

A client sends; it judges nothing. Four things can happen, and only the first is a reply:

    Reply         the server answered, whatever it said
    NotSent       no connection: not one byte of the request left, so nothing was used and nothing can be billed
    Lost          the request left, and no whole answer came back: it may have been billed
    Unreadable    the same, as the answer breaks HTTP: the next one would too

`Http` is the one for servers, over aiohttp: of the clients that tell when a request's first byte leaves, it costs the
least CPU per request (`benchmarks/clients.py`). Tests bring their own.
"""

from __future__ import annotations

import contextlib
import inspect
import ssl
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeGuard

import aiohttp
import yarl

__all__ = ["Client", "Http", "Lost", "NotSent", "Reply", "Server", "Unreadable", "url_of"]

LONGEST_CONNECT = 30.0
"""Seconds to wait for a connection, however long the answer may take afterwards."""

KEEP_ALIVE = 4.0
"""Seconds for which an idle connection is kept: a little less than the 5 after which many servers hang up."""

MAX_REDIRECTS = 10

MOST_HEADERS = 10_000
"""Headers of an answer, whatever stands in them."""

LONGEST_HEADER = 1024 * 1024
"""Bytes of one header of an answer. An answer was paid for, whatever stands above it."""

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
    """There was no connection, so no byte of the request left."""


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
            NotSent: There was no connection. `left` was not called.
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
        timeout: Seconds that an attempt may take, from its connection to the last byte of its answer.
        direct: Past any proxy that the environment names.
    """

    base_url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    direct: bool = False

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What must not be written down: the values of headers that carry keys."""
        values = (value for name, value in self.headers.items() if name.lower() in SECRETS)
        words = (value.removeprefix("Bearer ").strip() for value in values)
        return tuple(word.encode("utf-8", "surrogateescape") for word in words if word)


class Http:
    """Sends over connections that are kept; an async context manager, for asyncio alone.

    Raises:
        OSError: A certificate file that the environment names is not there.
        ValueError: A proxy that the environment names cannot be used.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._origin = _origin(yarl.URL(server.base_url))
        self._urls: dict[str, yarl.URL] = {}
        self._proxy = None if server.direct else _proxy(server.base_url)
        self._tls: ssl.SSLContext | bool = True
        if self._origin[0] == "https" or (self._proxy or "").startswith("https:"):
            self._tls = _tls()
        base = {"content-type": "application/json", "user-agent": "penstock", "accept-encoding": "gzip, deflate"}
        given = {name.lower() for name in server.headers}
        self._headers = {name: value for name, value in base.items() if name not in given} | dict(server.headers)
        self._public = {name: value for name, value in self._headers.items() if name.lower() not in SECRETS}
        self._session: aiohttp.ClientSession | None = None

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What must not be written down."""
        return self._server.secrets

    async def __aenter__(self) -> Self:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_leaves)
        timeout = self._server.timeout
        self._session = aiohttp.ClientSession(
            # Rows in flight are bounded by the run: a second bound here would only make granted requests wait.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEEP_ALIVE, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(LONGEST_CONNECT, timeout)),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            **_most_headers(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, path: str, body: bytes, left: Callable[[], None]) -> Reply:
        """See `Client.send`.

        A redirect that keeps the method (307, 308) is followed, without the key to other hosts.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = yarl.URL(url_of(self._server.base_url, path), encoded=True)
        departure = _Departure(left)
        try:
            reply = await self._post(url, body, departure)
            for _ in range(MAX_REDIRECTS):
                target = reply.headers.get("location") if reply.status in {307, 308} else None
                if not target:
                    return reply
                joined = _joined(url, target)
                if joined is None:
                    return reply
                url = joined
                reply = await self._post(url, body, departure)
            return reply
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # A proxy that refuses to connect us has been sent a request, but not ours.
            if departure.left and not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
                raise (Unreadable if _breaks_http(error) else Lost)(self._words(error)) from error
            raise NotSent(self._words(error)) from error

    async def _post(self, url: yarl.URL, body: bytes, departure: _Departure) -> Reply:
        assert self._session is not None, "a client is entered before it sends"
        response = await self._session.post(
            url,
            data=body,
            headers=self._headers if _origin(url) == self._origin else self._public,
            allow_redirects=False,
            proxy=self._proxy,
            trace_request_ctx=departure,
        )
        try:
            content = await response.read()
        finally:
            response.release()
        return Reply(response.status, response.headers, _decompressed(content, response.headers))

    def _words(self, error: Exception) -> str:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return f"no connection within {min(LONGEST_CONNECT, self._server.timeout):g} s"
        if isinstance(error, TimeoutError):
            return f"no answer within {self._server.timeout:g} s"
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = error.os_error.strerror or str(error.os_error) or str(error)
            return f"cannot connect to {error.host}:{error.port}: {reason}"
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the server closed the connection without an answer"
        if _breaks_http(error):
            return f"the answer breaks HTTP: {' '.join(error.message.split())}"
        return f"{type(error).__name__}: {str(error) or 'the connection was lost'}"


def _most_headers() -> dict[str, Any]:
    """The option of sessions that allows as many, where this version of aiohttp has one."""
    known = "max_headers" in inspect.signature(aiohttp.ClientSession).parameters
    return {"max_headers": MOST_HEADERS} if known else {}


def _breaks_http(error: Exception) -> TypeGuard[aiohttp.ClientResponseError]:
    """Whether the server answered, and not in HTTP; what does not even begin as HTTP is no server's answer."""
    return type(error) is aiohttp.ClientResponseError and not error.message.startswith("Bad status line")


class _Departure:
    """Says once that a request leaves, whatever redirects follow."""

    __slots__ = ("_tell", "left")

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self.left = False

    def leaves(self) -> None:
        if not self.left:
            self.left = True
            self._tell()


async def _leaves(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.leaves()


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


def _origin(url: yarl.URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port


def _joined(url: yarl.URL, target: str) -> yarl.URL | None:
    """Where a redirect leads; None: nowhere that requests are sent to."""
    try:
        joined = url.join(yarl.URL(target))
    except ValueError:
        return None
    return joined if joined.scheme in {"http", "https"} and joined.host else None


def _decompressed(content: bytes, headers: Mapping[str, str]) -> bytes:
    """The body as it was before it was compressed; as it came if it cannot be read: it was paid for all the same."""
    codings = [coding.strip().lower() for coding in headers.get("content-encoding", "").split(",")]
    for coding in reversed(codings):
        if coding in {"gzip", "x-gzip", "deflate"}:
            content = _inflated(content)
    return content


def _inflated(content: bytes) -> bytes:
    """All members, one after the other. What is cut, or has a wrong checksum, is read as far as it goes."""
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib by its head; some send deflate without any
        found, rest = bytearray(), content
        while rest:
            one = zlib.decompressobj(bits)
            try:
                found += one.decompress(rest[:-_CHECKSUM])
                found += one.decompress(one.unconsumed_tail + rest[-_CHECKSUM:])
            except zlib.error:
                break
            rest = one.unused_data if one.eof else b""
        if found:
            return bytes(found)
    return content


_CHECKSUM = 8
"""Bytes that follow the data of a gzip member."""


def _proxy(base_url: str) -> str | None:
    """The proxy that the environment names for this server."""
    parts = urllib.parse.urlsplit(base_url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urllib.parse.urlsplit(proxy).scheme not in {"http", "https"}:
        raise ValueError(f"a proxy must be http:// or https://, not {proxy.partition('@')[2] or proxy}")
    return proxy


def _tls() -> ssl.SSLContext:
    """The certificates that the environment or the system names, else those of certifi if it is there."""
    import os

    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    context = ssl.create_default_context(cafile=file or None, capath=folder or None)
    if not file and not folder and not context.cert_store_stats()["x509_ca"] and not _paths_hold_certificates():
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _paths_hold_certificates() -> bool:
    paths = ssl.get_default_verify_paths()
    return bool(paths.cafile or paths.capath)


def headers_of(pairs: Iterable[str]) -> dict[str, str]:
    """Read `Name: value` pairs.

    Raises:
        ValueError: One of them is none.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not name or not name.isascii() or not name.isprintable() or set(name) & set(' "(),/;<=>?@[]{}'):
            raise ValueError(f"cannot read {pair.partition(':')[0]!r}: write it like 'X-Team: search'")
        if not value.isprintable():
            raise ValueError(f"the value of {name} holds a character that no header may have")
        found[name] = value
    return found
