"""The OpenAI adapter: limits under the SDK, for OpenAI, Azure, and whatever speaks like them.

    from openai import AsyncOpenAI
    from penstock.openai import limit_client

    client = limit_client(AsyncOpenAI(), limits="auto")

    limit_client    the same client with limits under it
    limits          a Limiter with the limits that were published for a model
    retry_on        which errors are worth another try, for Retry(on=retry_on)

It is configuration over `penstock.llm`, and nothing in penstock's core knows it. The SDK is not imported here, nor is
anything else that the extra `openai` brings; they are needed where a client of theirs is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from penstock import Limiter
from penstock._introspect import check_plain
from penstock.llm import tables
from penstock.llm.failures import retry_on
from penstock.llm.lanes import Auto, Fixed, Policy, Published
from penstock.llm.tokens import by_bytes, by_tiktoken
from penstock.llm.transport import Valve, limit_http_client

if TYPE_CHECKING:
    from penstock.llm.tokens import Cost

__all__ = ["limit_client", "limits", "retry_on"]

Client = TypeVar("Client")

_AZURE = ("_azure_endpoint", "_azure_deployment")
"""What `copy` of Azure's clients forgets before openai 3: without it, a list of files is asked of the deployment."""

_COSTS: dict[str, Cost] = {"bytes": by_bytes, "tiktoken": by_tiktoken}


def limit_client(
    client: Client,
    limits: Limiter | Literal["auto"] | None = None,
    *,
    tier: str | None = None,
    account: str | None = None,
    cost: Cost | Literal["bytes", "tiktoken"] = "bytes",
    max_wait: float | None = None,
) -> Client:
    """Make a client like `client`, of the same type, that keeps the limits. The given one is not changed.

    Every request is charged before it is sent, whatever endpoint it is for: streams, and the retries of the SDK, too. It
    waits for its turn in order of arrival; neither timeouts of the SDK nor its retries see that wait. When the service
    says "not now", everybody waits once, for as long as it says. When it says "never" (no money left, too large a
    request), the error comes at once: the SDK does not retry it.

    A request that would wait longer than `max_wait` is not sent, and fails with the SDK's `RateLimitError`; one that can
    never fit, or has a cost that is wrong, with its `BadRequestError`. Their `code` says why, and their message how much
    was asked for and how much there is.

    Args:
        client: `AsyncOpenAI` or `OpenAI`, of version 1 and up, or one made of them such as `AsyncAzureOpenAI`. Its key,
            address, timeouts, retries and connections stay what they are.
        limits: A `Limiter` for all of its requests together; its units may be `requests`, `tokens`, `images`, and one for
            places in flight. Or "auto", the default: per model, learned from the headers of the answers. One request is
            then in flight until the first answer has come.
        tier: Instead of `limits`: the limits published for a usage tier, per model; "tier-1" to "tier-5".
        account: Instead of `limits`: the limits of the early guide for an account, per model; see `limits()`.
        cost: What a request costs: "bytes", the service's own rule; "tiktoken", what `usage` will say; or a function of
            path and body, see `penstock.llm.tokens`.
        max_wait: Longest wait for a turn, in seconds.

    Raises:
        TypeError: It is no client of the SDK; or `cost` is a function that would have to be awaited.
        ValueError: More than one of limits, tier and account; an unknown tier or account; a client that is limited
            already.
    """
    http_client = getattr(client, "_client", None)
    if http_client is None or not hasattr(client, "copy"):
        raise TypeError(
            f"limit_client needs a client of the SDK, such as openai.AsyncOpenAI(), not {type(client).__qualname__}; "
            f"its requirements come with pip install 'penstock[openai]' openai"
        )
    if callable(cost):
        check_plain("limit_client", "cost", cost)
        rule = cost
    elif cost in _COSTS:
        rule = _COSTS[cost]
    else:
        raise ValueError(f'cost must be "bytes", "tiktoken" or a function of path and body, not {cost!r}')
    valve = Valve(_policy(limits, tier, account), cost=rule, max_wait=max_wait)
    copied: Any = client
    limited: Client = copied.copy(http_client=limit_http_client(http_client, valve))
    for part in _AZURE:
        if hasattr(client, part):
            setattr(limited, part, getattr(client, part))
    return limited


def limits(model: str, *, account: str | None = None, tier: str | None = None) -> Limiter:
    """A limiter with the limits that were published for a model.

    Accounts are those of the guide of early 2023: "free-trial", "pay-as-you-go-48h" (its first 48 hours) and
    "pay-as-you-go". They count a text model's tokens in units: a limit of 250,000 TPM is 50 million tokens of ada. Tiers
    are those of the model pages of 2026, "tier-1" to "tier-5". Sources and dates are in `penstock.llm.tables`.

    Raises:
        ValueError: There are none for that model, or there is no such account; the message lists those there are.
    """
    if (account is None) == (tier is None):
        raise ValueError(
            f"give account= ({', '.join(tables.accounts())}) or tier= ({', '.join(tables.tiers())}), and not both"
        )
    published: dict[str, Any] = dict(tables.lookup(model, _account(account, tier)).limits)
    return Limiter(**published)


def _policy(limits: Limiter | str | None, tier: str | None, account: str | None) -> Policy:
    if sum(given is not None for given in (limits, tier, account)) > 1:
        raise ValueError("give one of limits=, tier= and account=: they would contradict each other")
    if isinstance(limits, Limiter):
        return Fixed(limits)
    if tier is not None or account is not None:
        return Published(_account(account, tier))
    if limits is None or limits == "auto":
        return Auto()
    raise ValueError(f'limits must be a Limiter or "auto", not {limits!r}')


def _account(account: str | None, tier: str | None) -> str:
    """The account, or the tier: which of both is asked for is part of the question, so neither stands in for the other."""
    if tier is not None and tier not in tables.tiers():
        raise ValueError(f"there is no tier {tier!r}: there are {', '.join(tables.tiers())}")
    if account is not None and account not in tables.accounts():
        raise ValueError(f"there is no account {account!r}: there are {', '.join(tables.accounts())}")
    chosen = tier or account
    assert chosen is not None
    return chosen
