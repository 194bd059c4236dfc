"""What listeners are told of a request to a service: one record when its answer is over.

The usage that a service tells is in the body of its answer, which passes by here on its way to the SDK: it is never held up, and what
is kept of it is bounded. Nothing that is read in it, or goes wrong in reading it, can cost the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from penstock import Limiter, Permit, Rate, clock
from penstock.events import Answered, Reconfigured, Refused, ServiceEvent, emit

__all__ = ["Listener", "Report", "usage_in"]

_LONGEST = 8 * 1024 * 1024
"""Bytes of a JSON answer that are kept to look for its usage."""

_TAIL = 32 * 1024
"""Bytes of the end of a stream that are kept: its usage comes last."""

_REMEMBERED = 1_000  # models of which the limits are known to have been told

_NAMES = {
    "input_tokens": ("prompt_tokens", "input_tokens", "promptTokenCount"),
    "output_tokens": ("completion_tokens", "output_tokens", "candidatesTokenCount"),
}


class Listener:
    """Who hears of a client's requests."""

    def __init__(self, hook: Callable[[Any], object]) -> None:
        self.hook = hook
        self._told: dict[str, Mapping[str, tuple[Rate, ...]]] = {}

    def granted(
        self,
        limiter: Limiter,
        model: str | None,
        cost: Mapping[str, float],
        flow: Hashable,
        permit: Permit,
        asked_at: float,
    ) -> Report:
        """A request may go: what will be told of it."""
        return Report(
            self, limiter.name, model, cost, permit.granted_at - asked_at, flow, id(permit), permit.granted_at
        )

    def refused(
        self, limiter: Limiter, cost: Mapping[str, float], flow: Hashable, retry_after: float, blocker: str
    ) -> None:
        """A request was not sent: its limiter refused it. Said once, if both have one listener."""
        if limiter._caller.on_event is not self.hook:
            emit(self.hook, Refused(limiter.name, dict(cost), retry_after, blocker, flow))

    def limits(self, subject: str, limits: Mapping[str, tuple[object, ...]]) -> None:
        """The limits that requests are under; said when they are new."""
        rates = {unit: tuple(each for each in kinds if isinstance(each, Rate)) for unit, kinds in limits.items()}
        rates = {unit: those for unit, those in rates.items() if those}
        if rates and self._told.get(subject) != rates:
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told[subject] = rates
            emit(self.hook, Reconfigured(subject, dict(rates)))


class Report:
    """One request, from its grant to the end of its answer.

    Args:
        listener: Who is told.
        limiter: The name of the limiter.
        model: Which is asked.
        cost: What it was charged, as estimated.
        waited: Seconds in the queue.
        flow: Whose it is.
        call: The number of its permit.
        granted_at: When it was granted.
    """

    __slots__ = (
        "_body", "_call", "_cost", "_decode", "_flow", "_granted_at", "_is_stream", "_limiter", "_listener", "_model", "_over", "_status",
        "_waited",
    )  # fmt: skip

    def __init__(
        self,
        listener: Listener,
        limiter: str | None,
        model: str | None,
        cost: Mapping[str, float],
        waited: float,
        flow: Hashable,
        call: int,
        granted_at: float,
    ) -> None:
        self._listener = listener
        self._limiter, self._model, self._cost, self._waited = limiter, model, cost, max(0.0, waited)
        self._flow, self._call, self._granted_at = flow, call, granted_at
        self._status = 0
        self._body: bytearray | None = None
        self._is_stream = False
        self._decode: Callable[[bytes], bytes] = bytes
        self._over = False

    def answered(self, response: Any, library: Any, limits: Mapping[str, tuple[object, ...]]) -> None:
        """The headers are there: of a response of httpx or httpx2, which `library` is. `limits`: what it was under."""
        headers = response.headers
        self._status = response.status_code
        self._decode = lambda raw: library.Response(200, headers=headers, content=raw).content
        kind, is_plain = headers.get("content-type", ""), not headers.get("content-encoding")
        self._is_stream = kind.startswith("text/event-stream")
        if self._status < 400 and (kind.startswith("application/json") or (self._is_stream and is_plain)):
            self._body = bytearray()
        self._listener.limits(self._model or self._limiter or "", limits)

    def read(self, chunk: bytes) -> None:
        """A part of the body, as it came over the wire."""
        body = self._body
        if body is None:
            return
        body += chunk
        if self._is_stream:
            if len(body) > 2 * _TAIL:
                del body[:-_TAIL]
        elif len(body) > _LONGEST:
            self._body = None

    def read_whole(self, response: Any) -> None:
        """The body of a response that has it already: of a cache, or of a test."""
        if self._body is not None:
            self._decode = bytes
            self.read(getattr(response, "_content", b""))

    def over(self) -> None:
        """The answer is over, or there is none. Said again: nothing happens."""
        if self._over:
            return
        self._over = True
        elapsed = max(0.0, clock.now() - self._granted_at)
        event: ServiceEvent = Answered(
            self._limiter, self._model, self._cost, self._usage(), self._waited, elapsed, self._status, self._flow, self._call
        )  # fmt: skip
        emit(self._listener.hook, event)

    def _usage(self) -> Mapping[str, float]:
        if not self._body:
            return {}
        try:
            body = bytes(self._body)
            return _usage_of_stream(body) if self._is_stream else usage_in(json.loads(self._decode(body)))
        except Exception:  # noqa: BLE001 - whatever it is, it is no usage
            return {}


def usage_in(answer: Any) -> Mapping[str, float]:
    """The `input_tokens` and `output_tokens` that an answer says it took; empty: it does not say."""
    if not isinstance(answer, Mapping):
        return {}
    usage = answer.get("usage") or answer.get("usageMetadata")
    if not isinstance(usage, Mapping):  # of the last event of a stream: inside of the answer, or of a message
        inner: Any = answer.get("response") or answer.get("message")
        usage = inner.get("usage") if isinstance(inner, Mapping) else None
    if not isinstance(usage, Mapping):
        return {}
    found = {
        unit: next((float(usage[name]) for name in names if _is_count(usage.get(name))), 0.0)
        for unit, names in _NAMES.items()
    }
    return found if any(found.values()) else {}


def _usage_of_stream(body: bytes) -> Mapping[str, float]:
    """The last usage in the events of a stream; input that only an earlier one told is kept."""
    found: dict[str, float] = {}
    for line in body.split(b"\n"):
        if line.startswith(b"data:") and b"sage" in line:
            try:
                found |= {unit: amount for unit, amount in usage_in(json.loads(line[5:])).items() if amount}
            except ValueError:
                continue  # cut, or no JSON
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**15
