"""What is an answer and what is not, told from a status, headers and bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.llm.failures import Action, Verdict
from penstock.runner.answers import Answer, judge
from penstock.runner.batch import answers as batch_answers

CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"
GOOD = b'{"choices":[{"message":{"content":"yes"}}]}'


def verdict(path, status, content, headers=None):
    said = judge(path, status, headers or {}, content if isinstance(content, bytes) else json.dumps(content).encode())
    assert isinstance(said, Verdict), said
    return said


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (CHAT, GOOD),
        (CHAT, b'{"error":null,"choices":[{"message":{"content":null},"error":null}]}'),
        (CHAT, b"\n\n  " + GOOD + b"\n"),
        (EMBEDDINGS, b'{"data":[{"embedding":[0.1]}]}'),
        (RESPONSES, b'{"status":"completed","error":null,"output":[]}'),
        (RESPONSES, b'{"status":"incomplete","output":[]}'),
        ("/v1/moderations", b'{"results":[]}'),
        ("/v1/rerank?x=1", b"[]"),
    ],
)
def test_an_answer_is_kept_as_it_is(path, content):
    assert judge(path, 200, {}, content) == Answer(content.strip())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_an_answer_is_written_as_utf_8_whatever_it_came_as(encoding):
    """A byte order mark inside a line of results makes all of that line unreadable."""
    said = '{"choices": [{"message": {"content": "naïve"}}]}'
    assert judge(CHAT, 200, {}, said.encode(encoding)) == Answer(said.encode())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"choices": [{"index": 0, "message": null}]}'),
        (CHAT, b'{"choices": [null]}'),
        (CHAT, b'{"choices": [{}, {"message": null}]}'),
        ("/v1/embeddings", b'{"data": [{"index": 0, "embedding": null}]}'),
        ("/v1/embeddings", b'{"data": [{"index": 0, "embedding": []}]}'),
    ],
)
def test_a_choice_that_is_nothing_is_no_answer(path, body):
    verdict = judge(path, 200, {}, body)
    assert (verdict.action, verdict.code) == (Action.BACK_OFF, "empty_answer")


def test_one_choice_of_two_that_is_there_is_an_answer():
    """It was paid for."""
    body = b'{"choices": [{"message": null}, {"message": {"content": "x"}}]}'
    assert judge(CHAT, 200, {}, body) == Answer(body)


def test_an_answer_is_on_one_line_whatever_the_server_wrote():
    """Nothing of its numbers and words is changed."""
    said = judge(CHAT, 200, {}, b'{\r\n "choices": [\n{"n": 1e999, "t": "a\xe2\x80\xa8b"}]}')
    assert said == Answer(b'{   "choices": [ {"n": 1e999, "t": "a\\u2028b"}]}')


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"-" + b"9" * 5_000, b"9" * 100_000])
def test_a_number_that_no_integer_and_no_float_can_be_costs_no_answer(number):
    """As it came, in a stream, and in a file of answers, where null stands for what cannot be written again."""
    body = b'{"choices":[{"message":{"content":"yes"}}],"usage":{"total_tokens":%s}}' % number
    assert judge(CHAT, 200, {}, body) == Answer(body)
    chunk = b'{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}'
    usage = b'{"choices":[],"usage":{"total_tokens":%s}}' % number
    said = judge(CHAT, 200, {}, b"data: %s\n\ndata: %s\n\ndata: [DONE]\n\n" % (chunk, usage))
    assert b'"content":"yes"' in said.body
    assert said.body.endswith(b'"usage":{"total_tokens":null}}')
    line = batch_answers.read(b'{"custom_id":"a","response":{"status_code":200,"body":%s}}' % body)
    assert batch_answers.judge(CHAT, line) == Answer(body.replace(number, b"null"))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (CHAT, b""),
        (CHAT, b" \n\n"),
        (CHAT, b"null"),
        (CHAT, b"{}"),
        (CHAT, b"[]"),
        (CHAT, b'"ok"'),
        (CHAT, b'{"choices":null}'),
        (CHAT, b'{"choices":[]}'),
        ("/v1/completions?api-version=1", b'{"choices":[]}'),
        (EMBEDDINGS, b'{"data":[]}'),
        (RESPONSES, b"null"),
        (RESPONSES, b"7"),
    ],
)
def test_an_answer_with_nothing_in_it_is_asked_for_again(path, content):
    """Services send these under load."""
    assert (verdict(path, 200, content).action, verdict(path, 200, content).code) == (Action.BACK_OFF, "empty_answer")


@pytest.mark.parametrize(
    ("error", "action"),
    [
        ({"code": 429, "message": "Rate limit reached. Please try again in 2s."}, Action.WAIT),
        ({"code": "429", "message": "slow"}, Action.WAIT),
        ({"type": "rate_limit_error", "message": "slow"}, Action.WAIT),
        ({"code": 502, "message": "Provider returned error"}, Action.BACK_OFF),
        ({"type": "overloaded_error", "message": "Overloaded"}, Action.BACK_OFF),
        ({"message": "who knows"}, Action.BACK_OFF),
        ("something", Action.BACK_OFF),
        ({"code": 400, "message": "bad"}, Action.PERMANENT),
        ({"type": "invalid_request_error", "message": "bad"}, Action.PERMANENT),
        ({"code": "insufficient_quota", "message": "none left"}, Action.STOP),
        ({"code": 402, "message": "Insufficient credits"}, Action.STOP),
    ],
)
@pytest.mark.parametrize("shape", ["alone", "beside nulls", "in a choice", "failed response"])
def test_an_error_inside_a_success_is_an_error(error, action, shape):
    body = {
        "alone": {"error": error},
        "beside nulls": {"choices": None, "error": error},
        "in a choice": {"choices": [{"message": {"content": "half"}, "error": error}]},
        "failed response": {"status": "failed", "output": [], "error": error},
    }[shape]
    assert verdict(RESPONSES if shape == "failed response" else CHAT, 200, body).action is action


def test_the_wait_in_the_words_of_such_an_error_counts():
    said = verdict(CHAT, 200, {"error": {"code": 429, "message": "Please try again in 2s."}}, {"retry-after": "59"})
    assert said.wait == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (402, {"message": "Insufficient Balance"}),
        (402, {"message": ""}),
        (400, {"message": "Your credit balance is too low to access the API"}),
        (403, {"message": "Your team has used all available credits or reached its monthly spending limit"}),
        (429, {"message": "You have reached your spend limit", "type": "enforced_spend_limit_reached"}),
        (429, {"message": "no", "code": "exceeded_current_quota_error"}),
        (429, {"message": "no", "code": "insufficient_quota"}),
    ],
)
def test_no_money_ends_the_run(status, error):
    assert verdict(CHAT, status, {"error": error}).action is Action.STOP


def test_a_402_that_a_smaller_request_would_not_meet_is_of_its_row():
    words = (
        "This request requires more credits, or fewer max_tokens. "
        "You requested up to 65536 tokens, but can only afford 4000"
    )
    assert verdict(CHAT, 402, {"error": {"message": words, "code": 402}}).action is Action.PERMANENT


@given(
    st.sampled_from([200, 201, 204, 301, 304, 400, 401, 402, 403, 404, 408, 429, 500, 502, 503, 529, 599]),
    st.dictionaries(st.sampled_from(["retry-after", "date", "x-should-retry", "retry-after-ms"]), st.text(max_size=30)),
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "choices", "code", "type", "message", "status", "data"]), inner
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_nothing_that_a_server_sends_raises(status, headers, content):
    assert isinstance(judge(CHAT, status, headers, content), Answer | Verdict)


@pytest.mark.parametrize(
    "header", ["Mon, 99 Foo 2026 99:99:99 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "9" * 5_000, "\x00"]
)
@pytest.mark.parametrize("name", ["date", "retry-after", "retry-after-ms"])
@pytest.mark.parametrize("status", [200, 429, 503])
def test_a_header_that_makes_no_sense_costs_nothing(status, name, header):
    said = judge(CHAT, status, {name: header}, GOOD)
    assert isinstance(said, Answer) if status == 200 else said.retryable


def test_a_redirect_that_is_not_followed_says_where_the_server_is():
    said = judge("/v1/x", 301, {"location": "https://api.example/v1/x"}, b"")
    assert (said.code, said.action) == ("http_301", Action.PERMANENT)
    assert said.message.startswith("the server redirects to https://api.example/v1/x (status 301), ")
    assert said.message.endswith(": ask that address")
