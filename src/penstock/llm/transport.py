"""The limiter under an SDK: a transport that every request passes, retries and streams included.

    client = limit_http_client(httpx2.AsyncClient(), Valve(Fixed(limiter)))

SDKs for LLM services send through httpx (or its successor httpx2), whose transports take a request and return a response.
Ours sits in between. It charges each request before it is sent, hears each answer's headers, and lets everybody wait once
when the service says that the limit is used up. It waits only before a request, never between charging and sending, and
never with an answer in hand: retrying is the SDK's business, and each retry comes through here and is charged again.

What a request costs is told by `tokens`, what an answer's headers and body mean by `headers` and `failures`, whose limits
it falls under by `lanes`; here is only what happens when. None of httpx, httpx2 or an SDK is imported before a client of
theirs is given.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from penstock import clock
from penstock._introspect import check_plain
from penstock.errors import CostError, PenstockError, RateLimited, Unsatisfiable
from penstock.llm import headers as _headers
from penstock.llm.failures import OURS, Action, judge
from penstock.llm.tokens import by_bytes

if TYPE_CHECKING:
    from penstock.llm.lanes import Journey, Lane, Policy
    from penstock.llm.tokens import Body, Cost

__all__ = ["Valve", "limit_http_client"]

C = TypeVar("C")

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")


class NoLimitsKnown(PenstockError, ValueError):  # noqa: N818 - as it reads
    """The requests for a model are to be limited, and nobody knows to what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a request before it is sent."""

    model: str | None
    cost: Mapping[str, float]


class Valve:
    """What is decided about the requests of one client.

    Args:
        policy: Whose limits a request falls under.
        cost: What a request costs, of its path and its JSON body; see `tokens`.
        max_wait: Longest wait for a turn, in seconds. A request that would wait longer is refused at once.

    Raises:
        TypeError: `cost` is no function, or one that would have to be awaited.
        ValueError: `max_wait` is below 0.
    """

    def __init__(self, policy: Policy, *, cost: Cost = by_bytes, max_wait: float | None = None) -> None:
        if max_wait is not None and not max_wait >= 0:
            raise ValueError(f"max_wait must be a number of seconds, 0 or more, or None, not {max_wait!r}")
        check_plain("Valve", "cost", cost)
        self.policy = policy
        self.cost = cost
        self.max_wait = max_wait

    def plan(self, path: str, content: bytes) -> Plan | None:
        """What there is to know of a request; None: it is not limited.

        Raises:
            CostError: The rule of what it costs returned something else than numbers.
        """
        body = _json_object(content)
        cost: Any = self.cost(path, body)
        if cost is None:
            return None
        if not isinstance(cost, Mapping) or not all(isinstance(amount, (int, float)) for amount in cost.values()):
            raise CostError(
                f'cost= must return a number per unit, such as {{"tokens": 12}}, or None for a request that is not '
                f"limited, not {cost!r}"
            )
        model = (body or {}).get("model")
        if not isinstance(model, str):
            deployment = _DEPLOYMENT.search(path)  # Azure's requests may name the model in their path alone
            model = deployment[1] if deployment else None
        return Plan(model, cost)

    async def admit(self, plan: Plan) -> Journey | None:
        """Wait for the request's turn and charge it. None: it is not limited.

        Raises:
            PenstockError: It is refused: not now, or never.
        """
        lane, until = self._lane(plan)
        while lane is not None:
            limiter, charges = lane.ask(plan.cost)
            try:
                permit = await limiter.acquire(charges, max_wait=_left(until))
            except Unsatisfiable:
                if lane.ask(plan.cost)[1] == charges:
                    raise
                continue  # the limits changed meanwhile, and it is charged less under the new ones
            journey = lane.granted(limiter, permit, plan.cost)
            if journey is not None:
                return journey
            permit.cancel()
        return None

    def admit_in_thread(self, plan: Plan) -> Journey | None:
        """The same, blocking this thread."""
        lane, until = self._lane(plan)
        while lane is not None:
            limiter, charges = lane.ask(plan.cost)
            try:
                permit = limiter(charges, max_wait=_left(until)).__enter__()
            except Unsatisfiable:
                if lane.ask(plan.cost)[1] == charges:
                    raise
                continue  # the limits changed meanwhile, and it is charged less under the new ones
            journey = lane.granted(limiter, permit, plan.cost)
            if journey is not None:
                return journey
            permit.cancel()
        return None

    def _lane(self, plan: Plan) -> tuple[Lane | None, float | None]:
        try:
            lane = self.policy.lane(plan.model)
        except ValueError as error:
            raise NoLimitsKnown(str(error)) from error
        return lane, None if self.max_wait is None else clock.now() + self.max_wait


class Refusal(NamedTuple):
    """The answer that we give in the service's stead."""

    status: int
    headers: dict[str, str]
    content: bytes


def refusal(error: PenstockError) -> Refusal:
    """The answer to a request that must not be sent.

    An answer, and not an exception: SDKs retry what a transport raises, and wrap it as trouble with the connection. "Not
    now" is a 429 that says when, "never" a 400, which nobody retries.
    """
    status = 400
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if isinstance(error, RateLimited):
        status = 429
        if error.retry_after < float("inf"):
            headers["retry-after"] = f"{error.retry_after:.3f}"
    code = "request_too_large" if isinstance(error, Unsatisfiable) else _snake(type(error).__name__)
    body = {"error": {"message": f"Not sent: {error}", "type": OURS, "param": None, "code": code}}
    return Refusal(status, headers, json.dumps(body).encode())


def limit_http_client(client: C, valve: Valve) -> C:
    """A copy of an httpx or httpx2 client, sync or async, whose requests pass `valve`.

    The copy shares the connections of the original, its proxies, certificates, hooks and timeouts. The original is not
    changed, and not limited. Closing one closes the connections of both; a copy that is only dropped closes none.

    Raises:
        TypeError: It is no such client.
        ValueError: It is limited already.
    """
    library = _library_of(client)
    if library is None or not hasattr(client, "_transport") or not hasattr(client, "_mounts"):
        raise TypeError(
            f"a client of httpx or httpx2 is needed, not {type(client).__module__}.{type(client).__qualname__}"
        )
    module = importlib.import_module(library)
    wrapper = _transports(library)[isinstance(client, module.AsyncClient)]
    if isinstance(client._transport, _transports(library)):
        raise ValueError("this client is limited already: join the limiters with `a & b`, and limit the client once")
    limited: Any = copy.copy(client)
    # Some SDKs' clients close their connections when they are collected. The copy must not, since others may be using
    # them, and the original is kept alive until the copy is gone.
    if hasattr(limited, "__del__"):
        limited.__class__ = _uncollected(limited.__class__)
    limited._transport = wrapper(client._transport, valve, client)
    limited._mounts = {
        pattern: None if inner is None else wrapper(inner, valve, client) for pattern, inner in client._mounts.items()
    }
    typed: C = limited
    return typed


@functools.cache
def _uncollected(kind: type) -> type:
    """The same class, whose objects do nothing when they are collected."""
    return type(
        kind.__name__, (kind,), {"__del__": lambda _: None, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )


class _Passage:
    """One request on its way through: what the async and the sync transport have in common."""

    def __init__(self, journey: Journey, request: Any, *, traced: bool, module: Any) -> None:
        self.journey = journey
        self.lane = journey.lane
        self._module = module
        self._before = request.extensions.get("trace")
        if not traced:  # a transport of another kind does not say when it sends
            self.lane.left(journey)

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
            self.lane.left(self.journey)

    def answered(self, response: Any) -> None:
        """The headers are there."""
        self.lane.left(self.journey)
        reading = _headers.read(response.headers, response.status_code, wall=clock.wall())
        self.lane.answered(self.journey, response.status_code, reading)

    def refused(self, response: Any, raw: bytes) -> None:
        """It is a 429, and this is its body, as it came over the wire."""
        try:
            body = self._module.Response(429, headers=response.headers, content=raw).content
        except self._module.DecodingError:
            body = raw
        verdict = judge(429, body, response.headers)
        if verdict.action is Action.WAIT:
            self.lane.refused(self.journey, verdict)
        elif not verdict.retryable:
            response.headers["x-should-retry"] = "false"
        self.journey.permit.close()

    def failed(self, error: BaseException) -> None:
        """There is no answer, and there will be none."""
        # A proxy is sent a request to connect first, which is traced like any other; it may refuse, or get nowhere.
        if self.journey.left_at is not None and type(error).__name__ not in _NEVER_SENT:
            self.journey.permit.close()
        else:
            self.lane.never_left(self.journey)

    def hold(self, response: Any) -> _Place | None:
        """The place in flight of an answer that is still to be read; None if it has none."""
        if not self.lane.holds or response.is_closed:
            self.journey.permit.close()
            return None
        return _Place(self.journey)


class _Place:
    """A place in flight. It is given back when the answer was read, when it is closed, or when it is lost."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._finalizer = weakref.finalize(self, _lost, journey, _soon())
        self._finalizer.atexit = False

    def give_back(self) -> None:
        self._finalizer.detach()
        self._journey.permit.close()


def _lost(journey: Journey, soon: Callable[[Callable[[], None]], object] | None) -> None:
    """An answer was collected that nobody closed.

    This may run in the middle of anything, the limiter's own code included, so the place is given back a moment later: by
    the loop that the answer came to, or by the next request.
    """
    journey.lane.lose(journey)
    if soon is not None:
        try:
            soon(journey.lane.sweep)
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
def _transports(library: str) -> tuple[type, type]:
    """Our transports for a library: (sync, async). Made once each, since each library has base classes of its own."""
    module: Any = importlib.import_module(library)

    class Tap(module.SyncByteStream):  # type: ignore[misc]
        """A stream that says when it is closed."""

        def __init__(self, stream: Any, place: _Place) -> None:
            self._stream = stream
            self._place = place

        def __iter__(self) -> Any:
            yield from self._stream

        def close(self) -> None:
            try:
                self._stream.close()
            finally:
                self._place.give_back()

    class AsyncTap(module.AsyncByteStream):  # type: ignore[misc]
        """A stream that says when it is closed."""

        def __init__(self, stream: Any, place: _Place) -> None:
            self._stream = stream
            self._place = place

        async def __aiter__(self) -> Any:
            async for chunk in self._stream:
                yield chunk

        async def aclose(self) -> None:
            try:
                await self._stream.aclose()
            finally:
                self._place.give_back()

    def refuse(error: PenstockError, request: Any) -> Any:
        answer = refusal(error)
        return module.Response(answer.status, headers=answer.headers, content=answer.content, request=request)

    class LimitedTransport(module.BaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, valve: Valve, keep: Any) -> None:
            self._inner = inner
            self._valve = valve
            self._keep = keep
            self._traced = isinstance(inner, module.HTTPTransport)

        def handle_request(self, request: Any) -> Any:
            try:
                plan = self._valve.plan(request.url.path, _content_of(request))
                journey = None if plan is None else self._valve.admit_in_thread(plan)
            except PenstockError as error:
                return refuse(error, request)
            if journey is None:
                return self._inner.handle_request(request)
            passage = _Passage(journey, request, traced=self._traced, module=module)
            request.extensions = {**request.extensions, "trace": passage.trace_in_thread}
            try:
                response = self._inner.handle_request(request)
                passage.answered(response)
                if response.status_code == 429:
                    raw = b""
                    try:
                        raw = b"".join(response.stream)
                        response.stream.close()
                    finally:
                        passage.refused(response, raw)
                    response.stream = module.ByteStream(raw)
                elif (place := passage.hold(response)) is not None:
                    response.stream = Tap(response.stream, place)
            except BaseException as error:
                passage.failed(error)
                raise
            return response

        def close(self) -> None:
            self._inner.close()

        def __enter__(self) -> Any:
            self._inner.__enter__()
            return self

        def __exit__(self, *what: object) -> None:
            self._inner.__exit__(*what)

    class AsyncLimitedTransport(module.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, valve: Valve, keep: Any) -> None:
            self._inner = inner
            self._valve = valve
            self._keep = keep
            self._traced = isinstance(inner, module.AsyncHTTPTransport)

        async def handle_async_request(self, request: Any) -> Any:
            try:
                plan = self._valve.plan(request.url.path, _content_of(request))
                journey = None if plan is None else await self._valve.admit(plan)
            except PenstockError as error:
                return refuse(error, request)
            if journey is None:
                return await self._inner.handle_async_request(request)
            passage = _Passage(journey, request, traced=self._traced, module=module)
            request.extensions = {**request.extensions, "trace": passage.trace}
            try:
                response = await self._inner.handle_async_request(request)
                passage.answered(response)
                if response.status_code == 429:
                    raw = b""
                    try:
                        raw = b"".join([chunk async for chunk in response.stream])
                        await response.stream.aclose()
                    finally:
                        passage.refused(response, raw)
                    response.stream = module.ByteStream(raw)
                elif (place := passage.hold(response)) is not None:
                    response.stream = AsyncTap(response.stream, place)
            except BaseException as error:
                passage.failed(error)
                raise
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

        async def __aenter__(self) -> Any:
            await self._inner.__aenter__()
            return self

        async def __aexit__(self, *what: object) -> None:
            await self._inner.__aexit__(*what)

    return LimitedTransport, AsyncLimitedTransport


def _library_of(client: Any) -> str | None:
    """The library whose client this is: "httpx2" or "httpx", whichever has the class it is made of."""
    for base in type(client).__mro__:
        if base.__name__ in {"Client", "AsyncClient"} and base.__module__.partition(".")[0] in {"httpx", "httpx2"}:
            return base.__module__.partition(".")[0]
    return None


def _content_of(request: Any) -> bytes:
    """The request's body; empty where it is a stream, as files are."""
    try:
        content: bytes = request.content
    except RuntimeError:  # RequestNotRead
        return b""
    return content


def _json_object(content: bytes) -> Body | None:
    if content.lstrip()[:1] != b"{":
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to be read
        return None
    return body if isinstance(body, dict) else None


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - clock.now())


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
