"""The input of every service counts, and no body breaks the count."""

from __future__ import annotations

import pytest

from penstock.llm.media import PAGE_TOKENS
from penstock.llm.tokens import IMAGE_TOKENS, by_bytes, by_tiktoken, with_output_added, with_output_if_larger

FORTY = "x" * 40  # ten tokens by the rule

ROWS = {
    "anthropic's system": ("/v1/messages", {"system": FORTY, "messages": []}, 10),
    "anthropic's system in blocks": ("/v1/messages", {"system": [{"type": "text", "text": FORTY}], "messages": []}, 10),
    "anthropic's image": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "A" * 1000}}]}]},
        IMAGE_TOKENS,
    ),
    "anthropic's tool input": (
        "/v1/messages",
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"q": "x" * 32}}]}]},
        10,
    ),
    "anthropic's tool result": (
        "/v1/messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": FORTY}]}]}
            ]
        },
        10,
    ),
    "gemini's contents": (
        "/v1beta/models/g:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": FORTY}]}], "systemInstruction": {"parts": [{"text": FORTY}]}},
        20,
    ),
    "gemini's image": (
        "/v1beta/models/g:generateContent",
        {"contents": [{"parts": [{"inlineData": {"data": "A"}}]}]},
        IMAGE_TOKENS,
    ),
    "cohere's message": ("/v1/chat", {"message": FORTY, "preamble": FORTY, "chat_history": [{"message": FORTY}]}, 30),
    "cohere's texts": ("/v1/embed", {"texts": [FORTY, FORTY]}, 20),
    "cohere's images": (
        "/v2/embed",
        {"images": ["data:image/png;base64,A", "B"], "texts": [FORTY]},
        2 * IMAGE_TOKENS + 10,
    ),
    "ollama's images": ("/api/chat", {"messages": [{"content": FORTY, "images": ["A"]}]}, IMAGE_TOKENS + 10),
    "ollama's images beside a prompt": ("/api/generate", {"prompt": FORTY, "images": ["A"]}, IMAGE_TOKENS + 10),
    "what anthropic is asked to count": ("/v1/messages/count_tokens", {"messages": [{"content": FORTY}]}, 0),
    "what gemini is asked to count": ("/v1beta/models/g:countTokens", {"contents": [{"parts": [{"text": FORTY}]}]}, 0),
    "what openai is asked to count": ("/v1/responses/input_tokens", {"input": FORTY}, 0),
    "gemini's embedding": ("/v1beta/models/g:embedContent", {"content": {"parts": [{"text": FORTY}]}}, 10),
    "gemini's embeddings": (
        "/v1beta/models/g:batchEmbedContents",
        {"requests": [{"content": {"parts": [{"text": FORTY}]}}] * 2},
        20,
    ),
    "what is to be ranked": ("/v2/rerank", {"query": FORTY, "documents": [FORTY, {"text": FORTY}]}, 30),
    "cohere's documents": ("/v2/chat", {"documents": [{"id": "a", "data": {"text": FORTY}}, FORTY]}, 20),
    "bedrock's tools": (
        "/model/m/converse",
        {
            "system": [{"text": FORTY}],
            "messages": [
                {"role": "assistant", "content": [{"toolUse": {"name": "f", "input": {"q": "x" * 32}}}]},
                {
                    "role": "user",
                    "content": [{"toolResult": {"content": [{"text": FORTY}, {"json": {"q": "x" * 32}}]}}],
                },
            ],
        },
        40,
    ),
    "bedrock's image": (
        "/model/m/converse",
        {"messages": [{"content": [{"image": {"format": "png", "source": {"bytes": "A" * 100}}}]}]},
        IMAGE_TOKENS,
    ),
    "bedrock's document": (
        "/model/m/converse",
        {"messages": [{"content": [{"document": {"name": "a", "source": {"bytes": "A" * 100}}}]}]},
        PAGE_TOKENS,
    ),
    "bedrock's text": ("/model/amazon.titan-text/invoke", {"inputText": FORTY}, 10),
    "what is to be compared": ("/score", {"text_1": FORTY, "text_2": [FORTY, FORTY]}, 30),
    "a run's own messages": (
        "/v1/threads/t/runs",
        {"instructions": FORTY, "additional_messages": [{"role": "user", "content": FORTY}]},
        20,
    ),
    "tokens as numbers": ("/v1/embeddings", {"input": [[1, 2, 3], [4, True]]}, 4),
    "a tool of one's own": (
        "/v1/messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"input": FORTY}}]}]},
        10,
    ),
    "a legacy function call": (
        "/v1/messages",
        {"messages": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": FORTY}}]},
        10,
    ),
}


@pytest.mark.parametrize(("path", "body", "tokens"), ROWS.values(), ids=ROWS)
def test_the_input_of_every_service_counts(path, body, tokens):
    assert by_bytes(path, body)["tokens"] == tokens


def nested(depth):
    body = {"text": "x"}
    for _ in range(depth):
        body = {"content": [body]}
    return {"messages": [body]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"type": []}]},
        {"messages": [{"type": {}, "content": [{"type": ["x"]}]}]},
        {"messages": [{"content": "\ud800"}]},
        {
            "messages": {"role": 5},
            "input": 5,
            "prompt": True,
            "system": None,
            "contents": "x",
            "message": [1, None, 2.5],
        },
        {
            "messages": [
                {"tool_calls": [None, 5, {"function": []}, {"function": {"arguments": 5}}], "function_call": []}
            ]
        },
        {"max_tokens": "many", "n": -1, "messages": []},
        {"max_tokens": 10**400, "n": 10**400, "messages": []},
        {"generationConfig": [], "model": ["m"]},
        nested(480),
        nested(100_000),
        None,
        {},
    ],
    ids=range(12),
)
@pytest.mark.filterwarnings("ignore:counting tokens as bytes")
@pytest.mark.parametrize("rule", [by_bytes, by_tiktoken, with_output_added, with_output_if_larger])
def test_no_body_breaks_the_count(rule, body):
    for path in ("", "/v1/chat/completions", "/v1/images/generations"):
        assert rule(path, body)["tokens"] >= 0


@pytest.mark.parametrize(
    ("body", "added", "larger"),
    [
        ({}, 16, 10),
        ({"max_tokens": 100}, 100, 100),
        ({"max_completion_tokens": 100, "n": 3}, 300, 100),
        ({"max_tokens": 5}, 5, 10),
        ({"max_tokens": 100.0, "n": True}, 100, 100),
        ({"max_tokens": float("nan")}, 16, 10),
        ({"inferenceConfig": {"maxTokens": 100}}, 100, 100),
        ({"options": {"num_predict": 100}}, 100, 100),
        ({"generationConfig": {"maxOutputTokens": 100, "candidateCount": 2}}, 200, 100),
    ],
)
def test_output_that_may_come_is_charged_where_services_do(body, added, larger):
    body = {**body, "messages": [{"role": "user", "content": "x" * 24}]}  # 6 + 4
    assert with_output_added("/v1/chat/completions", body)["tokens"] == 10 + added
    assert with_output_if_larger("/v1/chat/completions", body)["tokens"] == larger
