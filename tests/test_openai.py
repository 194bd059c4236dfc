"""The adapter's own face: published limits, what is refused, and what it needs to be imported."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import httpx2
import pytest

import penstock.openai
from penstock import Limiter, Rate
from penstock.llm import tables


def rates(limiter):
    return {unit: [(rate.amount, rate.per) for rate in kinds] for unit, kinds in limiter.limits.items()}


def limits(model, account):
    return rates(penstock.openai.limits(model, account=account))


GUIDE = {  # requests and tokens per minute: the guide's table, row by row
    "free-trial": [(20, 150_000), (20, 40_000), (20, 40_000), (20, 150_000)],
    "pay-as-you-go-48h": [(60, 250_000), (60, 60_000), (20, 40_000), (20, 150_000)],
    "pay-as-you-go": [(3_500, 350_000), (3_500, 90_000), (20, 40_000), (20, 150_000)],
}
KINDS = ["text-davinci-003", "gpt-3.5-turbo", "code-davinci-002", "text-davinci-edit-001"]


@pytest.mark.parametrize("account", GUIDE)
def test_the_guides_table_is_there_cell_by_cell(account):
    for model, (requests, tokens) in zip(KINDS, GUIDE[account], strict=True):
        assert limits(model, account) == {"requests": [(requests, 60)], "tokens": [(tokens, 60)]}
    assert limits("dall-e-2", account) == {"images": [(50, 60)]}
    assert limits("whisper-1", account) == {"requests": [(50, 60)]}


@pytest.mark.parametrize(
    ("model", "requests", "tokens"),
    [
        ("gpt-4", 200, 40_000),
        ("gpt-4-0314", 200, 40_000),
        ("gpt-4-0613", 200, 40_000),  # a snapshot of which the guide knew nothing yet
        ("gpt-4-32k", 400, 80_000),
        ("gpt-4-32k-0314", 400, 80_000),
        ("gpt-4-32k-0613", 400, 80_000),
    ],
)
@pytest.mark.parametrize("account", GUIDE)
def test_gpt_4_has_rows_of_its_own_for_every_account(account, model, requests, tokens):
    assert limits(model, account) == {"requests": [(requests, 60)], "tokens": [(tokens, 60)]}


@pytest.mark.parametrize(
    ("model", "unit"),
    [
        ("text-davinci-003", 1),
        ("davinci", 1),
        ("text-curie-001", 25),
        ("text-babbage-001", 100),
        ("text-ada-001", 200),
        ("text-embedding-ada-002", 200),
        ("text-search-babbage-doc-001", 100),
        ("ft:curie:org::id", 25),
    ],
)
def test_a_tpm_unit_is_as_many_tokens_as_the_models_family_says(model, unit):
    """250,000 TPM are 250,000 tokens of davinci, and fifty million of ada."""
    assert limits(model, "pay-as-you-go-48h")["tokens"] == [(250_000 * unit, 60)]


def test_tiers_have_the_limits_of_the_model_pages():
    tier = lambda model, n: rates(penstock.openai.limits(model, tier=f"tier-{n}"))  # noqa: E731
    assert tier("gpt-4o", 1) == {"requests": [(500, 60)], "tokens": [(30_000, 60)]}
    assert tier("gpt-4o", 5) == {"requests": [(10_000, 60)], "tokens": [(30_000_000, 60)]}
    assert tier("gpt-4o-mini", 1)["requests"] == [(500, 60), (10_000, 86_400)]
    assert tier("gpt-4o-mini", 2)["requests"] == [(5_000, 60)]


@pytest.mark.parametrize("model", ["gpt-4o-2024-08-06", "ft:gpt-4o:org::id", "ft:gpt-4o-2024-08-06:org::id"])
def test_snapshots_and_fine_tuned_models_have_the_limits_of_what_they_are_made_of(model):
    assert rates(penstock.openai.limits(model, tier="tier-2")) == rates(penstock.openai.limits("gpt-4o", tier="tier-2"))


def test_every_row_says_when_and_where_it_was_published_and_makes_a_limiter():
    table = tables._table()
    for name in table["tiers"]["models"]:
        for tier in tables.tiers():
            row = tables.lookup(name, tier)
            assert row.date.startswith("2026-")
            assert row.source.endswith(name)
            assert rates(Limiter(**row.limits))
    for account in tables.accounts():
        row = tables.lookup("gpt-4", account)
        assert (row.date, row.source) == ("2023-03", "https://platform.openai.com/docs/guides/rate-limits")


@pytest.mark.parametrize("row", tables._table()["tiers"]["models"].values(), ids=tables._table()["tiers"]["models"])
def test_tiers_never_fall(row):
    """A slip of the finger in the table would show here, all but in the first column."""
    assert len(row["requests"]) == len(row["tokens"]) == len(tables.tiers())
    assert row["requests"] == sorted(row["requests"])
    assert row["tokens"] == sorted(row["tokens"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "gpt-99", "tier": "tier-1"}, ["'gpt-99'", "tier-1", "gpt-4o-mini", "auto"]),
        ({"model": "gpt-4o", "account": "free-trial"}, ["'gpt-4o'", "2023-03", "gpt-3.5-turbo", "tier-1", "auto"]),
        ({"model": "gpt-4", "account": "gold"}, ["'gold'", "free-trial, pay-as-you-go-48h, pay-as-you-go"]),
        ({"model": "gpt-4", "account": "tier-1"}, ["'tier-1'", "free-trial"]),
        ({"model": "gpt-4", "tier": "tier-9"}, ["'tier-9'", "tier-1, tier-2, tier-3, tier-4, tier-5"]),
        ({"model": "gpt-4"}, ["account=", "pay-as-you-go", "tier=", "tier-5"]),
        ({"model": "gpt-4", "account": "free-trial", "tier": "tier-1"}, ["not both"]),
    ],
)
def test_what_nobody_published_is_an_error_that_names_what_there_is(arguments, words):
    with pytest.raises(ValueError) as error:
        penstock.openai.limits(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


class Client:
    """What limit_client needs of an SDK's client, and no more."""

    def __init__(self, http_client):
        self._client = http_client

    def copy(self, *, http_client):
        return Client(http_client)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limits": "fast"}, 'a Limiter, a function that returns one, or "auto"'),
        ({"limits": Limiter(requests=Rate(1, 1)), "tier": "tier-1"}, "one of limits=, tier= and account="),
        ({"tier": "tier-1", "account": "free-trial"}, "one of limits=, tier= and account="),
        ({"tier": "gold"}, "tier-5"),
        ({"account": "gold"}, "pay-as-you-go"),
        ({"cost": "words"}, "'bytes', 'tiktoken', .* or a function of path and body"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_pause": -1}, "max_pause"),
    ],
)
def test_a_wrong_option_is_found_before_anything_is_sent(options, words):
    with pytest.raises(ValueError, match=words):
        penstock.openai.limit_client(Client(httpx2.AsyncClient()), **options)


def test_a_cost_that_would_have_to_be_awaited_is_refused():
    async def cost(path, body):
        return {"tokens": 1}

    with pytest.raises(TypeError, match=r"limit_client\(cost=.*called and not awaited"):
        penstock.openai.limit_client(Client(httpx2.AsyncClient()), cost=cost)


@pytest.mark.parametrize("thing", [None, object(), SimpleNamespace(_client=None, copy=None)], ids=repr)
def test_what_is_no_client_of_an_sdk_is_refused_with_what_is_needed(thing):
    with pytest.raises(TypeError, match=r"openai.AsyncOpenAI.*enter a Limiter around its calls"):
        penstock.openai.limit_client(thing)


def test_what_changes_while_it_is_looked_at_is_refused_too():
    """The package `openai` holds objects that load modules when they are asked for their class."""
    held = {}

    class Lazy:
        @property
        def __class__(self):
            held[len(held)] = None
            return Lazy

    held["lazy"] = Lazy()
    with pytest.raises(TypeError, match="enter a Limiter around its calls"):
        penstock.openai.limit_client(SimpleNamespace(held=held))


def test_importing_the_adapter_needs_no_sdk_and_loads_none():
    code = (
        "import sys, penstock.openai;"
        "loaded = {'openai', 'httpx', 'httpx2', 'tiktoken', 'asyncio.sslproto'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_these():
    assert set(penstock.openai.__all__) == {"limit_client", "limits", "limits_of", "retry_on"}
