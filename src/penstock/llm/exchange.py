"""One request on its way through our transport, and its answer: what async and sync, httpx and httpx2 have in common.

    Rules           what is decided about the requests of one client
    RequestPlan     what is known of a request before it is sent
    Visit           a request that waits for its turn, is sent, and perhaps is held and sent again
    Exchange        one time that it is sent, and what comes back
    RefusalBody     the body of a refusal, as it is read
    AnswerInFlight  what ends when the answer was read: a place in flight, an estimate, and a report

    Visit ─▶ admit ─▶ Exchange ─▶ answered ─▶ answer_of ─▶ (it is read) ─▶ give_back
      ▲                  │
      └───── again ◀── refused

Nothing here sends anything: `transport` does.
"""

from __future__ import annotations

import _thread
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penstock import clock
from penstock._numbers import exact, show_seconds, span
from penstock._text import repr_of
from penstock._turn import TurnOptions, turn_here
from penstock.errors import CostError, PenstockError, RateLimited
from penstock.llm import headers as _headers
from penstock.llm.failures import Action, body_of, judge
from penstock.llm.lost_answers import Collector
from penstock.llm.refusals import Refusal, describe
from penstock.llm.reporting import Listener
from penstock.llm.usage_reader import Usage, UsageReader

if TYPE_CHECKING:
    from penstock import Limiter
    from penstock.llm.endpoints import Endpoint, RequestInFlight

__all__ = [
    "MAX_PAUSE",
    "AnswerInFlight",
    "Exchange",
    "NoLimitsKnown",
    "RefusalBody",
    "RequestPlan",
    "Rules",
    "Visit",
    "checked_cost",
    "checked_pause",
    "content_of",
    "warn_once",
]

MAX_PAUSE = 3_600.0
"""Seconds that a service may ask us to wait, unless another bound was given: few callers outlast more."""

LONG_PAUSE = 60.0
"""Seconds of a pause from which on the user is warned of it, once."""

_MOST_READ, _LONGEST_READ = 1_048_576, 10.0
"""Bytes of a refusal that are read, and seconds that are spent on it: it may have no end."""

_IN_DOUBT = 2
"""How often a request is sent again that may have been refused for another reason than a limit."""

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


class NoLimitsKnown(PenstockError, ValueError):  # noqa: N818 - as it reads
    """The requests for a model are to be limited, and the limits are unknown."""


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What is known of a request before it is sent."""

    endpoint: Endpoint
    cost: Mapping[str, float]
    model: str | None = None
    settle: Callable[[Usage], Mapping[str, float]] | None = None
    """What was used as the answer tells it, per unit; None: nothing of the cost depends on the answer."""
    home: Callable[[str], Endpoint] | None = None
    """The endpoint that the request belonged to, by the bucket that its answer names; None: it was this one."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is decided about the requests of one client.

    Attributes:
        count: Reads a request, and counts what it costs; of any type. May run in a thread beside the loop.
        plan: What there is to know of a request and of what was counted; None: it is not limited. May raise a
            PenstockError.
        heavy: Whether it would take long to count a request, so that an event loop should have it done beside it.
        max_wait: Longest wait for a turn, in seconds, where no `penstock.turn` says another. A request that would wait
            longer is refused at once. None: any.
        max_pause: Longest wait that the service may ask for, in seconds. If it asks for more, the request fails, and
            the others look again after a minute at most. No request is held for longer either.
        hold: Whether a request that the service refuses for now is held, and sent again.
        answer: Whether a refusal of ours is an answer, in the service's stead, and not an exception.
        raises: The SDK's own error for a refusal of ours, or of the service for good, where the SDK would send either
            again.
        listener: Hears of each request; None: nothing does.
        owner: What has to live as long as the client's connections are used.
        endpoints: Those of the client's requests, as `limits_of` shows them; None: not asked for.
    """

    count: Callable[[Any], Any]
    plan: Callable[[Any, Any], RequestPlan | None]
    heavy: Callable[[Any], bool] = lambda _: False
    max_wait: float | None = None
    max_pause: float = MAX_PAUSE
    hold: bool = True
    answer: bool = True
    raises: Callable[[Refusal], BaseException] | None = None
    listener: Listener | None = None
    owner: Any = None
    endpoints: Any = None

    def turn(self) -> TurnOptions:
        """Flow, priority and longest wait by the blocks that the call is made in.

        The client's own longest wait where they name none.
        """
        here = turn_here()
        return here if here.max_wait is not None else here._replace(max_wait=self.max_wait)


class Visit:
    """One request on its way through, held and sent again as often as need be: what async and sync have in common."""

    def __init__(self, rules: Rules, plan: RequestPlan, request: Any) -> None:
        turn = rules.turn()
        self._rules = rules
        self._plan = plan
        self._turn = turn
        now = clock.now()
        self._until = math.inf if turn.max_wait is None else now + turn.max_wait
        self._held_until = min(self._until, now + rules.max_pause)
        self._tries = 0
        self._repeatable = _is_repeatable(request)
        self._collector: Collector | None = None

    def _has_asked(self) -> None:
        if self._collector is not None:
            self._collector.asked(self)
            self._collector = None

    def _asked(self) -> tuple[Any, dict[str, float], dict[str, Any]]:
        self._has_asked()
        left = max(0.0, self._until - clock.now())
        if self._plan.endpoint.successor is not None:
            self._plan = replace(self._plan, endpoint=self._plan.endpoint.latest())
        limiter, charges = self._plan.endpoint.ask(self._plan.cost)
        # A request that was refused goes before those that were never sent: it is the oldest.
        priority = (self._turn.priority or 0) + min(self._tries, 1)
        options = {"max_wait": None if math.isinf(left) else left, "priority": priority, "flow": self._turn.flow}
        if self._plan.endpoint.holds:
            self._collector = _collectors.setdefault(self._plan.endpoint, Collector(_unread))
            self._collector.asks(self)
            self._collector.free_a_place(self._plan.endpoint, limiter, charges)
        return limiter, charges, options

    def _admitted(self, permit: Any, asked_at: float) -> RequestInFlight:
        self._tries += 1
        self._has_asked()
        plan, listener = self._plan, self._rules.listener
        sent = plan.endpoint.granted(permit, plan.cost)
        if listener is not None:
            limiter = plan.endpoint.limiter
            sent.report = listener.granted(limiter, plan.model, plan.cost, self._turn.flow, permit, asked_at)
        return sent

    def _refused(self, error: PenstockError, limiter: Limiter, charges: Mapping[str, float]) -> None:
        """Note which limit it was, and tell the listener."""
        self._has_asked()
        describe(error, limiter, charges, self._plan.model)
        listener = self._rules.listener
        if listener is not None and isinstance(error, RateLimited):
            listener.refused(limiter, self._plan.cost, self._turn.flow, error.retry_after, error.blocked_by)

    async def admit(self) -> RequestInFlight:
        """Wait for the request's turn and charge it.

        Raises:
            PenstockError: It is refused: not now, or never.
        """
        while True:
            limiter, charges, options = self._asked()
            asked_at = clock.now()
            try:
                permit = await limiter.acquire(charges, **options)
            except PenstockError as error:
                self._refused(error, limiter, charges)
                raise
            if self._plan.endpoint.successor is None:
                return self._admitted(permit, asked_at)
            permit.cancel()  # it waited at an endpoint that has the limits no more

    def admit_in_thread(self) -> RequestInFlight:
        """The same, blocking this thread, and a loop that runs in it: the call of a sync client blocks anyway."""
        while True:
            limiter, charges, options = self._asked()
            asked_at = clock.now()
            try:
                permit = limiter(charges, block=True, **options).__enter__()
                permit._hand_on()  # to whatever reads the answer, or finds that it was left
            except PenstockError as error:
                self._refused(error, limiter, charges)
                raise
            if self._plan.endpoint.successor is None:
                return self._admitted(permit, asked_at)
            permit.cancel()

    def again(self, exchange: Exchange) -> bool:
        """Whether a request that was refused is to be held and sent again."""
        if exchange.home is not exchange.endpoint:
            self._plan = replace(self._plan, endpoint=exchange.home)
        if exchange.is_doubtful and self._tries > _IN_DOUBT:
            return False
        return self._rules.hold and exchange.may_go_again and clock.now() < self._held_until and self._repeatable


class Exchange:
    """One request and its answer: what the async and the sync transport have in common.

    Attributes:
        may_go_again: Whether the service refused it for now, so that the same request may be sent later.
        error: What to raise instead of the answer, where the SDK would send again what never will do; None: nothing.
        is_outage, is_doubtful: Whether that is, or may be, for another reason than a limit.
        home: The endpoint that it belongs to, as its answer has it.
    """

    def __init__(
        self, rules: Rules, plan: RequestPlan, sent: RequestInFlight, request: Any, *, traced: bool, module: Any
    ) -> None:
        self._rules = rules
        self._plan = plan
        self.sent = sent
        self.endpoint: Endpoint = sent.endpoint
        self.home: Endpoint = sent.endpoint
        self.may_go_again: bool = False
        self.error: BaseException | None = None
        self.is_outage: bool = False
        self.is_doubtful: bool = False
        self._reading: _headers.Reading = _headers.NOTHING_STATED
        self._module = module
        self._before = request.extensions.get("trace")
        if not traced:  # a transport of another kind does not say when it sends
            self.endpoint.left(sent)

    # What happens below us: the moment at which a request leaves is the one that counts.

    async def trace(self, event: str, info: Any) -> None:
        """What httpcore tells of each step."""
        self._note(event)
        if self._before is not None:
            await self._before(event, info)

    def trace_in_thread(self, event: str, info: Any) -> None:
        """The same, of a sync client."""
        self._note(event)
        if self._before is not None:
            self._before(event, info)

    def _note(self, event: str) -> None:
        if event.endswith("send_request_headers.started"):
            self.endpoint.left(self.sent)

    def answered(self, response: Any) -> bool:
        """The headers are there: whether they refuse the request for now. Nothing in them can cost the answer."""
        status = response.status_code
        refuses = status == 429
        try:
            self.endpoint.left(self.sent)
            reading = self._reading = _headers.read(response.headers, status, wall=clock.wall())
            self.is_outage = status == 503 and bool(reading.retry_after)
            refuses = refuses or (status == 403 and reading.refuses)
            if reading.bucket and self._plan.home is not None:
                self.home = self._plan.home(reading.bucket)
                if self.home is not self.endpoint:
                    reading = replace(reading, quotas=())  # another one's
            self.endpoint.answered(self.sent, 429 if refuses else status, reading)
            if self.sent.report is not None:
                self.sent.report.answered(status, self.endpoint.limits)
        except Exception as error:  # noqa: BLE001 - nothing read beside an answer may cost it
            warn_once(f"could not read what an answer's headers say about limits: {type(error).__name__}: {error}")
        return refuses or self.is_outage

    def refused(self, response: Any, raw: bytes) -> None:
        """This is the body of its refusal, as it came over the wire."""
        status = response.status_code
        try:
            body = self._module.Response(status, headers=response.headers, content=raw).content
        except self._module.DecodingError:
            body = raw
        try:
            verdict = judge(status, body, response.headers)
            is_limit = status == 429 or self._reading.retry_after is not None or "limit" in verdict.message.lower()
            self.is_doubtful = self.is_outage or not is_limit
            is_away = self.home is not self.endpoint
            if verdict.action is Action.WAIT and verdict.wait is None and (is_away or not self.endpoint.learns):
                verdict = replace(verdict, wait=self._reading.empty_for)
            if verdict.action is Action.WAIT or (self.is_outage and verdict.retryable):
                wait = verdict.wait or 0.0
                self.may_go_again = wait <= self._rules.max_pause
                if wait > LONG_PAUSE and self.home.is_news(wait):
                    why = verdict.message[:200] or "it does not say why"
                    warn(f"the service asks to wait {show_seconds(wait)}: {why}")
                stay_away = self.home.stay_away if self.is_outage or is_away else self.home.refused
                stay_away(self.sent, verdict if self.may_go_again else replace(verdict, wait=None))
            elif not verdict.retryable:
                response.headers["x-should-retry"] = "false"
                if self._rules.raises is not None and status == 429:
                    self.error = self._rules.raises(Refusal(status, response.headers, body_of(body)))
        except Exception as error:  # noqa: BLE001 - nothing read beside an answer may cost it
            warn_once(f"could not read why a request was refused: {type(error).__name__}: {error}")
        finally:
            self.sent.permit.close()
            self.sent.over()

    def failed(self, error: BaseException) -> None:
        """There is no answer, and there will be none."""
        # A proxy is sent a request to connect first, which is traced like any other; it may refuse, or get nowhere.
        if self.sent.left_at is not None and type(error).__name__ not in _NEVER_SENT:
            self.sent.permit.close()
            self.sent.over()
        else:
            self.endpoint.never_left(self.sent)

    def answer_of(self, response: Any) -> AnswerInFlight | None:
        """What ends with an answer that is still to be read; None: nothing does."""
        settle = self._plan.settle
        if settle is None and self.sent.report is None and not self.endpoint.holds:
            self.sent.permit.close()
            return None
        reads = response.status_code < 400 and (settle is not None or self.sent.report is not None)
        answer = AnswerInFlight(self.sent, settle, self._usage_reader(response) if reads else None)
        if response.is_closed:  # it was read already, by whatever is below us
            answer.give_back(getattr(response, "_content", b""))
            return None
        return answer

    def _usage_reader(self, response: Any) -> UsageReader:
        """A reader that knows the encodings which the client's library knows: they are those that it asks for."""
        encoding = response.headers.get("content-encoding", "")
        if not encoding:
            return UsageReader()
        said = encoding.encode(errors="surrogatepass")  # of bytes: headers that are text must be ASCII
        another = self._module.Response(200, headers={"content-encoding": said})  # a decoder is used up
        decoder = getattr(another, "_get_content_decoder", lambda: None)()
        return UsageReader(encoding, getattr(decoder, "decode", None))


class RefusalBody:
    """The body of a refusal, as it is read: only so much of it, and only for so long."""

    def __init__(self) -> None:
        self.raw: bytearray = bytearray()
        self._until = clock.now() + _LONGEST_READ

    def is_enough(self, chunk: bytes) -> bool:
        """Take the next piece; whether to stop there."""
        self.raw += chunk[: _MOST_READ - len(self.raw)]
        return len(self.raw) >= _MOST_READ or clock.now() >= self._until


class AnswerInFlight:
    """What ends when the answer was read, is closed, or is lost: a place in flight, an estimate, and a report."""

    def __init__(
        self,
        sent: RequestInFlight,
        settle: Callable[[Usage], Mapping[str, float]] | None,
        reader: UsageReader | None,
    ) -> None:
        self._sent = sent
        self._settle = settle
        self._reader = reader
        self.is_being_read = False
        self._soon = _soon()
        self._finalizer = weakref.finalize(self, _lost, sent, self._soon)
        self._finalizer.atexit = False
        _unread.add(self)

    def may_be_lost(self, endpoint: Endpoint) -> bool:
        """Whether no caller waits for its next piece at this moment: it is being worked on, or was left."""
        return not self.is_being_read and self._finalizer.alive and self._sent.endpoint is endpoint

    def feed(self, chunk: bytes) -> None:
        """Hear of a piece of the answer, as it came over the wire."""
        if self._reader is not None:
            self._reader.feed(chunk)

    def give_back(self, decoded: bytes | None = None) -> None:
        """The answer is over; `decoded` is its body, where it was read before. Again: nothing happens."""
        if self._finalizer.detach() is None:
            return
        try:
            if decoded is not None and self._reader is not None:
                self._reader = UsageReader()
                self._reader.feed(decoded)
            usage = None if self._reader is None else self._reader.usage()
            if usage is not None:
                self._used(usage)
        except Exception as error:  # noqa: BLE001 - nothing read beside an answer may cost it
            warn_once(f"could not settle what an answer used: {type(error).__name__}: {error}")
        finally:
            self._sent.permit.close()
            self._sent.over()

    def left(self) -> None:
        """A loop over the answer was left; its holder may still read on. May be called in the middle of anything."""
        if self._finalizer.alive:
            self._sent.endpoint.lose(self._sent)
            _have_swept(self._sent, self._soon)

    def abandon(self, response: Any) -> None:
        """The answer cannot be read any more: close it. May be called in the middle of anything."""
        self.left()
        if response.is_closed:
            return
        if self._soon is None:
            _in_a_thread(response.close)
            return
        try:
            self._soon(lambda: _close_in_loop(response))
        except RuntimeError:
            pass  # that loop is closed

    def _used(self, usage: Usage) -> None:
        if self._sent.report is not None:
            self._sent.report.used(usage)
        if self._settle is not None:
            self._sent.endpoint.settled(self._sent, self._settle(usage))


def _lost(sent: RequestInFlight, soon: Callable[[Callable[[], None]], object] | None) -> None:
    """An answer was collected unclosed.

    This may run in the middle of anything, the limiter's own code included, so the place is given back a moment later:
    by the loop that the answer came to, or by a thread.
    """
    sent.endpoint.lose(sent)
    _have_swept(sent, soon)


def _have_swept(sent: RequestInFlight, soon: Callable[[Callable[[], None]], object] | None) -> None:
    if soon is not None:
        try:
            soon(sent.endpoint.sweep)
        except RuntimeError:
            pass  # that loop is closed
        else:
            return
    _in_a_thread(sent.endpoint.sweep)


def _in_a_thread(function: Callable[[], object]) -> None:
    """Have something done soon where no loop runs. May be called in the middle of anything: it takes no lock.

    `threading` takes locks to start a thread, and this may run while they are held. Where no thread can be had, as when
    the interpreter ends, the next request does it.
    """
    try:
        _thread.start_new_thread(function, ())
    except RuntimeError:
        pass


_closing: set[Any] = set()  # tasks, which asyncio refers to weakly


def _close_in_loop(response: Any) -> None:
    """Close a response in the loop that runs here."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        trio.lowlevel.spawn_system_task(_close, response)
        return
    import asyncio

    task = asyncio.get_running_loop().create_task(_close(response))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(response: Any) -> None:
    try:
        await response.aclose()
    except Exception:  # noqa: BLE001, S110 - there is no caller to hear of it
        pass


_unread: weakref.WeakSet[AnswerInFlight] = weakref.WeakSet()
_collectors: weakref.WeakKeyDictionary[Endpoint, Collector] = weakref.WeakKeyDictionary()


def _soon() -> Callable[[Callable[[], None]], object] | None:
    """How to have something done soon in the loop that runs here, from anywhere; None where no loop runs."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        later: Callable[[Callable[[], None]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        return later
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.get_running_loop().call_soon_threadsafe  # type: ignore[no-any-return]  # of a loop
    except RuntimeError:
        return None


def content_of(request: Any) -> bytes:
    """The request's body; empty where it is a stream, as files are."""
    try:
        content: bytes = request.content
    except RuntimeError:  # RequestNotRead
        return b""
    return content


def checked_pause(max_pause: Any) -> float:
    """The longest wait that a service may ask for, in seconds.

    Raises:
        ValueError: It is no span of 0 or more.
    """
    return span("max_pause={}", max_pause, zero=True, forever=True)


def checked_cost(cost: Any) -> Mapping[str, float] | None:
    """What a rule of the user's returned.

    Raises:
        CostError: It is something else than numbers.
    """
    if cost is None:
        return None
    amounts = {unit: exact(amount) for unit, amount in cost.items()} if isinstance(cost, Mapping) else {"": None}
    if any(amount is None for amount in amounts.values()):
        raise CostError(
            f'cost= must return a number per unit, such as {{"tokens": 12}}, or None for a request that is not '
            f"limited, not {repr_of(cost)}"
        )
    return {unit: amount for unit, amount in amounts.items() if amount is not None}


def _is_repeatable(request: Any) -> bool:
    try:
        request.content  # noqa: B018 - it raises where a body is a stream
    except RuntimeError:
        return False
    return True


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn the user, once for each kind of message."""
    kind = message.partition(":")[0][:40]
    if kind not in _warned:
        _warned.add(kind)
        warn(message)


def warn(message: str) -> None:
    """Warn the user."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=7)
    except Warning:  # where warnings are errors: it must not cost the answer that it stands beside
        pass
