"""Every SDK under `limit_client`, over real sockets: nobody sees an error, and the service hardly ever says "not
now"."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import anyio
import pytest

from penstock import Limiter, in_flight
from penstock.llm import limit_client, limits_of, rate_limit_info

sys.path.insert(0, str(Path(__file__).parent))
from adapters import ADAPTERS, LONG
from conftest import Field
from service import USAGE, service

from tests.docs_examples import examples_of, run_example

CALLS, RUNS = 200, 4
ADAPTED = list(ADAPTERS[Field.environment]())
IDS = [adapter.name or adapter.package for adapter in ADAPTED]
TRUE = "3000/min burst 10"  # the burst of the service is 60: a busy machine bunches calls


def limited(adapter, client, limits="auto", **options):
    """A client under limits; of litellm the handler, which each call is given."""
    if adapter.package != "litellm":
        return limit_client(client, limits, **options)
    return type(client)(limit_client(client.handler, limits, **options), client.url)


def limits_of_it(client):
    return limits_of(getattr(client, "handler", client))


async def closed(adapter, client):
    done = adapter.close(client)
    if inspect.isawaitable(done):
        await done


async def read(stream):
    return [each async for each in stream]


async def many(adapter, client, streaming):
    """200 calls at once; their errors."""
    errors = []

    async def one():
        try:
            if streaming:
                assert len(await read(await adapter.stream(client))) >= 2
            else:
                assert await adapter.ask(client)
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(CALLS):
            group.start_soon(one)
    return errors


def many_in_threads(adapter, client, streaming):
    def one(_):
        try:
            if streaming:
                assert len(list(adapter.stream_sync(client))) >= 2
            else:
                assert adapter.ask_sync(client)
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(CALLS) as pool:
        return [error for error in pool.map(one, range(CALLS)) if error is not None]


def measured(adapter, kind, streaming):
    """Errors that reached the user, 429s, answers and seconds."""
    with service() as server:
        client = (adapter.aio if kind == "async" else adapter.sync)(server.base_url)
        mine = limited(adapter, client, Limiter(requests=TRUE))
        began = time.monotonic()

        async def run():
            errors = await many(adapter, mine, streaming)
            await closed(adapter, client)
            return errors

        errors = anyio.run(run) if kind == "async" else many_in_threads(adapter, mine, streaming)
        took = time.monotonic() - began
    saw = server.statistics()
    return errors, sum(saw.refused.values()), saw.answered, took


@pytest.mark.parametrize("streaming", [False, True], ids=["plain", "streams"])
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("adapter", ADAPTED, ids=IDS)
def test_200_calls_at_once_over_a_limit_that_binds(adapter, kind, streaming, field):
    if (adapter.aio if kind == "async" else adapter.sync) is None:
        pytest.skip("there is no such client")
    for run in count(1):  # a machine that does other work bunches calls, and its answers come late
        errors, refused, answered, took = measured(adapter, kind, streaming)
        assert errors == []
        if refused <= 2 or run == RUNS:
            break
    assert refused <= 2
    assert answered == CALLS
    subject = f"{field.version(adapter.package)}{', ' if adapter.name else ''}{adapter.name}"
    mode = f"{kind}, {'streams' if streaming else 'plain'}"
    field.row(f"{subject}: {mode}", {"errors": 0, "429s": refused, "seconds": f"{took:.1f}", "runs": run})


@pytest.mark.parametrize("adapter", ADAPTED, ids=IDS)
def test_a_refusal_of_ours_is_the_sdks_own_error_in_its_own_form_and_comes_at_once(adapter):
    limiter = Limiter(requests="60/min")
    limiter.pause(30)

    def judged(caught, began):
        assert time.monotonic() - began < 20  # no SDK waited for it, or sent it again
        error = caught.value
        assert getattr(error, "status_code", getattr(error, "code", None)) == 429
        assert "Not sent: " in adapter.message(error)
        assert 10 < rate_limit_info(error).wait <= 30

    with service() as server:
        if adapter.aio is not None:

            async def run():
                given = adapter.aio(server.base_url)
                client = limited(adapter, given, limiter, max_wait=1)
                for call in (adapter.ask, lambda client: opened(adapter, client)):
                    began = time.monotonic()
                    with pytest.raises(adapter.refusal) as caught:
                        await call(client)
                    judged(caught, began)
                await closed(adapter, given)

            anyio.run(run)
        if adapter.sync is not None:
            client = limited(adapter, adapter.sync(server.base_url), limiter, max_wait=1)
            for call in (adapter.ask_sync, lambda client: list(adapter.stream_sync(client))):
                began = time.monotonic()
                with pytest.raises(adapter.refusal) as caught:
                    call(client)
                judged(caught, began)
    assert server.statistics().admissions == ()


async def opened(adapter, client):
    return await read(await adapter.stream(client))


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


LEFT = {"break": by_break, "return": by_return, "exception": by_exception}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("adapter", ADAPTED, ids=IDS)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_a_stream_that_is_left_gives_its_place_back_without_the_garbage_collector(adapter, how, backend):
    if adapter.aio is None or (backend == "trio" and not adapter.trio):
        pytest.skip("there is no such client")

    async def run():
        given = adapter.aio(server.base_url)
        client = limited(adapter, given, Limiter(places=in_flight(3)), max_wait=60)
        for _ in range(12):
            await LEFT[how](await adapter.stream(client, LONG))
        await closed(adapter, given)

    with service() as server:
        gc.collect()
        gc.disable()
        try:
            anyio.run(run, backend=backend)
        finally:
            gc.enable()


@pytest.mark.parametrize("adapter", ADAPTED, ids=IDS)
def test_a_stream_that_is_left_in_a_thread_gives_its_place_back_without_the_garbage_collector(adapter):
    if adapter.sync is None:
        pytest.skip("there is no such client")
    with service() as server:
        client = limited(adapter, adapter.sync(server.base_url), Limiter(places=in_flight(3)), max_wait=60)
        gc.collect()
        gc.disable()
        try:
            for _ in range(12):
                for _ in adapter.stream_sync(client, LONG):
                    break
        finally:
            gc.enable()


@pytest.mark.parametrize("streaming", [False, True], ids=["plain", "streams"])
@pytest.mark.parametrize("adapter", ADAPTED, ids=IDS)
def test_what_came_out_is_settled_by_usage(adapter, streaming):
    if adapter.aio is None:
        pytest.skip("there is no such client")
    limiter = Limiter(requests="6000/min", output_tokens="60k/day")

    async def run():
        given = adapter.aio(server.base_url)
        client = limited(adapter, given, limiter)
        if streaming:
            await read(await adapter.stream(client))
        else:
            await adapter.ask(client)
        await closed(adapter, given)

    with service() as server:
        anyio.run(run)
    taken = 60_000 - limiter.statistics().limits["output_tokens"].level
    spoke = taken if is_openais_stream_without_usage(adapter, streaming) else USAGE["out"]
    assert taken == pytest.approx(spoke, abs=10)  # and what is kept back of the burst


def is_openais_stream_without_usage(adapter, streaming):
    """It tells only those who ask with `stream_options`."""
    return streaming and adapter.package in {"openai", "groq", "together", "mistralai"}


def test_clients_of_one_key_share_what_they_learn():
    adapter = ADAPTED[0]
    with service() as server:

        async def run():
            given = adapter.aio(server.base_url)
            one, other = limited(adapter, given), limited(adapter, given)
            await adapter.ask(one)
            await adapter.ask(other)
            await closed(adapter, given)
            return limits_of_it(one), limits_of_it(other)

        of_one, of_other = anyio.run(run)
    assert of_one == of_other != {}
    assert threading.active_count() < 50


@pytest.mark.skipif(Field.environment != "anthropic", reason="it is the page of that SDK")
def test_the_page_about_anthropic_prints_what_it_says(capsys):
    ((code, output),) = examples_of("docs/anthropic.md")
    run_example(code, "anthropic.md", {"__name__": "__main__"})
    assert capsys.readouterr().out == output
