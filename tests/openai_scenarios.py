"""What a program does with a limited client of the openai SDK; run by test_openai_sdk.py under each version of it.

    python openai_scenarios.py '{"keeps": "http://…/v1", …}'

Each scenario has a server of its own at its address. Prints what happened to each as one JSON object. It imports
nothing that the environment of the other SDK lacks, so it is no test module.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import sys
import time
import urllib.request

import openai

from penstock import Limiter, Retry, in_flight
from penstock.openai import limit_client, retry_on

HELLO = [{"role": "user", "content": "hello"}]


_made = []


def client_of(url, kind=openai.AsyncOpenAI, **options):
    client = kind(api_key="key", base_url=url, **options)
    _made.append(client)
    return client


async def close_all():
    """Close what a scenario made.

    The SDK's clients that are collected with open connections close them a moment later, by descriptors that others
    have by then: the requests on those are never answered.
    """
    while _made:
        closing = _made.pop().close()
        if closing is not None:
            await closing


async def chat(client, model="gpt-4o", **options):
    return await client.chat.completions.create(model=model, messages=HELLO, **options)


async def keeps(url):
    original = client_of(url, timeout=77, max_retries=5, default_headers={"x": "y"})
    limiter = Limiter(requests="1200/min burst 20", tokens="600k/min")
    client = limit_client(original, limiter)

    async def ask(client, chats, responses, embeddings):
        calls = [chat(client) for _ in range(chats)]
        calls += [client.responses.create(model="gpt-4o", input="hello") for _ in range(responses)]
        calls += [client.embeddings.create(model="text-embedding-3-small", input=["a", "b"]) for _ in range(embeddings)]
        await asyncio.gather(*calls)

    await ask(original, 1, 1, 1)  # the SDK takes a second to make up its mind about each endpoint
    await asyncio.sleep(0.3)  # until the server has forgotten it
    await ask(client, 30, 6, 4)
    kept = (client.timeout, client.max_retries, client.api_key, str(client.base_url), client.default_headers["x"])
    granted = limiter.statistics().granted
    await original.models.list()
    return {
        "same type": type(client) is type(original),
        "kept": kept == (77, 5, "key", str(original.base_url), "y"),
        "granted": granted,
        "granted after the original's": limiter.statistics().granted,
    }


async def auto(url):
    client = limit_client(client_of(url), "auto")
    await asyncio.gather(*(chat(client) for _ in range(25)))


async def pauses(url):
    client = limit_client(client_of(url), Limiter(requests="3000/min burst 2"))
    await asyncio.gather(*(chat(client) for _ in range(10)))
    fault = urllib.request.Request(
        url.removesuffix("/v1") + "/simulator/faults", b'{"fault": "slow_down"}', method="POST"
    )
    await asyncio.to_thread(urllib.request.urlopen, fault)
    await asyncio.gather(*(chat(client) for _ in range(10)))


async def quota(url):
    client = limit_client(client_of(url, max_retries=5), Limiter(requests="600/min"))
    try:
        await chat(client)
    except openai.RateLimitError as error:
        return {"code": error.code, "retry_on": retry_on(error)}


async def streams(url):
    limiter = Limiter(requests="600/min", calls=in_flight(1))
    client = limit_client(client_of(url), limiter)
    stream = await chat(client, stream=True)
    during = limiter.statistics().in_flight
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    after = limiter.statistics().in_flight
    async with await chat(client, stream=True) as stream:
        async for _ in stream:
            break  # left early
    await chat(client)
    return {"during": during, "after": after, "text": bool(text)}


async def too_large(url):
    client = limit_client(client_of(url), Limiter(requests="600/min", tokens="5/min"))
    try:
        await chat(client)
    except openai.BadRequestError as error:
        return {"code": error.code, "message": error.message, "retry_on": retry_on(error)}


async def max_wait(url):
    client = limit_client(client_of(url), Limiter(requests="2/min burst 1"), max_wait=0.1)
    await chat(client)
    began = time.monotonic()
    try:
        await chat(client)
    except openai.RateLimitError as error:
        told = {"code": error.code, "seconds": time.monotonic() - began, "retry_on": retry_on(error)}
    client = limit_client(client_of(url), Limiter(requests="120/min burst 1"), max_wait=0.1)
    await chat(client)
    await Retry(on=retry_on, attempts=20).call(chat, client)
    return told


async def retries(url):
    limiter = Limiter(requests="600/min", tokens="60k/min")
    await chat(limit_client(client_of(url), limiter))
    return {"granted": limiter.statistics().granted}


async def nobody_there(url):
    limiter = Limiter(requests="600/min", tokens="60k/min")
    client = limit_client(client_of("http://127.0.0.1:9/v1", max_retries=0), limiter)
    try:
        await chat(client)
    except openai.APIConnectionError as error:
        levels = {name: limit.level for name, limit in limiter.statistics().limits.items()}
        return {"retry_on": retry_on(error), "levels": levels}


async def published(url):
    client = limit_client(client_of(url), tier="tier-3")
    answer = await chat(client, "gpt-4o-mini-2024-07-18")
    try:
        await chat(client, "gpt-99")
    except openai.BadRequestError as error:
        return {"code": error.code, "answered": bool(answer.choices)}


async def collected(url):
    original = client_of(url, max_retries=0)
    await chat(original)
    client = limit_client(original, Limiter(requests="600/min"))
    asked = asyncio.create_task(chat(original))
    await asyncio.sleep(0.2)  # it is on its way
    del client
    gc.collect()
    (answer,) = await asyncio.gather(asked, return_exceptions=True)
    return {"answered": not isinstance(answer, Exception)}


async def in_threads(url):
    limiter = Limiter(requests="600/min", calls=in_flight(2))
    client = limit_client(client_of(url, openai.OpenAI), limiter)

    def ask():
        with client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True) as stream:
            return bool(list(stream))

    answers = await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(6)))
    return {"answers": answers, "in_flight": limiter.statistics().in_flight}


async def other_http_clients(url):
    """The HTTP client that the SDK would make itself, as one gives it proxies or certificates."""
    told = {}
    for kind, http in ((openai.AsyncOpenAI, "DefaultAsyncHttpxClient"), (openai.OpenAI, "DefaultHttpxClient")):
        limiter = Limiter(requests="600/min")
        client = limit_client(client_of(url, kind), limiter)
        for change in ("copy", "with_options"):
            changed = getattr(client, change)(http_client=getattr(openai, http)(), timeout=30)
            again = changed.with_options(http_client=changed.copy(http_client=getattr(openai, http)())._client)
            for each in (changed, again):
                _made.append(each)
                await (chat(each) if kind is openai.AsyncOpenAI else asyncio.to_thread(ask_in_thread, each))
        told[kind.__name__] = limiter.statistics().granted
    return told


def ask_in_thread(client):
    return client.chat.completions.create(model="gpt-4o", messages=HELLO)


async def azure(url):
    limiter = Limiter(requests="600/min", tokens="60k/min")
    original = openai.AsyncAzureOpenAI(api_key="key", api_version="1", azure_endpoint=url, max_retries=0)
    _made.append(original)
    client = limit_client(original, limiter)
    try:
        await chat(client, "deployment")
    except openai.NotFoundError:  # the simulator has no such path; it is charged all the same
        told = {"same type": type(client) is type(original), "granted": limiter.statistics().granted}
    original = openai.AsyncAzureOpenAI(
        api_key="key", api_version="1", azure_endpoint=url, azure_deployment="mine", max_retries=0
    )
    _made.append(original)
    paths = []
    for each in (original, limit_client(original, limiter)):
        try:
            await each.files.list()
        except openai.NotFoundError as error:
            paths.append(error.request.url.path)
    return {**told, "same path": paths[0] == paths[1]}


async def main():
    results = {"version": openai.__version__}
    for name, url in json.loads(sys.argv[1]).items():
        began = time.monotonic()
        results[name] = await globals()[name](url)
        await close_all()
        sys.stderr.write(f"{name}: {time.monotonic() - began:.1f} s\n")
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # whoever waits for ever says where
    asyncio.run(main())
