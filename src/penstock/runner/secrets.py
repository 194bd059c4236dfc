"""Hide keys in what a server says, as files and logs are passed on to others."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Secrets"]

SHORTEST = 8
"""Characters of a key that is worth hiding. What is shorter is a word that stands for no key, such as "none"."""


class Secrets:
    """What must not be written down or shown."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = tuple(secret for secret in secrets if len(secret) >= SHORTEST)

    def hide(self, text: str) -> str:
        """The text, with a word instead of each key in it."""
        return self.hide_bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")

    def hide_bytes(self, content: bytes) -> bytes:
        """The same for bytes."""
        for secret in self._secrets:
            content = content.replace(secret, b"[the key]")
        return content
