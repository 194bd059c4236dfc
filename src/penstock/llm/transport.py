"""The limiter under an HTTP client: a transport that every request passes, retries and streams included.

    client = limited_client(httpx2.AsyncClient(), rules)

Clients send through httpx (or its successor httpx2), whose transports take a request and return a response. Ours sits in
between: it charges each request before it is sent, hears each answer's headers, and lets everybody wait once when the
service says that a limit is used up.

A refused request is held here, and sent again when its turn has come, for as long as its `max_wait` allows: an SDK's own
two retries must not decide whether a user sees an error. Nothing is sent again whose answer anybody has seen, nor a
request whose body is a stream.

What a request costs is told by `Rules`, what an answer's headers and body mean by `headers` and `failures`, whose limits
it falls under by `endpoints`; here is only what happens when. Neither httpx nor httpx2 is imported before a client of
theirs is given.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from penstock import clock
from penstock._turn import Turn, turn_here
from penstock.errors import CostError, PenstockError, RateLimited, Unsatisfiable
from penstock.llm import headers as _headers
from penstock.llm.failures import Action, judge
from penstock.llm.refusal import refusal
from penstock.llm.reporting import Listener

if TYPE_CHECKING:
    from penstock.llm.endpoints import Endpoint, RequestInFlight

__all__ = ["MAX_PAUSE", "Plan", "Rules", "limited_client", "transports"]

C = TypeVar("C")

MAX_PAUSE = 3_600.0
"""Seconds that a service may ask us to wait, unless told otherwise: nobody sits through more."""

LONG_PAUSE = 60.0
"""Seconds of a pause from which on it is told to the user, once."""

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


class NoLimitsKnown(PenstockError, ValueError):  # noqa: N818 - as it reads
    """The requests for a model are to be limited, and nobody knows to what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a request before it is sent."""

    endpoint: Endpoint
    cost: Mapping[str, float]
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What is decided about the requests of one client.

    Attributes:
        plan: What there is to know of a request; None: it is not limited. May raise a PenstockError.
        max_wait: Longest wait for a turn, in seconds, where no `penstock.turn` says another. A request that would wait longer
            is refused at once. None: any.
        max_pause: Longest wait that the service may ask for, in seconds. If it asks for more, the request fails, and the
            others look again after a minute at most. No request is held for longer either.
        hold: Whether a request that the service refuses for now is held, and sent again.
        answer: Whether a refusal of ours is an answer, in the service's stead, and not an exception.
        listener: Who hears of each request; None: nobody.
    """

    plan: Callable[[Any], Plan | None]
    max_wait: float | None = None
    max_pause: float = MAX_PAUSE
    hold: bool = True
    answer: bool = True
    listener: Listener | None = None

    def __post_init__(self) -> None:
        if self.max_wait is not None and not self.max_wait >= 0:
            raise ValueError(f"max_wait must be a number of seconds, 0 or more, or None, not {self.max_wait!r}")
        if not self.max_pause >= 0:
            raise ValueError(f"max_pause must be a number of seconds, 0 or more, not {self.max_pause!r}")

    def turn(self) -> Turn:
        """Whose call is being made here, by the blocks that it is made in; the client's own longest wait is for the others."""
        here = turn_here()
        return here if here.max_wait is not None else here._replace(max_wait=self.max_wait)


class _Visit:
    """One request on its way through, held and sent again as often as need be: what async and sync have in common."""

    def __init__(self, rules: Rules, plan: Plan, request: Any) -> None:
        turn = rules.turn()
        self._rules = rules
        self._plan = plan
        self._turn = turn
        now = clock.now()
        self._until = math.inf if turn.max_wait is None else now + turn.max_wait
        self._held_until = min(self._until, now + rules.max_pause)
        self._tries = 0
        self._repeatable = _is_repeatable(request)

    def _asked(self) -> tuple[Any, dict[str, float], dict[str, Any]]:
        limiter, charges = self._plan.endpoint.ask(self._plan.cost)
        left = max(0.0, self._until - clock.now())
        # A request that was refused goes before those that were never sent: it is the oldest.
        priority = (self._turn.priority or 0) + min(self._tries, 1)
        options = {"max_wait": None if math.isinf(left) else left, "priority": priority, "flow": self._turn.flow}
        return limiter, charges, options

    def _admitted(self, permit: Any, asked_at: float) -> RequestInFlight:
        self._tries += 1
        sent = self._plan.endpoint.granted(permit, self._plan.cost)
        listener = self._rules.listener
        if listener is not None:
            limiter = self._plan.endpoint.limiter
            sent.report = listener.granted(
                limiter, self._plan.model, self._plan.cost, self._turn.flow, permit, asked_at
            )
        return sent

    def refused(self, error: RateLimited) -> None:
        """Tell who hears of it that the limiter said "not now"."""
        listener = self._rules.listener
        if listener is not None:
            limiter = self._plan.endpoint.limiter
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
            except Unsatisfiable:
                if self._asked()[1] == charges:
                    raise
                continue  # the limits changed meanwhile, and it is charged less under the new ones
            except RateLimited as error:
                self.refused(error)
                raise
            return self._admitted(permit, asked_at)

    def admit_in_thread(self) -> RequestInFlight:
        """The same, blocking this thread, and a loop that runs in it: the call of a sync client blocks anyway."""
        while True:
            limiter, charges, options = self._asked()
            asked_at = clock.now()
            try:
                permit = limiter(charges, block=True, **options).__enter__()
            except Unsatisfiable:
                if self._asked()[1] == charges:
                    raise
                continue
            except RateLimited as error:
                self.refused(error)
                raise
            return self._admitted(permit, asked_at)

    def again(self, exchange: _Exchange) -> bool:
        """Whether a request that was refused is to be held and sent again."""
        return self._rules.hold and exchange.may_go_again and clock.now() < self._held_until and self._repeatable


def limited_client(client: C, rules: Rules) -> C:
    """A copy of an httpx or httpx2 client, sync or async, whose requests pass `rules`.

    The copy shares the connections of the original, its proxies, certificates, hooks and timeouts. The original is not
    changed, and not limited. Closing one closes the connections of both; a copy that is only dropped closes none.

    Raises:
        TypeError: It is no such client.
        ValueError: It is limited already.
    """
    library = library_of(client)
    if library is None or not hasattr(client, "_transport") or not hasattr(client, "_mounts"):
        raise TypeError(
            f"a client of httpx or httpx2 is needed, not {type(client).__module__}.{type(client).__qualname__}"
        )
    module = importlib.import_module(library)
    wrapper = transports(library)[isinstance(client, module.AsyncClient)]
    if isinstance(client._transport, transports(library)):
        raise ValueError("this client is limited already: join the limiters with `a & b`, and limit the client once")
    limited: Any = copy.copy(client)
    # Some SDKs' clients close their connections when they are collected. The copy must not, since others may be using
    # them, and the original is kept alive until the copy is gone.
    if hasattr(limited, "__del__"):
        limited.__class__ = _uncollected(limited.__class__)
    limited._transport = wrapper(client._transport, rules, keep=client)
    limited._mounts = {
        pattern: None if inner is None else wrapper(inner, rules, keep=client)
        for pattern, inner in client._mounts.items()
    }
    typed: C = limited
    return typed


@functools.cache
def _uncollected(kind: type) -> type:
    """The same class, whose objects do nothing when they are collected."""
    return type(
        kind.__name__, (kind,), {"__del__": lambda _: None, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )


class _Exchange:
    """One request and its answer: what the async and the sync transport have in common.

    Attributes:
        may_go_again: Whether the service refused it for now, so that the same request may be sent later.
    """

    def __init__(self, rules: Rules, sent: RequestInFlight, request: Any, *, traced: bool, module: Any) -> None:
        self._rules = rules
        self.sent = sent
        self.endpoint = sent.endpoint
        self.may_go_again = False
        self._module = module
        self._before = request.extensions.get("trace")
        if not traced:  # a transport of another kind does not say when it sends
            self.endpoint.left(sent)

    # What happens below us: the moment at which a request leaves is the one that counts.

    async def trace(self, event: str, info: Any) -> None:
        self._note(event)
        if self._before is not None:
            await self._before(event, info)

    def trace_in_thread(self, event: str, info: Any) -> None:
        self._note(event)
        if self._before is not None:
            self._before(event, info)

    def _note(self, event: str) -> None:
        if event.endswith("send_request_headers.started"):
            self.endpoint.left(self.sent)

    def answered(self, response: Any) -> None:
        """The headers are there. Nothing that is read in them can cost the answer."""
        try:
            self.endpoint.left(self.sent)
            reading = _headers.read(response.headers, response.status_code, wall=clock.wall())
            self.endpoint.answered(self.sent, response.status_code, reading)
            if self.sent.report is not None:
                self.sent.report.answered(response, self._module, self.endpoint.limits)
        except Exception as error:  # noqa: BLE001
            _warn_once(f"could not read what an answer's headers say about limits: {type(error).__name__}: {error}")

    def refused(self, response: Any, raw: bytes) -> None:
        """It is a 429, and this is its body, as it came over the wire."""
        try:
            body = self._module.Response(429, headers=response.headers, content=raw).content
        except self._module.DecodingError:
            body = raw
        try:
            verdict = judge(429, body, response.headers)
            if verdict.action is Action.WAIT:
                wait = verdict.wait or 0.0
                self.may_go_again = wait <= self._rules.max_pause
                if wait > LONG_PAUSE:
                    _warn_once(
                        f"the service asks to wait {wait:,.0f} s: {verdict.message[:200] or 'it does not say why'}"
                    )
                self.endpoint.refused(self.sent, verdict if self.may_go_again else replace(verdict, wait=None))
            elif not verdict.retryable:
                response.headers["x-should-retry"] = "false"
        except Exception as error:  # noqa: BLE001
            _warn_once(f"could not read why a request was refused: {type(error).__name__}: {error}")
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

    def hold(self, response: Any) -> _Hold | None:
        """What ends with an answer that is still to be read: its place in flight, and its report. None if nothing does."""
        if response.is_closed or not (self.endpoint.holds or self.sent.report):
            self.sent.permit.close()
            if self.sent.report is not None:
                self.sent.report.read_whole(response)
                self.sent.over()
            return None
        return _Hold(self.sent)


class _Hold:
    """A place in flight. It is given back when the answer was read, when it is closed, or when it is lost."""

    def __init__(self, sent: RequestInFlight) -> None:
        self._sent = sent
        self.is_read: bool = sent.report is not None
        self._finalizer = weakref.finalize(self, _lost, sent, _soon())
        self._finalizer.atexit = False

    def read(self, chunk: bytes) -> None:
        if self._sent.report is not None:
            self._sent.report.read(chunk)

    def give_back(self) -> None:
        self._finalizer.detach()
        self._sent.permit.close()
        self._sent.over()


def _lost(sent: RequestInFlight, soon: Callable[[Callable[[], None]], object] | None) -> None:
    """An answer was collected that nobody closed.

    This may run in the middle of anything, the limiter's own code included, so the place is given back a moment later: by
    the loop that the answer came to, or by the next request.
    """
    sent.endpoint.lose(sent)
    if soon is not None:
        try:
            soon(sent.endpoint.sweep)
        except RuntimeError:
            pass  # that loop is closed


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
        return asyncio.get_running_loop().call_soon_threadsafe  # type: ignore[no-any-return]
    except RuntimeError:
        return None


@functools.cache
def transports(library: str) -> tuple[type, type]:
    """Our transports for a library: (sync, async). Made once each, since each library has base classes of its own."""
    module: Any = importlib.import_module(library)

    class ReleasingStream(module.SyncByteStream):  # type: ignore[misc]
        """A stream that gives a place back when it was read, or is closed."""

        def __init__(self, stream: Any, hold: _Hold) -> None:
            self._stream = stream
            self._hold = hold

        def __iter__(self) -> Any:
            try:
                if not self._hold.is_read:
                    yield from self._stream
                    return
                for chunk in self._stream:
                    self._hold.read(chunk)
                    yield chunk
            finally:
                self._hold.give_back()

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._hold.give_back()

    class AsyncReleasingStream(module.AsyncByteStream):  # type: ignore[misc]
        """A stream that gives a place back when it was read, or is closed."""

        def __init__(self, stream: Any, hold: _Hold) -> None:
            self._stream = stream
            self._hold = hold

        async def __aiter__(self) -> Any:
            try:
                async for chunk in self._stream:
                    if self._hold.is_read:
                        self._hold.read(chunk)
                    yield chunk
            finally:
                self._hold.give_back()

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._hold.give_back()

    def refuse(rules: Rules, error: PenstockError, request: Any) -> Any:
        if not rules.answer:
            raise error
        answer = refusal(error)
        return module.Response(answer.status, headers=answer.headers, content=answer.content, request=request)

    class LimitedTransport(module.BaseTransport):  # type: ignore[misc]
        """A transport of another that every request passes when its turn has come."""

        def __init__(self, inner: Any, rules: Rules, *, keep: Any = None) -> None:
            self._inner = inner
            self._rules = rules
            self._keep = keep
            self._traced = isinstance(inner, module.HTTPTransport)

        def handle_request(self, request: Any) -> Any:
            response = None
            try:
                plan = self._rules.plan(request)
                if plan is None:
                    return self._inner.handle_request(request)
                visit = _Visit(self._rules, plan, request)
                while True:
                    sent = visit.admit_in_thread()
                    response, exchange = self._send(request, sent)
                    if not visit.again(exchange):
                        return response
            except PenstockError as error:
                return refuse(self._rules, error, request) if response is None else response

        def _send(self, request: Any, sent: RequestInFlight) -> tuple[Any, _Exchange]:
            exchange = _Exchange(self._rules, sent, request, traced=self._traced, module=module)
            before, request.extensions = request.extensions, {**request.extensions, "trace": exchange.trace_in_thread}
            try:
                response = self._inner.handle_request(request)
                exchange.answered(response)
                if response.status_code == 429:
                    raw = b""
                    try:
                        raw = b"".join(response.stream)
                        response.stream.close()
                    finally:
                        exchange.refused(response, raw)
                    response.stream = module.ByteStream(raw)
                elif (hold := exchange.hold(response)) is not None:
                    response.stream = ReleasingStream(response.stream, hold)
            except BaseException as error:
                exchange.failed(error)
                raise
            finally:
                request.extensions = before
            return response, exchange

        def close(self) -> None:
            self._inner.close()

        def __enter__(self) -> Any:
            self._inner.__enter__()
            return self

        def __exit__(self, *what: object) -> None:
            self._inner.__exit__(*what)

    class AsyncLimitedTransport(module.AsyncBaseTransport):  # type: ignore[misc]
        """A transport of another that every request passes when its turn has come."""

        def __init__(self, inner: Any, rules: Rules, *, keep: Any = None) -> None:
            self._inner = inner
            self._rules = rules
            self._keep = keep
            self._traced = isinstance(inner, module.AsyncHTTPTransport)

        async def handle_async_request(self, request: Any) -> Any:
            response = None
            try:
                plan = self._rules.plan(request)
                if plan is None:
                    return await self._inner.handle_async_request(request)
                visit = _Visit(self._rules, plan, request)
                while True:
                    sent = await visit.admit()
                    response, exchange = await self._send(request, sent)
                    if not visit.again(exchange):
                        return response
            except PenstockError as error:
                return refuse(self._rules, error, request) if response is None else response

        async def _send(self, request: Any, sent: RequestInFlight) -> tuple[Any, _Exchange]:
            exchange = _Exchange(self._rules, sent, request, traced=self._traced, module=module)
            before, request.extensions = request.extensions, {**request.extensions, "trace": exchange.trace}
            try:
                response = await self._inner.handle_async_request(request)
                exchange.answered(response)
                if response.status_code == 429:
                    raw = b""
                    try:
                        raw = b"".join([chunk async for chunk in response.stream])
                        await response.stream.aclose()
                    finally:
                        exchange.refused(response, raw)
                    response.stream = module.ByteStream(raw)
                elif (hold := exchange.hold(response)) is not None:
                    response.stream = AsyncReleasingStream(response.stream, hold)
            except BaseException as error:
                exchange.failed(error)
                raise
            finally:
                request.extensions = before
            return response, exchange

        async def aclose(self) -> None:
            await self._inner.aclose()

        async def __aenter__(self) -> Any:
            await self._inner.__aenter__()
            return self

        async def __aexit__(self, *what: object) -> None:
            await self._inner.__aexit__(*what)

    return LimitedTransport, AsyncLimitedTransport


def library_of(client: Any) -> str | None:
    """The library whose client this is: "httpx2" or "httpx", whichever has the class it is made of."""
    for base in type(client).__mro__:
        if base.__name__ in {"Client", "AsyncClient"} and base.__module__.partition(".")[0] in {"httpx", "httpx2"}:
            return base.__module__.partition(".")[0]
    return None


def content_of(request: Any) -> bytes:
    """The request's body; empty where it is a stream, as files are."""
    try:
        content: bytes = request.content
    except RuntimeError:  # RequestNotRead
        return b""
    return content


def checked_cost(cost: Any) -> Mapping[str, float] | None:
    """What a rule of the user's returned.

    Raises:
        CostError: It is something else than numbers.
    """
    if cost is None:
        return None
    if not isinstance(cost, Mapping) or not all(isinstance(amount, (int, float)) for amount in cost.values()):
        raise CostError(
            f'cost= must return a number per unit, such as {{"tokens": 12}}, or None for a request that is not '
            f"limited, not {cost!r}"
        )
    return cost


def _is_repeatable(request: Any) -> bool:
    try:
        request.content  # noqa: B018
    except RuntimeError:
        return False
    return True


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    kind = message.partition(":")[0][:40]
    if kind not in _warned:
        _warned.add(kind)
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=6)
        except Warning:  # where warnings are errors: it must not cost the answer that it stands beside
            pass
