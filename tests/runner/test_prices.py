"""What rows and answers cost, what a file would take, and what failed."""

from __future__ import annotations

import json
from functools import partial

import pytest

from penstock.limits import parse
from penstock.llm.tokens import by_bytes
from penstock.runner import summary as run_summary
from penstock.runner.client import Lost, NotSent
from penstock.runner.failed import advice, group_errors, sentences
from penstock.runner.plan import make_plan, plan_sentences
from penstock.runner.prices import Price, PriceFileError, Prices
from penstock.runner.source import read_row
from tests.runner.service import Service, chat, prepared

READ = partial(read_row, cost=by_bytes)
PRICES = Prices({"m": Price(0.001, 0.01)}, "today")


def answer(prompt, completion):
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return json.dumps({"choices": [{"message": {}}], "usage": usage}).encode()


def test_a_snapshot_costs_what_its_model_does():
    prices = Prices.listed()
    assert prices.price("gpt-4o-mini-2024-07-18") == prices.price("gpt-4o-mini") == Price(0.15e-6, 0.6e-6)
    assert prices.price("gpt-4o-mini-tts") is None
    assert prices.as_of


def test_an_answer_costs_what_its_usage_says():
    assert PRICES.paid("m", answer(10, 2)) == pytest.approx(0.03)
    assert PRICES.paid("m", b'{"usage": {"input_tokens": 10, "output_tokens": 2}}') == pytest.approx(0.03)
    for odd in (
        b"[]",
        b"{",
        b'{"usage": 7}',
        b'{"usage": {"prompt_tokens": "x"}}',
        b'{"usage": {"prompt_tokens": true}}',
    ):
        assert PRICES.paid("m", odd) is None
    assert PRICES.paid("other", answer(10, 2)) is None


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"total_tokens": 10}, 0.010),  # embeddings of Voyage and Jina
        ({"prompt_tokens": 10.0, "completion_tokens": 2.0}, 0.030),
        ({"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}, 0.020),
        ({"input_tokens": 10, "cache_creation_input_tokens": 20, "output_tokens": 2}, 0.050),  # Anthropic
        ({"input_tokens": 10, "cache_read_input_tokens": 70, "output_tokens": 2}, 0.100),
        ({"prompt_tokens": 80, "prompt_tokens_details": {"cached_tokens": 70}, "completion_tokens": 2}, 0.100),
        ({}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
    ],
)
def test_an_answer_costs_all_tokens_that_its_service_counts_whatever_it_calls_them(usage, dollars):
    assert PRICES.paid("m", json.dumps({"usage": usage}).encode()) == (dollars and pytest.approx(dollars))


@pytest.mark.parametrize(
    ("more", "dollars"),
    [({}, 0), ({"max_tokens": 5}, 0.05), ({"max_completion_tokens": 5, "n": 2}, 0.1), ({"max_tokens": "x"}, 0)],
)
def test_a_row_costs_at_most_what_it_allows(more, dollars):
    row = READ(1, json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 24}], **more}).encode())
    assert PRICES.at_most(row) == pytest.approx(0.010 + dollars)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ('{"models":\n {"m" 7}}', "not JSON: Expecting ':' delimiter at line 2, column 7"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{}", 'it has no "models"'),
        ("[]", "it is not an object: []"),
        ('{"models": null}', '"models" is not an object: null'),
        ('{"models": {"m": 7}}', "the price of 'm' is not an object: 7"),
        ('{"models": {"m": {"output": 1}}}', "the price of 'm' has no \"input\""),
        (
            '{"models": {"m": {"input": 1, "reply": 8}}}',
            'the price of \'m\' has "reply": only "input" and "output" are known',
        ),
        (
            '{"models": {"m": {"input": -1, "output": 2}}}',
            "the price of 'm' for \"input\" is -1, not a number of 0 or more",
        ),
        (
            '{"models": {"m": {"input": 1, "output": "x"}}}',
            'the price of \'m\' for "output" is "x", not a number of 0 or more',
        ),
        ('{"models": {"m": {"input": NaN}}}', "the price of 'm' for \"input\" is NaN, not a number of 0 or more"),
        ('{"per": 0, "models": {}}', '"per", the tokens that the prices are for, is 0: below 1'),
        ('{"per": null, "models": {}}', '"per" is null, not a number of 0 or more'),
        ('{"batch": 50, "models": {}}', '"batch", the share of the prices that the Batch API takes, is 50: above 1'),
    ],
)
def test_a_file_that_has_no_prices_says_where_and_why(tmp_path, text, why):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(PriceFileError) as raised:
        Prices.of(tmp_path / "p.json")
    way_out = '; write it like {"per": 1000000, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}}'
    assert str(raised.value) == f"{tmp_path / 'p.json'} is not a file of prices: {why}{way_out}"


def test_a_file_of_prices_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(PriceFileError, match=r"cannot read .*: No such file or directory"):
        Prices.of(tmp_path / "nowhere.json")
    (tmp_path / "p.json").write_bytes(b'{"models": {"m\xe9": {}}}')
    with pytest.raises(PriceFileError, match=r"p\.json is not a file of prices: byte 15 is not UTF-8"):
        Prices.of(tmp_path / "p.json")


@pytest.mark.anyio
async def test_a_run_never_costs_more_than_it_may(virtual_time, tmp_path):
    """Whatever is under way is counted at the most that it may cost."""
    rows = [chat(number, 24) for number in range(100)]
    for row in rows:
        row["body"]["max_tokens"] = 10
    service = Service(answer=lambda _: (200, {}, answer(10, 4)))
    with prepared(tmp_path, rows, service, prices=PRICES, max_cost=1.0) as this:
        await this.run()
        assert this.run.stopped.code == "cost"
        assert len(this.results()) == 18
        assert 0.85 < this.counts.dollars <= 1.0
        assert this.errors() == []
    with prepared(tmp_path, [*rows, chat(200, model="other")], service, prices=PRICES, max_cost=100.0) as this:
        this.examine()
        await this.run()
        assert len(this.results()) == 100
        assert [error["error"]["code"] for error in this.errors()] == ["unknown_price"]


@pytest.mark.anyio
async def test_answers_that_nobody_bounds_are_taken_for_as_dear_as_the_dearest(virtual_time, tmp_path):
    service = Service(answer=lambda _: (200, {}, answer(10, 4)))
    with prepared(tmp_path, [chat(number, 24) for number in range(100)], service, prices=PRICES, max_cost=1.0) as this:
        await this.run()
        assert this.run.stopped.code == "cost"
        assert 0.9 < this.counts.dollars <= 1.0


@pytest.mark.anyio
@pytest.mark.parametrize(
    "said",
    [
        Lost("the connection broke"),
        (200, {}, b'{"choices": [{"message": {"content": "no usage"}}]}'),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'),
    ],
    ids=["lost", "no usage", "no choices", "no JSON", "cut stream"],
)
async def test_what_may_have_been_billed_counts_as_the_most_that_it_may_cost(virtual_time, tmp_path, said):
    """A server that bills each attempt that reached it never bills more than `--max-cost`."""
    rows = [chat(number, 24) for number in range(100)]
    for row in rows:
        row["body"]["max_tokens"] = 10
    service = Service(answer=lambda _: said)
    with prepared(tmp_path, rows, service, prices=PRICES, max_cost=1.0, max_in_flight=5) as this:
        await this.run()
        assert this.run.stopped.code == "cost"
        assert len(service.bodies) == this.counts.unpriced == 9  # at $0.11 each
        assert "$0.0000 are spent, and $0.9900 may be, by attempts whose cost is not known" in this.run.stopped.message
        summary = run_summary.summarise(this.counts, {}, 1, priced=True)
        assert "$0.0000 for the answers; not counted: 9 attempts whose cost nothing tells" in run_summary.sentences(
            summary
        )


@pytest.mark.anyio
async def test_attempts_that_were_refused_cost_nothing(virtual_time, tmp_path):
    rows = [chat(number, 24) for number in range(100)]
    for row in rows:
        row["body"]["max_tokens"] = 10
    refusals = [(status, {}, b"{}") for status in (429, 500, 503)] * 20
    service = Service(script=[*refusals, NotSent("nobody there")], answer=lambda _: (200, {}, answer(10, 4)))
    with prepared(tmp_path, rows[:18], service, prices=PRICES, max_cost=1.0) as this:
        await this.run()
        assert this.run.stopped is None
        assert (this.counts.dollars, this.counts.unpriced) == (pytest.approx(0.9), 0)


def test_a_plan_says_what_would_be_sent_and_what_decides():
    rows = [chat(number) for number in range(100)]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [b"{", lines[0], json.dumps(chat(7_000, 100_000)).encode(), json.dumps(chat(8_000, model="zz")).encode()]
    limits = {"requests": (parse("60/min burst 10"),), "tokens": (parse("90k/min burst 6k"),)}
    plan = make_plan(enumerate(lines, 1), READ, lambda _: ("", limits), PRICES)
    assert (plan.rows, plan.sendable) == (104, 101)
    assert plan.problems == {"invalid_json": 1, "duplicate_custom_id": 1, "request_too_large": 1}
    assert plan.first == {"invalid_json": 101, "duplicate_custom_id": 102, "request_too_large": 103}
    assert plan.models["m"].rows == 100
    assert plan.models["m"].input_dollars == pytest.approx(100 * 29 * 0.001)
    assert plan.models["zz"].input_dollars is None
    assert plan.seconds == pytest.approx(91)
    assert plan.binding == "requests (60/min burst 10)"
    said = "\n".join(plan_sentences(plan, PRICES))
    assert "104 rows: 101 would be sent, 3 would not" in said
    assert "zz: 1 row, 29 tokens; its price is not known" in said
    assert "at least 91 s, by requests (60/min burst 10)" in said
    assert json.loads(json.dumps(plan.as_json()))["seconds"] == plan.seconds


def test_a_plan_counts_images_and_looks_at_no_more_rows_than_it_should():
    image = {"custom_id": "i", "url": "/v1/images/generations", "body": {"model": "dall-e-3", "prompt": "x", "n": 3}}
    lines = [json.dumps(row).encode() for row in (image, chat(1), chat(2))]
    plan = make_plan(enumerate(lines, 1), READ, lambda model: (model, None), PRICES, rows=2)
    assert (plan.rows, plan.sendable) == (2, 2)
    assert "dall-e-3: 1 row, 1 token, 3 images; its price" in "\n".join(plan_sentences(plan, PRICES))


def test_a_plan_of_nothing_that_could_be_sent_compares_no_ways_to_send_it():
    plan = make_plan([(1, b"{")], READ, lambda model: (model, None), PRICES)
    assert "--via batch" not in "\n".join(plan_sentences(plan, PRICES))


def test_a_plan_without_limits_says_that_nobody_knows():
    plan = make_plan([(1, json.dumps(chat(0)).encode())], READ, lambda model: (model, None), PRICES)
    assert plan.seconds is None
    assert "how long it takes is not known" in "\n".join(plan_sentences(plan, PRICES))


def error(line, code, message="it says why", **more):
    return json.dumps(
        {"line": line, "custom_id": f"row-{line}", "error": {"code": code, "message": message, **more}}
    ).encode()


def test_failures_are_grouped_and_each_group_says_what_to_do():
    lines = [error(1, "a", status_code=500), error(2, "b"), error(3, "b"), b"{", b"[]", b"{}", error(4, "invalid_json")]
    groups, others = group_errors(lines)
    assert others == 3
    assert [(each.code, each.count, each.line) for each in groups] == [("b", 2, 2), ("a", 1, 1), ("invalid_json", 1, 4)]
    said = list(sentences(groups))
    assert said[:2] == ["2 × b", "    for example line 2, 'row-2': it says why"]
    assert advice(groups[2]) == "correct the row in FILE and run the command again"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "run the command again: it is the service's trouble"),
        (429, "run the command again: it is the service's trouble"),
        (401, "check the key"),
        (404, "the service does not take the request as it is"),
        (None, "run the command again"),
    ],
)
def test_what_to_do_about_a_code_that_nobody_knows_is_told_by_its_status(status, said):
    ((group,), _) = group_errors([error(1, "a", status_code=status)])
    assert advice(group).startswith(said)
