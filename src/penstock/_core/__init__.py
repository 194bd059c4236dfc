"""The arithmetic of limits, queues, retries and refunds.

Nothing below this folder waits, reads a clock, draws a random number or does I/O. Callers pass the time in (seconds, of
a clock that never steps back) and get plain values out, so every rule can be tested with plain numbers.

Limits and queues of one process:

    meter        what counts the use of one limit: the protocol
    bucket       rates;  refunds: what a bucket may give back
    windows      sliding windows, and periods of the calendar
    places       so many at the same time
    limit_state  one limit, and how much of it is used
    charging     all or nothing over several limits
    turns        which waiters are charged now, and which of them may pass others
    queue        all waiters in the order of their turns;  subqueues, shapes: what it is made of

Limits that processes share:

    decision     one call decides a batch
    operations   what a batch asks, and what it is told
    row_limits   what may be charged of each limit of a batch, and when
    batch        the operations, one after the other;  rows, entries: what a store keeps of a name
    flows        how far each flow may go before the others
    bookings     the order across processes
    lease        quota that one process hands out by itself

Retries and what adapts:

    backoff      how long to wait before the next attempt
    budget       how many retries there may be
    breaker      when a circuit breaker lets calls through
    aimd         which share of a rate to use while a server is overloaded
"""
