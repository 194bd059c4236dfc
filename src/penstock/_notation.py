"""Read limits as people write them: "3,500/min", "90k per minute", "1.5M a day", "10/s burst 1".

A text with several meanings is refused, with a sentence that says how to write each of them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TOO_LONG = 200
"""Characters: a pattern may take time that grows with the square of the text."""

NUMBER = (
    r"([1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+(?:_\d+)*(?:\.\d+)?(?:[eE]\+?\d+)?|\.\d+)"
    r"\s*(k|K|M|G|B|thousand\b|million\b|billion\b)?"
)
"""Two groups: the digits and the scale."""

PER = r"(?:/|\b(?:per|an?|each|every)\b)"

_RATE = rf"\s*{NUMBER}\s*{PER}\s*(\d+(?:\.\d+)?)?\s*([^\W\d_]+)\.?\s*(?:,?\s*burst\s*=?\s*{NUMBER})?\s*"

"""Compiled when the first one is read: a millisecond that an import need not take."""

_SCALES = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000, "B": 1_000_000_000}
_SCALES |= {"": 1, "K": 1_000, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}

_WORDS = {
    0.001: "ms msec msecs millisecond milliseconds",
    1.0: "s sec secs second seconds",
    60.0: "m min mins minute minutes",
    3600.0: "h hr hrs hour hours",
    86_400.0: "d day days",
    604_800.0: "w wk wks week weeks",
}
_SECONDS = {word: seconds for seconds, words in _WORDS.items() for word in words.split()}

_ADVICE = (
    (
        r"\d,(?!\d{3}(?!\d))|\d{4},|\b0\d*,",
        'a comma stands before three digits ("1,000"); before decimals stands a point ("1.5")',
    ),
    (r"\d\s\d|\d'\d|\.\d+\.", 'thousands are written "1,000", "1_000" or "1000"'),
    (rf"\d\s*[mgb]\s*{PER}", "k is a thousand, M a million, G and B are 10⁹, and m would be a thousandth or a million"),
    (
        r"(?i)\b(?:sliding|fixed|window)\b",
        "a window is sliding(100, per=10), or by the clock calendar(100, 10); it has no burst",
    ),
    (rf"{PER}\s*\d*\s*M$", 'M would be a minute or a month: write "min", or use calendar(…, "month")'),
    (
        rf"{PER}\s*\d*\s*(?i:mo|mth|mon|months?)\b",
        'months differ in length: use calendar(…, "month"), or write "/30d"',
    ),
    (rf"{PER}\s*\d*\s*(?i:y|yr|years?)\b", 'years differ in length: write "/365d"'),
    (
        r"\d\s*[kKMGB]?\s*[^\W\d_]{2}",
        'the keyword is the unit, and the period is written out, as in tokens="90k/min"',
    ),
    (r"\d\s*[kKMGB]?\s*$", 'say per what time, as in "3500/min"; or in_flight(64) for calls at the same time'),
)
"""Patterns of what is not read, and what to write instead; the first that is found."""


class WrittenRate(NamedTuple):
    """What a rate says: units, the seconds that they are for, and units at once, if it says so."""

    amount: float
    seconds: float
    burst: float | None


def read_rate(text: str) -> WrittenRate | None:
    """The rate that a text says; None if it says none, or could mean several: see `advice`."""
    match = re.fullmatch(_RATE, text) if len(text) <= TOO_LONG else None
    if match is None:
        return None
    digits, scale, count, period, burst, burst_scale = match.groups()
    seconds = _SECONDS.get(period if period == "M" else period.lower())
    if seconds is None:
        return None
    return WrittenRate(
        amount_of(digits, scale), float(count or 1) * seconds, amount_of(burst, burst_scale) if burst else None
    )


def amount_of(digits: str, scale: str | None) -> float:
    """The number that the two groups of `NUMBER` say."""
    value = float(digits.replace("_", "").replace(",", "")) * _SCALES[scale or ""]
    return int(value) if value.is_integer() else value


def advice(text: str) -> str:
    """How to write what a text that is not read may mean; empty if nothing is known."""
    short = text[:TOO_LONG].strip()
    return next((sentence for pattern, sentence in _ADVICE if re.search(pattern, short)), "")
