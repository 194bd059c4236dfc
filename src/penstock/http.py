"""Limits under an HTTP client: every request waits for its turn, is charged, and its answer is heard.

    client = limit_http_client(httpx.AsyncClient(), limiter, max_wait=30)
    client = limit_http_client(httpx.AsyncClient(), lambda request: per_host[request.url.host])
    client = limit_http_client(httpx.AsyncClient(), "auto")      # any REST API: learned per host
    client = httpx.AsyncClient(transport=AsyncHTTPXTransport(limiter))

    limit_http_client                      a copy of a client, with limits under it
    HTTPXTransport, AsyncHTTPXTransport    the same as a transport of httpx, for clients that are given one
    HTTPX2Transport, AsyncHTTPX2Transport  of httpx2
    transport                              of whichever library a given transport is

Neither httpx nor httpx2 is imported before a client, a transport or a class of theirs is asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from penstock import Limiter
from penstock._introspect import check_plain
from penstock._numbers import Seconds
from penstock._text import repr_of
from penstock._validation import read_wait
from penstock.events import Refused, ServiceEvent
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint, Endpoints
from penstock.llm.exchange import MAX_PAUSE, RequestPlan, Rules, checked_cost, checked_pause
from penstock.llm.given import GivenEndpoint, by_limiter, nothing_to_see
from penstock.llm.reporting import Listener
from penstock.llm.transport import limited_client, transports

if TYPE_CHECKING:
    import httpx
    import httpx2

__all__ = [
    "AsyncHTTPX2Transport",
    "AsyncHTTPXTransport",
    "HTTPX2Transport",
    "HTTPXTransport",
    "limit_http_client",
    "transport",
]

C = TypeVar("C")

_EVERY_HOST = "every host"
_HOSTS, _PATHS = 2_048, 16_384  # that are remembered

Limits = Limiter | Callable[[Any], Limiter | None] | Literal["auto"]
Cost = Callable[[Any], Mapping[str, float] | None]
OnEvent = Callable[[ServiceEvent | Refused], object]


def limit_http_client(
    client: C,
    limiter: Limits,
    *,
    max_wait: Seconds | None = None,
    max_pause: Seconds = MAX_PAUSE,
    cost: Cost | None = None,
    on_event: OnEvent | None = None,
) -> C:
    """A copy of an httpx or httpx2 client, sync or async, whose requests keep limits. The given one is not changed.

    A request waits for its turn before it is sent; the client's timeouts do not count that wait. When a server answers
    with 429, all calls under that limiter wait once, for as long as it says, and the request is sent again, unless its
    body is a stream. So they do after a 403 that names a limit, as GitHub's, and a 503 with `Retry-After`. Where the
    server's headers show less than the limiter has, the limiter is lowered to that.

    Args:
        client: Of httpx or httpx2. The copy shares its connections, proxies, hooks and timeouts.
        limiter: A `Limiter`; or a function of the request that returns one, or None for a request that is not limited;
            or "auto": learned per host, from `RateLimit` and `X-RateLimit` headers, `Retry-After`, and refusals.
        max_wait: Longest wait for a turn, in seconds or as a timedelta, 0 or more; a request that would wait longer
            raises `RateLimited` at once.
        max_pause: Longest wait that a server may ask for, in seconds or as a timedelta, 0 or more. If it asks for more,
            its 429 is what the caller gets.
        cost: What a request costs, per unit, as a function of the request; None: it is not limited. Default: one
            request. Units that the limiter does not count are left out.
        on_event: Called for each request when its answer is over, as in `penstock.llm.limit_client`.

    Raises:
        TypeError: It is no such client; or `cost` or `limiter` is a function that would have to be awaited.
        ValueError: `limiter` is none of these, a number is out of its range, or the client is limited already.
    """
    return limited_client(client, _rules(limiter, max_wait, max_pause, cost, on_event))


def transport(
    inner: Any,
    limiter: Limits,
    *,
    max_wait: Seconds | None = None,
    max_pause: Seconds = MAX_PAUSE,
    cost: Cost | None = None,
    on_event: OnEvent | None = None,
) -> Any:
    """A transport that sends through `inner`, of httpx or httpx2, sync or async: for `httpx.AsyncClient(transport=…)`.

    The other arguments, and what is raised, are those of `limit_http_client`.
    """
    rules = _rules(limiter, max_wait, max_pause, cost, on_event)
    for base in type(inner).__mro__:
        library = base.__module__.partition(".")[0]
        if library in {"httpx", "httpx2"}:
            module = importlib.import_module(library)
            return transports(library)[isinstance(inner, module.AsyncBaseTransport)](inner, rules)
    raise TypeError(
        f"a transport of httpx or httpx2 is needed, not {type(inner).__module__}.{type(inner).__qualname__}"
    )


_CLASSES = {
    "HTTPXTransport": ("httpx", False),
    "AsyncHTTPXTransport": ("httpx", True),
    "HTTPX2Transport": ("httpx2", False),
    "AsyncHTTPX2Transport": ("httpx2", True),
}

if TYPE_CHECKING:

    class _Limited:
        def __init__(
            self,
            limiter: Limits,
            inner: Any = None,
            *,
            max_wait: Seconds | None = None,
            max_pause: Seconds = MAX_PAUSE,
            cost: Cost | None = None,
            on_event: OnEvent | None = None,
        ) -> None:
            """A transport that sends through `inner`; None: through the library's own, with its defaults.

            The other arguments, and what is raised, are those of `limit_http_client`.
            """

    class HTTPXTransport(_Limited, httpx.BaseTransport):
        """A transport of httpx under limits, for `httpx.Client(transport=…)`."""

    class AsyncHTTPXTransport(_Limited, httpx.AsyncBaseTransport):
        """A transport of httpx under limits, for `httpx.AsyncClient(transport=…)`."""

    class HTTPX2Transport(_Limited, httpx2.BaseTransport):
        """A transport of httpx2 under limits, for `httpx2.Client(transport=…)`."""

    class AsyncHTTPX2Transport(_Limited, httpx2.AsyncBaseTransport):
        """A transport of httpx2 under limits, for `httpx2.AsyncClient(transport=…)`."""


def __getattr__(name: str) -> Any:  # so that no HTTP library is loaded before it is asked for
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _transport_class(name)


@functools.cache
def _transport_class(name: str) -> Any:
    library, is_async = _CLASSES[name]
    module = importlib.import_module(library)
    own = module.AsyncHTTPTransport if is_async else module.HTTPTransport
    base: Any = transports(library)[is_async]

    def __init__(  # noqa: N807 - a class that is made here
        self: Any,
        limiter: Limits,
        inner: Any = None,
        *,
        max_wait: Seconds | None = None,
        max_pause: Seconds = MAX_PAUSE,
        cost: Cost | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        rules = _rules(limiter, max_wait, max_pause, cost, on_event)
        base.__init__(self, own() if inner is None else inner, rules)

    client = "AsyncClient" if is_async else "Client"
    about = f"""A transport of {library} under limits, for `{library}.{client}(transport=…)`.

    Args:
        limiter: As in `limit_http_client`, and so are the others.
        inner: The transport that it sends through. None: {library}'s own, with its defaults.
    """
    return type(name, (base,), {"__init__": __init__, "__doc__": about, "__module__": __name__, "__qualname__": name})


def _rules(limiter: Any, max_wait: Seconds | None, max_pause: Seconds, cost: Cost | None, on_event: Any) -> Rules:
    if cost is not None:
        check_plain("limit_http_client", "cost", cost)
    endpoints, plan_of = _endpoints(limiter)

    def count(request: Any) -> Mapping[str, float] | None:
        return {"requests": 1.0} if cost is None else checked_cost(cost(request))

    def plan(request: Any, charged: Mapping[str, float] | None) -> RequestPlan | None:
        return None if charged is None else plan_of(request, charged)

    if on_event is not None:
        check_plain("limit_http_client", "on_event", on_event)
    listener = None if on_event is None else Listener(on_event)
    return Rules(
        count,
        plan,
        max_wait=read_wait(max_wait),
        max_pause=checked_pause(max_pause),
        answer=False,
        listener=listener,
        endpoints=endpoints,
    )


_PlanOf = Callable[[Any, Mapping[str, float]], RequestPlan | None]


def _endpoints(limiter: Any) -> tuple[Endpoints, _PlanOf]:
    if isinstance(limiter, Limiter):
        only = GivenEndpoint(limiter)
        endpoints = Endpoints(lambda _: only)
        endpoints.of(_EVERY_HOST)
        return endpoints, lambda _, cost: RequestPlan(only, cost)
    if limiter == "auto":
        hosts = _Hosts()
        return hosts.endpoints, hosts.plan
    if callable(limiter):
        check_plain("limit_http_client", "limiter", limiter)
        endpoint_of = by_limiter(limiter)

        def plan(request: Any, cost: Mapping[str, float]) -> RequestPlan | None:
            endpoint = endpoint_of(request)
            return None if endpoint is None else RequestPlan(endpoint, cost)

        return Endpoints(nothing_to_see), plan
    raise ValueError(
        f'limiter must be a Limiter, a function of the request that returns one, or "auto", not {repr_of(limiter)}'
    )


class _Hosts:
    """The endpoints of hosts: one for each, and more where answers name buckets, as GitHub's and Discord's do.

    A host's own endpoint is that of the bucket that was named first. Only the answer tells which bucket a request falls
    under, so a path is sent under the host's own limits until one has told.
    """

    def __init__(self) -> None:
        self.endpoints: Endpoints = Endpoints(lambda _: DiscoveredEndpoint(), most=_HOSTS)
        self._first: dict[str, str] = {}  # per host: the bucket of its own endpoint
        self._paths: dict[tuple[str, str, str], str] = {}  # the names of the endpoints of paths that have another one

    def plan(self, request: Any, cost: Mapping[str, float]) -> RequestPlan:
        """What is known of a request before it is sent."""
        host: str = request.url.netloc.decode("ascii", "replace")
        route = host, request.method, request.url.path
        return RequestPlan(
            self.endpoints.of(self._paths.get(route, host)), cost, home=lambda bucket: self._of(route, bucket)
        )

    def _of(self, route: tuple[str, str, str], bucket: str) -> Endpoint:
        host = route[0]
        if len(self._first) >= _HOSTS or len(self._paths) >= _PATHS:
            self._first.clear()
            self._paths.clear()
        if self._first.setdefault(host, bucket) == bucket:
            self._paths.pop(route, None)
            return self.endpoints.of(host)
        self._paths[route] = f"{host} {bucket}"
        return self.endpoints.of(self._paths[route])
