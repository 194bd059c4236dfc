"""The arithmetic of limits, queues, retries and refunds.

Nothing below this folder waits, reads a clock, draws a random number or does I/O. Callers pass the time in (seconds, of
a clock that never steps back) and get plain values out, so every rule can be tested with plain numbers.
"""
