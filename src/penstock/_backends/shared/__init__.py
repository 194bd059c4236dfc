"""The backend in front of a store that processes share.

backend.py      the protocol: what callers ask and say
inbox.py        what callers send to the dispatcher
dispatcher.py   the thread and the way to the store
scheduler.py    which requests to ask for, and what to do with the answers; pure
asking.py       which requests the store is asked for next, and writing them into a batch
agreement.py    limits that differ from those in the store, or change
lines.py        who waits for places, and when they are asked for
leasing.py      grants out of leases that this process holds
settling.py     refunds, true costs, pauses: what the store is told
state.py        what the scheduler knows
outage.py       what happens when a store does not answer, and when it does again
wire.py         a batch on its way, and its answer
requests.py     what a call asks, and what the store has charged it
queue.py        the queue in front of a store
limit_set.py    the limits of one name, as this process knows them
"""
