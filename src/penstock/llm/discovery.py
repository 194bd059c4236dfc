"""How much a server's limits have left, estimated from its answers and its refusals.

Pure arithmetic: times and numbers in, bounds out. `endpoints` feeds it, and a limiter asks it how much may be sent.

Each unit of an endpoint is in one of these states:

                      an answer without headers             a refusal
        ┌─────────┐ ───────────────────────▶ ┌───────────┐ ─────────▶ ┌─────────┐
        │ UNKNOWN │                          │ SEARCHING │            │  PACED  │ ◀─┐ a refusal, or no refusal
        └─────────┘                          └───────────┘            └─────────┘ ──┘ for a while: measured anew
             │ headers                             │ headers               ▲
             ▼                                     ▼                       │ a refusal that no header explains:
        ┌───────────────────────────────────────────────┐ ─────────────────┘ a hidden limit; STATED holds beside it
        │ STATED   BUCKET ──── more came back at once ───▶ WINDOW           │
        │             than any refill could bring       │
        └───────────────────────────────────────────────┘

A limit whose period no answer names is UNSURE until its resets are those of a bucket: then only what the newest answer
said is left is counted on, and the last of it is spent on looks, one by one, for what has come back (`returns`).

It is SLIDING while one length explains all that answers say is left: what left comes back that long after (see
`sliding_window`). Of what came back and no answer has confirmed, only a little is sent at once.

A limit that tells neither a period nor when all is back is thought to be one a minute, which is a guess: no refill is
counted on before an answer shows that something came back, and the last of it is spent on looks, as where it is UNSURE.
Refusals refute the guess: one that asks for a wait longer than a minute, or two between which less was admitted than a
bucket of a minute would have refilled. Then it is UNSURE.

A WINDOW whose end no answer tells may begin with the first request after the last one ended, and is taken to; but if
more is there sooner than a period after that request, windows begin by the clock. When it should have begun, a
twentieth of it leaves before an answer shows that it has. A WINDOW whose end is stated is proved once, by one request:
if most is back when it should have begun, later ones are believed; if not, it is UNSURE for good, or SLIDING.

Three things make a client that counts exactly still run into 429s.

**Requests leave later than they were allowed to.** A bucket that is full does not refill, so a burst that leaves half a
second late finds a bucket that stays emptier from then on. All arithmetic here is therefore about departures.

**Answers tell the past.** `remaining` was true at admission, one latency ago, and knows nothing of what was sent since.
`ServerEstimate` replays the departures since then upon it. It corrects itself down at once and up slowly, because too
low costs a moment and too high costs a refusal.

**The server counts in its own way.** Two snapshots tell what it charged in between. Its idea of a token, and other
clients of the account, become one `factor` over our estimates; how much that varies becomes a reserve.

Where nothing is stated, a refusal is a measurement: what was admitted between two of them, over the time between, is
what the server refills (`Pace`); or a window explains all of them, and each refusal says what it had counted by then
(`HiddenWindow`).
"""

from __future__ import annotations

import math

from penstock.llm.learning.hidden_window import HiddenWindow
from penstock.llm.learning.pace import FIRST_UNKNOWN, Pace
from penstock.llm.learning.server_estimate import ServerEstimate
from penstock.llm.learning.stated_limit import StatedLimit
from penstock.llm.learning.traffic import Departure, Traffic

__all__ = ["UnitEstimate"]


class UnitEstimate:
    """All that is known of one unit: what was stated, limit by limit, and what was measured.

    Args:
        charges_refused: Whether the server charges requests that it refuses, as services do in requests.
        trusted: Whether the limits were given to us, so that no first burst need be held back.
        charged_late: Whether the server charges a request when its answer is there.
    """

    def __init__(self, *, charges_refused: bool = False, trusted: bool = False, charged_late: bool = False) -> None:
        self.traffic: Traffic = Traffic(charged_late=charged_late)
        self.stated: dict[str, ServerEstimate] = {}
        self.pace: Pace | None = None
        self._charges_refused = charges_refused
        self._trusted = trusted
        self._window = HiddenWindow()

    def describe(self) -> str:
        """What is known, in words; empty: nothing."""
        words = [f"{each.limit:g}/{each.per:g}s {each.kind.value}" for each in self.stated.values()]
        if self.pace is not None:
            words.append(f"{'searching' if self.pace.searching else 'paced'} at {self.pace.rate * 60:.4g}/min")
        if self._window.found is not None:
            words.append(f"hidden {self._window.found}")
        return ", ".join(words)

    @property
    def searches(self) -> bool:
        """Whether nothing is known of it: neither was a limit stated, nor anything refused."""
        pace = self.pace
        return pace is not None and pace.searching and not self.stated

    @property
    def capacity(self) -> float:
        """The most that one request can take, in the server's units."""
        return min((each.limit for each in self.stated.values()), default=math.inf)

    @property
    def factor(self) -> float:
        """What the server charges, over what we estimate."""
        return max((each.factor for each in self.stated.values()), default=1.0)

    def granted(self, cost: float, now: float) -> None:
        """A request was allowed to leave."""
        self.traffic.waiting += cost
        if self.pace is not None:
            self.pace.charge(cost, now)

    def withdrawn(self, cost: float, now: float) -> None:
        """It will never leave."""
        self.traffic.waiting -= cost
        if self.pace is not None:
            self.pace.charge(-cost, now)

    def left(self, cost: float, now: float) -> Departure:
        """It left."""
        departure = self.traffic.left(cost, now)
        for each in self.stated.values():
            each.charge(cost, now)
        return departure

    def came_back(self, departure: Departure, now: float) -> None:
        """It was thought to have left, and had not: it waits again, to be withdrawn."""
        for each in self.stated.values():
            each.charge(-departure.cost, now)
        self.traffic.arrived(departure)
        for since in (departure, *self.traffic.after(departure)):
            since.sent -= departure.cost
        self.traffic.sent -= departure.cost
        self.traffic.waiting += departure.cost
        departure.cost = 0.0

    def answered(self, departure: Departure, now: float, *, refused: bool) -> None:
        """Its answer is there, and says nothing about this unit, or something that `heard` gets next."""
        if refused:
            self.traffic.refused(departure)
        self.traffic.arrived(departure)
        departure.charged_at = now

    def settled(self, departure: Departure, amount: float, now: float) -> None:
        """Its answer is over, and says what it took."""
        for each in self.stated.values():
            each.settled(amount - departure.cost, now)
        departure.cost, departure.charged_at = amount, now

    def passed(self, departure: Departure, now: float, latency: float | None) -> None:
        """It was admitted, and took so long."""
        if self.pace is None:
            return
        found = self._window.found
        self._window.passed(departure, self.traffic)
        self.pace.passed(now, latency)
        if found is not None and self._window.found is None:
            self.pace.settle_on_more()
        elif found is not self._window.found:
            self._settle(self.pace, now)
        else:
            self.pace.haste = self._window.haste

    def _settle(self, pace: Pace, now: float) -> None:
        """Go on at the rate of the window that was found, if one was."""
        if self._window.found is not None:
            pace.settle_on(self._window.found.rate, now)
        pace.haste = self._window.haste

    def heard(self, name: str, departure: Departure, stated: StatedLimit, now: float) -> None:
        """Hear one limit of this unit."""
        departure.remaining = {**departure.remaining, name: stated.remaining}
        estimate = self.stated.get(name)
        if estimate is None:
            estimate = self.stated[name] = ServerEstimate(self.traffic, stated, self._charges_refused)
            estimate.begin(departure, now, cautious=not self._trusted)
        else:
            estimate.heard(departure, stated, now)

    def search(self, rate: float, now: float, *, at_once: float = FIRST_UNKNOWN) -> None:
        """Nothing is stated: begin slowly, and go faster until something is refused."""
        if self.pace is None:
            self.pace = Pace(rate, now, smallest=at_once, searching=True, alone=not self.stated)

    def begin_again(self, now: float) -> None:
        """What was refused so far was refused for another reason."""
        self._window = HiddenWindow()
        if self.pace is not None:
            rate, smallest, self.pace = self.pace.rate, self.pace.smallest, None
            self.search(rate, now, at_once=smallest)

    def stop_searching(self) -> None:
        """Limits were stated after all."""
        if self.pace is not None and self.pace.searching:
            self.pace = None

    def refused_unexplained(
        self,
        departure: Departure,
        now: float,
        named: float | None = None,
        searched: Pace | None = None,
        wait: float | None = None,
        began: float = 0.0,
    ) -> None:
        """A request was refused, and nothing that headers stated explains it; its message may have named a rate.

        Args:
            wait: Seconds to stay away, as the server says.
            began: A moment at which windows by the clock begin, whatever their length.
        """
        if self.pace is None:
            self.pace = Pace(1.0, now, smallest=1.0, alone=not self.stated)
            if searched is not None:
                self.pace.doubled = searched.doubled
        known = min(
            (
                each.rate / (1.0 if self._charges_refused else each.factor)
                for each in self.stated.values()
                if each.per <= 60
            ),
            default=None,
        )
        self.pace.refused(departure, self.traffic, now, known, named)
        if known is None and named is None:
            self._window.refused(departure, self.traffic, now, wait, began)
            self._settle(self.pace, now)

    def explained(self, departure: Departure, wait: float | None) -> None:
        """A request was refused for what was stated; the server asked to wait for that long."""
        for name, each in self.stated.items():
            if wait is not None:
                each.refused(departure, departure.remaining.get(name, 0.0), wait)

    def explains(self, departure: Departure, now: float) -> bool:
        """Whether what is thought of the limits that were stated explains that a request was refused just now."""
        return any(each.explains(departure, departure.remaining.get(name), now) for name, each in self.stated.items())

    def level(self, now: float) -> float:
        """What can be counted on, in our units."""
        bounds = [each.level(now) / each.factor for each in self.stated.values()]
        if self.pace is not None:
            bounds.append(self.pace.level(now))
        return min(bounds, default=math.inf)

    def ready_at(self, cost: float, now: float, ahead: float = 0.0) -> float:
        """When `cost` may leave, after `ahead` did; `now` or later."""
        ready = max((each.ready_at(cost, now, ahead) for each in self.stated.values()), default=now)
        if self.pace is not None:
            ready = max(ready, self.pace.ready_at(cost, now, ahead))
            ready = max(ready, self.pace.heard_enough_at(cost, now, self.traffic, ahead))
            ready = max(ready, self._window.ready_at(cost, now, self.traffic, ahead, self.pace.rate))
        return ready
