"""Files and batches over HTTP: bodies and answers of any size, for as long as bytes come."""

from __future__ import annotations

from typing import BinaryIO

import aiohttp
import yarl

from penstock.runner.client import Lost, NotSent, Reply, url_of
from penstock.runner.http import MAX_REDIRECTS, Http

__all__ = ["BatchHttp"]

_CHUNK = 1 << 20


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
        assert self._session is not None, "a client is entered before it sends"
        url = yarl.URL(url_of(self._server.base_url, path), encoded=True)
        patience = self._server.timeout
        # A file of 200 MB may take any time, but not any time without a byte.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(30.0, patience), sock_read=patience)
        try:
            for _ in range(MAX_REDIRECTS):
                ours = (url.scheme, url.host, url.port) == self._origin
                headers = dict(self._headers if ours else self._public) | {"accept-encoding": "identity"} | more
                if body is None:
                    headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
                async with self._session.request(
                    method, url, data=body, headers=headers, allow_redirects=False, proxy=self._proxy, timeout=timeout,
                    trace_request_ctx=_Untold(),
                ) as response:  # fmt: skip
                    target = response.headers.get("location")
                    if method == "GET" and response.status in {301, 302, 303, 307, 308} and target:
                        url = url.join(yarl.URL(target))
                        continue
                    if into is None or response.status != 200:
                        return Reply(response.status, response.headers, await response.read())
                    async for chunk in response.content.iter_chunked(_CHUNK):
                        into.write(chunk)
                    return Reply(200, response.headers, b"")
            return Reply(508, {}, b"")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                is_lasting = isinstance(error, aiohttp.ClientConnectorCertificateError)
                raise NotSent(self._words(error), is_lasting=is_lasting) from error
            raise Lost(self._words(error)) from error


class _Untold:
    """It does not matter when these requests leave."""

    def leaves(self) -> None:
        pass
