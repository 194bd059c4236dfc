"""What the server asked for: `retry_after(error)`.

Every client library puts it somewhere else: in an attribute of the error, in the headers of its response, as seconds, as
milliseconds or as a date. Here it becomes a number of seconds, or None. What is done with it is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any

from penstock import clock

__all__ = ["retry_after"]


def retry_after(exception: BaseException | None) -> float | None:
    """Return how many seconds the server asked to wait, or None if it did not say.

    Looks at the exception's `retry_after` (seconds, or a timedelta), then at the headers of its `response`, or its own
    `headers`: `retry-after-ms`, then `retry-after` in seconds or as an HTTP date. A date is compared with the `Date`
    header of the same response, so that a wrong clock on either side does no harm. Names of headers are found in any case.
    Of an exception group it is the longest wait of its leaves.

    Past moments are 0. What is infinite, negative or no number says nothing and gives None; so do headers of a response
    that succeeded (2xx): some servers send them there without meaning it.
    """
    if exception is None:
        return None
    if isinstance(exception, BaseExceptionGroup):
        hints = [hint for leaf in exception.exceptions if (hint := retry_after(leaf)) is not None]
        return max(hints, default=None)
    asked = _seconds(getattr(exception, "retry_after", None))
    if asked is not None:
        return asked
    response = getattr(exception, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(status, int) and 200 <= status < 300:
        return None
    headers = _headers(response)
    if headers is None:
        headers = _headers(exception)
    return None if headers is None else _asked_by_headers(headers)


def _headers(holder: object) -> Mapping[str, Any] | None:
    headers: Any
    if isinstance(holder, Mapping):  # botocore's errors keep the response as a dict
        metadata = holder.get("ResponseMetadata")
        headers = metadata.get("HTTPHeaders") if isinstance(metadata, Mapping) else holder.get("headers")
    else:
        headers = getattr(holder, "headers", None)
    return headers if callable(getattr(headers, "items", None)) else None


def _asked_by_headers(headers: Mapping[str, Any]) -> float | None:
    found = {str(name).lower(): value for name, value in headers.items()}
    milliseconds = _seconds(found.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = found.get("retry-after")
    seconds = _seconds(asked)
    if seconds is not None:
        return seconds
    moment = _http_date(asked)
    if moment is None:
        return None
    sent = _http_date(found.get("date"))
    return max(0.0, moment - (clock.wall() if sent is None else sent))


def _seconds(value: object) -> float | None:
    """Read a plain number of seconds, 0 or more and finite; anything else is None."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | str | bytes):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


def _http_date(value: object) -> float | None:
    if not isinstance(value, str):
        return None
    import email.utils

    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000" and the asctime form: HTTP dates are GMT
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
