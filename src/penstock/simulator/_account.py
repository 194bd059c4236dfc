"""The account that is being simulated: its buckets, what happened to it, and the decision about each request.

Decisions are plain calls that never wait. A lock makes each of them one step, because a server's thread decides while
its owner reads the statistics from another.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Literal, NamedTuple

from penstock import clock
from penstock.limits import Rate
from penstock.simulator import _replies
from penstock.simulator._buckets import Bucket
from penstock.simulator._headers import (
    ceil_milliseconds,
    format_milliseconds,
    rate_limit_headers,
    retry_headers,
)
from penstock.simulator._simulation import FAULTS, Fault, Simulation

__all__ = ["Account", "Admission", "LimitStatistics", "Statistics"]

_MOST_FAULTS = 1_000_000
"""Faults that one order may be for: each is remembered."""

Unit = Literal["requests", "tokens"]


class Admission(NamedTuple):
    """One request that was admitted.

    Attributes:
        at_ns: Nanoseconds on the server's clock (only differences mean something).
        tokens: What it was charged, besides one request.
    """

    at_ns: int
    tokens: int


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """One limit, as it is now.

    Attributes:
        unit: `requests` or `tokens`.
        limit: The rate.
        level: Units left, parts of one included.
        used: Units that admitted requests took.
        share: `used`, of all that could have been admitted between the first admission and the last: burst + rate × T.
    """

    unit: Unit
    limit: Rate
    level: float
    used: int
    share: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the server did so far.

    Attributes:
        admitted: Requests that were charged and let in, those that failed afterwards included.
        answered: Requests that were answered in full, with 200.
        refused: 429s, by reason: `requests`, `tokens`, `too_large`, `slow_down`, `insufficient_quota`.
        failed: What else went wrong: HTTP statuses as text (`"400"`, `"401"`, `"500"`…), `dropped`, `broken_stream`.
        requests_used: Requests charged to admitted ones: one each.
        tokens_used: Tokens charged to admitted requests.
        in_flight: Requests admitted and not yet answered.
        peak_in_flight: The most there ever were.
        span: Seconds between the first admission and the last.
        limits: Every limit.
        admissions: Every admission, in order of time.
    """

    admitted: int
    answered: int
    refused: dict[str, int]
    failed: dict[str, int]
    requests_used: int
    tokens_used: int
    in_flight: int
    peak_in_flight: int
    span: float
    limits: tuple[LimitStatistics, ...]
    admissions: tuple[Admission, ...]

    def as_json(self, *, log: bool = False) -> dict[str, Any]:
        """The same as plain values; with `log`, the admissions too, as [nanoseconds, tokens]."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        values["limits"] = [
            {"unit": one.unit, "limit": str(one.limit), "level": one.level, "used": one.used, "share": one.share}
            for one in self.limits
        ]
        values["admissions"] = [list(each) for each in self.admissions] if log else None
        return values


class Refusal(NamedTuple):
    """A 429: its body and headers."""

    body: _replies.Error
    headers: dict[str, str]


class Draw(NamedTuple):
    """What chance has in store for one request."""

    fault: Fault | None
    latency: float
    random: Random


class _Meter:
    """A bucket with its level, in parts."""

    __slots__ = ("bucket", "level", "unit")

    def __init__(self, unit: Unit, rate: Rate) -> None:
        self.unit = unit
        self.bucket = Bucket.of(rate)
        self.level = self.bucket.full

    def take_what_there_is(self, units: int) -> None:
        """Take units, but no more than there are."""
        self.level = max(min(0, self.level), self.level - units * self.bucket.scale)


class Account:
    """One account of a simulated service. All methods may be called from any thread."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._lock = threading.Lock()
        self._meters = [_Meter(unit, rate) for unit, rates in simulation.limits.items() for rate in rates]
        self._shown = [
            chosen(meters, key=lambda meter: meter.bucket.rate.per)
            for unit, chosen in (("requests", max), ("tokens", min))
            if (meters := [meter for meter in self._meters if meter.unit == unit])
        ]
        self._tolerance_ns = round(simulation.tolerance * 1_000_000_000)
        self._at_ns = _now_ns()
        self._injected: deque[Fault] = deque()
        self._seen: Counter[bytes] = Counter()
        self._admissions: list[Admission] = []
        self._tokens_used = 0
        self._answered = 0
        self._refused: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._in_flight = 0
        self._peak_in_flight = 0

    def draw(self, path: str, raw: bytes) -> Draw:
        """Fault and latency of a request: of its bytes, and of how often they came before, not of when they come."""
        digest = hashlib.blake2b(path.encode() + b"\n" + raw, digest_size=8).digest()
        with self._lock:
            self._seen[digest] += 1
            nth = self._seen[digest]
            injected = self._injected.popleft() if self._injected else None
            quota = self.simulation.faults.insufficient_quota_after
            if quota is not None and len(self._admissions) >= quota:
                injected = "insufficient_quota"
        random = Random(f"{self.simulation.seed}:{digest.hex()}:{nth}")
        fault = self.simulation.faults.draw(random)
        latency = self.simulation.latency.draw(random)
        return Draw(injected or fault, latency, random)

    def admit(self, model: str, tokens: int) -> dict[str, str] | Refusal:
        """Charge a request of `tokens`, or refuse it: on all limits at once, or on none.

        Returns:
            The headers of its answer, a snapshot of this moment; or the refusal.
        """
        cost: dict[Unit, int] = {"requests": 1, "tokens": tokens}
        with self._lock:
            self._refill()
            for meter in self._meters:
                if meter.bucket.never_holds(cost[meter.unit]):
                    return self._too_large(model, meter, cost[meter.unit])
            short = [meter for meter in self._meters if not self._holds(meter, cost)]
            if short:
                return self._not_now(model, cost, short)
            for meter in self._meters:
                meter.level -= cost[meter.unit] * meter.bucket.scale
            self._admissions.append(Admission(self._at_ns, tokens))
            self._tokens_used += tokens
            return self._headers()

    def refuse(self, body: _replies.Error, headers: dict[str, str]) -> Refusal:
        """Refuse a request for another reason than a limit, without a charge."""
        with self._lock:
            self._refill()
            self._refused[body["error"]["code"]] += 1
            return Refusal(body, {**self._headers(), **headers})

    def failed(self, how: str) -> None:
        """Count a failure."""
        with self._lock:
            self._failed[how] += 1

    def answered(self) -> None:
        """Count an answer."""
        with self._lock:
            self._answered += 1

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being worked on."""
        with self._lock:
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def inject(self, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests have this fault.

        Raises:
            ValueError: There is no such fault, or `times` is not in 0..1,000,000.
        """
        if not 0 <= times <= _MOST_FAULTS:
            raise ValueError(f"times must be a number of requests, 0 to {_MOST_FAULTS}, not {times}")
        if fault not in FAULTS:
            raise ValueError(f"there is no fault {fault!r}: use one of {', '.join(FAULTS)}")
        with self._lock:
            self._injected.extend([fault] * times)

    def consume(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Take from the limits what somebody else of the same account used; never more than there is."""
        with self._lock:
            self._refill()
            for meter in self._meters:
                meter.take_what_there_is(requests if meter.unit == "requests" else tokens)

    def statistics(self) -> Statistics:
        """What happened so far, at one moment."""
        with self._lock:
            self._refill()
            log = tuple(self._admissions)
            span_ns = log[-1].at_ns - log[0].at_ns if log else 0
            used = {"requests": len(log), "tokens": self._tokens_used}
            return Statistics(
                admitted=len(log),
                answered=self._answered,
                refused=dict(self._refused),
                failed=dict(self._failed),
                requests_used=len(log),
                tokens_used=self._tokens_used,
                in_flight=self._in_flight,
                peak_in_flight=self._peak_in_flight,
                span=span_ns / 1e9,
                limits=tuple(
                    LimitStatistics(
                        meter.unit,
                        meter.bucket.rate,
                        meter.level / meter.bucket.scale,
                        used[meter.unit],
                        used[meter.unit] * meter.bucket.scale / (meter.bucket.full + meter.bucket.refill * span_ns),
                    )
                    for meter in self._meters
                ),
                admissions=log,
            )

    def _refill(self) -> None:
        now_ns = max(self._at_ns, _now_ns())
        for meter in self._meters:
            meter.level = meter.bucket.refilled(meter.level, now_ns - self._at_ns)
        self._at_ns = now_ns

    def _holds(self, meter: _Meter, cost: dict[Unit, int]) -> bool:
        return meter.bucket.holds(meter.level, cost[meter.unit], self._tolerance_ns)

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for meter in self._shown:
            bucket = meter.bucket
            headers |= rate_limit_headers(
                meter.unit, bucket.rate.amount, bucket.remaining(meter.level), bucket.reset_ns(meter.level)
            )
        return headers

    def _count_refused(self, reason: str) -> None:
        self._refused[reason] += 1
        if self.simulation.count_refused:
            for meter in self._meters:
                if meter.unit == "requests":
                    meter.take_what_there_is(1)

    def _too_large(self, model: str, meter: _Meter, requested: int) -> Refusal:
        self._count_refused("too_large")
        rate = meter.bucket.rate
        body = _replies.too_large(
            model, self.simulation.organization, meter.unit, rate.per, limit=rate.burst, requested=requested
        )
        return Refusal(body, self._headers())

    def _not_now(self, model: str, cost: dict[Unit, int], short: list[_Meter]) -> Refusal:
        # The limit that has to be waited for longest is the one that is named, so that the wait it names is enough.
        meter = max(short, key=lambda each: each.bucket.announced_wait_ns(each.level, cost[each.unit]))
        self._count_refused(meter.unit)
        # That may have taken the last request.
        meter = max(self._meters, key=lambda each: each.bucket.announced_wait_ns(each.level, cost[each.unit]))
        wait_ns = meter.bucket.announced_wait_ns(meter.level, cost[meter.unit])
        rate = meter.bucket.rate
        body = _replies.rate_limited(
            model,
            self.simulation.organization,
            meter.unit,
            rate.per,
            limit=rate.burst,
            used=meter.bucket.used(meter.level),
            requested=cost[meter.unit],
            wait=format_milliseconds(ceil_milliseconds(wait_ns)),
        )
        return Refusal(body, {**self._headers(), **retry_headers(wait_ns)})


def _now_ns() -> int:
    return round(clock.now() * 1_000_000_000)
