"""A stream that is left gives its place back at once: on every event loop, in threads, and without the garbage
collector."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx2
import openai
import pytest

from penstock import Limiter, in_flight
from penstock.llm import limit_client, lost_answers

pytestmark = pytest.mark.anyio

CHUNK = (
    b'data: {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
)
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "stream": True}
AGAIN = 8


@pytest.fixture(autouse=True)
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's, of generators that nobody closed
        gc.collect()


class Endless(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """An answer without an end, which notes that it was closed."""

    closed = 0

    def __iter__(self):
        while True:
            yield CHUNK

    async def __aiter__(self):
        while True:
            await anyio.sleep(0)
            yield CHUNK

    def close(self):
        type(self).closed += 1

    async def aclose(self):
        type(self).closed += 1


class Answers:
    """A server all of whose answers are endless."""

    def __init__(self):
        self.kind = type("Mine", (Endless,), {"closed": 0})

    def __call__(self, _):
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=self.kind())


def limited(answers, kind="Async", places=2, **options):
    http_client = getattr(httpx2, f"{kind}Client")(transport=httpx2.MockTransport(answers))
    client = getattr(openai, f"{kind}OpenAI")(api_key="key", base_url="http://api.test/v1", http_client=http_client)
    limiter = Limiter(places=in_flight(places))
    return limit_client(client, limiter, max_wait=30, **options), limiter


async def until(holds):
    """Wait for what the loop does next."""
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.001)


async def by_break(stream):
    async for _ in stream:
        break


async def by_return(stream):
    async for _ in stream:
        return


async def by_exception(stream):
    try:
        async for _ in stream:
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass


async def by_closing(stream):
    async with stream:
        await anext(aiter(stream))


async def by_cancelling(stream):
    with anyio.CancelScope() as scope:
        async for _ in stream:
            scope.cancel()


async def unread(stream):
    pass


LEFT = {each.__name__: each for each in (by_break, by_return, by_exception, by_closing, by_cancelling, unread)}


@pytest.mark.parametrize("how", LEFT.values(), ids=LEFT)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_stream_that_is_left_gives_its_place_back(how):
    answers = Answers()
    client, limiter = limited(answers)
    with anyio.fail_after(30):
        for _ in range(AGAIN):
            await how(await client.chat.completions.create(**ASKED))
    await until(lambda: limiter.statistics().in_flight == 0 and answers.kind.closed == AGAIN)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_stream_that_is_left_and_kept_gives_its_place_back_and_may_be_read_on():
    client, limiter = limited(Answers())
    stream = await client.chat.completions.create(**ASKED)
    await by_break(stream)
    await until(lambda: limiter.statistics().in_flight == 0)
    assert (await anext(aiter(stream))).choices[0].delta.content == "a"
    await stream.close()


@pytest.mark.parametrize("change", ["copy", "with_options"])
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_so_does_a_stream_of_a_client_with_other_options(change):
    client, limiter = limited(Answers())
    changed = getattr(client, change)(timeout=5)
    assert type(changed) is openai.AsyncOpenAI
    with anyio.fail_after(30):
        for _ in range(AGAIN):
            await by_break(await changed.chat.completions.create(**ASKED))
    await until(lambda: limiter.statistics().in_flight == 0)


async def test_a_stream_is_of_its_own_type():
    client, _ = limited(Answers())
    stream = await client.chat.completions.create(**ASKED)
    assert isinstance(stream, openai.AsyncStream)
    assert type(stream).__qualname__ == "AsyncStream"
    await stream.close()


def sync_break(stream):
    for _ in stream:
        break


def sync_return(stream):
    for _ in stream:
        return


def sync_exception(stream):
    try:
        for _ in stream:
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass


def sync_unread(stream):
    pass


def another_gets_a_place(limiter):
    def work():
        with limiter(max_wait=30):
            pass

    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


LEFT_IN_A_THREAD = (sync_break, sync_return, sync_exception, sync_unread)


@pytest.mark.parametrize(
    ("how", "kept"),
    [(how, kept) for how in LEFT_IN_A_THREAD for kept in (False, True) if how is not sync_unread or not kept],
)
def test_a_stream_that_is_left_in_a_thread_gives_its_place_to_who_waits(how, kept):
    """Though no other request comes to look for it."""
    answers = Answers()
    client, limiter = limited(answers, kind="", places=1)
    stream = client.chat.completions.create(**ASKED)
    how(stream)
    if not kept:
        del stream
    another_gets_a_place(limiter)
    until = time.monotonic() + 30
    while not answers.kind.closed and not kept and time.monotonic() < until:  # the place comes back first
        time.sleep(0.001)
    assert answers.kind.closed == 1 or kept


def test_a_stream_of_a_sync_http_client_that_is_dropped_gives_its_place_to_who_waits():
    client, limiter = limited(Answers(), kind="", places=1)
    http = client._client
    http.send(http.build_request("POST", "http://api.test/v1/x", json=ASKED), stream=True)
    another_gets_a_place(limiter)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_a_stream_that_outlives_its_loop_gives_its_place_to_who_waits():
    client, limiter = limited(Answers(), places=1)

    async def ask():
        return await client.chat.completions.create(**ASKED)

    stream = anyio.run(ask)
    del stream
    another_gets_a_place(limiter)


def test_many_streams_that_are_left_in_threads_at_once_give_all_places_back():
    client, limiter = limited(Answers(), kind="")

    def ask(_):
        for _ in range(20):
            sync_break(client.chat.completions.create(**ASKED))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    until = time.monotonic() + 30
    while limiter.statistics().in_flight and time.monotonic() < until:
        time.sleep(0.001)
    assert limiter.statistics().in_flight == 0


def test_a_stream_that_is_left_in_a_thread_gives_its_place_back():
    answers = Answers()
    client, limiter = limited(answers, kind="")
    for _ in range(AGAIN):
        for _ in client.chat.completions.create(**ASKED):
            break
    client.chat.completions.create(**ASKED).close()
    assert limiter.statistics().in_flight == 0


async def test_a_stream_of_an_http_client_that_is_dropped_gives_its_place_back():
    client, limiter = limited(Answers())
    http = client._client
    with anyio.fail_after(30):
        for _ in range(AGAIN):
            await http.send(http.build_request("POST", "http://api.test/v1/x", json=ASKED), stream=True)
    await until(lambda: limiter.statistics().in_flight == 0)


@pytest.mark.parametrize("is_early", [False, True], ids=["", "later than the next look"])
def test_what_is_found_to_be_lost_only_later_gives_its_place_to_a_request_that_waits_by_then(monkeypatch, is_early):
    """A thread that logs an answer, as LiteLLM has one, holds it a moment longer than its reader. A request that had
    not come to wait by the time of the next look was never looked for again."""
    monkeypatch.setattr(lost_answers, "FIRST_GAP", 0.01)
    looks = [lambda _, look: look()] if is_early else []

    def start_timer(seconds, look, later=lost_answers.start_timer):
        (looks.pop() if looks else later)(seconds, look)

    monkeypatch.setattr(lost_answers, "start_timer", start_timer)
    transport = httpx2.MockTransport(Answers())
    client = limit_client(httpx2.Client(transport=transport), Limiter(places=in_flight(1)), max_wait=30)
    asked = client.build_request("POST", "http://api.test/v1/chat/completions", json=ASKED)
    logged = [client.send(asked, stream=True)]
    logged.append(logged)  # and nothing but the collector can tell that it is over
    held = [logged]
    del logged
    threading.Timer(0.05, held.clear).start()
    assert client.send(asked, stream=True).status_code == 200
