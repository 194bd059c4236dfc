"""How fast a server admits requests if its answers show no limit: each refusal is a measurement.

Pure arithmetic. It is in one of these states, of which `discovery` knows the first and the last:

    SEARCHING ── a refusal ──▶ EMPTY ── what left since is admitted ──▶ PACED
                               ▲   │                                     │
                               │   └── a refusal: no rate was tried      │
                               └────────────── a refusal ────────────────┘

While it is EMPTY, one request goes first. Only a refusal that ends SEARCHING or PACED is a measurement.

Before it, and as long as what was measured was mostly a burst, the rate is a guess. Then no more is under way than the
rate times the usual latency, so that a standstill of either side is not followed by a bunch of refusals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.llm.learning.traffic import OVERTAKING, ROUNDING, Departure, Traffic

__all__ = ["FIRST_UNKNOWN", "Pace"]

BURST = 0.5
"""Seconds' worth that may be sent at once where only the pace is known."""

UNCONFIRMED = 0.1
"""The same before anything was refused: what piles up while we stand still must not be sent on a guess."""

FIRST_UNKNOWN = 8.0
"""Requests that may be sent at once to a server that states nothing, before anything was refused."""

DOUBLED = 8.0
"""Seconds in which the rate doubles while nothing was refused yet, at most."""

DOUBLED_SOONEST = 1.0
"""The same at least."""

LATENCIES = 2.0
"""The same in seconds that an answer takes: what is sent too much before the first refusal is heard of stays a share of
it."""

UNDER_WAY = 4.0
"""Requests that may be under way beyond rate × latency, which Little's law says are, while the rate is a guess."""

SPREAD = 1.25
"""The average latency over the median, as latencies of services are spread."""

USUALLY = 0.05
"""Share by which an answer that took longer or shorter moves the latency that is usual: to the median, in the end."""

LOST, LOST_LATENCIES = 1.0, 4.0
"""Seconds, and usual latencies, after which an answer is not waited for any more."""

BACK = 0.7
"""Share of what was measured that is tried after a refusal, so that the server has a little to spare again."""

RECOVER = 0.06
"""Growth per second below what is known to get through."""

CLOSE = 0.98
"""Share of what was measured from which on growth is slow."""

GROW = 0.006 / 60.0
"""Growth per second above it, to see whether there is more."""

SAME_AGAIN = 3
"""Refusals at the same rate after which that rate is taken for the limit."""

MOST_AT_ONCE = 0.4
"""Growth, as a logarithm, that one answer may bring."""

UNSURE = 1.15
"""How far above what was admitted on average a refused rate may be before it counts as the upper end of what may be."""

APPROACH = 45.0
"""Seconds in which a rate comes near that upper end."""

LONG_AGO = 120.0
"""Seconds without a refusal after which that growth becomes faster and faster."""

SHORTEST_SPAN = 3.0
"""Seconds between two refusals below which what was admitted in between is no measurement."""

FEWEST = 8
"""Requests between two refusals below which it is measured from an earlier refusal: a few are no measurement."""

AGREES = 0.15
"""Share by which two measurements may differ and still be of the same rate."""

ANCHORS = 4
"""Refusals that are remembered to measure from."""

DISPROVED = 2.0
"""Refusals in about a minute after which a rate that was stated is believed no more."""

ESTABLISHED = 30.0
"""Seconds that a measurement must have taken for its rate to be tried again when it is refused."""

FELL = 0.75
"""Share of an established rate below which it is thought to have dropped, and may come back as suddenly."""

TRY_AGAIN = 6.0
"""Seconds after a refusal when a rate that dropped is tried again, at first."""

TRY_AGAIN_SHARE = 0.12
"""The same as a share of the time since it dropped."""


@dataclass(slots=True)
class Pace:
    """A limit that the server does not state: how fast requests got through between refusals.

    It is a bucket of about a second, so that a pause is not made up for all at once.

    Attributes:
        rate: Units per second that are tried now.
        searching: Whether nothing was refused yet.
        alone: Whether no limit was stated that holds beside it.
        most: The rate that is known to be the most; `inf` if none is.
        doubled: Seconds in which it doubles while searching.
        latency: Seconds that an answer usually takes; None: there was none.
        haste: How much faster than the rate units may be sent, where a window is kept beside it.
    """

    rate: float
    now: float
    smallest: float
    searching: bool = False
    alone: bool = True
    most: float = field(init=False, default=math.inf)
    latency: float | None = field(init=False, default=None)
    haste: float = field(init=False, default=1.0)
    _level: float = field(init=False, default=0.0)
    _at: float = field(init=False)
    _is_empty: bool = field(init=False, default=False)  # refused, and nothing that left since was admitted yet
    _anchors: list[float] = field(init=False, default_factory=list)  # when something was refused
    _cut_at: float = field(init=False, default=-math.inf)
    _grown_at: float = field(init=False)
    _measured: float = field(init=False, default=0.0)  # what was admitted per second, as last measured
    _burst: float = field(init=False, default=BURST)  # in seconds' worth
    doubled: float = field(init=False, default=DOUBLED)
    _is_guess: bool = field(init=False, default=False)  # what was measured was mostly a burst
    _refused_at: list[float] = field(init=False, default_factory=list)  # the rates that were refused
    _slow: float = field(init=False, default=RECOVER)  # growth above it
    _span: float = field(init=False, default=0.0)  # seconds that the last measurement took
    _established: float = field(init=False, default=0.0)  # a rate that was not refused for long
    _fallen_from: float = field(
        init=False, default=0.0
    )  # an established rate that is refused for now; 0: there is none
    _is_trying: bool = field(init=False, default=False)
    _fell_at: float = field(init=False, default=0.0)
    _try_at: float = field(init=False, default=0.0)
    _disproved: float = field(init=False, default=0.0)  # how often, lately, the rate that was stated was refused

    def __post_init__(self) -> None:
        self._at = self._grown_at = self.now
        self._level = self.burst

    @property
    def burst(self) -> float:
        """Units that may be sent at once."""
        seconds = min(self._burst, UNCONFIRMED) if self._is_unconfirmed else self._burst
        return self.smallest if self._is_empty else max(self.smallest, self.rate * seconds)

    @property
    def _is_unconfirmed(self) -> bool:
        return self.alone and (self.searching or self._is_guess)

    def charge(self, cost: float, now: float) -> None:
        """A request was granted; or, with a negative cost, withdrawn."""
        self._level = self.level(now) - cost
        self._at = max(self._at, now)

    def level(self, now: float) -> float:
        """Units that may be sent at `now`; below 0 after a request that was larger than the burst."""
        return min(self.burst, self._level + self.haste * self.rate * max(0.0, now - self._at))

    def ready_at(self, cost: float, now: float, ahead: float = 0.0) -> float:
        """When `cost` may go after `ahead`.

        A cost above the burst when the bucket is full, and it is paid for afterwards.
        """
        missing = min(cost, self.burst) + ahead - self.level(now)
        return now if missing <= ROUNDING * (self.burst + self.rate) else now + missing / (self.haste * self.rate)

    def heard_enough_at(self, cost: float, now: float, traffic: Traffic, ahead: float = 0.0) -> float:
        """When `cost` may go after `ahead`, as far as what is under way allows while the rate is a guess.

        If no answers come, because either side stands still, what is sent on a guess is refused all at once.
        """
        if self.latency is None or not self._is_unconfirmed:
            return now
        traffic.give_up(now - LOST - LOST_LATENCIES * self.latency)
        most = SPREAD * self.rate * self.latency + UNDER_WAY * cost
        excess = traffic.under_way + traffic.waiting + ahead + cost - most
        return now if excess <= ROUNDING * most else now + excess / self.rate

    def passed(self, now: float, latency: float | None = None) -> None:
        """A request was admitted, and took so long: try a little more, if it was this that held requests up."""
        if latency is not None:
            self.latency = _nearer(self.latency, latency)
            doubled = min(DOUBLED, max(DOUBLED_SOONEST, LATENCIES * latency))
            self.doubled += 0.1 * (doubled - self.doubled)
        if now - (latency or 0.0) > self._cut_at:
            self._is_empty = False
        since = now - self._grown_at
        if since < 0.25:
            return
        self._grown_at = now
        if self.level(now) >= self.burst and self.haste == 1:
            return
        if self._fallen_from and now >= self._try_at:
            if self._is_trying:  # and was not refused: it is over
                self._fallen_from = 0.0
            else:
                self._measured, self._try_at = self._fallen_from, now + TRY_AGAIN
                self._set(self._measured, now)
            self._is_trying = not self._is_trying
            return
        growth = self._growth(now) * min(since, max(1.0, 1.5 / self.rate))
        rate = self.rate * math.exp(min(growth, MOST_AT_ONCE))
        if not self.searching and not self._is_guess and self.rate < CLOSE * self._measured:
            rate = min(rate, CLOSE * self._measured)
        self._set(rate, now)

    def _growth(self, now: float) -> float:
        """Growth per second: what a measurement is wrong by, in about the time that it took.

        Ever more if that is long ago.
        """
        if self.searching or self._is_guess:
            return math.log(2) / self.doubled
        if self.rate < CLOSE * self._measured:
            return RECOVER
        growth = self._slow + GROW * ((now - self._cut_at) / LONG_AGO) ** 3
        refused_at = self._refused_at[-1] if self._refused_at else 0.0
        if refused_at > UNSURE * self._measured:  # it may be anything in between
            growth += min(RECOVER / 2, max(0.0, CLOSE * refused_at / self.rate - 1.0) / APPROACH)
        return growth

    def refused(
        self,
        departure: Departure,
        traffic: Traffic,
        now: float,
        known: float | None = None,
        named: float | None = None,
    ) -> None:
        """A request was refused that left at that moment: what was admitted since the last refusal is what there is.

        Args:
            known: Units per second that were stated. The hidden limit may well be the same, with less at once, so that
                is believed until it was refused several times.
            named: Units per second that the refusal itself names: that is the rate, unless more was admitted.
        """
        if departure.at <= self._cut_at:
            return  # it was on its way when the last one was refused
        if self._anchors and not any(traffic.between(self._cut_at, departure.at - OVERTAKING)):
            # The first that left since was refused as well: it is used up still, and no rate was tried.
            self._cut_at, self._is_empty = now, True
            self._level = min(self._level, 0.0)
            return
        self.searching, self.smallest, self._is_empty = False, 1.0, True
        first = not self._anchors
        if not self._is_trying:
            self._refused_at = [*self._refused_at[1 - SAME_AGAIN :], self.rate]
        if not first and now - self._cut_at > ESTABLISHED and self._span > ESTABLISHED / 2:
            self._established = CLOSE * self.rate
        self._measure(departure, traffic)
        if named is not None and self._disproved <= DISPROVED and (first or self._measured < UNSURE * named):
            if not first and self.rate <= named:
                self._disproved = self._disproved * math.exp((self._cut_at - now) / 60.0) + 1.0
            self._measured, self._slow, self._is_guess = named, GROW, False
        if known is None or self._disproved > DISPROVED:
            self.most = math.inf
        else:
            self.most = CLOSE * known
            if not first and self.rate <= known:
                self._disproved = self._disproved * math.exp((self._cut_at - now) / 60.0) + 1.0
            self._measured, self._is_guess = self.most, False
        if not self._is_trying and not self._fallen_from:
            self._trust_same_again(departure)
        self._remember(now)
        self._cut_at = now
        self._set(BACK * self._measured, now)
        self._level = min(self._level, 0.0)

    def settle_on(self, rate: float, now: float) -> None:
        """It is known by other means how much gets through."""
        self._measured, self._slow, self._is_guess = rate, GROW, False
        self._fallen_from, self._is_trying, self._refused_at = 0.0, False, []
        self._set(CLOSE * rate, now)

    def settle_on_more(self) -> None:
        """What was known gets through, and more than that: no window is kept any more, and growth is fast."""
        self._slow, self.haste = RECOVER, 1.0

    def _trust_same_again(self, departure: Departure) -> None:
        """If it is always the same rate that is refused, what was not used before is lost, and that rate is the limit.

        What was admitted on average is less then: it holds the times in which less was tried.
        """
        lowest = min(self._refused_at, default=0.0)
        if len(self._refused_at) == SAME_AGAIN and max(self._refused_at) < 1.1 * lowest > 1.1 * UNSURE * self._measured:
            self._measured = 0.95 * lowest
            self._slow = max(GROW, min(self._slow, 0.002))
            self._anchors = [departure.at]

    def _remember(self, now: float) -> None:
        """If the rate fell far below one that was established, try that one again now and then.

        A drop may be over soon.
        """
        self._is_trying = False
        if not self._fallen_from and self._measured < FELL * self._established:
            self._fallen_from, self._fell_at = self._established, now
            self._established = 0.0
        if self._measured > 0.9 * self._fallen_from:
            self._fallen_from = 0.0
        self._try_at = now + max(TRY_AGAIN, TRY_AGAIN_SHARE * (now - self._fell_at))

    def _measure(self, departure: Departure, traffic: Traffic) -> None:
        """What was admitted since an earlier refusal, over the time since.

        As far back as that agrees with the last span.
        """
        now = departure.at
        if not self._anchors:
            # Much of it was the burst. Of a few requests that tells less, and to be wrong about them costs less.
            admitted = list(traffic.between(now - 60.0, now))
            seconds = min(60.0, 3.0 * max(1, len(admitted)))
            self._measured = max(sum(each.cost for each in admitted), self.smallest) / seconds
            self._is_guess = True
            self._anchors.append(now)
            return
        span, measured, count = self._since(self._anchors[-1], now, traffic)
        self._is_guess = False
        if span < SHORTEST_SPAN:
            if self.rate < self._measured:  # not too fast, so too many at once
                self._burst /= 2
            self._measured = min(self._measured, max(measured, 0.85 * self._measured))
            return
        for anchor in reversed(self._anchors[:-1]):
            if count >= FEWEST:
                break
            span, measured, count = self._since(anchor, now, traffic)
        self._span = span
        for anchor in self._anchors[:-1]:
            longer, rate, more = self._since(anchor, now, traffic)
            if abs(rate - measured) < AGREES * measured:
                span, measured, count = longer, rate, more
                break
        self._anchors = [*self._anchors[-ANCHORS:], now]
        self._measured = max(measured, self.smallest / 600.0)
        self._slow = max(GROW, min(RECOVER, 3.0 / (count + 1) / span))

    @staticmethod
    def _since(anchor: float, now: float, traffic: Traffic) -> tuple[float, float, int]:
        """Seconds, units per second and requests that were admitted since then."""
        costs = [each.cost for each in traffic.between(anchor, now)]
        span = max(now - anchor, 1e-3)
        return span, sum(costs) / span, len(costs)

    def _set(self, rate: float, now: float) -> None:
        level = self.level(now)
        self._at, self.rate = max(self._at, now), min(rate, self.most)
        self._level = min(level, self.burst)


def _nearer(usual: float | None, latency: float) -> float:
    """The median of latencies, one more taken in. One that is far off, as after a standstill, moves it no further."""
    if usual is None:
        return latency
    return min(latency, usual * (1 + USUALLY)) if latency > usual else max(latency, usual / (1 + USUALLY))
