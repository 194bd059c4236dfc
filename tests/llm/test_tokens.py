"""What a request costs: the service's own rule, and the true count."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, simulator
from penstock.llm import clients, limit_client, tokens

ROOT = Path(__file__).parents[2]
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "recorded_chat_usage.jsonl").read_text().splitlines()
]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def ranks():
    """tiktoken's rank files; `make test` brings them. Without them every count below would be a guess."""
    place = os.environ.get("TIKTOKEN_CACHE_DIR") or str(ROOT / ".cache/ranks/litellm/litellm_core_utils/tokenizers")
    missing = [
        name
        for name in ("9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "fb374d419588a4632f3f557e76b4b70aebbca790")
        if not (Path(place) / name).exists()
    ]
    if missing:
        pytest.fail(f"{place} lacks tiktoken's rank files {missing}: run `make test`, or set TIKTOKEN_CACHE_DIR")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", place)
        tokens._encoding.cache_clear()
        yield
    tokens._encoding.cache_clear()


def plain(body):
    return not body.keys() & {"tools", "functions", "response_format"} and all(
        isinstance(message.get("content"), str) and message.keys() <= {"role", "content", "name"}
        for message in body["messages"]
    )


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=f"{row['resolved_model']}-{row['prompt_tokens']}") for row in RECORDED if plain(row["body"])],
)
def test_the_exact_count_is_what_usage_said(row, ranks):
    """45 plain requests to eleven models: every one to the token, the gpt-5 family among them."""
    body = {**row["body"], "model": row["resolved_model"]}  # the recorded alias may hide the model
    assert tokens.by_tiktoken(CHAT, body)["tokens"] == row["prompt_tokens"]


def test_the_recorded_plain_requests_are_there():
    rows = [row for row in RECORDED if plain(row["body"])]
    assert len(rows) == 45
    assert sum(row["resolved_model"].startswith("gpt-5") for row in rows) == 4


def test_markers_in_a_users_text_are_text(ranks):
    """<|endoftext|> in a user's text neither raises nor counts as one token."""
    assert tokens.count("<|endoftext|>", "gpt-4o") > 1


def test_an_unknown_model_counts_like_the_newest(ranks):
    text = "Der Fluss trägt das Boot."
    assert tokens.count(text, "some-new-model") == tokens.count(text, "gpt-4o") != tokens.count(text, "gpt-4")


def test_a_fine_tuned_model_counts_like_its_base(ranks):
    text = "Der Fluss trägt das Boot."
    assert tokens.count(text, "ft:gpt-3.5-turbo-0125:org::id") == tokens.count(text, "gpt-3.5-turbo")


def test_a_name_costs_one_more(ranks):
    bare = tokens.chat_tokens([{"role": "user", "content": "hi"}], "gpt-4o")
    named = tokens.chat_tokens([{"role": "user", "content": "hi", "name": "bob"}], "gpt-4o")
    assert named == bare + tokens.count("bob", "gpt-4o") + 1


def test_a_response_costs_what_the_same_chat_costs(ranks):
    chat = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
    }
    response = {"model": "gpt-4o", "instructions": "Be short.", "input": "Why?"}
    listed = {"model": "gpt-4o", "input": chat["messages"]}
    costs = [
        tokens.by_tiktoken(CHAT, chat),
        tokens.by_tiktoken("/v1/responses", response),
        tokens.by_tiktoken("/v1/responses", listed),
    ]
    assert costs[0] == costs[1] == costs[2]


def test_embeddings_and_prompts_cost_their_texts(ranks):
    two = tokens.count("one", "gpt-4") + tokens.count("two words", "gpt-4")
    embedding = {"model": "text-embedding-3-small", "input": ["one", "two words"]}
    assert tokens.by_tiktoken("/v1/embeddings", embedding)["tokens"] == two
    assert tokens.by_tiktoken("/v1/completions", {"model": "gpt-4", "prompt": ["one", "two words"]})["tokens"] == two


def test_a_request_to_count_tokens_takes_none(ranks):
    assert tokens.by_tiktoken("/v1/messages/count_tokens", {"messages": [USER]})["tokens"] == 0


USER = {"role": "user", "content": "twelve bytes"}


@pytest.mark.parametrize("odd", [None, 5, "text", ["role"]])
def test_a_message_that_is_none_costs_nothing(ranks, odd):
    assert tokens.chat_tokens([odd, USER], "gpt-4o") == tokens.chat_tokens([USER], "gpt-4o")


def test_models_whose_ranks_are_loaded_are_not_remembered_for_ever(ranks, monkeypatch):
    monkeypatch.setattr(tokens, "_REMEMBERED", 3)
    monkeypatch.setattr(tokens, "_loaded", set())
    for number in range(10):
        tokens.count("text", f"model {number}")
    assert tokens.ranks_are_loaded("model 9")
    assert len(tokens._loaded) <= 3


@pytest.mark.parametrize(
    ("path", "body", "cost"),
    [
        pytest.param(CHAT, {"messages": [USER]}, 3 + 4, id="chat"),
        pytest.param(
            CHAT, {"messages": [USER, {"role": "user", "content": "x"}]}, 4 + 4, id="the sum is rounded up, once"
        ),
        pytest.param(CHAT, {"messages": [{"role": "user", "content": "été"}]}, 2 + 4, id="bytes, not characters"),
        pytest.param(
            CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "twelve bytes"}]}]}, 7, id="parts"
        ),
        pytest.param(
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:" + "x" * 999}}]}
                ]
            },
            765 + 4,
            id="an image is not its base64",
        ),
        pytest.param(
            CHAT,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}  "}}]}]},
            1 + 4,
            id="a call's arguments are text that goes in again",
        ),
        pytest.param(
            CHAT, {"messages": [USER], "tools": [{"x": "y" * 999}], "max_tokens": 999}, 7, id="schemas are free"
        ),
        pytest.param("/v1/responses", {"input": "twelve bytes", "instructions": "1234"}, 4 + 4, id="responses"),
        pytest.param("/v1/responses", {"input": [USER]}, 7, id="responses with messages"),
        pytest.param(
            "/v1/responses",
            {"input": [{"type": "function_call_output", "output": "1234"}]},
            5,
            id="responses with outputs",
        ),
        pytest.param("/v1/completions", {"prompt": "twelve bytes"}, 7, id="completions"),
        pytest.param("/v1/completions", {"prompt": ["twelve", " bytes"]}, 7, id="completions of several"),
        pytest.param("/v1/completions", {"prompt": [1, 2, 3]}, 7, id="completions of numbers"),
        pytest.param("/v1/embeddings", {"input": "twelve bytes"}, 3, id="embeddings"),
        pytest.param("/v1/embeddings", {"input": ["twelve", " bytes"]}, 3, id="embeddings of several"),
        pytest.param("/v1/embeddings", {"input": [[1, 2], [3]]}, 3, id="embeddings of numbers"),
        pytest.param("", {"model": "text-embedding-3-small", "input": "twelve bytes"}, 3, id="a bare body: embeddings"),
        pytest.param("", {"model": "gpt-4o", "input": "twelve bytes"}, 7, id="a bare body: responses"),
        pytest.param("", {"messages": [USER]}, 7, id="a bare body: chat"),
        pytest.param("/v1/models", None, 0, id="no body"),
        pytest.param(CHAT, {}, 0, id="an empty body"),
        pytest.param(CHAT, {"messages": ["?", None, 5, {"content": 7}]}, 5 + 1, id="nonsense is counted, not refused"),
        pytest.param(CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 1 + 4, id="half a surrogate"),
    ],
)
def test_the_services_rule_is_a_quarter_of_the_bytes_and_a_few_more(path, body, cost):
    assert tokens.by_bytes(path, body) == {"requests": 1, "tokens": cost, "images": 0}


TEXT = st.text(max_size=40)
PARTS = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, TEXT),
        st.builds(lambda text: {"type": "refusal", "refusal": text}, TEXT),
        st.just({"type": "image_url", "image_url": {"url": "data:"}}),
    ),
    max_size=3,
)
MESSAGES = st.lists(
    st.one_of(
        st.builds(
            lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), TEXT | PARTS
        ),
        st.builds(
            lambda text: {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}, TEXT
        ),
        st.builds(lambda text: {"role": "tool", "tool_call_id": "x", "content": text}, TEXT),
    ),
    max_size=4,
)
ITEMS = st.lists(
    st.one_of(
        st.builds(lambda text: {"role": "user", "content": [{"type": "input_text", "text": text}]}, TEXT),
        st.builds(lambda text: {"type": "function_call", "name": "f", "arguments": text}, TEXT),
        st.builds(lambda text: {"type": "function_call_output", "output": text}, TEXT),
    ),
    max_size=4,
)
INPUTS = TEXT | st.lists(TEXT, max_size=3) | st.lists(st.integers(0, 9), max_size=3)


@given(
    st.one_of(
        st.tuples(st.just(CHAT), st.fixed_dictionaries({"messages": MESSAGES})),
        st.tuples(st.just("/v1/responses"), st.fixed_dictionaries({"instructions": TEXT, "input": TEXT | ITEMS})),
        st.tuples(st.just("/v1/completions"), st.fixed_dictionaries({"prompt": INPUTS})),
        st.tuples(st.just("/v1/embeddings"), st.fixed_dictionaries({"input": INPUTS})),
    )
)
def test_the_rule_is_the_one_the_simulator_charges_by(request_):
    """Two implementations of one rule, written apart, agree on every body: what we charge is what admission takes."""
    path, body = request_
    assert tokens.by_bytes(path, body)["tokens"] == simulator.charge(path, body)


def test_images_are_counted_where_images_are_made():
    assert tokens.by_bytes("/v1/images/generations", {"prompt": "a cat", "n": 3})["images"] == 3
    assert tokens.by_bytes("/v1/images/edits", None)["images"] == 1
    assert tokens.by_bytes("/v1/images/generations", {"n": 10**400})["images"] >= 1e18


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("a broken file")])
def test_without_rank_files_it_counts_bytes_and_warns_once(error, monkeypatch):
    """Never an import that dies, never a request that fails: bytes / 4, and one warning that says the way out."""
    import tiktoken

    def fail(name):
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    monkeypatch.setattr(tokens, "_warned", [])
    tokens._encoding.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="TIKTOKEN_CACHE_DIR") as heard:
            assert tokens.count("twelve bytes", "gpt-4o") == 3
        assert heard[0].filename.endswith(Path(__file__).name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tokens.count("twelve bytes", "gpt-4") == 3
            assert tokens.by_tiktoken("", {"model": "gpt-4", "messages": [USER]})["tokens"] == 3 + (3 + 1 + 3)
    finally:
        tokens._encoding.cache_clear()


def test_nothing_is_loaded_at_import():
    code = "import sys, penstock.llm.tokens; assert not {'tiktoken', 'openai', 'httpx', 'httpx2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


WORDS = ["water", "runs,", "(through", "a", "gate.", "1,234", "über", "水", "don't", "\n", "x_y", "=="]


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4"])
def test_a_long_text_is_counted_in_pieces_and_exactly(ranks, model):
    draw = random.Random(1)
    for _ in range(20):
        text = draw.choice([" ", "  "]).join(draw.choices(WORDS, k=9_000))
        whole = len(tokens._encoding(model).encode_ordinary(text))
        assert len(list(tokens._pieces(text))) > 3
        assert tokens.count(text, model) == whole


@pytest.mark.parametrize(
    "text", ["水" * 20_000, "0" * 20_000, " " * 20_000, "\ud800" * 20_000, "<|endoftext|>" * 5_000]
)
def test_a_long_text_without_words_is_counted_to_a_token_for_each_piece(ranks, text):
    whole = len(tokens._encoding("gpt-4o").encode_ordinary(text))
    assert whole <= tokens.count(text, "gpt-4o") <= whole + 2 * len(text) / 4_096


@pytest.mark.anyio
@pytest.mark.parametrize(("characters", "beside"), [(1_000, False), (1_000_000, True)])
async def test_a_large_body_is_counted_beside_the_event_loop(monkeypatch, characters, beside):
    def counted(path, body):
        threads.append(threading.get_ident())
        return tokens.by_bytes(path, body)

    threads = []
    monkeypatch.setitem(clients._COSTS, "bytes", counted)
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    client = limit_client(httpx.AsyncClient(transport=transport), Limiter(tokens="1M/min"))
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * characters}]}
    await client.post("http://api.test/v1/chat/completions", json=body)
    assert (threads[0] != threading.get_ident()) is beside


def doubled(value, hold):
    """A value that holds its inner one twice, 60 levels deep: as JSON it would have no end."""
    for _ in range(60):
        value = hold(value, value)
    return value


def itself():
    content = []
    content.append(content)
    return content


IMAGE = {"type": "image_url", "image_url": {"url": "https://images.test/a.png", "detail": "low"}}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(doubled("x", lambda *inner: list(inner)), id="a list of lists"),
        pytest.param(doubled("x" * 1_000_000, lambda *inner: list(inner)), id="of long texts"),
        pytest.param(doubled(IMAGE, lambda *inner: list(inner)), id="of images"),
        pytest.param(doubled("x", lambda *inner: [{"content": each} for each in inner]), id="messages in messages"),
        pytest.param(
            doubled({"json": doubled("x", lambda *inner: list(inner))}, lambda *inner: list(inner)),
            id="answers of tools",
        ),
        pytest.param(itself(), id="a list in itself"),
    ],
)
def test_a_message_that_holds_a_part_many_times_over_is_counted_as_far_as_any_model_reads(content, monkeypatch):
    """The count never ended, and no thread that it was given to either."""
    monkeypatch.setattr(tokens, "_MOST_CHARACTERS", 1_000_000)  # a twentieth, and so is the time
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    began = time.process_time()
    assert tokens.by_bytes(CHAT, body)["tokens"] > 0
    assert tokens.chat_tokens(body["messages"], "unknown") > 0
    assert time.process_time() - began < 10
