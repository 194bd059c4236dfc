"""Streams of events as the one answer that they tell."""

from __future__ import annotations

import json

import pytest

from penstock.llm.failures import Action
from penstock.runner.answers import Answer, judge
from penstock.runner.streams import StreamError, assemble

CHAT = "/v1/chat/completions"


def stream(*events, done=True, end="\n"):
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}{end}{end}" for event in events]
    return "".join([*lines, f"data: [DONE]{end}{end}" if done else ""]).encode()


def chunk(delta, finish=None, index=0, **more):
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def answered(path, content):
    found = judge(path, 200, {"content-type": "text/event-stream"}, content)
    assert isinstance(found, Answer), found
    return json.loads(found.body)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_chat_is_one_message_with_its_usage(end):
    content = b": keep-alive" + end.encode() * 2 + stream(
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hé"}),
        chunk({"content": "llo\n\u2028", "role": None}),
        chunk({}, "stop"),
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": {"total_tokens": 9}},
        end=end,
    )  # fmt: skip
    assert answered(CHAT, content) == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Héllo\n\u2028", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"total_tokens": 9},
    }


def test_choices_tools_and_logprobs_are_joined_by_their_index():
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}
    content = stream(
        chunk({"content": "b"}, index=1),
        chunk({"role": "assistant", "tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "u", "function": {"name": "g", "arguments": "{}"}}]}),
        chunk({}, "tool_calls"),
        chunk({"content": "c"}, "stop", index=1),
    )
    first, second = answered(CHAT, content)["choices"]
    assert [each["function"] for each in first["message"]["tool_calls"]] == [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert second["message"]["content"] == "bc"
    logged = stream(
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [1]}}]},
        {"choices": [{"index": 0, "delta": {"content": "b"}, "logprobs": {"content": [2]}, "finish_reason": "stop"}]},
    )
    assert answered(CHAT, logged)["choices"][0]["logprobs"] == {"content": [1, 2]}


def test_a_completion_a_response_and_a_message_are_read_too():
    texts = [{"object": "text_completion", "choices": [{"index": 0, "text": text}]} for text in ("a", "b")]
    assert answered("/v1/completions", stream(*texts))["choices"] == [{"index": 0, "text": "ab"}]
    response = {"id": "r", "status": "completed", "output": [{"type": "message"}], "usage": {"output_tokens": 3}}
    events = [
        {"type": "response.created", "response": {"id": "r"}},
        {"type": "response.completed", "response": response},
    ]
    assert answered("/v1/responses", stream(*events, done=False)) == response
    message = stream(
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [], "usage": {"input_tokens": 4}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
        done=False,
    )  # fmt: skip
    assert answered("/v1/messages", message) == {
        "id": "m",
        "role": "assistant",
        "content": [{"type": "text", "text": "Hi!"}, {"type": "tool_use", "name": "f", "input": {"a": 1}}],
        "usage": {"input_tokens": 4, "output_tokens": 5},
        "stop_reason": "tool_use",
    }


@pytest.mark.parametrize(("text", "given"), [('{"a": "b', '{"a": "b'), ('{"a": NaN}', {"a": None}), ("", {})])
def test_a_tool_s_input_that_is_no_json_costs_no_answer(text, given):
    """As where the answer ended at its `max_tokens`: it is kept as text, and not asked for, and paid for, again."""
    message = stream(
        {"type": "message_start", "message": {"id": "m", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": text}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
        done=False,
    )
    said = answered("/v1/messages", message)
    assert (said["content"][0]["input"], said["stop_reason"]) == (given, "max_tokens")


def test_a_stream_that_ends_too_early_is_asked_for_again():
    whole = stream(chunk({"content": "a"}), chunk({"content": "b"}, "stop"))
    for length in range(6, len(whole)):
        found = judge(CHAT, 200, {}, whole[:length])
        if isinstance(found, Answer):
            assert json.loads(found.body)["choices"][0]["message"]["content"] == "ab"
        else:
            assert found.action is Action.BACK_OFF
    with pytest.raises(StreamError):
        assemble(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("event", "action", "code"),
    [
        ({"error": {"message": "Please try again in 2s", "code": "rate_limit_exceeded"}}, Action.WAIT, "rate_limit_exceeded"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Action.BACK_OFF, "overloaded_error"),
    ],
)  # fmt: skip
def test_an_error_inside_a_stream_is_an_error(event, action, code):
    found = judge(CHAT, 200, {}, stream(chunk({"content": "a"}), event))
    assert (found.action, found.code) == (action, code)


@pytest.mark.parametrize(
    "content",
    [b"data: {\n\n", b"data: 5\n\n", b": only a comment\n\n", b"data: \xff\n\n", b"data: " + b"[" * 99_999, b"event: x\n\n",
     b'data: {"choices":[5]}\n\n', b'data: {"choices":[{"delta":5,"index":[]}]}\n\ndata: [DONE]\n\n', b'data: {"type":"message_delta"}\n\n',
     b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":5}]}},{"delta":{"tool_calls":[{"index":0,"function":{"a":1}}]}}]}\n\n',
     b'data: {"type":"content_block_delta","delta":{"text":5}}\n\n'],
)  # fmt: skip
def test_no_stream_raises(content):
    judge(CHAT, 200, {}, content)
