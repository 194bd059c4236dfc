"""Images, sounds and moderations: what their endpoints are asked, and what they answer. Pure.

What is made is the smallest thing that the format knows, and is said to be for the question by its fingerprint: in the
revised prompt of an image, in the text of a transcript. A moderation finds nothing, unless the text says "violence".
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from penstock.simulator import _replies
from penstock.simulator._multipart import read_form

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
TRANSCRIBE, TRANSLATE, SPEAK = "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"
IMAGES = (GENERATE, EDIT, VARY)
MEDIA = (*IMAGES, TRANSCRIBE, TRANSLATE, SPEAK, _replies.MODERATIONS)

_NEEDED = {
    GENERATE: ("prompt",),
    EDIT: ("image", "prompt"),
    VARY: ("image",),
    TRANSCRIBE: ("file", "model"),
    TRANSLATE: ("file", "model"),
    SPEAK: ("input", "model", "voice"),
    _replies.MODERATIONS: ("input",),
}
_MOST_IMAGES = 10
_BYTES_A_SECOND = 16_000  # of sound at 128 kbit/s
_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")


def body_of(content_type: str, raw: bytes) -> dict[str, Any] | None:
    """A form as a body: its fields as text, its files as their bytes; None: it is none."""
    try:
        form = read_form(content_type, raw)
    except ValueError:
        return None
    fields: dict[str, Any] = {}
    for name, field in form.items():
        text = field.content.decode("utf-8", "replace")
        plain: Any = int(text) if name == "n" and text.isascii() and text.isdigit() and len(text) < 9 else text
        fields[name.removesuffix("[]")] = field.content if field.filename is not None else plain
    return fields


def fault_in(path: str, body: Mapping[str, Any]) -> _replies.Error | None:
    """What is wrong with a body; None if nothing is that a simulator cares for."""
    for name in _NEEDED[path]:
        if not body.get(name):
            return _replies.invalid(f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
    for name in ("file", "image"):
        if name in _NEEDED[path] and not isinstance(body[name], bytes):
            return _replies.invalid(f"Invalid type for '{name}': expected a file.", "invalid_type", name)
    for name in ("model", "prompt", "voice"):
        if not isinstance(body.get(name), str | None):
            return _replies.invalid(f"Invalid type for '{name}': expected a string.", "invalid_type", name)
    texts = body.get("input", "")
    if not isinstance(texts, str | list):
        return _replies.invalid("Invalid type for 'input': expected a string or an array.", "invalid_type", "input")
    n = body.get("n")
    if n is not None and (type(n) is not int or not 1 <= n <= _MOST_IMAGES):
        return _replies.invalid(f"Invalid 'n': expected a whole number from 1 to {_MOST_IMAGES}.", "invalid_value", "n")
    return None


def images_in(path: str, body: Mapping[str, Any] | None) -> int:
    """Images that a request asks for; 0 where it asks for something else, or for nothing that there is."""
    if path not in IMAGES or body is None or fault_in(path, body) is not None:
        return 0
    return int(body.get("n") or 1)


def answer(path: str, body: Mapping[str, Any], created: int, identity: str) -> dict[str, Any] | bytes:
    """The answer to a valid request: JSON, or the bytes of a sound, or of a text."""
    if path in IMAGES:
        return _images(body, created)
    if path == SPEAK:
        return _wav(len(str(body["input"])) / 15)
    if path == _replies.MODERATIONS:
        return _moderation(body, identity)
    text = f"{_fingerprint(body['file'])} This transcript is simulated."
    form, seconds = body.get("response_format", "json"), len(body["file"]) / _BYTES_A_SECOND
    if form in {"text", "srt", "vtt"}:
        return text.encode() + b"\n"
    whole: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": max(1, round(seconds))}}
    return whole | ({"language": "english", "duration": seconds, "segments": []} if form == "verbose_json" else {})


def _images(body: Mapping[str, Any], created: int) -> dict[str, Any]:
    about = _fingerprint(body.get("prompt") or body.get("image", ""))
    one: dict[str, Any] = {"revised_prompt": about}
    if body.get("response_format") == "url":
        one["url"] = f"https://simulated.example/{about}.png"
    else:
        one["b64_json"] = base64.b64encode(_png()).decode()
    return {"created": created, "data": [one for _ in range(int(body.get("n") or 1))]}


def _moderation(body: Mapping[str, Any], identity: str) -> dict[str, Any]:
    given = body["input"]
    parts = [part for part in given if isinstance(part, dict)] if isinstance(given, list) else []
    texts = (
        [given]
        if isinstance(given, str)
        else given
        if not parts
        else [" ".join(str(part.get("text", "")) for part in parts)]
    )
    results = []
    for text in texts:
        found = {name: name == "violence" and "violence" in str(text).lower() for name in _CATEGORIES}
        results.append(
            {
                "flagged": any(found.values()),
                "categories": found,
                "category_scores": {name: 0.9 if flag else 0.001 for name, flag in found.items()},
                "category_applied_input_types": {name: ["text"] for name in found},
            }
        )
    return {"id": f"modr-{identity}", "model": body.get("model") or "omni-moderation-latest", "results": results}


def _fingerprint(value: Any) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return _replies.fingerprint(text)


def _png() -> bytes:
    """One white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixel = zlib.compress(b"\x00\xff")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def _wav(seconds: float) -> bytes:
    """Silence, 8,000 samples a second; a minute at most."""
    samples = b"\x80" * int(8_000 * min(max(seconds, 0.1), 60.0))
    form = struct.pack("<HHIIHH", 1, 1, 8_000, 8_000, 1, 8)
    rest = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(rest)) + rest
