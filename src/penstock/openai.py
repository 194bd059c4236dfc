"""The OpenAI adapter: limits under the SDK, for OpenAI, Azure, and whatever speaks like them.

    from openai import AsyncOpenAI
    from penstock.openai import limit_client

    client = limit_client(AsyncOpenAI(), limits="auto")

    limit_client    the same client with limits under it
    limits_of       what is known of the limits of such a client
    limits          a Limiter with the limits that were published for a model
    retry_on        which errors are worth another try, for Retry(on=retry_on)

It is configuration over `penstock.llm`, and nothing in penstock's core knows it. The SDK is not imported here, nor is
anything else that the extra `openai` brings; they are needed where a client of theirs is given.
"""

from __future__ import annotations

from typing import Any

from penstock import Limiter
from penstock.llm import tables
from penstock.llm.clients import checked_account, limit_client, limits_of
from penstock.llm.failures import retry_on

__all__ = ["limit_client", "limits", "limits_of", "retry_on"]


def limits(model: str, *, account: str | None = None, tier: str | None = None) -> Limiter:
    """A limiter with the limits that were published for a model.

    Accounts are those of the guide of early 2023: "free-trial", "pay-as-you-go-48h" (its first 48 hours) and
    "pay-as-you-go". They count a text model's tokens in units: a limit of 250,000 TPM is 50 million tokens of ada.
    Tiers are those of the model pages of 2026, "tier-1" to "tier-5". Sources and dates are in `penstock.llm.tables`.

    Raises:
        ValueError: There are none for that model, or there is no such account; the message lists those there are.
    """
    if (account is None) == (tier is None):
        raise ValueError(
            f"give account= ({', '.join(tables.accounts())}) or tier= ({', '.join(tables.tiers())}), and not both"
        )
    published: dict[str, Any] = dict(tables.lookup(model, checked_account(account, tier)).limits)
    return Limiter(**published)
