"""What LLM services share, whatever their SDK.

    limit_client       the same client of any SDK with limits under it
    limits_of          what is known of the limits of such a client
    rate_limit_info    which limit an error is about
    RateLimitInfo      limit, current, requested, unit, period, model, organisation, wait
    retry_on           which errors are worth another try

Inside, from the top down:

    clients          all of it under an SDK's client; `copies` copies one, `accounts` says whose limits a request has
    transport        all of it under an HTTP client: the only part that sends anything
    exchange         one request and its answer: what is sent when;  streams: those that are left before their end
    lost_answers     those that only the garbage collector finds
    reporting        what listeners hear of a request
    refusals         what we answer in the service's stead
    discovered       the limits that some requests share, where they are not known yet
    shared_limits    the same, kept in a store once they are known
    given            the same where they were given, as long as the service does not contradict them
    endpoints        what all of those have in common: limits, here and at the server

What follows is pure, but for tiktoken's files and the tables:

    discovery        what the server can be counted on to have, put together from estimates: `penstock.llm.learning`
    tables           the limits that a service has published;  prices: what models cost
    tokens           what a request costs, estimated from its body;  media, tool_tokens: of images, files and tools
    usage_reader     what an answer used, read as it passes
    failures         what an error means: wait, back off, give up
    wording          which limit an error's words are about, and for how long
    headers          what a response says about its limits

What belongs to one service alone is beside this package: `penstock.openai`, `penstock.anthropic`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.llm.clients import limit_client as limit_client
    from penstock.llm.clients import limits_of as limits_of
    from penstock.llm.failures import retry_on as retry_on
    from penstock.llm.refusals import rate_limit_info as rate_limit_info
    from penstock.llm.wording import RateLimitInfo as RateLimitInfo

__all__ = ["RateLimitInfo", "limit_client", "limits_of", "rate_limit_info", "retry_on"]

_HOMES = {
    "RateLimitInfo": "wording",
    "limit_client": "clients",
    "limits_of": "clients",
    "rate_limit_info": "refusals",
    "retry_on": "failures",
}


def __getattr__(name: str) -> Any:  # so that one part does not load all others
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
