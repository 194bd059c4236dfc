"""One limit of a server, as its answers tell it: what there is now, how it comes back, and how the server counts.

Pure arithmetic. `returns` has the ways in which limits refill; `discovery` says why it is done this way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from penstock.llm.learning.charge_factor import AT_ONCE, FAIR, FEWEST, OTHERS, ChargeFactor, Crowd, replayed
from penstock.llm.learning.returns import USUAL, AssumedPeriod, BareResets, BucketFormula, LeastLeft, Returns
from penstock.llm.learning.sliding_window import SlidingWindow
from penstock.llm.learning.stated_limit import LATE, MOST, PATIENCE, PAUSE, UNCONFIRMED, Kind, StatedLimit
from penstock.llm.learning.traffic import HEADROOM, OVERTAKING, ROUNDING, WINDOWS_HEADROOM, Departure, Traffic

__all__ = ["DOUBT", "FIRST_BURST", "ServerEstimate"]

DOUBT = 0.02
"""Share that is added to what left since a snapshot, for what is not known yet of how the server counts it."""

FIRST_BURST = 5.0
"""Seconds' worth of a limit that may be spent at once before the first sample of how the server charges."""

RISE, RISE_EVERY = 0.1, 0.2
"""Share of the gap by which an estimate that was too low rises each time, and seconds between."""

SAMPLE = 0.1
"""Share of the capacity that a sample goes over; over less, overtaking would teach more than charging."""


@dataclass(slots=True)
class ServerEstimate:
    """One limit of the server that its answers tell about: what it has, in its own units.

    Args:
        traffic: Of its unit.
        charges_refused: Whether the server charges requests that it refuses, as services do in requests.

    Attributes:
        limit: Units per `per` seconds.
        capacity: The most that it ever has at once. Not the limit: bursts may be smaller.
        kind: How it comes back; unsure: nothing is counted on but what the newest answer said was left.
        boundary: When the window began, or one of those before it.
    """

    traffic: Traffic
    stated: StatedLimit
    charges_refused: bool
    limit: float = field(init=False)
    per: float = field(init=False)
    rate: float = field(init=False)
    capacity: float = field(init=False)
    kind: Kind = field(init=False)
    boundary: float = field(init=False, default=0.0)
    _bare: BareResets = field(init=False, default_factory=BareResets)
    _formula: BucketFormula = field(init=False, default_factory=BucketFormula)
    _returns: Returns = field(init=False)
    _sliding: SlidingWindow = field(init=False, default_factory=SlidingWindow)
    _fits: bool = field(init=False, default=False)  # answers say what only a bucket says that holds all of the limit
    _is_partial: bool = field(init=False, default=False)  # an answer said what no such bucket says; some others may fit
    _seen: float = field(init=False)  # the most that ever was left, and what its request took
    _is_dated: bool = field(init=False, default=False)  # an answer stated when all is back
    _is_by_clock: bool = field(init=False, default=False)  # a window began sooner than a period after our first request
    _is_stated: bool = field(init=False, default=False)  # answers of this window stated when it ends
    _is_seen: bool = field(init=False, default=False)  # that window began when an answer showed a return
    _is_unopened: bool = field(init=False, default=False)  # the window is thought to be over, and nothing left since
    _first_at: float | None = field(init=False, default=None)  # when a request left to see whether it began
    _late: float = field(init=False, default=0.0)  # seconds by which it may have begun later than that request left
    _is_proved: bool = field(init=False, default=False)  # when a window began as stated, all was back
    _is_refuted: bool = field(init=False, default=False)  # it was not
    _is_guess: bool = field(init=False, default=False)  # nothing came back yet as its period would have it, a guess
    _assumed: AssumedPeriod | None = field(init=False, default=None)  # as no answer tells one, or when all is back
    _lowest: LeastLeft = field(init=False, default_factory=LeastLeft)
    _held_back: float = field(init=False, default=0.0)
    _level: float = field(init=False)
    _at: float = field(init=False, default=0.0)
    _rose_at: float = field(init=False, default=0.0)
    _newest: tuple[Departure, float] = field(init=False)  # since `begin`: of what answers stated, and what remained
    _anchor: tuple[Departure, float] | None = field(init=False, default=None)  # what the next sample begins with
    _charges: ChargeFactor = field(init=False, default_factory=ChargeFactor)
    _crowd: Crowd | None = field(init=False, default=None)  # what left since nothing was under way

    def __post_init__(self) -> None:
        stated = self.stated
        self._believe(stated)
        self.capacity = stated.limit
        self.kind = Kind.BUCKET if stated.sure or stated.reset is None or stated.is_exact else Kind.UNSURE
        self._level = self._seen = stated.remaining

    def _believe(self, stated: StatedLimit) -> None:
        self.limit, self.per, self.rate = stated.limit, stated.per, stated.limit / stated.per
        self._is_guess = not stated.sure and stated.reset is None
        self._assumed = AssumedPeriod() if self._is_guess else None

    @property
    def fastest(self) -> float:
        """Units per second that may come back at most, as far as the period is known."""
        return self.rate if self.kind is not Kind.UNSURE else self.limit / USUAL[0]

    # What happens

    def begin(self, departure: Departure, now: float, *, cautious: bool) -> None:
        """Hear the first answer that tells of it."""
        self._newest = self._anchor = (departure, self.stated.remaining)
        self._returns = Returns(departure.at)
        stated = self._in_seconds(departure, self.stated)
        self._judge_kind(departure, stated)
        self._size(departure, stated)
        self._level, self._at = self._replayed(departure, self.stated.remaining, now), now
        if cautious and self.per <= 60 and self.kind is not Kind.UNSURE:
            self._held_back = self._beyond_first_burst

    @property
    def _beyond_first_burst(self) -> float:
        """What is kept back until the first sample shows how the server charges; others may live on what is left."""
        first = max(FIRST_BURST * self.rate, 0.05 * self.capacity)
        return max(0.0, self._level - max(3.0, min(first, self._level / 2)))

    def charge(self, cost: float, now: float) -> None:
        """A request left, or, with a negative cost, had not left after all."""
        self._advance(now)
        if self._is_unopened and cost > 0:
            self._open(now)
        self._level -= self.factor * cost
        if (self.kind is Kind.UNSURE or self._is_guess) and cost > 0:
            if self._level < self._little():
                self._returns.looked(now)
            else:
                self._returns.went_by_itself()

    def settled(self, more: float, now: float) -> None:
        """It is known that a request takes more than was charged; or less, if it is below 0."""
        self._advance(now)
        self._level -= self.factor * more

    def heard(self, departure: Departure, stated: StatedLimit, now: float) -> None:
        """Hear what an answer tells. What an older one stated is never put over what a newer one did."""
        self._advance(now)
        self._notice_crowd(departure, stated.remaining)
        if self.traffic.is_idle:  # all is answered: as much again may go
            self._held_back = min(self._held_back, self._beyond_first_burst)
        if departure.refused and departure.cost > 0:
            self._charges.was_too_little(stated.remaining, departure.cost)
        newest = self._newest
        if departure.number <= newest[0].number:
            return
        stated = self._in_seconds(departure, stated)
        if self._is_partial and stated.limit == self.limit and (stated.fits or not stated.named):
            stated = replace(stated, per=self.per, fits=False)  # which another period's bucket would say too
        if stated.limit != self.limit or (stated.sure and stated.per != self.per):
            self._change(stated)
            self._newest = self._anchor = (departure, stated.remaining)
            overtaken = self.factor * self.traffic.around(departure)[0]  # they left before it, and may arrive after it
            self._level = self._replayed(departure, stated.remaining, now) - overtaken
            return
        if (first := self._first_at) is not None and departure.at >= first:
            self._first_at = None
            if self.kind is Kind.WINDOW and self._is_dated:
                self._see_window_begin(departure, stated)
        if self._is_refuted:
            stated = replace(stated, sure=False)
        self._notice_window(newest, departure, stated)
        if self.boundary in (first, departure.at) and not self._is_dated:
            self._late = min(now - self.boundary, LATE * self.per)
        if self._is_guess and self.kind is Kind.BUCKET:
            surely = self.traffic if self.charges_refused else None  # no server counts a request as less than one
            self._is_guess = not self._lowest.shows_refill(departure, stated.remaining, self.limit, surely, now)
        self._judge_kind(departure, stated)
        if self.kind is Kind.UNSURE:
            self._notice_return(newest, departure, stated)
        if self.kind in (Kind.UNSURE, Kind.SLIDING):
            self._notice_sliding(departure, stated)
        self._size(departure, stated)
        self._newest = (departure, stated.remaining)
        self._correct(departure, stated.remaining, now)
        self._notice_delay(departure, now)
        # Of what left around a refused one, it is not known yet which were refused too.
        if not (departure.refused or self.kind in (Kind.UNSURE, Kind.SLIDING) or self.traffic.charged_late):
            self._sample(*(self._anchor or self._newest), departure, stated.remaining)
        if self._charges.samples or self.kind is Kind.UNSURE or self.traffic.charged_late:
            held_back = max(0.0, self._held_back - RISE * self.capacity)
            self._held_back = min(held_back, self._beyond_first_burst)  # others may have used it up

    def refused(self, departure: Departure, remaining: float, wait: float) -> None:
        """A request was refused, with so much left, for so long: a bucket would not take longer than its refill."""
        if self.kind is Kind.UNSURE:
            self._level = min(self._level, 0.0)
            if wait <= USUAL[-1]:
                self._returns.stated(departure.at + wait)
            return
        assumed = self._assumed
        if assumed is not None and assumed.is_refuted(departure, wait, self.per, self._refill, self.traffic):
            self._doubt_period()
            self._level = min(self._level, remaining)
            return
        missing = self.factor * departure.cost - remaining
        could_be_bucket = self._fits or missing <= 0 or wait <= 2.0 + 3.0 * missing / self.rate
        if self.kind is Kind.BUCKET and not could_be_bucket and wait <= 1.05 * self.per:
            self._become_window(departure.at + wait - self.per)
            self._level = min(self._level, remaining)

    def explains(self, departure: Departure, remaining: float | None, now: float) -> bool:
        """Whether a request may have been refused for it; what remained, if that was stated."""
        if self._first_at is not None and departure.at >= self._first_at:
            return True  # the window that should have begun may be late
        left = self.level(now) if remaining is None else remaining
        return left < max(2 * self.factor * departure.cost, 0.03 * self.capacity)

    # What can be counted on

    def level(self, now: float) -> float:
        """The server's units that can be counted on at `now`, less what was granted and has not left; may be < 0."""
        self._advance(now)
        return self._level - self._held_back - self._reserve() - (1 + DOUBT) * self.factor * self.traffic.waiting

    def ready_at(self, cost: float, now: float, ahead: float = 0.0) -> float:
        """When `cost`, in our units, is there after `ahead` went first."""
        left = self._left_after(cost, now, ahead)
        if self.kind is Kind.UNSURE or (self._is_guess and left + self._held_back < self._little()):
            return self._look_at(cost, now, ahead)
        missing = -left
        if missing <= ROUNDING * (self.capacity + self.rate):
            return self._proved_at(cost, now, ahead)
        if self.kind is Kind.WINDOW:
            windows = math.ceil((missing + min(0.0, self._level)) / self.capacity - ROUNDING)  # none begins with debts
            return self.boundary + max(1, windows) * self.per + self._headroom
        if self.kind is Kind.SLIDING:
            return self._sliding.ready_at(missing / self.factor, now, self.traffic)
        return now + missing / self.rate

    def _left_after(self, cost: float, now: float, ahead: float) -> float:
        return self.level(now) - self.need(cost) - (1 + DOUBT) * self.factor * ahead

    def _proved_at(self, cost: float, now: float, ahead: float) -> float:
        """When `cost` may leave in a window that should have begun, as far as no answer has shown yet that it has."""
        since = self._first_at if self._first_at is not None else now
        if self._first_at is None and (self._is_proved or not self._is_unopened):
            return now
        taken = self.traffic.sent - self.traffic.sent_before(since) + self.traffic.waiting + ahead
        few = 0.0 if self._is_dated else UNCONFIRMED * self.limit  # what is stated is to be proved once
        if not taken or self.factor * (taken + cost) <= few:
            return now
        until = min(since + PATIENCE, self.boundary + self.per + self._headroom)
        return now if now >= until else max(now + HEADROOM, until)

    def _look_at(self, cost: float, now: float, ahead: float) -> float:
        """The same where it is unknown how it comes back: the last units go one by one, and each looks."""
        left = self._left_after(cost, now, ahead)
        if left >= self._little():
            return now
        look = self._returns.look_at(now, self.factor * cost, empty=left < 0, left=left)
        if self.kind is Kind.WINDOW:
            look = max(now, min(look, self.boundary + self.per + HEADROOM))
        last = self.traffic.last
        is_late = last is not None and last is not self._newest[0] and now - last.at < 5.0
        if ahead or self.traffic.waiting > 0 or (left < 0 and is_late):  # an answer may well tell of more
            return max(look, now + HEADROOM)  # one at a time
        return look

    def _little(self) -> float:
        """Of what is left: with less, requests leave one by one, and look. Eight like the last one, or a twentieth."""
        last = self.traffic.last
        few = 8 * self.factor * last.cost if last is not None else 0.0
        return min(0.25 * self._seen, max(0.05 * self._seen, few))

    def need(self, cost: float) -> float:
        """What must be there for `cost` to go, in the server's units: never more than the server can hold.

        Others take a part of what the factor says that a request takes: who waited for that too would get ever less.
        """
        most = max(self.capacity - self._reserve() - self._held_back, 0.01 * self.capacity)
        if self.kind is Kind.BUCKET:
            most = min(most, AT_ONCE * self._charges.alone * cost + OTHERS * self.capacity)
        return min(self.factor * cost, most)

    def _reserve(self) -> float:
        """What is kept back: never all of it, or nothing would leave once answers tell no more."""
        since = self.factor * (self.traffic.waiting + (self.traffic.sent - self._newest[0].sent))
        doubt = DOUBT * since
        deviation = self._charges.deviation
        if deviation:
            doubt += min(0.15 * self.capacity, 2 * deviation * math.sqrt(SAMPLE * self.capacity * since))
            if self.kind is Kind.BUCKET:  # of a window it would be lost; of a bucket it is kept back once
                doubt += min(2 * DOUBT, 2 * deviation) * self.capacity
        if self.kind is Kind.BUCKET:
            if self.factor > 1.1 and self._charges.samples > 3:
                # All processes that share a bucket see the same level.
                doubt = doubt / self.factor + FAIR * self.capacity / (self.factor + 2.0)
            doubt += min(HEADROOM * self.rate, self.capacity / 2)
        return min(doubt, 0.75 * (self.capacity - self._held_back))

    # The state

    def _advance(self, now: float) -> None:
        if now <= self._at:
            return
        if self.kind is Kind.BUCKET:
            self._level = min(self.capacity, self._level + self._refill * (now - self._at))
            if self._is_guess:
                self._held_back = max(0.0, self._held_back - self.rate * (now - self._at))
        elif self.kind is Kind.WINDOW:
            # One has ended at the very moment that `ready_at` tells, though floats do not add up.
            over = math.floor((now - self._headroom - self.boundary) / self.per + ROUNDING)
            if over > 0:
                self.boundary += over * self.per
                self._level, self._is_unopened, self._first_at = self.capacity, True, None
                self._is_stated = False
        elif self.kind is Kind.SLIDING:
            self._level = self._sliding.left(*self._newest, now, self.limit, self.factor, self.traffic)
        self._at = now

    @property
    def _refill(self) -> float:
        """Units per second that are counted on to come back by and by: none, before one answer showed that any does."""
        return self.rate if self.kind is Kind.BUCKET and not self._is_guess else 0.0

    def _open(self, now: float) -> None:
        """The first request leaves after a window ended: unless more is known, the next one begins with it."""
        self._is_unopened = False
        self._first_at = None if self._is_proved else now
        if not self._is_dated and (not self._is_by_clock or now - self.boundary <= PAUSE * self.per):
            self.boundary = now

    def _see_window_begin(self, departure: Departure, stated: StatedLimit) -> None:
        """The first answer since a window should have begun, as was stated, shows whether all came back at once."""
        sent = self.traffic.admitted(self.boundary, departure.at) + sum(self.traffic.around(departure))
        self._is_proved = stated.remaining + self.factor * sent > MOST * self.limit
        if not self._is_proved:
            self._is_refuted = True
            self._doubt_period()

    @property
    def _headroom(self) -> float:
        return min(HEADROOM, WINDOWS_HEADROOM * self.per) + self._late

    def _replayed(self, departure: Departure, remaining: float, now: float) -> float:
        """What is there now, after all that left since: if no other client took anything."""
        level, at = remaining - self.factor * self.traffic.uncharged(departure), departure.at
        window, rate = self.kind is Kind.WINDOW, self._refill
        for each in self.traffic.after(departure):
            if window:
                level = self.capacity if self._crosses(at, each.at) else level
            else:
                level = min(self.capacity, level + rate * (each.at - at))
            if not each.refused:
                level -= self.factor * each.cost
            elif self.charges_refused:
                level -= min(self.factor * each.cost, max(0.0, level))  # there was too little, and no more is charged
            at = each.at
        if window:
            return self.capacity if self._crosses(at, now) else level
        return min(self.capacity, level + rate * max(0.0, now - at))

    def _crosses(self, first: float, last: float) -> bool:
        """Whether a window begins in (first, last]."""
        since, until = ((at - self.boundary) / self.per + ROUNDING for at in (first, last))
        return math.floor(until) > math.floor(since)

    def _correct(self, departure: Departure, remaining: float, now: float) -> None:
        """Go down at once, and up slowly, to what the snapshot says; no further than overtaking leaves it certain."""
        if self.kind is Kind.SLIDING:
            self._level = self._sliding.left(departure, remaining, now, self.limit, self.factor, self.traffic)
            return
        level = self._replayed(departure, remaining, now)
        earlier, later = self.traffic.around(departure)
        highest, lowest = level + self.factor * later, level - self.factor * earlier
        if (self.kind is Kind.WINDOW or self._is_guess) and self.charges_refused:
            # An overtaken request takes its part of a window in the end, and no answer shows that.
            sent = self.traffic.sent - self.traffic.sent_before(self.boundary)
            lowest = min(lowest, self.capacity - self.factor * sent)
        if self._level > highest:
            self._level = highest
        elif self._level < lowest:
            if self.kind is Kind.UNSURE or (not self.traffic.waiting and self.traffic.last is departure):
                self._level = lowest  # nothing is on its way: there is nothing to be careful about
            elif now - self._rose_at >= RISE_EVERY:
                self._level += RISE * (lowest - self._level)
                self._rose_at = now

    def _change(self, stated: StatedLimit) -> None:
        """A new limit: what is known of the old one's charges stays known."""
        is_whole = self.capacity == self.limit
        self.capacity = stated.limit if is_whole else min(stated.limit, self.capacity * stated.limit / self.limit)
        self._believe(stated)
        self._held_back, self._seen = 0.0, self.capacity
        self._formula, self._is_partial = BucketFormula(), False
        if self.kind is Kind.SLIDING:
            self.kind, self._sliding = Kind.UNSURE, SlidingWindow()
        if stated.sure and self.kind is Kind.UNSURE:
            self.kind = Kind.BUCKET

    def _in_seconds(self, departure: Departure, stated: StatedLimit) -> StatedLimit:
        """What was stated, with its reset in seconds, as far as it is known what bare numbers mean."""
        if stated.bare is None:
            return stated
        reset = self._bare.hear(stated.bare, departure.at, stated.limit, stated.per, stated.remaining)
        return stated if reset is None else replace(stated, reset=reset, sure=True, bare=None)

    def _judge_kind(self, departure: Departure, stated: StatedLimit) -> None:
        """See from one answer how the limit comes back: `remaining + reset × rate` is the capacity of a bucket."""
        if stated.reset is None:
            return
        self._is_dated, self._is_guess, self._assumed = True, False, None
        if not stated.sure:
            if stated.bare is None and (self.kind is Kind.UNSURE or not stated.is_exact):
                self._work_period_out(departure, stated, stated.reset)
            return
        if self.kind is Kind.UNSURE:
            self.kind = Kind.BUCKET
        whole = stated.remaining + stated.reset * self.rate
        slack = 1.5 + 0.02 * self.limit + self.rate
        if whole > self.limit + slack and not stated.fits:
            self._is_partial |= stated.named and not stated.is_exact  # others fit by chance, as they are rounded
            self._become_window(self._begun(departure.at + stated.reset - self._length(stated), stated.step))
            self._is_stated = True
        elif stated.fits and self.limit - stated.remaining > 0.05 * self.limit:
            self.kind, self._fits = Kind.BUCKET, True
        elif stated.is_exact and self.kind is Kind.BUCKET and self.limit - whole > slack:
            self._is_partial = True
        if not stated.named and not stated.fits and stated.is_exact and stated.remaining < self.limit:
            self._is_partial = True

    def _begun(self, stated: float, step: float) -> float:
        """When the window began, by the answers that stated its end: as resets are rounded up, the earliest is nearest.

        A window that begins with a request begins later each time, so answers of the one before tell nothing of it.
        """
        is_same = self.kind is Kind.WINDOW and self._is_stated and 0.0 < stated - self.boundary <= step + OVERTAKING
        return self.boundary if is_same else stated

    def _length(self, stated: StatedLimit) -> float:
        """How long a window is: where no answer names that, the longest reset tells."""
        if not stated.named and stated.reset is not None and (self.kind is not Kind.WINDOW or stated.reset > self.per):
            self.per = next((length for length in USUAL if stated.reset <= length), self.per)
            self.rate = self.limit / self.per
        return self.per

    def _size(self, departure: Departure, stated: StatedLimit) -> None:
        """See from one answer what it holds at most: for a bucket, the most that was ever left or what a reset says."""
        self._seen = max(self._seen, stated.remaining + self.factor * departure.cost)
        if self.kind is not Kind.BUCKET or self._fits:
            self.capacity = self.limit
            return
        whole = self._seen
        if stated.reset is not None and stated.sure and stated.is_exact:
            whole = max(whole, stated.remaining + stated.reset * self.rate)
        self.capacity = min(self.limit, max(1.0, whole))

    def _work_period_out(self, departure: Departure, stated: StatedLimit, reset: float) -> None:
        """The same where no period is stated: see whether the resets are those of a bucket, and of which period."""
        self._formula.hear(stated.limit, stated.remaining, reset, stated.step)
        period = self._formula.period
        if period is not None:
            self.kind, self.per, self.rate = Kind.BUCKET, period, self.limit / period
        elif self.kind is Kind.BUCKET and self._formula.refuted:
            self.kind = Kind.UNSURE
        if self.kind is Kind.UNSURE:
            self._returns.stated(departure.at + reset)

    def _notice_return(self, newest: tuple[Departure, float], departure: Departure, stated: StatedLimit) -> None:
        """See whether something came back between two answers, and whether it was all."""
        before, remained = newest
        if remained >= self.limit - 1:
            return
        sent = self.factor * (departure.sent - before.sent)
        crowd = self.factor * sum(self.traffic.around(departure))
        came = stated.remaining + sent - remained
        at_once = came - crowd > 0.25 * self.limit
        if at_once and stated.remaining + min(sent, crowd + departure.cost) > 0.97 * self.limit - 1:
            self._returns.jumped(before.at, departure.at)
        else:
            self._returns.came(came, before.at, departure.at, much=at_once)

    def _notice_sliding(self, departure: Departure, stated: StatedLimit) -> None:
        """See whether all that is stated is what one length of a window that slides explains."""
        self._sliding.hear(departure, stated.remaining, self.limit, self.factor, self.traffic)
        length = self._sliding.length
        if length is not None:
            self.kind, self.per, self.rate = Kind.SLIDING, length, self.limit / length
        elif self.kind is Kind.SLIDING:
            self.kind = Kind.UNSURE

    def _notice_window(self, newest: tuple[Departure, float], departure: Departure, stated: StatedLimit) -> None:
        """More is there than any refill could have brought: a window began between the two."""
        before, remained = newest
        crowd = self.factor * sum(self.traffic.around(before) + self.traffic.around(departure))
        slack = min(1.0, 0.1 * self.per)
        self._returns.resumed(before.at, departure.at)
        if self.kind is Kind.BUCKET:
            most = remained + self.rate * max(0.0, departure.at - before.at + slack) + 0.05 * self.limit + crowd
            jumped = not stated.fits and stated.remaining > most and stated.remaining > 0.5 * self.limit
            if not stated.sure and self._is_no_minutes(departure, stated, jumped=jumped):
                self._doubt_period()
            elif jumped:
                self._is_by_clock = departure.at - self._returns.began < 0.9 * self._length(stated)
                self._become_window(departure.at, seen=True)
                self._is_guess = False  # it began when a window of that length would have
        elif self.kind is Kind.WINDOW and stated.remaining > remained + 0.05 * self.limit + crowd:
            since = (departure.at - self.boundary) % self.per / self.per
            if self._is_guess and 1.0 < since * self.per < 0.9 * self.per:
                self._doubt_period()
            elif since > 0.25:
                self._is_by_clock |= since < 0.9
                self._is_guess &= not self._is_seen  # one of two moments that are a period apart was stated, not seen
                self._become_window(departure.at, seen=True)  # earlier than was thought

    def _notice_delay(self, departure: Departure, now: float) -> None:
        """A refusal where a window was thought to begin, as one was seen to: the one before was not over yet."""
        is_first = 0.0 <= departure.at - self.boundary <= self._headroom + OVERTAKING
        if departure.refused and self.kind is Kind.WINDOW and self._is_seen and is_first:
            self.boundary = min(now, self.boundary + self.per)

    def _is_no_minutes(self, departure: Departure, stated: StatedLimit, *, jumped: bool) -> bool:
        """Whether it came back too soon, or more was admitted than any limit of the assumed period would admit."""
        if jumped and departure.at - self._returns.began < 0.8 * self.per:
            return True
        admitted = self.factor * self.traffic.admitted(departure.at - self.per, departure.at)
        return stated.reset is None and (jumped or self.charges_refused) and admitted > 2.1 * self.limit

    def _doubt_period(self) -> None:
        """It came back sooner than the period has it that was assumed."""
        self._forget_charges(keep=self._is_guess and not self.charges_refused)
        self.kind, self._is_guess = Kind.UNSURE, False

    def _become_window(self, boundary: float, *, seen: bool = False) -> None:
        if self.kind is not Kind.WINDOW:
            self.kind, self.capacity = Kind.WINDOW, self.limit
            self._forget_charges(keep=self._is_guess)
        elif abs(boundary - self.boundary - self.per * round((boundary - self.boundary) / self.per)) > 1.0:
            self._anchor = None
        # An answer of the window before may come when the next one has begun, which is not to begin again.
        over = math.floor((self._at - self._headroom - boundary) / self.per + ROUNDING)
        self.boundary, self._is_seen = boundary + max(0, over) * self.per, seen
        self._is_unopened, self._first_at = False, None

    # How it charges

    @property
    def factor(self) -> float:
        """Units that the server charges for one of ours."""
        return self._charges.value

    def _forget_charges(self, *, keep: bool) -> None:
        """What was learned of charges took something for refill that was none, if any was counted on."""
        self._anchor = None
        if not keep:
            self._charges.forget()

    def _notice_crowd(self, departure: Departure, remaining: float) -> None:
        """Learn from all that left together, once they are answered."""
        if self._refill or self.charges_refused or self.kind not in (Kind.WINDOW, Kind.BUCKET):
            self._crowd = None  # what came back meanwhile is not known, or a request is one whatever it carries
            return
        crowd = self._crowd = self._crowd or Crowd()
        if not departure.refused:
            crowd.hear(departure, remaining)
        if self.traffic.is_idle:
            self._crowd = None
            are_few = crowd.count < FEWEST or crowd.charged < 0.3 * SAMPLE * self.capacity
            if are_few or (self.kind is Kind.WINDOW and self._crosses(crowd.first_at, crowd.last_at)):
                return
            self._charges.raise_to(crowd.least_factor)
            self._held_back = 0.0

    def _sample(self, before: Departure, remained: float, departure: Departure, remaining: float) -> None:
        """Learn from two snapshots what the server charges for what we estimate."""
        refill = self._refill * (departure.at - before.at)
        part = 1.0 if self._charges.samples else 0.3
        size = max(SAMPLE * self.capacity * part, min(self.rate, SAMPLE * self.limit))
        self._anchor = (before, remained)
        if max(self.factor * (departure.sent - before.sent), remained + refill - remaining) < size:
            return
        if self.kind is Kind.WINDOW and self._crosses(before.at, departure.at):
            self._anchor = (departure, remaining)
            return
        counts = self.traffic.through(before, departure, refused=self.charges_refused)
        estimated, spilled = replayed(before.at, remained, counts, self._refill, self.capacity, self.factor)
        charged = max(0.0, remained + refill - spilled - remaining)
        if spilled > 0.5 * refill > 0 and charged < size:
            self._anchor = (departure, remaining)  # mostly a full bucket: begin anew
            return
        if estimated <= 0 or max(self.factor * estimated, charged) < size:
            return
        (earlier, later), crowd = self.traffic.around(before), sum(self.traffic.around(departure))
        if crowd > 0.2 * estimated:
            if not self.charges_refused:  # in whatever order they arrived, it was at least
                self._charges.raise_to(charged / (estimated + crowd + earlier))
            return
        self._anchor = (departure, remaining)
        if self.kind is Kind.WINDOW:  # what left around the first of the two may be in its snapshot, or not
            estimated = min(max(charged / self.factor, estimated - later, SAMPLE * estimated), estimated + earlier)
        elif earlier + later > 0.2 * estimated and charged < 0.5 * self.factor * estimated:
            return
        if spilled <= 0.1 * refill or self.kind is not Kind.BUCKET or not self._charges.samples:
            # A full bucket would confirm whatever is thought of the factor. While a period is a guess, units may well
            # have come back while others were charged. No server counts a request as less than one, and a few per cent
            # more is what rounding makes of whole numbers.
            least, one_below = 1.0 if self._is_guess else 0.0, 1.05 if self.charges_refused else 0.0
            self._charges.learn(charged, estimated, least=least, one_below=one_below)
