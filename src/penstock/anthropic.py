"""Limits under Anthropic's SDK.

    from anthropic import AsyncAnthropic
    from penstock.anthropic import limit_client

    client = limit_client(AsyncAnthropic())

    limit_client    the same client with limits under it
    limits_of       what is known of the limits of such a client
    retry_on        which errors are worth another try, for Retry(on=retry_on)

It is configuration over `penstock.llm`. The SDK is not imported here.
"""

from __future__ import annotations

from penstock.llm.clients import limit_client, limits_of
from penstock.llm.failures import retry_on

__all__ = ["limit_client", "limits_of", "retry_on"]
