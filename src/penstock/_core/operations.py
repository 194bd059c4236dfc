"""What a batch asks of a store, and what it is told: operations and verdicts.

They are plain lists of floats, so that all stores can speak the same. A number with ⁿ behind it, or several in
brackets, stands n times.

    limit       kind, and four numbers for each kind:
                BUCKET rate burst overdraft –   CALENDAR amount end next_end –   WINDOW amount ttl mode –
    ACQUIRE     horizon stops n (limit amount)ⁿ
                → wait receiptⁿ; or −1 − wait, and the limit that is ready last, or BOOKED, or IN_LINE;
                or −1 − seconds where it is another flow's turn, and −1 − the seconds by which the flow is ahead
    SERIES      horizon stops n m (limit)ⁿ (times amountⁿ)ᵐ
                ACQUIREs on the same limits, one after the other, in m runs of so many with the same amounts
                → per run how many of it are granted at once, and if any, receiptⁿ of its first (of each other it is
                greater by the amount); behind the first run of which some are not, as of ACQUIREs
    GIVE_BACK   n (limit amount epoch receipt)ⁿ
    CHARGE      n (limit amount)ⁿ                       → receiptⁿ
    PAUSE       seconds n (limit)ⁿ
    RESUME      n (limit)ⁿ                              a pause ends
    LOWER       n (limit level age epoch receipt)ⁿ
    RENEW       n (limit)ⁿ
    FLOW        key member weight limit waits           the flow of the following requests, as the row of that limit
                                                        knows it. Without requests: it waits for so many seconds behind
                                                        others of its process
    LEAVE       key member seconds limit                a reservation worth so much of its throughput goes back
    RANK        priority waited ageing                  of the requests that follow: how urgent and how old they are,
                                                        and in how many seconds they rise by a level
    BOOK        number due within                       the next request gets a booking of that number if it would wait
                                                        longer than its horizon, and at most `within` seconds. `due`:
                                                        it claims a booking for that moment, seconds from now; NEW: it
                                                        has none
    DROP        number limit                            the booking of that number is not needed any more, as far as the
                                                        row of that limit knows it

Moments (`now`, ends, epochs) are microseconds since 1970, whole; durations are seconds. `epoch` is when a row was born:
a permit of a row that was lost since gives nothing back to its successor.
"""

from __future__ import annotations

ACQUIRE, GIVE_BACK, CHARGE, PAUSE, LOWER, RENEW, FLOW, LEAVE, RESUME = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0
RANK, BOOK, DROP, SERIES = 10.0, 11.0, 12.0, 13.0

BOOKED = -0.5
"""In a verdict, where the number of a limit would be: the request has a booking."""

IN_LINE = -0.25
"""The same: it has a booking for places, and is to ask again after so long at the latest."""
