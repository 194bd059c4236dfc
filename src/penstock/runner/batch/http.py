"""Files and batches over HTTP: bodies and answers of any size, for as long as bytes come.

What is asked and answered is in `api`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

import aiohttp
import yarl

from penstock.runner.client import Lost, NotSent, Reply, url_of
from penstock.runner.http import MAX_REDIRECTS, Http, joined_url, origin

__all__ = ["BatchHttp"]

_CHUNK = 1 << 20

_FOLLOWED = {"GET": frozenset({301, 302, 303, 307, 308}), "POST": frozenset({307, 308})}
"""Redirects that keep what is asked for."""


class BatchHttp(Http):
    """The transport of `api`, over aiohttp."""

    async def request(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, content_type: str = "application/json"
    ) -> Reply:
        """See `api.Transport.request`."""
        return await self._exchange(method, path, body, {"content-type": content_type} if body else {}, None)

    async def download(self, path: str, into: BinaryIO) -> Reply:
        """See `api.Transport.download`."""
        return await self._exchange("GET", path, None, {}, into)

    async def _exchange(
        self, method: str, path: str, body: bytes | BinaryIO | None, more: dict[str, str], into: BinaryIO | None
    ) -> Reply:
        url = yarl.URL(url_of(self._server.base_url, path), encoded=True)
        patience = self._server.timeout
        # A file of 200 MB may take any time, but not any time without a byte.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(30.0, patience), sock_read=patience)
        try:
            redirects = 0
            while True:
                ours = self._headers if origin(url) == self._origin else self._public
                headers = dict(ours) | {"accept-encoding": "identity"} | more
                if body is None:
                    headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
                async with _sendable(body) as data, self._session.request(
                    method, url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy, timeout=timeout,
                    trace_request_ctx=_Untold(),
                ) as response:  # fmt: skip
                    target = response.headers.get("location") if response.status in _FOLLOWED[method] else None
                    joined = joined_url(url, target) if target and redirects < MAX_REDIRECTS else None
                    if joined is not None:
                        url, redirects = joined, redirects + 1
                        continue
                    if into is None or response.status != 200:
                        return Reply(response.status, response.headers, await response.read())
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        into.write(chunk)
                    return Reply(200, response.headers, b"")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                is_lasting = isinstance(error, aiohttp.ClientConnectorCertificateError)
                raise NotSent(self._words(error), is_lasting=is_lasting) from error
            raise Lost(self._words(error)) from error


@asynccontextmanager
async def _sendable(body: bytes | BinaryIO | None) -> AsyncIterator[bytes | BinaryIO | None]:
    """A body from its beginning. Of a file a copy of its descriptor, since aiohttp closes what it has sent."""
    if body is None or isinstance(body, bytes):
        yield body
        return
    with os.fdopen(os.dup(body.fileno()), "rb") as file:
        file.seek(0)
        yield file


class _Untold:
    """It does not matter when these requests leave."""

    def leaves(self) -> None:
        pass
