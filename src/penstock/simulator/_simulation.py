"""The options of a simulation: frozen values, checked when they are made. `_account` acts on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

from penstock._numbers import Seconds, read_count, read_flag, read_number, read_seconds
from penstock._text import read_word, repr_of, text_of
from penstock._validation import parse_of
from penstock.limits import Rate, Sliding
from penstock.simulator import _replies
from penstock.simulator._dialects import DIALECTS, Dialect
from penstock.simulator._meters import Hidden, Unit, Window

SimulatedLimit = Rate | Sliding | Window | Hidden
Given = str | SimulatedLimit

Fault = Literal[
    "server_error",
    "overloaded",
    "slow_down",
    "dropped",
    "broken_stream",
    "insufficient_quota",
    "bad_gateway",
    "hang",
    "cut_short",
    "truncated",
    "error_in_200",
    "empty",
    "null",
    "no_choices",
    "no_headers",
    "gzip",
]
"""What can go wrong with a request on purpose.

- `server_error`: 500. Charged.
- `overloaded`: 503 with code `server_is_overloaded`. Charged.
- `slow_down`: 429 with code `slow_down`. Not admitted.
- `dropped`: the connection is closed without an answer; that of a stream, in the middle of it. Charged.
- `broken_stream`: an error event in the middle of a stream that began with 200. Charged. Means nothing without
  `stream`.
- `insufficient_quota`: 429 with that code, which no wait mends. Not admitted.
- `bad_gateway`: 502 with a page of HTML and no header of a limit. Charged, as all that follow.
- `hang`: nothing comes, or nothing more of a stream, until the client is gone.
- `cut_short`: the connection is closed after the headers and half of the answer; that of a stream, in the middle of it.
- `truncated`: half of the answer, as if it were all of it; a stream that ends in the middle without an error.
- `error_in_200`: 200 with an error and no choices. `empty`: with nothing. `null`: with null. `no_choices`: with none of
  them.
- `no_headers`: an answer without headers of limits. `gzip`: a compressed one. Both are answers, and mean nothing to a
  stream.
"""
FAULTS: tuple[Fault, ...] = get_args(Fault)

Charge = Callable[[str, Mapping[str, Any]], int]
"""(path, body of the request) → tokens that admission takes."""


Headers = Literal["openai", "remaining", "none"]
Hints = Literal["all", "retry-after", "date", "duration", "milliseconds", "message", "none"]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes from its admission: lognormal, so a few take much longer than most.

    Args:
        median: Seconds until the first token, or a `timedelta`; half of all requests take less.
        sigma: Standard deviation of the logarithm; 0: every request takes the median.
        per_token: Seconds more for each token of output, or a `timedelta`.

    Raises:
        ValueError: One of these is negative or not finite.
    """

    median: float = 0.0
    sigma: float = 0.0
    per_token: float = 0.0

    def __init__(self, median: Seconds = 0.0, sigma: float = 0.0, per_token: Seconds = 0.0) -> None:
        for name, given, read in (
            ("median", median, read_seconds),
            ("sigma", sigma, read_number),
            ("per_token", per_token, read_seconds),
        ):
            value = read(given)
            if value is None or not 0 <= value < math.inf:
                raise ValueError(f"latency: {name} must be a finite number, 0 or more, not {repr_of(given)}")
            object.__setattr__(self, name, value)

    def draw(self, random: Random) -> float:
        """Seconds until the first token of one request."""
        return self.median * math.exp(self.sigma * random.gauss(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Faults:
    """How often each fault happens by itself, as a probability per request; see `Fault`. Together at most 1.

    Args:
        insufficient_quota_after: Requests that are admitted before the account has no quota left, 0 or more; None: no
            such end.

    Raises:
        ValueError: A probability is not in 0..1, or they are more than 1 together; or that number of requests is wrong.
    """

    server_error: float = 0.0
    overloaded: float = 0.0
    slow_down: float = 0.0
    dropped: float = 0.0
    broken_stream: float = 0.0
    bad_gateway: float = 0.0
    hang: float = 0.0
    cut_short: float = 0.0
    truncated: float = 0.0
    error_in_200: float = 0.0
    empty: float = 0.0
    null: float = 0.0
    no_choices: float = 0.0
    no_headers: float = 0.0
    gzip: float = 0.0
    insufficient_quota_after: int | None = None

    def __post_init__(self) -> None:
        given = {fault: odd for fault in self._drawn() if (odd := getattr(self, fault)) != 0}
        odds = [read_number(odd) for odd in given.values()]
        if not all(odd is not None and 0 <= odd <= 1 for odd in odds) or sum(odd or 0 for odd in odds) > 1 + 1e-9:
            shown = ", ".join(f"{fault}={repr_of(odd)}" for fault, odd in given.items())
            raise ValueError(f"faults are probabilities, each in 0..1 and together at most 1, not {shown}")
        for fault, odd in zip(given, odds, strict=True):
            object.__setattr__(self, fault, odd)
        _read_counts(self, "faults", ("insufficient_quota_after",), 0)

    def draw(self, random: Random) -> Fault | None:
        """The fault of one request, if it has one."""
        at = random.random()
        for fault in self._drawn():
            at -= getattr(self, fault)
            if at < 0:
                return fault
        return None

    @staticmethod
    def _drawn() -> tuple[Fault, ...]:
        return tuple(fault for fault in FAULTS if fault != "insufficient_quota")


@dataclass(frozen=True, slots=True)
class Change:
    """What the limits become while the server runs.

    Args:
        at: Seconds after the server began, or a `timedelta`; at most a billion.
        factor: What the limits are multiplied with, a millionth to a million.
        unit: `"requests"`, `"tokens"`, `"output_tokens"` or `"images"`; None: all of them.

    Raises:
        ValueError: A number is out of its range, or there is no such unit.
    """

    at: float
    factor: float
    unit: Unit | None = None

    def __init__(self, at: Seconds, factor: float, unit: Unit | None = None) -> None:
        moment, times = read_seconds(at), read_number(factor)
        if moment is None or times is None or not (0 <= moment <= 1e9 and 1e-6 <= times <= 1e6):
            raise ValueError(
                "a change needs a moment of 0 or more, at most a billion seconds, and a factor of a millionth to a "
                f"million, not {repr_of(at)} and {repr_of(factor)}"
            )
        if unit not in (None, *get_args(Unit)):
            raise ValueError(f"a change is of {', '.join(get_args(Unit))}, or of all of them, not of {repr_of(unit)}")
        for name, value in (("at", moment), ("factor", times), ("unit", unit)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Stranger:
    """Another client of the same account, which takes as much as there is, up to so much a minute.

    Args:
        requests: A minute, 0 or more.
        tokens: A minute, 0 or more.
        begin: Seconds after the server began, or a `timedelta`; 0 or more.
        end: The same, after `begin`.

    Raises:
        ValueError: A number is out of its range.
    """

    requests: float = 0.0
    tokens: float = 0.0
    begin: float = 0.0
    end: float = math.inf

    def __init__(
        self, requests: float = 0.0, tokens: float = 0.0, begin: Seconds = 0.0, end: Seconds = math.inf
    ) -> None:
        takes = read_number(requests), read_number(tokens)
        first, last = read_seconds(begin), read_seconds(end)
        if first is None or last is None or not 0 <= first < last or not all(_is_a_minutes(each) for each in takes):
            given = ", ".join(map(repr_of, (requests, tokens, begin, end)))
            raise ValueError(f"a stranger takes 0 or more a minute, and begins before its end: not Stranger({given})")
        for name, value in zip(("requests", "tokens", "begin", "end"), (*takes, first, last), strict=True):
            object.__setattr__(self, name, value)


def _is_a_minutes(takes: float | None) -> bool:
    return takes is not None and 0 <= takes <= 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """How the service works on batches of requests: they have a quota of their own, and take what time they like.

    Seconds are 0 or more, and may be a `timedelta`.

    Args:
        validating: Seconds until a new batch is checked.
        duration: Seconds from then until its first row is done.
        per_row: Seconds more for each row.
        finalizing: Seconds from the last row until the files are there; also from a cancellation to its end.
        window: Seconds after its creation at which a batch expires: rows that are not done by then never are.
        enqueued_tokens: Tokens of input that all batches for one model may hold until they end; a batch above them
            fails when it is checked. None: no bound.
        max_rows: Rows in a batch.
        max_bytes: Bytes in its file.
        one_model: Whether all rows of a batch must name the same model.
        faults: How often a row fails: `server_error` and `overloaded`; the others mean nothing inside a batch.

    Raises:
        ValueError: Seconds are negative or not finite, or a count is no whole number, 0 or more.
    """

    validating: float = 0.5
    duration: float = 1.0
    per_row: float = 0.0
    finalizing: float = 0.5
    window: float = 86_400.0
    enqueued_tokens: int | None = None
    max_rows: int = 50_000
    max_bytes: int = 200_000_000
    one_model: bool = True
    faults: Faults = field(default_factory=Faults)

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            validating: Seconds = 0.5,
            duration: Seconds = 1.0,
            per_row: Seconds = 0.0,
            finalizing: Seconds = 0.5,
            window: Seconds = 86_400.0,
            enqueued_tokens: int | None = None,
            max_rows: int = 50_000,
            max_bytes: int = 200_000_000,
            one_model: bool = True,
            faults: Faults = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in ("validating", "duration", "per_row", "finalizing", "window"):
            value = read_seconds(given := getattr(self, name))
            if value is None or not 0 <= value < math.inf:
                raise ValueError(f"batches: {name} must be a finite number of seconds, 0 or more, not {repr_of(given)}")
            object.__setattr__(self, name, value)
        _read_counts(self, "batches", ("enqueued_tokens", "max_rows", "max_bytes"), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A server to simulate: its limits, its speed, its faults.

    Args:
        requests: Limits on requests: a `Rate`, a string such as `"3500/min"`, a `Window`, `penstock.sliding(…)`, one of
            these in `Hidden(…)`, or several. None: no limit. The headers show the one with the longest period that is
            not hidden, as OpenAI shows requests per day where there is such a limit.
        tokens: The same for tokens; the headers show the one with the shortest period.
        output: The same for tokens of output, as Anthropic has it: a request is admitted while one token is left, and
            its answer takes as many as it has. Anthropic's headers show it; those of other services do not.
        images: The same for images that are made.
        latency: How long answers take.
        faults: How often something goes wrong.
        seed: Makes a run repeatable: the same request, sent for the n-th time, has the same latency, faults and ids,
            whatever came before or at the same time.
        charge: Tokens that admission takes, of (path, body). Default: `simulator.charge`, the service's own rule.
        count_tokens: Tokens in a text, for the numbers in `usage`. Default: its UTF-8 bytes / 4, rounded up.
        count_refused: Whether a request refused with 429 is charged as a request, too, as OpenAI charges it: a client
            that resends without waiting is never served.
        tolerance: Seconds by which a request may come too early and still be admitted, or a `timedelta`; the level goes
            below 0 for it, so this does not add up. By default what a client's rounding may amount to; 0: not a
            nanosecond.
        output_tokens: Length of an answer, in tokens of 4 bytes; never below the 4 that the fingerprint takes.
        dimensions: Length of an embedding, unless the request says.
        concurrency: Requests that are processed at once; further ones wait, after their admission. None: no bound.
        in_flight: Requests that may be worked on or streamed at once; one more is refused with 429, in words that say
            so. None: no bound.
        models: Names of the models there are; any other is answered with 404. Empty: every name is accepted.
        api_keys: Keys that are accepted. Empty: every key is, but one must be given.
        context_length: Tokens that a prompt may have; more is answered with 400. None: no bound.
        shuffle_embeddings: Answer the entries of a list in any order, so that only `index` tells which is which.
        organization: The name that messages and headers give to the account.
        headers: What answers tell: `"openai"`, all; `"remaining"`, no resets; `"none"`, nothing.
        hints: What refusals tell of the wait: `"all"`; `"retry-after"`, whole seconds in that header; the same as a
            `"date"` or as a `"duration"` like 5s; `"milliseconds"`, in `retry-after-ms`; `"message"`, in words alone;
            `"none"`.
        changes: How the limits change, and when.
        strangers: Other clients of the account.
        batches: How batches of requests are worked on.
        dialect: The service that headers, refusals and errors are those of; its endpoint is there beside OpenAI's.
        max_body: Bytes of a request that is no file; more is answered with 413.

    Raises:
        ValueError: A number is out of its range, or a limit is not a rate.
    """

    requests: Given | Sequence[Given] | None = None
    tokens: Given | Sequence[Given] | None = None
    output: Given | Sequence[Given] | None = None
    images: Given | Sequence[Given] | None = None
    latency: Latency = field(default_factory=Latency)
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    charge: Charge = _replies.charge
    count_tokens: Callable[[str], int] = _replies.count_tokens
    count_refused: bool = True
    tolerance: Seconds = 1e-6
    output_tokens: int = 16
    dimensions: int = 8
    concurrency: int | None = None
    in_flight: int | None = None
    models: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    context_length: int | None = None
    shuffle_embeddings: bool = False
    organization: str = "org-simulated"
    headers: Headers = "openai"
    hints: Hints = "all"
    changes: tuple[Change, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    batches: Batches = field(default_factory=Batches)
    dialect: Dialect = "openai"
    max_body: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for option, words in (("dialect", DIALECTS), ("headers", get_args(Headers)), ("hints", get_args(Hints))):
            object.__setattr__(self, option, read_word(f"simulation: {option}", getattr(self, option), words))
        for option in ("count_refused", "shuffle_embeddings"):
            object.__setattr__(self, option, read_flag(f"simulation: {option}", getattr(self, option)))
        for option, kind in _KINDS.items():
            if not isinstance(getattr(self, option), kind):
                what = "a text" if kind is str else f"of the class {kind.__name__}"
                raise ValueError(f"simulation: {option} must be {what}, not {repr_of(getattr(self, option))}")
        for option in ("charge", "count_tokens"):
            if not callable(getattr(self, option)):
                raise ValueError(f"simulation: {option} must be a function, not {repr_of(getattr(self, option))}")
        for option, kind in _LISTS.items():
            object.__setattr__(self, option, _read_list(option, getattr(self, option), kind))
        for name in ("requests", "tokens", "output", "images"):
            object.__setattr__(self, name, _limits(name, getattr(self, name)))
        tolerance = read_seconds(self.tolerance)
        if tolerance is None or not 0 <= tolerance < math.inf:
            raise ValueError(
                f"simulation: tolerance must be a finite number of seconds, 0 or more, not {repr_of(self.tolerance)}"
            )
        object.__setattr__(self, "tolerance", tolerance)
        counts = ("output_tokens", "dimensions", "concurrency", "in_flight", "context_length")
        _read_counts(self, "simulation", counts, 1)
        _read_counts(self, "simulation", ("max_body",), 0)

    @property
    def limits(self) -> dict[Unit, tuple[SimulatedLimit, ...]]:
        """The limits of each unit."""
        given: dict[Unit, Any] = {"requests": self.requests, "tokens": self.tokens, "images": self.images}
        given["output_tokens"] = self.output
        return {unit: _limits(unit, limits) for unit, limits in given.items()}


_KINDS = {"latency": Latency, "faults": Faults, "batches": Batches, "organization": str}
_LISTS = {"models": str, "api_keys": str, "changes": Change, "strangers": Stranger}
"""The options of a simulation that are of a class, or lists of such."""


def _read_list(option: str, given: Any, kind: type) -> tuple[Any, ...]:
    """The members of a list; one alone is refused, as the letters of a text would be taken for its members."""
    if not isinstance(given, list | tuple | set | frozenset) or not all(isinstance(each, kind) for each in given):
        what = "texts" if kind is str else f"{kind.__name__}s"
        raise ValueError(f"simulation: {option} must be a list of {what}, not {repr_of(given)}")
    return tuple(map(text_of, given)) if kind is str else tuple(given)


def _read_counts(options: object, what: str, names: Sequence[str], least: int) -> None:
    """Make the whole numbers among the options Python's; None where one is left out."""
    for name in names:
        given = getattr(options, name)
        count = read_count(given, least)
        if given is not None:
            if count is None:
                raise ValueError(f"{what}: {name} must be a whole number, {least} or more, not {repr_of(given)}")
            object.__setattr__(options, name, count)


def _limits(unit: str, given: Given | Sequence[Given] | None) -> tuple[SimulatedLimit, ...]:
    if given is None:
        return ()
    found: list[SimulatedLimit] = []
    for each in given if isinstance(given, list | tuple) else (given,):
        limit: Any = parse_of(unit, each) if isinstance(each, str) else each
        inner = limit.limit if isinstance(limit, Hidden) else limit
        if not isinstance(inner, Rate | Sliding | Window):
            raise ValueError(
                f'simulation: {unit} must be a Rate or a string such as "3500/min", '
                f"a Window, sliding(…), one of these in Hidden(…), or a list of them, not {repr_of(each)}"
            )
        found.append(limit)
    return tuple(found)
