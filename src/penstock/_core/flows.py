"""The turns of several processes: what a store remembers of the flows that share its limits.

Nothing here waits or reads a clock. Of each flow that waits there is an *entry*: its tag, which is what it has had so
far, in seconds of the throughput of the unit that it had most of, divided by its weight; and how many seconds ahead its
last admission is. The least-served flow is the waiting one with the least tag. A request that has to wait is told to
come again later if the tag of its flow is more than `LEAD` above that one's. (A request that need not wait takes no
flow's turn.) So flows share fairly whichever processes they are in. Calls without a flow are a flow of their process,
so a process with a long queue cannot take the next turns of all others; and within a flow that several processes work
for, these share in the same way, as its *members*.

A flow that is away gets no credit for it: its tag goes on with the time, and a newcomer begins where the least-served
flow is. A flow that is ahead does not get rid of that by waiting: its entry is kept for a while. This is start-time
fair queueing (Goyal et al., 1996) with a bound on the lead, as what was once admitted for a moment to come cannot be
taken back. It needs no list of waiters: a flow that has an admission to come, or was told when to come again, waits.
"""

from __future__ import annotations

import math

LEAD = 0.020
"""Seconds of throughput by which a flow may be ahead of another that waits."""

GRACE = 0.020
"""Seconds for which a flow still counts as waiting after its last admission: until its process has asked for the
next."""

AGAIN = (0.001, 0.050)
"""Seconds, least and most, after which a flow that is ahead is to come again."""

LATE = 0.020
"""Seconds after that moment for which it still counts as waiting: it may have reasons to come later."""

FORGET = 1.0
"""Seconds after its last admission for which the entry of a flow is kept."""

FLOWS = 128
"""Entries that are kept: those that wait, flows before members, and then those that have had least. Of more, the others
go in the order in which they ask."""

_NEVER = -1e9

ALONE = -1e9
"""Instead of a member's tag: the flow has no members."""

KEY, OF, TAG, AHEAD = range(4)
"""What an entry consists of. `OF` is 0 for a flow, and the flow's key for one of its members."""

FlowEntry = list[float]


class FlowTurn:
    """One flow's requests in one batch, and how far they may go.

    Attributes:
        key: Of the flow.
        inverse: Of its weight.
        room: How far the flow may run ahead of the least-served waiting flow, in seconds of throughput.
        back: In how many seconds the flow asks again that it must wait for.
        spent: Seconds of throughput that its requests in this batch have taken.
    """

    __slots__ = ("_ahead", "_entries", "back", "inverse", "key", "room", "spent")

    def __init__(
        self,
        entries: list[FlowEntry],
        key: float,
        member: float,
        weight: float,
        booked: tuple[float, float] = (math.inf, math.inf),
        ahead: float = -math.inf,
    ) -> None:
        """Find the entries of the flow `key`, and of its member, unless that is 0; make them where there are none.

        Args:
            entries: Of all flows of the row.
            key, member: Of the flow.
            weight: Of the flow; above 0.
            booked: Where the flow, and its member, begins among those that have bookings.
            ahead: Seconds for which it waits behind others of its process; `-inf`: it does not.
        """
        self.room = math.inf
        self.spent = 0.0
        self._ahead = ahead  # seconds until the last admission of its requests, or until its next question
        self.back = 0.0
        self.inverse = 1.0 / weight
        self.key = key
        self._entries = [self._enter(entries, key, 0.0, booked[0], first=bool(member))]
        if member:
            self._entries.append(self._enter(entries, member, key, booked[1], first=False))

    @property
    def is_over(self) -> bool:
        """Whether others must have theirs first."""
        return self.spent > self.room

    def starts(self) -> tuple[float, float]:
        """The tags of the flow, and of its member, as they are now; `ALONE` where there is no member."""
        own = self._entries
        return own[0][TAG] + self.spent, own[1][TAG] + self.spent if len(own) > 1 else ALONE

    def _enter(self, entries: list[FlowEntry], key: float, of: float, booked: float, *, first: bool) -> FlowEntry:
        mine, least, back = None, math.inf, 0.0
        for entry in entries:
            if entry[OF] != of:
                continue
            if entry[KEY] == key:
                mine = entry
            elif entry[AHEAD] > -GRACE:
                tag = entry[TAG] + max(0.0, -entry[AHEAD])
                if tag < least:
                    least, back = tag, entry[AHEAD]
        turn = min(least, booked) if first or booked == math.inf else booked
        if mine is None:
            mine = [key, of, turn if turn < math.inf else 0.0, _NEVER]
            entries.append(mine)
        elif _NEVER < mine[AHEAD] < 0 and turn < math.inf:
            mine[TAG] = max(mine[TAG], min(mine[TAG] - mine[AHEAD], turn))
        room = least + LEAD - mine[TAG]
        if room < self.room:
            self.room, self.back = room, back
        return mine

    def passed(self, share: float) -> None:
        """A turn of this process went to others.

        It takes the next one like all, and not one more to make up for it, as each time costs questions.
        """
        self._entries[-1][TAG] += share

    def took(self, share: float, after: float) -> None:
        """A request took so many seconds of throughput, and is admitted `after` seconds from now."""
        self.spent += share * self.inverse
        if after > self._ahead:
            self._ahead = after

    def again(self) -> float:
        """In how many seconds the flow is to come again, which has spent more than its room."""
        seconds = min(max(self.spent - self.room, self.back, AGAIN[0]), AGAIN[1])
        self._ahead = max(self._ahead, seconds + LATE)
        return seconds

    def close(self) -> None:
        """Note in the entries what the requests of this batch have taken, if there were any."""
        if self._ahead > -math.inf:
            for entry in self._entries:
                entry[TAG] += self.spent
                entry[AHEAD] = max(entry[AHEAD], self._ahead)


def leave(entries: list[FlowEntry], key: float, member: float, seconds: float) -> None:
    """A reservation worth so much is given back, and for all we know no request of that flow waits any more."""
    for entry in entries:
        if (entry[KEY] == key and entry[OF] == 0) or (entry[KEY] == member and entry[OF] == key):
            entry[TAG] -= seconds
            entry[AHEAD] = min(entry[AHEAD], 0.0)


def kept(entries: list[FlowEntry]) -> list[FlowEntry]:
    """The entries that are worth keeping."""
    known = [entry for entry in entries if entry[AHEAD] > -FORGET]
    return known if len(known) <= FLOWS else sorted(known, key=_worth)[:FLOWS]


def _worth(entry: FlowEntry) -> tuple[bool, bool, float]:
    """Those that wait first, then flows before their members, then those that have had less."""
    return entry[AHEAD] <= -GRACE, entry[OF] != 0, entry[TAG]
