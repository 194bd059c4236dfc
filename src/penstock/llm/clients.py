"""Limits under an SDK's client: what every service's face offers.

    limit_client    the same client with limits under it
    limits_of       what is known of the limits of such a client

No SDK is imported here. What is needed of one is that it sends through httpx or httpx2, and can be copied with another
HTTP client.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from penstock import Limiter
from penstock._introspect import check_plain
from penstock.events import Refused, ServiceEvent
from penstock.llm import tables
from penstock.llm.discovered import discovered
from penstock.llm.endpoints import Endpoint, Endpoints, by_limiter, published
from penstock.llm.reporting import Listener
from penstock.llm.tokens import by_bytes, by_tiktoken, with_output_added, with_output_if_larger
from penstock.llm.transport import MAX_PAUSE, NoLimitsKnown, Plan, Rules, checked_cost, content_of, limited_client

if TYPE_CHECKING:
    from penstock.llm.tokens import Body, Cost

__all__ = ["limit_client", "limits_of", "rules_for"]

Client = TypeVar("Client")

_AZURE = ("_azure_endpoint", "_azure_deployment")
"""What `copy` of Azure's clients forgets before openai 3: without it, a list of files is asked of the deployment."""

_COSTS: dict[str, Cost] = {
    "bytes": by_bytes,
    "tiktoken": by_tiktoken,
    "bytes + output": with_output_added,
    "bytes or output": with_output_if_larger,
}

_MODEL_IN_PATH = re.compile(r"/(?:deployments|models)/([^/:]+)[/:]")
"""Azure's deployments, and Gemini's models."""

_EVERY_MODEL = "every model"


def limit_client(
    client: Client,
    limits: Limiter | Callable[[Any], Limiter | None] | Literal["auto"] | None = None,
    *,
    tier: str | None = None,
    account: str | None = None,
    cost: Cost | Literal["bytes", "tiktoken", "bytes + output", "bytes or output"] = "bytes",
    max_wait: float | None = None,
    max_pause: float = MAX_PAUSE,
    on_event: Callable[[ServiceEvent | Refused], object] | None = None,
) -> Client:
    """Make a client like `client`, of the same type, that keeps the limits. The given one is not changed.

    Every request is charged before it is sent, whatever endpoint it is for: streams, and the retries of the SDK, too. It
    waits for its turn; neither timeouts of the SDK nor its retries see that wait. When the service says "not now",
    everybody waits once, for as long as it says, and the request is sent again. When it says "never" (no money left, too
    large a request), the error comes at once: the SDK does not retry it.

    A request that would wait longer than `max_wait` is not sent, and fails with the SDK's `RateLimitError`; one that can
    never fit, or has a cost that is wrong, with its `BadRequestError`. Their `code` says why, and their message how much
    was asked for and how much there is.

    Args:
        client: Of an SDK that sends through httpx or httpx2 and has `copy(http_client=…)`: openai 1 and up, and what is made
            of it such as `AsyncAzureOpenAI`; anthropic; groq; together. Or an httpx or httpx2 client itself. Its key,
            address, timeouts, retries and connections stay what they are.
        limits: A `Limiter` for all of its requests together; its units may be `requests`, `tokens`, `images`, and one for
            places in flight. Or a function of the (HTTP) request that returns one, such as
            `lambda request: org & per_user[user.get()]`. Or "auto", the default: per model, learned from the answers. One
            request is then in flight until the first answer has come. Clients of one address and key share what they learn.
        tier: Instead of `limits`: the limits published for a usage tier, per model; "tier-1" to "tier-5".
        account: Instead of `limits`: the limits of the early guide for an account, per model; see `penstock.openai.limits`.
        cost: What a request costs: "bytes", OpenAI's own rule; "tiktoken", what `usage` will say went in; "bytes + output",
            where `max_tokens` is charged on top (Azure, Bedrock); "bytes or output", whichever is more; or a function of path
            and body, see `penstock.llm.tokens`.
        max_wait: Longest wait for a turn, in seconds.
        max_pause: Longest wait that the service may ask for, in seconds. If it asks for more, its error is raised.
        on_event: Hears a frozen record of each request when its answer is over (`penstock.events.Answered`), of those that were
            refused here, and of limits when they are learned: a `penstock.usage.Ledger`, or a function of yours.

    Raises:
        TypeError: It is no such client; or `cost` is a function that would have to be awaited.
        ValueError: More than one of limits, tier and account; an unknown tier or account; a number that is out of its range; a
            client that is limited already.
    """
    rules, endpoints = rules_for(
        client,
        limits,
        tier=tier,
        account=account,
        cost=cost,
        max_wait=max_wait,
        max_pause=max_pause,
        on_event=on_event,
    )
    if hasattr(client, "_transport") and hasattr(client, "_mounts"):
        itself = limited_client(client, rules)
        _ENDPOINTS[itself] = endpoints
        return itself
    http_client = getattr(client, "_client", None)
    if http_client is None or not hasattr(client, "copy"):
        raise TypeError(
            f"limit_client needs a client of an SDK that sends through httpx, such as openai.AsyncOpenAI(), or an httpx "
            f"client, not {type(client).__qualname__}; what it needs comes with pip install 'penstock[openai]' openai"
        )
    copied: Any = client
    limited: Client = copied.copy(http_client=limited_client(http_client, rules))
    for part in _AZURE:
        if hasattr(client, part):
            setattr(limited, part, getattr(client, part))
    _ENDPOINTS[limited] = endpoints
    return limited


def limits_of(client: Any) -> Mapping[str, Endpoint]:
    """What is known of the limits of a client that `limit_client` returned: per model, an endpoint with `statistics()`.

    With one limiter for all, its name is "every model". With a function of the request there is nothing to be seen here: ask
    the limiters that it returns.

    Raises:
        ValueError: The client is not limited.
    """
    try:
        return _ENDPOINTS[client].made()
    except (KeyError, TypeError):
        raise ValueError(f"{client!r} is not limited: give limits_of what limit_client returned") from None


_ENDPOINTS: weakref.WeakKeyDictionary[Any, Endpoints] = weakref.WeakKeyDictionary()
_SHARED: weakref.WeakValueDictionary[tuple[str, str], Endpoints] = weakref.WeakValueDictionary()


def rules_for(
    client: Any,
    limits: Any,
    *,
    tier: str | None,
    account: str | None,
    cost: Any,
    max_wait: float | None,
    max_pause: float,
    on_event: Callable[[Any], object] | None = None,
) -> tuple[Rules, Endpoints]:
    """What `limit_client` decides about the requests of a client, and the endpoints that they are for."""
    if callable(cost):
        check_plain("limit_client", "cost", cost)
        rule: Cost = cost
    elif isinstance(cost, str) and cost in _COSTS:
        rule = _COSTS[cost]
    else:
        raise ValueError(
            f"cost must be one of {', '.join(map(repr, _COSTS))}, or a function of path and body, not {cost!r}"
        )
    endpoints, endpoint_of = _endpoints(client, limits, tier, account)

    def plan(request: Any) -> Plan | None:
        path, body = request.url.path, json_object(content_of(request))
        charged = checked_cost(rule(path, body))
        model = model_of(path, body)
        endpoint = None if charged is None else endpoint_of(request, model)
        return None if charged is None or endpoint is None else Plan(endpoint, charged, model)

    if on_event is not None:
        check_plain("limit_client", "on_event", on_event)
    listener = None if on_event is None else Listener(on_event)
    return Rules(plan, max_wait=max_wait, max_pause=max_pause, listener=listener), endpoints


def _endpoints(
    client: Any, limits: Any, tier: str | None, account: str | None
) -> tuple[Endpoints, Callable[[Any, str | None], Endpoint | None]]:
    if sum(given is not None for given in (limits, tier, account)) > 1:
        raise ValueError("give one of limits=, tier= and account=: they would contradict each other")
    if isinstance(limits, Limiter):
        only = Endpoint(limits)
        endpoints = Endpoints(lambda _: only)
        endpoints.of(_EVERY_MODEL)
        return endpoints, lambda _, __: only
    if tier is not None or account is not None:
        endpoints = published(checked_account(account, tier))
    elif limits is None or limits == "auto":
        endpoints = _shared(client)
    elif callable(limits):
        check_plain("limit_client", "limits", limits)
        of = by_limiter(limits)
        return discovered(), lambda request, _: of(request)
    else:
        raise ValueError(f'limits must be a Limiter, a function that returns one, or "auto", not {limits!r}')

    def endpoint_of(_: Any, model: str | None) -> Endpoint | None:
        if model is None:  # a list of models, a file: what services count there, they do not say
            return None
        try:
            return endpoints.of(model)
        except ValueError as error:
            raise NoLimitsKnown(str(error)) from error

    return endpoints, endpoint_of


def _shared(client: Any) -> Endpoints:
    """What all clients of one address and key learn together."""
    address, key = getattr(client, "base_url", None), getattr(client, "api_key", None)
    if address is None or not isinstance(key, str):
        return discovered()
    where = str(address), key
    endpoints = _SHARED.get(where)
    if endpoints is None:
        endpoints = _SHARED[where] = discovered()
    return endpoints


def checked_account(account: str | None, tier: str | None) -> str:
    """The account, or the tier: which of both is asked for is part of the question, so neither stands in for the other."""
    if tier is not None and tier not in tables.tiers():
        raise ValueError(f"there is no tier {tier!r}: there are {', '.join(tables.tiers())}")
    if account is not None and account not in tables.accounts():
        raise ValueError(f"there is no account {account!r}: there are {', '.join(tables.accounts())}")
    chosen = tier or account
    assert chosen is not None
    return chosen


def model_of(path: str, body: Body | None) -> str | None:
    """The model that a request is for: of its body, or of its path, where Azure and Gemini name it."""
    model = (body or {}).get("model")
    if isinstance(model, str):
        return model
    found = _MODEL_IN_PATH.search(path)
    return found[1] if found else None


def json_object(content: bytes) -> Body | None:
    """A body that is a JSON object; None for anything else."""
    if content.lstrip()[:1] != b"{":
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to be read
        return None
    return body if isinstance(body, dict) else None
