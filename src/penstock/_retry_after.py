"""How long the server asked to wait: `retry_after(error)`.

Every client library keeps this somewhere else: in an attribute of the error, or in the headers of its response, in
seconds, in milliseconds or as a date. Here it becomes a number of seconds, or None.

Errors are the user's objects. If an attribute, a header or a property of theirs raises, the answer is None: the error
itself is never replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from penstock import clock
from penstock._interruptions import is_an_interruption
from penstock._numbers import read_seconds
from penstock._stated_times import asked_by

_CAUSE: Any = BaseException.__cause__  # read by way of the class: a subclass may have a property of that name


def retry_after(exception: BaseException | None) -> float | None:
    """Return how many seconds the server asked to wait, or None if it did not say.

    Looks at the exception's `retry_after` (seconds, or a timedelta), then at the headers of its `response`, or its own
    `headers`: `retry-after-ms`, then `retry-after` in seconds (`5` or `5s`), as an HTTP date or as seconds since 1970.
    A moment is compared with the `Date` header of the same response, so that a wrong clock on either side does no harm.
    Names of headers are found in any case. Of an exception group it is the longest wait of its leaves.

    Where the exception says nothing, what it was raised `from` is asked: an error of yours may wrap an SDK's. An error
    that was merely handled meanwhile is not.

    Past moments are 0. A value that is infinite, negative or no number gives None. So do headers of a response that
    succeeded (2xx): some servers send them there without meaning it. A property that raises counts as absent.
    """
    seen: set[int] = set()
    while exception is not None and id(exception) not in seen:
        asked = _of_itself(exception)
        if asked is not None:
            return asked
        seen.add(id(exception))
        exception = _CAUSE.__get__(exception)
    return None


def _of_itself(exception: BaseException) -> float | None:
    try:
        return _asked_by(exception)
    except BaseException as raised:  # whatever an object of the user's raises while we read it
        if is_an_interruption(raised):
            raise
        return None


def _asked_by(exception: BaseException) -> float | None:
    if isinstance(exception, BaseExceptionGroup):
        hints = [hint for leaf in exception.exceptions if (hint := retry_after(leaf)) is not None]
        return max(hints, default=None)
    asked = _seconds(attribute_of(exception, "retry_after"))
    if asked is not None:
        return asked
    response = attribute_of(exception, "response")
    status = attribute_of(response, "status_code")
    if isinstance(status, int) and 200 <= status < 300:
        return None
    headers = _headers(response)
    if headers is None:
        headers = _headers(exception)
    return None if headers is None else asked_by(headers, wall=clock.wall())


def attribute_of(holder: object, name: str) -> Any:
    """Return an attribute of a user's object; None if there is none, or if reading it raises."""
    try:
        return getattr(holder, name, None)
    except BaseException as raised:  # such as the CancelledError of a future that a property asks
        if is_an_interruption(raised):
            raise
        return None


def _headers(holder: object) -> Mapping[str, Any] | None:
    headers: Any
    if isinstance(holder, Mapping):  # botocore's errors keep the response as a dict
        metadata = holder.get("ResponseMetadata")
        headers = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else holder.get("headers")
    else:
        headers = attribute_of(holder, "headers")
    return headers if callable(attribute_of(headers, "items")) else None


def _seconds(value: object) -> float | None:
    """Read a number of seconds, 0 or more and finite, also from a header's text; anything else is None."""
    if isinstance(value, str | bytes):
        try:
            value = float(value.strip().removesuffix("s") if isinstance(value, str) else value)
        except ValueError:
            return None
    seconds = read_seconds(value)
    return float(seconds) if seconds is not None and 0 <= seconds < math.inf else None
