"""Requests to servers over HTTP: connections that are kept, redirects, proxies, certificates.

aiohttp does the work: of the clients that tell when a request's first byte leaves, it costs the least CPU per request
(`benchmarks/clients.py`). It takes a third of a second to load, so nothing imports this module before something is
sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import ssl
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeGuard

import aiohttp
import yarl
from aiohttp.abc import AbstractStreamWriter

from penstock.runner.client import SECRETS, Lost, NotSent, Reply, Server, Unreadable, url_of

__all__ = ["MAX_REDIRECTS", "Http", "joined_url", "origin"]

LONGEST_CONNECT = 30.0
"""Seconds to wait for a connection, however long the answer may take afterwards."""

KEEP_ALIVE = 4.0
"""Seconds for which an idle connection is kept: a little less than the 5 after which many servers hang up."""

MAX_REDIRECTS = 10

MOST_HEADERS = 10_000
"""Headers of an answer, whatever stands in them."""

LARGEST = 512 * 1024 * 1024
"""Bytes of an answer, as it was before it was compressed: a server that never ends one must not take all memory."""

LONGEST_HEADER = 1024 * 1024
"""Bytes of one header of an answer. An answer was paid for, whatever stands above it."""


class Http:
    """Sends over connections that are kept; an async context manager, for asyncio alone.

    Raises:
        OSError: A certificate file that the environment names is not there.
        ValueError: A proxy that the environment names cannot be used.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._origin = origin(yarl.URL(server.base_url))
        self._urls: dict[str, yarl.URL] = {}
        self._proxy = None if server.direct else _proxy(server.base_url)
        self._tls: ssl.SSLContext | bool = True
        if self._origin[0] == "https" or (self._proxy or "").startswith("https:"):
            self._tls = _tls()
        base = {"content-type": "application/json", "user-agent": "penstock", "accept-encoding": "gzip, deflate"}
        given = {name.lower() for name in server.headers}
        self._headers = {name: value for name, value in base.items() if name not in given} | dict(server.headers)
        self._public = {name: value for name, value in self._headers.items() if name.lower() not in SECRETS}
        self._session: aiohttp.ClientSession  # from its entry on

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What must not be written down."""
        return self._server.secrets

    def address_of(self, path: str) -> str:
        """Where requests to a path go, as it may be written down: without a query or a name, which may hold a key."""
        url = yarl.URL(url_of(self._server.base_url, path), encoded=True)
        return str(url.with_user(None).with_query(None))

    async def __aenter__(self) -> Self:
        timeout = self._server.timeout
        self._session = aiohttp.ClientSession(
            # Rows in flight are bounded by the run: a second bound here would only make granted requests wait.
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=KEEP_ALIVE, ssl=self._tls),
            # `_Patience` ends what takes too long.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(LONGEST_CONNECT, timeout)),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            **_most_headers(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, path: str, body: bytes, left: Callable[[], None]) -> Reply:
        """See `Client.send`.

        A redirect that keeps the method (307, 308) is followed, without the key to other hosts.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = yarl.URL(url_of(self._server.base_url, path), encoded=True)
        departure, patience = _Departure(left), _Patience(self._server.timeout)
        try:
            async with patience.timeout:
                reply = await self._post(url, body, departure)
                return await self._follow(reply, url, body, departure) if reply.status in {307, 308} else reply
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # A proxy that refuses to connect us has been sent a request, but not ours.
            if departure.left and not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
                is_unreadable = _breaks_http(error) or isinstance(error, _TooLarge)
                raise (Unreadable if is_unreadable else Lost)(self._words(error)) from error
            is_lasting = isinstance(error, aiohttp.ClientConnectorCertificateError)
            raise NotSent(self._words(error), is_lasting=is_lasting) from error
        finally:
            patience.end()

    async def _follow(self, reply: Reply, url: yarl.URL, body: bytes, departure: _Departure) -> Reply:
        """Post once more to where a reply redirects, and so on."""
        for _ in range(MAX_REDIRECTS):
            target = reply.headers.get("location") if reply.status in {307, 308} else None
            joined = joined_url(url, target) if target else None
            if joined is None:
                return reply
            url = joined
            reply = await self._post(url, body, departure)
        return reply

    async def _post(self, url: yarl.URL, body: bytes, departure: _Departure) -> Reply:
        response = await self._session.post(
            url,
            data=_Body(body, departure),
            headers=self._headers if origin(url) == self._origin else self._public,
            allow_redirects=False,
            proxy=self._proxy,
        )
        try:
            content = await _content_of(response)
        finally:
            response.release()
        return Reply(response.status, response.headers, _decompressed(content, response.headers))

    def _words(self, error: Exception) -> str:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return f"no connection within {min(LONGEST_CONNECT, self._server.timeout):g} s"
        if isinstance(error, TimeoutError):
            return f"no answer within {self._server.timeout:g} s"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            return (
                f"the certificate of {error.host}:{error.port} is not trusted ({reason}): "
                "SSL_CERT_FILE may name a file with the certificate that vouches for it"
            )
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = error.os_error.strerror or str(error.os_error) or str(error)
            return f"cannot connect to {error.host}:{error.port}: {reason}"
        if isinstance(error, _TooLarge):
            return f"the answer has more than {LARGEST / 1024 / 1024:g} MiB"
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return "the server closed the connection without an answer"
        if isinstance(error, aiohttp.ClientOSError | ConnectionError):
            return f"the connection was lost: {error.strerror or error}"
        if type(error) is aiohttp.ClientResponseError and not _breaks_http(error):
            return "what answers there is no HTTP: is it the address, and the port, of the server?"
        if _breaks_http(error):
            return f"the answer breaks HTTP: {' '.join(error.message.split())}"
        return f"{type(error).__name__}: {str(error) or 'the connection was lost'}"


class _TooLarge(ValueError):  # noqa: N818 - never leaves this module
    """An answer has more than `LARGEST` bytes."""


async def _content_of(response: aiohttp.ClientResponse) -> bytes:
    length = response.content_length
    if length is not None:
        if length > LARGEST:
            raise _TooLarge
        return await response.read()
    parts, size = list[bytes](), 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise _TooLarge
    return b"".join(parts)


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


class _Patience:
    """Ends an attempt that takes too long: its `timeout` is to be entered, and `end` called after it.

    Time for which this process stood still (it was stopped, or the loop was busy with something else) does not count:
    an answer that came meanwhile is still to be read, and was paid for.
    """

    __slots__ = ("_due", "_handle", "_left", "_loop", "_seconds", "timeout")

    def __init__(self, seconds: float) -> None:
        self.timeout = asyncio.timeout(None)
        self._seconds, self._left = seconds, _REPRIEVES
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + min(seconds, _LONGEST)
        self._handle = self._loop.call_at(self._due, self._look)

    def end(self) -> None:
        self._handle.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        late = now - self._due
        if late < _STANDSTILL or not self._left:
            self.timeout.reschedule(now)
            return
        self._left -= 1
        self._due = now + min(late, self._seconds)
        self._handle = self._loop.call_at(self._due, self._look)


_LONGEST = 1e9
"""Seconds of a timer: a third of a century, which every event loop takes."""

_STANDSTILL = 0.1
"""Seconds by which a timer must be late to show that nothing was read meanwhile."""

_REPRIEVES = 10
"""Times that an attempt is given back what a standstill took: a loop that is always late ends it too."""


class _Body(aiohttp.BytesPayload):
    """A body that says when it leaves, and its headers with it. Tracing would say the same, at a fifth of a request."""

    def __init__(self, body: bytes, departure: _Departure) -> None:
        super().__init__(body, content_type="application/json")
        self._departure = departure

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._departure.leaves()
        await super().write(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._departure.leaves()
        await super().write_with_length(writer, content_length)


def origin(url: yarl.URL) -> tuple[str, str | None, int | None]:
    """What the keys of a server may be sent to."""
    return url.scheme, url.host, url.port


def joined_url(url: yarl.URL, target: str) -> yarl.URL | None:
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
                found += one.decompress(rest[:-_CHECKSUM], LARGEST + 1)
                found += one.decompress(one.unconsumed_tail + rest[-_CHECKSUM:], LARGEST + 1)
            except zlib.error:
                break
            if len(found) > LARGEST:
                raise _TooLarge
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
    without_name = proxy.rpartition("@")[2]
    try:
        found = urllib.parse.urlsplit(proxy)
        is_address = bool(found.hostname) and (found.port or 0) >= 0
    except ValueError:
        found, is_address = urllib.parse.SplitResult("", "", "", "", ""), False
    if not is_address:
        raise ValueError(
            f"a proxy must have a host and a port below 65,536, like http://proxy:3128; not {without_name!r}"
        )
    if found.scheme not in {"http", "https"}:
        raise ValueError(f"a proxy must be http:// or https://, not {without_name}")
    return proxy


def _tls() -> ssl.SSLContext:
    """The certificates that the environment or the system names, else those of certifi if it is there."""
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
