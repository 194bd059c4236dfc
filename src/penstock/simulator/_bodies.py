"""Bodies of requests, bounded in size and in time."""

from __future__ import annotations

import zlib
from contextlib import aclosing

import anyio
from starlette.requests import Request

SILENCE = 60.0
"""Seconds for which a client may send nothing in the middle of a request."""

_MOST_DROPPED = 2**30
"""Bytes of a body that is too large which are read and dropped, before the connection is closed on its sender."""


async def read_body(request: Request, most: int) -> bytes | int:
    """The body of a request, decompressed.

    The status of the refusal if it has more than `most` bytes, does not come, or is compressed otherwise than it says.

    Raises:
        ClientDisconnect: The client is gone.
    """
    announced = request.headers.get("content-length", "")
    if "expect" in request.headers and announced.isdecimal() and len(announced) < 16 and int(announced) > most:
        return 413  # it asked first
    body, dropped = bytearray(), 0
    with anyio.move_on_after(SILENCE) as patience:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if dropped or len(body) > most:  # it is sent to its end, or its sender would not hear the answer
                    dropped += len(body)
                    body.clear()
                    if dropped > _MOST_DROPPED:
                        break
                patience.deadline = anyio.current_time() + SILENCE
        return 413 if dropped else _decompressed(bytes(body), request.headers.get("content-encoding", ""), most)
    return 408


def _decompressed(body: bytes, coding: str, most: int) -> bytes | int:
    coding = coding.strip().lower()
    if coding in {"", "identity"}:
        return body
    if coding not in {"gzip", "x-gzip", "deflate"}:
        return 415
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its head
    try:
        found = decompressor.decompress(body, most + 1)
    except zlib.error:
        return 400
    if len(found) > most:
        return 413
    return found if decompressor.eof else 400
