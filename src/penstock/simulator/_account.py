"""The account that is being simulated: its buckets, what happened to it, and the decision about each request.

Decisions are plain calls that never wait. A lock makes each of them one step, because a server's thread decides while
its owner reads the statistics from another.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple

from penstock import clock
from penstock._concurrency.locks import new_lock
from penstock._numbers import read_count, span
from penstock._text import repr_of
from penstock.limits import Rate, Sliding
from penstock.simulator import _replies
from penstock.simulator._dialects import Shown, error_in, headers_in, hints_in
from penstock.simulator._headers import (
    ceil_milliseconds,
    format_milliseconds,
    hint_headers,
)
from penstock.simulator._meters import ServerMeter, Unit, Window, meter_of
from penstock.simulator._simulation import FAULTS, Fault, Simulation

STRANGERS_STEP_NS = 100_000_000
"""Nanoseconds in which all that other clients take is taken at once."""

_MOST_FAULTS = 1_000_000
"""Faults that one order may be for: each is remembered."""


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
        unit: `requests`, `tokens`, `output_tokens` or `images`.
        limit: What is promised.
        level: Units left, parts of one included.
        used: Units that admitted requests took.
        share: `used`, of all that could have been admitted between the first admission and the last: burst + rate × T.
    """

    unit: Unit
    limit: Rate | Sliding | Window
    level: float
    used: int
    share: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the server did so far.

    Attributes:
        admitted: Requests that were charged and let in, those that failed afterwards included.
        answered: Requests that were answered in full, with 200.
        refused: 429s, by reason: `requests`, `tokens`, `output_tokens`, `images`, `too_large`, `slow_down`,
            `insufficient_quota`.
        failed: What else went wrong: HTTP statuses as text (`"400"`, `"401"`, `"500"`…), `dropped`, `broken_stream`.
        requests_used: Requests charged to admitted ones: one each.
        tokens_used: Tokens charged to admitted requests.
        output_used: Tokens of output that answers had.
        images_used: Images charged to admitted requests.
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
    output_used: int
    images_used: int
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


class Account:
    """One account of a simulated service. All methods may be called from any thread."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self._lock = new_lock()
        self._began_ns = self._at_ns = _now_ns()
        self._meters = [
            meter_of(unit, limit, self._at_ns) for unit, those in simulation.limits.items() for limit in those
        ]
        self._shown = [
            chosen(meters, key=lambda meter: meter.limit.per)
            for unit, chosen in (("requests", max), ("tokens", min), ("output_tokens", min), ("images", min))
            if (meters := [meter for meter in self._meters if meter.unit == unit and not meter.hidden])
        ]
        self._tolerance_ns = round(span("tolerance={}", simulation.tolerance, zero=True) * 1_000_000_000)
        self._changes = deque(sorted(simulation.changes, key=lambda change: change.at))
        self._owed: Counter[tuple[int, str]] = Counter()  # by other clients, in nano-units
        self._injected: deque[Fault] = deque()
        self._seen: Counter[bytes] = Counter()
        self._admissions: list[Admission] = []
        self._used: Counter[Unit] = Counter()
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

    def admit(self, model: str, tokens: int, *, images: int = 0, generates: bool = True) -> dict[str, str] | Refusal:
        """Charge a request of `tokens`, or refuse it: on all limits at once, or on none.

        What comes out is charged when it does, by `spoke`; here it is only seen that there is one left.

        Returns:
            The headers of its answer, a snapshot of this moment; or the refusal.
        """
        cost: dict[Unit, int] = {"requests": 1, "tokens": tokens, "output_tokens": int(generates), "images": images}
        with self._lock:
            self._refill()
            most = self.simulation.in_flight
            if most is not None and self._in_flight >= most:
                self._refused["in_flight"] += 1
                body = _replies.too_many_at_once(model, self.simulation.organization, most)
                return Refusal(error_in(self.simulation.dialect, 429, body), self._headers())
            for meter in self._meters:
                if cost[meter.unit] > meter.burst:
                    return self._too_large(model, meter, cost[meter.unit])
            asked = [meter for meter in self._meters if cost[meter.unit]]
            short = [meter for meter in asked if meter.wait_ns(cost[meter.unit]) > self._tolerance_ns]
            if short:
                return self._not_now(model, cost, asked, short)
            for meter in self._meters:
                if meter.unit != "output_tokens":
                    meter.take(cost[meter.unit])
            self._admissions.append(Admission(self._at_ns, tokens))
            self._used.update({"requests": 1, "tokens": tokens, "images": images})
            return self._headers(tokens)

    def spoke(self, tokens: int) -> None:
        """Charge what came out of an answer, whether or not it is there: the next ones wait until it is paid back."""
        with self._lock:
            self._refill()
            self._used["output_tokens"] += tokens
            for meter in self._meters:
                if meter.unit == "output_tokens":
                    meter.take(tokens)

    def refused_by(self, fault: Fault | None) -> Refusal | None:
        """Refuse a request for another reason than a limit, without a charge; None: the fault is none of those."""
        if fault == "insufficient_quota":
            body, headers = _replies.insufficient_quota(), {}
        elif fault == "slow_down":
            body, headers = _replies.slow_down(), hints_in(self.simulation.dialect, 1_000_000_000)
        else:
            return None
        with self._lock:
            self._refill()
            self._refused[body["error"]["code"]] += 1
            return Refusal(error_in(self.simulation.dialect, 429, body), {**self._headers(), **headers})

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
            raise ValueError(f"there is no fault {repr_of(fault)}: use one of {', '.join(FAULTS)}")
        with self._lock:
            self._injected.extend([fault] * times)

    def consume(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Take from the limits what another client of the account used; never more than there is.

        Raises:
            ValueError: A number is not whole, or below 0.
        """
        taken = {"requests": requests, "tokens": tokens}
        for unit, units in taken.items():
            if read_count(units, 0) is None:
                raise ValueError(f"{unit} must be a whole number, 0 or more, not {units!r}")
        with self._lock:
            self._refill()
            for meter in self._meters:
                meter.take_at_most(taken.get(meter.unit, 0))

    def statistics(self) -> Statistics:
        """What happened so far, at one moment."""
        with self._lock:
            self._refill()
            log = tuple(self._admissions)
            span_ns = log[-1].at_ns - log[0].at_ns if log else 0
            used = self._used
            return Statistics(
                admitted=len(log),
                answered=self._answered,
                refused=dict(self._refused),
                failed=dict(self._failed),
                requests_used=len(log),
                tokens_used=used["tokens"],
                output_used=used["output_tokens"],
                images_used=used["images"],
                in_flight=self._in_flight,
                peak_in_flight=self._peak_in_flight,
                span=span_ns / 1e9,
                limits=tuple(
                    LimitStatistics(
                        meter.unit,
                        meter.limit,
                        float(meter.level()),
                        used[meter.unit],
                        float(used[meter.unit] / meter.promised(Fraction(span_ns, 1_000_000_000))),
                    )
                    for meter in self._meters
                ),
                admissions=log,
            )

    def _refill(self) -> None:
        """Let time pass until now: what changes in between, and what other clients take, happens in its order."""
        now_ns = max(self._at_ns, _now_ns())
        while self._changes and self._began_ns + _ns(self._changes[0].at) <= now_ns:
            change = self._changes.popleft()
            self._advance(max(self._at_ns, self._began_ns + _ns(change.at)))
            for meter in self._meters:
                if change.unit in {None, meter.unit}:
                    meter.change(change.factor)
        self._advance(now_ns)

    def _advance(self, now_ns: int) -> None:
        if self.simulation.strangers:
            while now_ns - self._at_ns > STRANGERS_STEP_NS:
                self._step(self._at_ns + STRANGERS_STEP_NS)
        self._step(now_ns)

    def _step(self, now_ns: int) -> None:
        since_ns, self._at_ns = now_ns - self._at_ns, now_ns
        for meter in self._meters:
            meter.advance(now_ns)
        seconds = (now_ns - self._began_ns) / 1e9
        for number, stranger in enumerate(self.simulation.strangers):
            if not stranger.begin <= seconds < stranger.end:
                continue
            for unit, per_minute in (("requests", stranger.requests), ("tokens", stranger.tokens)):
                self._owed[number, unit] += round(per_minute * since_ns / 60)
                whole, self._owed[number, unit] = divmod(self._owed[number, unit], 1_000_000_000)
                for meter in self._meters:
                    if meter.unit == unit:
                        meter.take_at_most(whole)

    def _headers(self, charged: int = 0) -> dict[str, str]:
        if self.simulation.headers == "none":
            return {}
        told = headers_in(self.simulation.dialect, [_shown(meter, charged) for meter in self._shown], clock.wall())
        if self.simulation.headers == "remaining":
            told = {name: value for name, value in told.items() if "-reset" not in name}
        return told

    def _count_refused(self, reason: str) -> None:
        self._refused[reason] += 1
        if self.simulation.count_refused:
            for meter in self._meters:
                if meter.unit == "requests":
                    meter.take_at_most(1)

    def _too_large(self, model: str, meter: ServerMeter, requested: int) -> Refusal:
        self._count_refused("too_large")
        body = _replies.too_large(
            model, self.simulation.organization, meter.unit, meter.limit.per, limit=meter.burst, requested=requested
        )
        return Refusal(error_in(self.simulation.dialect, 429, body), self._headers())

    def _not_now(
        self, model: str, cost: dict[Unit, int], asked: list[ServerMeter], short: list[ServerMeter]
    ) -> Refusal:
        # The limit that has to be waited for longest is the one that is named, so that the wait it names is enough.
        meter = max(short, key=lambda each: each.announced_wait_ns(cost[each.unit]))
        self._count_refused(meter.unit)
        # That may have taken the last request.
        meter = max(asked, key=lambda each: each.announced_wait_ns(cost[each.unit]))
        wait_ns = meter.announced_wait_ns(cost[meter.unit])
        body = _replies.rate_limited(
            model,
            self.simulation.organization,
            meter.unit,
            meter.limit.per,
            limit=meter.limit.amount,
            used=math.ceil(Fraction(meter.limit.amount) - max(Fraction(0), meter.level())),
            requested=cost[meter.unit],
            wait=format_milliseconds(ceil_milliseconds(wait_ns)),
        )
        dialect, form = self.simulation.dialect, self.simulation.hints
        hints = hints_in(dialect, wait_ns) if form == "all" else hint_headers(wait_ns, form, clock.wall())
        if self.simulation.hints not in {"all", "message"}:
            body["error"]["message"] = body["error"]["message"].partition(" Please try again")[0]
        body = error_in(dialect, 429, body, wait_ns, _shown(meter, cost[meter.unit]))
        return Refusal(body, {**self._headers(), **hints})


def _shown(meter: ServerMeter, charged: int) -> Shown:
    remaining = max(0, math.floor(meter.level()))
    return Shown(meter.unit, meter.limit.amount, remaining, meter.reset_ns(), meter.limit.per, charged)


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _now_ns() -> int:
    return round(clock.now() * 1_000_000_000)
