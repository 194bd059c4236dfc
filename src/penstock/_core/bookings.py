"""Turns that a store has told processes of, and that hold nothing until they are taken: the order across processes.

Nothing here waits or reads a clock. A request that would wait longer than its horizon is not charged: it gets a
*booking*, which says when it is to come again. Shortly before that its process *claims* it, and only then the store
charges. So a booking is a position in an order, and no debt:

- **Whatever is booked, claimed, passed, dropped or forgotten, only charges count.** The rule of the bucket decides
  about each of them, so bookings cannot break a limit, and a process that dies takes nothing along.
- **The order** is that of all queues: the higher level first (`priority`, and one more for every `ageing` seconds that
  the request has waited), then the flow that has had less, then the earlier booking.
- **A newcomer is told the moment at which all that are before it will have had theirs** (`taken`). It goes at once
  where that delays none of them (`delays`): it passes those that come after it, and takes what they do not need.
- **A booking that was passed is not told.** When it is claimed, less has flowed in than was expected. If what is
  missing flows in within its horizon, it goes by that much later, as the next ones do. Else it goes to the end, and the
  next ones keep their moments: one more question, however many are booked. It keeps its age, so it is not passed for
  ever.
- **A claim may come before its moment,** when something was given back. It goes if that delays no booking before it,
  and else keeps its position. Its moment becomes an earlier one if those before it need less than when it was told.
- **Charges are never made ahead of a gap.** A request that must let another go first is told when to come again; a
  bucket is one number, and what it left free before a charge to come would be lost.

The tag of a flow counts what its processes have booked, and a booking keeps the tag that its flow had before it: its
*start*. A request of a flow that was away begins at the least start of those that wait, which is the turn that is next,
and passes the rest.

**Places come back when a permit ends**, which nobody can foresee. A request that waits for them has a booking without a
moment (`ahead_of_place`): its position among those that wait is that of the list, and when places come back they are
kept for those that come first. Its DUE is when its process asks again at the latest; after that it is forgotten. Such
a booking says what it takes of places and of nothing else, and any other says nothing of places. Processes without a
flow take turns in the order in which they came: what a place is held for is no measure of time, so nobody has credit.

A booking is known by a number that its process draws. Of more than `MOST` those that come last are kept as one, with
what all of them take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from penstock._core.flows import ALONE, LEAD

ID, DUE, PRIORITY, WAITED, AGEING, KEY, START, MEMBER_START, SHARE = range(9)
"""What a booking consists of, and then the amount on each limit of its row. DUE: seconds from now. WAITED, AGEING:
seconds. SHARE: what it adds to the tag of its flow."""

AMOUNTS = 9

MOST = 128
"""Bookings that a row keeps one by one."""

LATE = 0.050
"""Seconds after its moment for which others still wait for a booking to be claimed."""

EXPIRED = 0.5
"""Seconds after its moment at which a booking is forgotten: its process has died, or is very late."""

IN_LINE_FOR = 0.25
"""Seconds after which a process whose request waits for places asks again at the latest."""

NEW = -1e9
"""Instead of a moment: there is no booking yet."""

Booking = list[float]


class InLine(NamedTuple):
    """How a booking for places stands: what those take that go before it, and whether there is enough for it, too."""

    ahead: float
    ready: bool


class Asker:
    """What decides whether a request passes a booking: rank, flow, where that stands, what it would add to the tag."""

    __slots__ = ("ageing", "key", "member_start", "priority", "share", "start", "waited")

    def __init__(self, priority: float, waited: float, ageing: float, share: float) -> None:
        self.priority = priority
        self.waited = waited
        self.ageing = ageing
        self.share = share
        self.key = self.start = 0.0
        self.member_start = ALONE

    def without_flow(self) -> Asker:
        """The same where the row knows no flows of such calls."""
        return Asker(self.priority, self.waited, self.ageing, self.share)


class Wait:
    """How long a request would have to wait.

    Attributes:
        longest: Seconds until all its limits are ready.
        blocker: The limit that is ready last; below 0: all are ready.
        fixed: Whether it cannot be booked: what comes back all at once, or is paused, is charged when it is
            there.
    """

    __slots__ = ("blocker", "fixed", "longest")

    def __init__(self) -> None:
        self.longest = 0.0
        self.blocker = -1
        self.fixed = False


def level_of(priority: float, waited: float, ageing: float) -> float:
    """The priority, and one for each time that it has waited for `ageing`."""
    return priority + math.floor(waited / ageing + 1e-9)


def _rank(asker: Asker, booking: Booking) -> float:
    """Above 0 where a request goes before a booking, below 0 where it goes after it, 0 where the moments decide.

    Of one priority, the moments are the order of age: one that has waited for long passes those that are more urgent,
    and not its equals. Between flows that have names, half a call is enough. Processes without a flow, and the members
    of one, take turns anyway; they pass each other only when they are more than a call of each apart, as each time
    costs a question.
    """
    if asker.priority != booking[PRIORITY]:
        above = level_of(asker.priority, asker.waited, asker.ageing) - level_of(*booking[PRIORITY:KEY])
        if above:
            return above
    share, other = asker.share, booking[SHARE]
    if booking[KEY] == asker.key:
        apart = booking[MEMBER_START] - asker.member_start
        wide = True
    else:
        apart = booking[START] - asker.start
        wide = asker.member_start == ALONE and booking[MEMBER_START] == ALONE
    if apart > (LEAD + share + other if wide else min(LEAD, other / 2)):
        return 1.0
    return -1.0 if -apart > (LEAD + share + other if wide else min(LEAD, share / 2)) else 0.0


def before(bookings: Sequence[Booking], asker: Asker, number: float = 0.0, *, claims: bool) -> list[Booking]:
    """Those that a request must not delay, by their moments: a newcomer, all that do not rank after it.

    One that claims its booking waits for those alone that rank before it; one that asks before its moment, also for
    those of its rank that come earlier. None waits for those that are late, or for that of its own `number`.
    """
    mine = of_number(bookings, number) if number else None
    own = math.inf if mine is None else mine[DUE]
    found = []
    for booking in bookings:
        if booking[DUE] >= -LATE and (booking[ID] != number if booking[ID] else not claims):
            rank = _rank(asker, booking)
            if rank < 0 or (rank == 0 and not claims and _due(booking) < own):
                found.append(booking)
    found.sort(key=_due)
    return found


def ahead_of_place(bookings: Sequence[Booking], asker: Asker, position: int, column: int) -> float:
    """What those take that have a booking for places there and go before a request.

    Args:
        bookings: Of the row, without its own.
        asker: The request.
        position: How many of these came before it.
        column: Where a booking says what it takes of these places.
    """
    ahead = 0.0
    for index, booking in enumerate(bookings):
        if booking[column] and booking[ID]:
            order = _rank_for_places(asker, booking)
            if order < 0 or (order == 0 and index < position):
                ahead += booking[column]
    return ahead


def first_for_place(bookings: Sequence[Booking], column: int) -> Booking | None:
    """The booking that is to have the next places there; None: nobody waits for them."""
    first = None
    for booking in bookings:
        if booking[column] and booking[ID] and (first is None or _rank_for_places(asker_of(booking), first) > 0):
            first = booking
    return first


def _rank_for_places(asker: Asker, booking: Booking) -> float:
    """As `_rank`; but those without a flow do not pass each other, as they have turns and no throughput."""
    plain = asker.member_start == ALONE and booking[MEMBER_START] == ALONE
    if plain and asker.priority == booking[PRIORITY]:
        return 0.0
    if plain:
        return level_of(asker.priority, asker.waited, asker.ageing) - level_of(*booking[PRIORITY:KEY])
    return _rank(asker, booking)


def asker_of(booking: Booking) -> Asker:
    """What its request passes others by."""
    asker = Asker(booking[PRIORITY], booking[WAITED], booking[AGEING], booking[SHARE])
    asker.key, asker.start, asker.member_start = booking[KEY], booking[START], booking[MEMBER_START]
    return asker


def position_of(bookings: Sequence[Booking], number: float) -> int:
    """The index of the booking of that number; of none, how many there are."""
    found = (index for index, booking in enumerate(bookings) if booking[ID] == number)
    return next(found, len(bookings)) if number else len(bookings)


def taken(found: Sequence[Booking], column: int) -> float:
    """What these will take from a limit. `column`: where a booking says it."""
    return sum([booking[column] for booking in found])


def delays(found: Sequence[Booking], column: int, bucket: Sequence[float], amount: float, after: float) -> bool:
    """Whether a charge `after` seconds from now would leave too little for one of these at its moment.

    Args:
        found: By their moments.
        column: Where a booking says what it takes from that bucket.
        bucket: Its debt now, its rate and its burst.
        amount: What is to be charged.
        after: Seconds from now; there is enough then.
    """
    debt, rate, burst = bucket
    without = max(0.0, debt - after * rate)
    debt, there = without + amount, after
    grain = 0.5e-6 * rate + 1e-12 * burst
    for booking in found:
        if booking[column]:
            moment = max(_due(booking), there)
            without = max(0.0, without - (moment - there) * rate) + booking[column]
            debt = max(0.0, debt - (moment - there) * rate) + booking[column]
            if debt <= without + grain:
                return False  # what was charged has flowed in again
            if debt > burst + grain:
                return True
            there = moment
    return False


def mine(bookings: list[Booking], number: float, due: float, amounts: Sequence[float]) -> Booking | None:
    """Take the booking of that number out of a row, or out of those kept as one, and return it; None: there is none."""
    for index, booking in enumerate(bookings):
        if booking[ID] == number:
            return bookings.pop(index)
    for index, booking in enumerate(bookings):
        if not booking[ID] and due <= booking[DUE] + EXPIRED:
            left = 0.0
            for column, amount in enumerate(amounts, AMOUNTS):
                booking[column] = max(0.0, booking[column] - amount)
                left += booking[column]
            if not left:
                del bookings[index]
            return booking
    return None


def of_number(bookings: Sequence[Booking], number: float) -> Booking | None:
    """The booking of that number, if it is kept by itself."""
    return next((booking for booking in bookings if booking[ID] == number), None)


def drop(bookings: list[Booking], number: float) -> None:
    """Forget the booking of that number, if it is kept by itself."""
    bookings[:] = [booking for booking in bookings if booking[ID] != number]


def add(bookings: list[Booking], booking: Booking) -> None:
    """Put a booking in."""
    bookings.append(booking)
    if len(bookings) <= MOST:
        return
    rest = next((one for one in bookings if not one[ID]), None)
    for _ in range(1 if rest else 2):
        last = max([one for one in bookings if one is not rest], key=_urgency)
        if rest is None:
            rest = last
            rest[ID] = 0.0
            continue
        bookings.remove(last)
        rest[DUE] = max(rest[DUE], last[DUE])
        rest[PRIORITY] = max(rest[PRIORITY], last[PRIORITY])
        rest[WAITED] = max(rest[WAITED], last[WAITED])
        rest[START] = min(rest[START], last[START])
        for column in range(AMOUNTS, len(rest)):
            rest[column] += last[column]


def starts(bookings: Sequence[Booking], key: float, *, alone: bool) -> tuple[float, float]:
    """Where a flow that comes anew begins, and a member of it; `inf` where that is for others to say.

    A flow with a name begins where the one is that has had least, so its turn is next. A process begins with those that
    came last, as each of them has one turn a round.
    """
    of_flows = math.inf
    last = -math.inf
    for booking in bookings:
        if alone or booking[KEY] == key:
            last = max(last, booking[START if alone else MEMBER_START])
        elif booking[KEY]:
            of_flows = min(of_flows, booking[START])
    of_processes = last if last > ALONE else math.inf
    return (of_processes, math.inf) if alone else (of_flows, of_processes)


def _due(booking: Booking) -> float:
    """When a booking needs what it takes; of those that are kept as one, it is unknown when the first does."""
    return booking[DUE] if booking[ID] else 0.0


def _urgency(booking: Booking) -> tuple[float, float]:
    return -level_of(*booking[PRIORITY:KEY]), booking[DUE]
