"""What images, sounds and files in a request cost, in tokens, by the rules that services publish.

Pure. Nothing is fetched, and no image is decoded: of what comes inside the request the first bytes tell the size. What
comes as an address or an id has no size here, and costs what one of the usual size does.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["IMAGE_TOKENS", "PAGE_TOKENS", "Media", "encoded_image", "media_in"]

IMAGE_TOKENS = 765
"""What an image costs whose size is not known: that of 1,024 × 1,024, measured at admission."""

PAGE_TOKENS = 1_500
"""What a page of a document costs, beside its text: Anthropic tells 1,500 to 3,000."""

_GEMINIS_TILE, _GEMINIS_PAGE = 258, 258
_ANTHROPICS_MOST = 1_600
_SOUND, _GEMINIS_SOUND = 10, 32  # a second
_BYTES_A_SECOND = 16_000  # of sound that is compressed, at 128 kbit/s

_IMAGES = {"image_url", "input_image", "image"}
_SOUNDS = {"input_audio", "audio"}
_FILES = {"file", "input_file", "document"}

_KINDS = _IMAGES | _SOUNDS | _FILES

_TILES = (("gpt-4o-mini", 2_833, 5_667), ("gpt-5", 70, 140), ("o1", 75, 150), ("o3", 75, 150))
"""Of a family: what an image costs in low detail, and what each tile adds. Of all others 85 and 170."""

_HEAD = 65_536
"""Characters of an encoded image that are decoded: its size stands at the beginning."""

_LARGEST = 20_000
_PAGES = re.compile(rb"/Type\s{0,4}/Page(?![a-zA-Z])")
_DATA = re.compile(r"data:([\w.+-]{0,60}/[\w.+-]{0,60})?[^,]{0,200},")


class Media(NamedTuple):
    """What a part of a message is, beside its text.

    Attributes:
        tokens: What it costs.
        text: The text in it, to be counted like any other.
    """

    tokens: int = 0
    text: str | None = None


def media_in(part: Mapping[str, Any], model: str = "") -> Media | None:
    """What an image, a sound or a file costs; None: the part is none of these.

    Args:
        part: A part of a message, in the form of any service.
        model: As the request names it; "": the rule of most.
    """
    kind = part.get("type")
    if kind is None:
        inline = part.get("inlineData", part.get("inline_data"))
        if isinstance(inline, Mapping):
            return _geminis(str(inline.get("mimeType", inline.get("mime_type", ""))), _text(inline.get("data")))
        if "fileData" in part or "file_data" in part:
            return Media(IMAGE_TOKENS)
        return _bedrocks(part)
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    if kind in _IMAGES:
        return Media(_image(part, model))
    if kind in _SOUNDS:
        inner = part.get(kind)
        return Media(_sound(inner if isinstance(inner, Mapping) else part))
    return _file(part) if kind in _FILES else None


# Images ---------------------------------------------------------------------------------------------------------------


def _image(part: Mapping[str, Any], model: str) -> int:
    source = part.get("source")
    if isinstance(source, Mapping):
        size = _size(_text(source.get("data")))
        return IMAGE_TOKENS if size is None else _anthropics(*size)
    inner = part.get("image_url")
    holder = inner if isinstance(inner, Mapping) else part
    if holder.get("detail") == "low":
        return _tile(model)[0]
    url = inner if isinstance(inner, str) else holder.get("url")
    return encoded_image(_text(url), model)


def encoded_image(text: str, model: str = "") -> int:
    """What an image costs that is encoded in base64, with or without `data:image/png;base64,` before it.

    Of an address the size is not known.
    """
    low, tile = _tile(model)
    found = _DATA.match(text)
    begin = 0 if found is None else found.end()
    width, height = _size(text[begin : begin + _HEAD]) or (1_024, 1_024)
    # It is made to fit into 2,048 × 2,048, then its shorter side into 768; tiles are 512 × 512.
    shrunk = min(1.0, 2_048 / max(width, height))
    shrunk *= min(1.0, 768 / (shrunk * min(width, height)))
    return low + tile * math.prod(math.ceil(round(side * shrunk, 3) / 512) for side in (width, height))


def _tile(model: str) -> tuple[int, int]:
    return next(((low, tile) for name, low, tile in _TILES if model.startswith(name)), (85, 170))


def _anthropics(width: int, height: int) -> int:
    shrunk = min(1.0, 1_568 / max(width, height))
    return min(_ANTHROPICS_MOST, math.ceil(width * shrunk * height * shrunk / 750))


def _geminis(kind: str, data: str) -> Media:
    if kind.startswith("audio/"):
        return Media(math.ceil(_seconds(data) * _GEMINIS_SOUND))
    if kind.startswith("text/"):
        return Media(0, _decoded(data).decode("utf-8", "replace"))
    if kind == "application/pdf":
        return Media(_GEMINIS_PAGE * _pages(data))
    size = _size(data)
    if size is None:
        return Media(IMAGE_TOKENS)
    if max(size) <= 384:
        return Media(_GEMINIS_TILE)
    return Media(_GEMINIS_TILE * math.prod(math.ceil(side / 768) for side in size))


def _bedrocks(part: Mapping[str, Any]) -> Media | None:
    """Of `{"image": {"source": {"bytes": …}}}`, and the same of a document."""
    for name in ("image", "document"):
        holder = part.get(name)
        source = holder.get("source") if isinstance(holder, Mapping) else None
        if isinstance(source, Mapping):
            data = _text(source.get("bytes"))
            if name == "document":
                text = source.get("text")
                return Media(0, text) if isinstance(text, str) else Media(PAGE_TOKENS * _pages(data))
            size = _size(data)
            return Media(IMAGE_TOKENS if size is None else _anthropics(*size))
    return None


def _size(data: str) -> tuple[int, int] | None:
    """Width and height of an encoded PNG, GIF, JPEG or WebP, in pixels; None: they are unknown."""
    head = _decoded(data[:_HEAD])
    try:
        size = _size_in(head)
    except (struct.error, IndexError):
        return None
    return size if size is not None and all(0 < side <= _LARGEST for side in size) else None


def _size_in(head: bytes) -> tuple[int, int] | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", head[16:24])
        return width, height
    if head[:4] == b"GIF8":
        width, height = struct.unpack("<HH", head[6:10])
        return width, height
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    return _jpeg(head) if head[:2] == b"\xff\xd8" else None


def _webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        at += 2 + max(2, length)
    return None


# Sounds and files -----------------------------------------------------------------------------------------------------


def _sound(inner: Mapping[str, Any]) -> int:
    return math.ceil(_seconds(_text(inner.get("data"))) * _SOUND)


def _seconds(data: str) -> float:
    """How long an encoded sound lasts: a WAV's header tells, of others the length does, about."""
    size, head = len(data.rstrip("=")) * 3 // 4, _decoded(data[:64])
    rate = int.from_bytes(head[28:32], "little") if head[:4] == b"RIFF" and head[8:12] == b"WAVE" else 0
    return size / (rate or _BYTES_A_SECOND)


def _file(part: Mapping[str, Any]) -> Media:
    inner = part.get("file", part.get("source", part.get("document")))
    holder = inner if isinstance(inner, Mapping) else part
    content = holder.get("content")
    if isinstance(content, (str, list)):
        return Media(0, _texts(content))
    data = holder.get("file_data", holder.get("data"))
    if isinstance(data, Mapping):  # Cohere's documents
        return Media(0, " ".join(value for value in data.values() if isinstance(value, str)))
    if not isinstance(data, str):
        return Media(PAGE_TOKENS)  # an address or an id
    if holder.get("type") == "text" or (inner is part.get("document") and inner is not None):
        return Media(0, data)
    found = _DATA.match(data)
    kind = (found[1] if found else None) or str(holder.get("media_type", ""))
    encoded = data[found.end() :] if found else data
    if kind.startswith("text/") or kind == "application/json":
        return Media(0, _decoded(encoded).decode("utf-8", "replace"))
    return Media(PAGE_TOKENS * _pages(encoded))


def _texts(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(text for each in content if isinstance(each, Mapping) and isinstance(text := each.get("text"), str))


def _pages(data: str) -> int:
    return max(1, len(_PAGES.findall(_decoded(data))))


def _decoded(data: str) -> bytes:
    """What is encoded in base64, as far as it is; b"" if it is not."""
    try:
        return base64.b64decode(data[: len(data) & ~3].encode("ascii"))
    except ValueError:
        return b""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
