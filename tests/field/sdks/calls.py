"""What SDKs can ask beside chat: each call, what a service answers to it, and how many tokens that used.

`CALLS[environment]()` makes the rows of an environment: (name, client of a base URL, call, answer, tokens). Of clients
that are made alike the calls differ; an answer is JSON, or lines of a stream.
"""

from __future__ import annotations

import json
from typing import Any

HELLO = [{"role": "user", "content": "hello"}]
USED = {"prompt_tokens": 70, "completion_tokens": 7, "total_tokens": 77}
READ = {"prompt_tokens": 77, "total_tokens": 77}
SAID: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": "m", "created": 1, "usage": USED}
SAID |= {
    "choices": [{"index": 0, "finish_reason": "stop", "text": "hi", "message": {"role": "assistant", "content": "hi"}}]
}
EMBEDDED = {
    "id": "x",
    "object": "list",
    "model": "m",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
}


def together():
    import together as sdk

    def make(url):
        return sdk.Together(base_url=url, api_key="key")

    ranked = {"object": "rerank", "id": "x", "model": "m", "results": [], "usage": {**READ, "completion_tokens": 0}}
    yield "a completion", make, lambda to: to.completions.create(model="m", prompt="hello"), SAID, 77
    yield "a ranking", make, lambda to: to.rerank.create(model="m", query="a", documents=["b"]), ranked, 77
    yield (
        "an embedding",
        make,
        lambda to: to.embeddings.create(model="m", input=["hello"]),
        {**EMBEDDED, "usage": READ},
        77,
    )


def cohere():
    import cohere as sdk

    def first(url):
        return sdk.Client(base_url=url, api_key="key")

    def second(url):
        return sdk.ClientV2(base_url=url, api_key="key")

    units = {"billed_units": {"input_tokens": 70, "output_tokens": 7}}
    read = {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 77}}
    text = {"text": "hi", "generation_id": "g", "meta": units}
    ended = {"event_type": "stream-end", "is_finished": True, "finish_reason": "COMPLETE", "response": text}
    stream = [json.dumps({"event_type": "text-generation", "text": "hi", "is_finished": False}), json.dumps(ended)]
    by_type = {"response_type": "embeddings_by_type", "id": "x", "embeddings": {"float": [[0.5]]}, "meta": read}
    floats = {"response_type": "embeddings_floats", "id": "x", "embeddings": [[0.5]], "texts": ["a"], "meta": read}
    yield "a chat of the first API, which names no model", first, lambda to: to.chat(message="hello"), text, 77
    yield "a stream of the first API", first, lambda to: list(to.chat_stream(message="hello")), stream, 77
    yield "an embedding of the first API", first, lambda to: to.embed(texts=["hello"]), floats, 77
    yield (
        "an embedding",
        second,
        lambda to: to.embed(model="m", input_type="search_query", embedding_types=["float"], texts=["hello"]),
        by_type,
        77,
    )
    yield (
        "a ranking, whose answer tells no tokens",
        second,
        lambda to: to.rerank(model="m", query="x" * 40, documents=["y" * 40]),
        {"id": "x", "results": [], "meta": {"billed_units": {"search_units": 1}}},
        20,
    )


def mistralai():
    from mistralai.client import Mistral

    def make(url):
        return Mistral(server_url=url, api_key="key")

    conversation = {"object": "conversation.response", "conversation_id": "c", "outputs": [], "usage": USED}
    read = {"pages": [], "model": "m", "usage_info": {"pages_processed": 1, "doc_size_bytes": 9}}
    document = {"type": "document_url", "document_url": "https://any.test/a.pdf"}
    yield "what stands between", make, lambda to: to.fim.complete(model="m", prompt="a", suffix="b"), SAID, 77
    yield "an agent", make, lambda to: to.agents.complete(agent_id="a", messages=HELLO), SAID, 77
    yield "a conversation", make, lambda to: to.beta.conversations.start(model="m", inputs="hi"), conversation, 77
    yield (
        "what follows in it",
        make,
        lambda to: to.beta.conversations.append(conversation_id="c", inputs="hello"),
        conversation,
        77,
    )
    yield (
        "an embedding",
        make,
        lambda to: to.embeddings.create(model="m", inputs=["hello"]),
        {**EMBEDDED, "usage": {**READ, "completion_tokens": 0}},
        77,
    )
    yield (
        "a document, whose pages are no tokens",
        make,
        lambda to: to.ocr.process(model="m", document=document),
        read,
        0,
    )


def google_genai():
    from google import genai
    from google.genai import types

    def make(url):
        return genai.Client(api_key="key", http_options={"base_url": url})

    usage = {"promptTokenCount": 70, "candidatesTokenCount": 5, "thoughtsTokenCount": 2, "totalTokenCount": 77}
    said = {"candidates": [{"content": {"parts": [{"text": "hi"}], "role": "model"}}], "usageMetadata": usage}
    parts = [types.Part(text="hello"), types.Part.from_bytes(data=b"any", mime_type="image/png")]
    config = types.GenerateContentConfig(system_instruction="be brief", max_output_tokens=9)
    yield (
        "parts and instructions",
        make,
        lambda to: to.models.generate_content(model="m", contents=parts, config=config),
        said,
        77,
    )
    yield "a chat", make, lambda to: to.chats.create(model="m").send_message("hello"), said, 77
    yield (
        "an embedding, whose answer tells no tokens",
        make,
        lambda to: to.models.embed_content(model="m", contents="x" * 80),
        {"embeddings": [{"values": [0.5]}]},
        20,
    )
    yield "a count", make, lambda to: to.models.count_tokens(model="m", contents="hello"), {"totalTokens": 5}, 0


def ollama():
    import ollama as sdk

    def make(url):
        return sdk.Client(host=url)

    told = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "prompt_eval_count": 70, "eval_count": 7}
    piece = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": False, "response": "h"}
    stream = [json.dumps(piece)] * 3 + [json.dumps({**told, "response": ""})]
    embedded = {"model": "m", "embeddings": [[0.5]], "prompt_eval_count": 77}
    yield (
        "a prompt",
        make,
        lambda to: to.generate(model="m", prompt="a", images=[b"any"]),
        {**told, "response": "hi"},
        77,
    )
    yield "a stream", make, lambda to: list(to.generate(model="m", prompt="hello", stream=True)), stream, 77
    yield "an embedding", make, lambda to: to.embed(model="m", input="hello"), embedded, 77


CALLS = {
    "together": together,
    "cohere": cohere,
    "mistralai": mistralai,
    "google-genai": google_genai,
    "ollama": ollama,
}
