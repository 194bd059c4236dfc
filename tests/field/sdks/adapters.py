"""How each SDK is made, called, and left: the only place that knows their names.

An `Adapter` has plain and streaming calls, sync and async, of one SDK. `ADAPTERS[environment]()` makes those of an
environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROMPT = [{"role": "user", "content": "What is a penstock?"}]
LONG = [{"role": "user", "content": "a long answer"}]


@dataclass
class Adapter:
    """Clients of one SDK, and how they are asked.

    Attributes:
        package: Whose version the table shows.
        refusal: The SDK's own type for a rate limit; and what it says, as a function of the error.
        aio, sync: Make a client for a base URL; None: there is no such client.
        ask, ask_sync: One plain call, which returns the text of its answer.
        stream, stream_sync: Open a stream: an iterator of anything, read to its end or left.
        trio: Whether the async client runs under trio.
    """

    package: str
    refusal: type
    aio: Callable[[str], Any] | None = None
    sync: Callable[[str], Any] | None = None
    ask: Any = None
    stream: Any = None
    ask_sync: Any = None
    stream_sync: Any = None
    trio: bool = False
    name: str = ""
    message: Callable[[Any], str] = str
    close: Callable[[Any], Any] = field(default=lambda client: client.close())


def _stainless(package, module, aio, sync, model="gpt-4o", **options):
    """SDKs made by the same generator: OpenAI's and those that look like it."""

    async def ask(client):
        reply = await client.chat.completions.create(model=model, messages=PROMPT)
        return reply.choices[0].message.content

    async def stream(client, messages=PROMPT):
        return await client.chat.completions.create(model=model, messages=messages, stream=True)

    def ask_sync(client):
        return client.chat.completions.create(model=model, messages=PROMPT).choices[0].message.content

    def stream_sync(client, messages=PROMPT):
        return client.chat.completions.create(model=model, messages=messages, stream=True)

    parts = {"ask": ask, "stream": stream, "ask_sync": ask_sync, "stream_sync": stream_sync}
    return Adapter(package, module.RateLimitError, aio, sync, trio=True, **{**parts, **options})


def openai():
    import openai as sdk

    key = {"api_key": "key"}
    azure = {"api_key": "key", "api_version": "2024-10-21"}
    yield _stainless(
        "openai", sdk, lambda url: sdk.AsyncOpenAI(base_url=url, **key), lambda url: sdk.OpenAI(base_url=url, **key)
    )
    yield _stainless(
        "openai",
        sdk,
        lambda url: sdk.AsyncAzureOpenAI(azure_endpoint=url.removesuffix("/v1"), **azure),
        lambda url: sdk.AzureOpenAI(azure_endpoint=url.removesuffix("/v1"), **azure),
        name="Azure's clients",
    )
    if hasattr(sdk, "DefaultAioHttpClient"):
        try:
            sdk.DefaultAioHttpClient()
        except RuntimeError:  # without the extra
            return
        aio = _stainless(
            "openai",
            sdk,
            lambda url: sdk.AsyncOpenAI(base_url=url, http_client=sdk.DefaultAioHttpClient(), **key),
            None,
            name="over aiohttp",
        )
        aio.trio = False
        yield aio


def anthropic():
    import anthropic as sdk

    asked = {"model": "claude-x", "max_tokens": 100}

    async def ask(client):
        return (await client.messages.create(messages=PROMPT, **asked)).content[0].text

    async def stream(client, messages=PROMPT):
        return await client.messages.create(messages=messages, stream=True, **asked)

    def ask_sync(client):
        return client.messages.create(messages=PROMPT, **asked).content[0].text

    def stream_sync(client, messages=PROMPT):
        return client.messages.create(messages=messages, stream=True, **asked)

    yield Adapter(
        "anthropic",
        sdk.RateLimitError,
        lambda url: sdk.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key="key"),
        lambda url: sdk.Anthropic(base_url=url.removesuffix("/v1"), api_key="key"),
        ask,
        stream,
        ask_sync,
        stream_sync,
        trio=True,
        message=lambda error: error.body["error"]["message"],
    )


def groq():
    import groq as sdk

    base = "/v1"
    yield _stainless(
        "groq",
        sdk,
        lambda url: sdk.AsyncGroq(base_url=url.removesuffix(base), api_key="key"),
        lambda url: sdk.Groq(base_url=url.removesuffix(base), api_key="key"),
    )


def together():
    import together as sdk

    yield _stainless(
        "together",
        sdk,
        lambda url: sdk.AsyncTogether(base_url=url.removesuffix("/v1"), api_key="key"),
        lambda url: sdk.Together(base_url=url.removesuffix("/v1"), api_key="key"),
    )


def cohere():
    import cohere as sdk

    async def ask(client):
        return (await client.chat(model="command-x", messages=PROMPT)).message.content[0].text

    async def stream(client, messages=PROMPT):
        return client.chat_stream(model="command-x", messages=messages)

    def ask_sync(client):
        return client.chat(model="command-x", messages=PROMPT).message.content[0].text

    def stream_sync(client, messages=PROMPT):
        return client.chat_stream(model="command-x", messages=messages)

    yield Adapter(
        "cohere",
        sdk.TooManyRequestsError,
        lambda url: sdk.AsyncClientV2(base_url=url.removesuffix("/v1"), api_key="key"),
        lambda url: sdk.ClientV2(base_url=url.removesuffix("/v1"), api_key="key"),
        ask,
        stream,
        ask_sync,
        stream_sync,
        message=lambda error: error.body["message"],
        close=lambda client: client._client_wrapper.httpx_client.httpx_client.aclose(),
    )


def mistralai():
    from mistralai.client import Mistral, errors

    def make(url):
        return Mistral(server_url=url.removesuffix("/v1"), api_key="key")

    async def ask(client):
        return (await client.chat.complete_async(model="mistral-x", messages=PROMPT)).choices[0].message.content

    async def stream(client, messages=PROMPT):
        return await client.chat.stream_async(model="mistral-x", messages=messages)

    def ask_sync(client):
        return client.chat.complete(model="mistral-x", messages=PROMPT).choices[0].message.content

    def stream_sync(client, messages=PROMPT):
        return client.chat.stream(model="mistral-x", messages=messages)

    yield Adapter(
        "mistralai",
        errors.SDKError,
        make,
        make,
        ask,
        stream,
        ask_sync,
        stream_sync,
        close=lambda client: client.sdk_configuration.async_client.aclose(),
    )


def google_genai():
    from google import genai
    from google.genai import errors

    def make(url):
        return genai.Client(api_key="key", http_options={"base_url": url.removesuffix("/v1")})

    async def ask(client):
        return (await client.aio.models.generate_content(model="gemini-x", contents="What is a penstock?")).text

    async def stream(client, messages=PROMPT):
        contents = messages[0]["content"]
        return await client.aio.models.generate_content_stream(model="gemini-x", contents=contents)

    def ask_sync(client):
        return client.models.generate_content(model="gemini-x", contents="What is a penstock?").text

    def stream_sync(client, messages=PROMPT):
        return client.models.generate_content_stream(model="gemini-x", contents=messages[0]["content"])

    yield Adapter(
        "google-genai",
        errors.ClientError,
        make,
        make,
        ask,
        stream,
        ask_sync,
        stream_sync,
        message=lambda error: error.message,
        close=lambda client: client.aio.aclose(),
    )


def ollama():
    import ollama as sdk

    async def ask(client):
        return (await client.chat(model="llama", messages=PROMPT)).message.content

    async def stream(client, messages=PROMPT):
        return await client.chat(model="llama", messages=messages, stream=True)

    def ask_sync(client):
        return client.chat(model="llama", messages=PROMPT).message.content

    def stream_sync(client, messages=PROMPT):
        return client.chat(model="llama", messages=messages, stream=True)

    yield Adapter(
        "ollama",
        sdk.ResponseError,
        lambda url: sdk.AsyncClient(host=url.removesuffix("/v1")),
        lambda url: sdk.Client(host=url.removesuffix("/v1")),
        ask,
        stream,
        ask_sync,
        stream_sync,
        message=lambda error: error.error,
    )


def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it looks for prices in the network
    import litellm as sdk
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler, HTTPHandler

    class Remembered:
        """A handler and the address that it is for, which litellm is told in each call."""

        def __init__(self, handler, url):
            self.handler, self.url = handler, url

    def asked(client, messages):
        options = {"api_base": f"{client.url}/messages", "api_key": "key", "client": client.handler, "max_tokens": 100}
        return {"model": "anthropic/claude-x", "messages": messages, **options}

    async def ask(client):
        return (await sdk.acompletion(**asked(client, PROMPT))).choices[0].message.content

    async def stream(client, messages=PROMPT):
        return await sdk.acompletion(stream=True, **asked(client, messages))

    def ask_sync(client):
        return sdk.completion(**asked(client, PROMPT)).choices[0].message.content

    def stream_sync(client, messages=PROMPT):
        return sdk.completion(stream=True, **asked(client, messages))

    yield Adapter(
        "litellm",
        sdk.RateLimitError,
        lambda url: Remembered(AsyncHTTPHandler(), url),
        lambda url: Remembered(HTTPHandler(), url),
        ask,
        stream,
        ask_sync,
        stream_sync,
        name="its handlers",
        close=lambda client: client.handler.close(),
    )


ADAPTERS = {
    "openai1": openai,
    "openai2": openai,
    "openai3": openai,
    "anthropic": anthropic,
    "groq": groq,
    "together": together,
    "cohere": cohere,
    "mistralai": mistralai,
    "google-genai": google_genai,
    "ollama": ollama,
    "litellm": litellm,
}
