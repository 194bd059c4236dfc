"""Trying again: when, how often, and how long to wait in between.

    retry = Retry(on=(ConnectionError, RateLimited), attempts=6, within=300)

    @retry                                        # async functions, functions, async generators, context managers
    async def fetch(url): ...

    reply = await retry.call(fetch, url)          # or `retry.call_sync(...)` in a thread

    async for attempt in retry:                   # or `for attempt in retry:` in a thread
        with attempt:
            ...

A `Retry` is a frozen value and holds no state: the state of one call lives in its `RetriedCall`, so any number of
tasks and threads can share a policy. Only a `Budget` is shared on purpose.

Only an `Exception` is ever classified. Cancellation, KeyboardInterrupt and GeneratorExit pass through untouched, also
in the middle of a wait. The last error is raised itself. Notes on it list the attempts before, and name the bound that
ended the call. No property or method of the error that we read can replace it.

    policy       `Retry`;  settings: its fields;  budget: `Budget`, over `_core.budget`
    call         one call: counts attempts, and decides whether another follows
    attempt      one attempt as the user sees it, and the loop form
    functions    the loop over attempts of a function, with its waits;  streams: of an async generator
    unfinished   results that have done nothing yet: awaitables and context managers
    generators   whether a `with attempt:` block can yield to a consumer
    arguments    arguments that an attempt has used up
    report       notes on the user's error, and log records

The formulas of waits and budgets are in `_core`, the option `on` is in `_user_errors`, and `_retry_after` reads the
server's hints. This package does not know limiters, but it hears the `retry_after` of any error.
"""

from __future__ import annotations

from penstock._core.backoff import Backoff, Constant, Exponential, Jitter, constant, exponential
from penstock._retry_after import retry_after
from penstock.retry.attempt import Attempt, current_attempt
from penstock.retry.budget import Budget
from penstock.retry.policy import Retry

__all__ = [
    "Attempt",
    "Backoff",
    "Budget",
    "Constant",
    "Exponential",
    "Jitter",
    "Retry",
    "constant",
    "current_attempt",
    "exponential",
    "retry_after",
]
