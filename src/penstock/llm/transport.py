"""The limiter under an HTTP client: a transport that every request passes, retries and streams included.

    client = limited_client(httpx2.AsyncClient(), rules)

Clients send through httpx (or its successor httpx2), whose transports take a request and return a response. Ours sits
in between: it charges each request before it is sent, hears each answer's headers, and lets all requests wait once when
the service says that a limit is used up.

A refused request is held here, and sent again when its turn has come, for as long as its `max_wait` allows: an SDK's
own two retries must not decide whether a user sees an error. Nothing is sent again whose answer the caller has seen,
nor a request whose body is a stream.

What is decided about a request, and what is made of its answer, is in `exchange`. Neither httpx nor httpx2 is imported
before a client of theirs is given.
"""

from __future__ import annotations

import copy
import functools
import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from penstock.errors import PenstockError
from penstock.llm.copies import library_of, uncollected
from penstock.llm.exchange import AnswerInFlight, Exchange, RefusalBody, RequestPlan, Rules, Visit
from penstock.llm.refusals import refusal
from penstock.llm.streams import ANSWER

if TYPE_CHECKING:
    from penstock.llm.endpoints import RequestInFlight

__all__ = ["endpoints_under", "limited_client", "transports"]

C = TypeVar("C")


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
    limited: Any = copy.copy(client)
    # Some SDKs' clients close their connections when they are collected. The copy must not, since others may be using
    # them, and the original is kept alive until the copy is gone.
    if hasattr(limited, "__del__"):
        limited.__class__ = uncollected(limited.__class__)
    inner, mounts = client._transport, client._mounts
    if getattr(client, "_per_loop", False) and hasattr(client, "_client_for_running_loop"):
        inner, mounts, limited._per_loop = _LoopsOwn(client), {}, False
    limited._transport = wrapper(inner, rules, keep=client)
    limited._mounts = {
        pattern: None if each is None else wrapper(each, rules, keep=client) for pattern, each in mounts.items()
    }
    typed: C = limited
    return typed


def endpoints_under(client: Any) -> Any:
    """The endpoints of a limited client of httpx or httpx2, or of the one that it is a copy of; None: it has none."""
    rules = getattr(getattr(client, "_transport", None), "_rules", None)
    return rules.endpoints if isinstance(rules, Rules) else None


class _LoopsOwn:
    """Sends through the connections that a client of google-genai keeps for each event loop."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def handle_async_request(self, request: Any) -> Any:
        inner = self._client._client_for_running_loop()
        return await inner._transport_for_url(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> _LoopsOwn:
        return self

    async def __aexit__(self, *what: object) -> None:
        await self._client.aclose()


class _Chunks:
    """What is read of a stream.

    No generator: one that is left waits for its loop, or for the collector, to be closed.
    """

    def __init__(self, chunks: Any, answer: AnswerInFlight) -> None:
        self._chunks = chunks
        self._answer = answer

    def __iter__(self) -> _Chunks:
        return self

    def __next__(self) -> bytes:
        self._answer.is_being_read = True
        try:
            chunk: bytes = next(self._chunks)
        except BaseException:
            self._answer.give_back()
            raise
        finally:
            self._answer.is_being_read = False
        self._answer.feed(chunk)
        return chunk


class _AsyncChunks:
    """The same of an async stream."""

    def __init__(self, chunks: Any, answer: AnswerInFlight) -> None:
        self._chunks = chunks
        self._answer = answer

    def __aiter__(self) -> _AsyncChunks:
        return self

    async def __anext__(self) -> bytes:
        self._answer.is_being_read = True
        try:
            chunk: bytes = await anext(self._chunks)
        except BaseException:
            self._answer.give_back()
            raise
        finally:
            self._answer.is_being_read = False
        self._answer.feed(chunk)
        return chunk


class _ReleasingStream:
    """A stream that says when it was read to its end, or is closed."""

    def __init__(self, stream: Any, answer: AnswerInFlight) -> None:
        self._stream = stream
        self._answer = answer

    def __iter__(self) -> Any:
        return _Chunks(iter(self._stream), self._answer)

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._answer.give_back()


class _AsyncReleasingStream:
    """The same of an async stream."""

    def __init__(self, stream: Any, answer: AnswerInFlight) -> None:
        self._stream = stream
        self._answer = answer

    def __aiter__(self) -> Any:
        return _AsyncChunks(aiter(self._stream), self._answer)

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._answer.give_back()


class _Limited:
    """What both transports share.

    Attributes:
        module: The library, httpx or httpx2.
        stream: The class of a stream that says when it was read, for that library.
    """

    module: Any
    stream: Any

    def __init__(self, inner: Any, rules: Rules, *, keep: Any = None) -> None:
        if isinstance(inner, _Limited):
            raise ValueError(
                "this client is limited already: join the limiters with `a & b`, and limit the client once"
            )
        self._inner = inner
        self._rules = rules
        self._keep = keep  # referred to for as long as this is: its connections must not be closed
        own = (self.module.HTTPTransport, self.module.AsyncHTTPTransport, _LoopsOwn)
        self._traced = isinstance(inner, own)

    def _refuse(self, error: PenstockError, request: Any) -> Any:
        rules = self._rules
        if not rules.answer:
            raise error
        answer = refusal(error, request)
        if rules.raises is not None:
            raise rules.raises(answer) from error
        headers = {**answer.headers, "content-length": str(len(answer.content))}
        stream = self.module.ByteStream(answer.content)  # and not content=, which could not be read as a stream
        return self.module.Response(answer.status, headers=headers, stream=stream, request=request)

    def _exchange(self, request: Any, plan: RequestPlan, sent: RequestInFlight) -> Exchange:
        return Exchange(self._rules, plan, sent, request, traced=self._traced, module=self.module)

    def _mind_stream(self, exchange: Exchange, response: Any) -> None:
        """Hear of the end of a stream, if anything ends with it."""
        answer = exchange.answer_of(response)
        if answer is not None:
            response.stream = self.stream(response.stream, answer)
            response.extensions[ANSWER] = answer


class _LimitedTransport(_Limited):
    """A transport of another that every request passes when its turn has come."""

    def handle_request(self, request: Any) -> Any:
        response = None
        try:
            plan = self._rules.plan(request, self._rules.count(request))
            if plan is None:
                return self._inner.handle_request(request)
            visit = Visit(self._rules, plan, request)
            while True:
                sent = visit.admit_in_thread()
                response, exchange = self._send(request, plan, sent)
                if exchange.error is not None:
                    raise exchange.error
                if not visit.again(exchange):
                    return response
        except PenstockError as error:
            return self._refuse(error, request) if response is None else response

    def _send(self, request: Any, plan: RequestPlan, sent: RequestInFlight) -> tuple[Any, Exchange]:
        exchange = self._exchange(request, plan, sent)
        before, request.extensions = request.extensions, {**request.extensions, "trace": exchange.trace_in_thread}
        try:
            response = self._inner.handle_request(request)
            if exchange.answered(response):
                read = RefusalBody()
                try:
                    with suppress(self.module.TransportError):  # one that breaks off is a refusal all the same
                        for chunk in response.stream:
                            if read.is_enough(chunk):
                                break
                    response.stream.close()
                finally:
                    exchange.refused(response, bytes(read.raw))
                response.stream = self.module.ByteStream(bytes(read.raw))
            else:
                self._mind_stream(exchange, response)
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


class _AsyncLimitedTransport(_Limited):
    """The same for async clients."""

    async def handle_async_request(self, request: Any) -> Any:
        response = None
        try:
            rules = self._rules
            heavy = rules.heavy(request)
            counted = await anyio.to_thread.run_sync(rules.count, request) if heavy else rules.count(request)
            plan = rules.plan(request, counted)
            if plan is None:
                return await self._inner.handle_async_request(request)
            visit = Visit(rules, plan, request)
            while True:
                sent = await visit.admit()
                response, exchange = await self._send(request, plan, sent)
                if exchange.error is not None:
                    raise exchange.error
                if not visit.again(exchange):
                    return response
        except PenstockError as error:
            return self._refuse(error, request) if response is None else response

    async def _send(self, request: Any, plan: RequestPlan, sent: RequestInFlight) -> tuple[Any, Exchange]:
        exchange = self._exchange(request, plan, sent)
        before, request.extensions = request.extensions, {**request.extensions, "trace": exchange.trace}
        try:
            response = await self._inner.handle_async_request(request)
            if exchange.answered(response):
                read = RefusalBody()
                try:
                    chunks = aiter(response.stream)
                    with suppress(self.module.TransportError):  # one that breaks off is a refusal all the same
                        async for chunk in chunks:
                            if read.is_enough(chunk):
                                if hasattr(chunks, "aclose"):  # a generator
                                    await chunks.aclose()
                                break
                    await response.stream.aclose()
                finally:
                    exchange.refused(response, bytes(read.raw))
                response.stream = self.module.ByteStream(bytes(read.raw))
            else:
                self._mind_stream(exchange, response)
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


@functools.cache
def transports(library: str) -> tuple[type, type]:
    """Our transports for a library: (sync, async). Made once each, since each library has base classes of its own."""
    module: Any = importlib.import_module(library)

    def made(name: str, ours: type, base: type, stream: type, stream_base: type) -> type:
        releasing = type(stream.__name__.lstrip("_"), (stream, stream_base), {})
        return type(name, (ours, base), {"module": module, "stream": releasing})

    return (
        made("LimitedTransport", _LimitedTransport, module.BaseTransport, _ReleasingStream, module.SyncByteStream),
        made(
            "AsyncLimitedTransport",
            _AsyncLimitedTransport,
            module.AsyncBaseTransport,
            _AsyncReleasingStream,
            module.AsyncByteStream,
        ),
    )
