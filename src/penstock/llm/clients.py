"""Limits under an SDK's client: what every service's face offers.

    limit_client    the same client with limits under it
    limits_of       what is known of the limits of such a client

No SDK is imported here. What is needed of one is that it sends through httpx or httpx2, wherever it keeps its client.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from penstock import Limiter
from penstock._introspect import check_plain
from penstock._numbers import Seconds
from penstock._text import repr_of
from penstock._validation import read_wait
from penstock.events import Refused, ServiceEvent
from penstock.llm import tables
from penstock.llm.accounts import Accounts
from penstock.llm.copies import Carrying, copied, http_clients_in, library_of
from penstock.llm.endpoints import Endpoint, Endpoints
from penstock.llm.exchange import MAX_PAUSE, NoLimitsKnown, RequestPlan, Rules, checked_cost, checked_pause, content_of
from penstock.llm.given import GivenEndpoint, by_limiter, nothing_to_see, published
from penstock.llm.refusals import Refusal
from penstock.llm.reporting import Listener
from penstock.llm.streams import minding
from penstock.llm.tokens import (
    answers_with_tokens,
    by_bytes,
    by_tiktoken,
    most_output,
    ranks_are_loaded,
    with_output_added,
    with_output_if_larger,
)
from penstock.llm.transport import endpoints_under, limited_client
from penstock.llm.usage_reader import OutputEstimate, Usage
from penstock.stores import MemoryStore, Store

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
    "total": by_bytes,
}

_MODEL_IN_PATH = re.compile(r"/(?:deployments|models?)/([^/:]+)[/:]")
"""Azure's deployments, Gemini's models, and Bedrock's."""

_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
"""Azure's. Each has limits of its own, whatever model it is of and whatever model the body names."""

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')

_EVERY_MODEL = "every model"

_REMEMBERED = 256  # models whose answers are remembered

_HEAVY = {"bytes": 65_536, "tiktoken": 2_048}
"""Bytes of a text that are counted in well under a millisecond; what is larger is counted beside the event loop."""

_STEPS = 512
"""Numbers and objects that are read in a part of a millisecond."""

_OBJECTS, _NUMBERS = 100, 10_000
"""Objects and numbers in a body that take as long; smaller bodies than these many bytes do not have them."""


def limit_client(
    client: Client,
    limits: Limiter | Callable[[Any], Limiter | None] | Literal["auto"] | None = None,
    *,
    tier: str | None = None,
    account: str | None = None,
    cost: Cost | Literal["bytes", "tiktoken", "bytes + output", "bytes or output", "total"] = "bytes",
    max_wait: Seconds | None = None,
    max_pause: Seconds = MAX_PAUSE,
    on_event: Callable[[ServiceEvent | Refused], object] | None = None,
    store: Store | None = None,
) -> Client:
    """Make a client like `client`, of the same type, that keeps the limits. The given one is not changed.

    Every request is charged before it is sent, whatever endpoint it is for: streams, and the retries of the SDK, too.
    It waits for its turn; the SDK's timeouts and retries do not count that wait. When the service says "not now", all
    requests wait once, for as long as it says, and the request is sent again. When it says "never" (no money left, too
    large a request), the error comes at once: the SDK does not retry it.

    A request that would wait longer than `max_wait` is not sent, and fails with the SDK's own error for a rate limit;
    one that can never fit, or has a cost that is wrong, with its error for a bad request. They are in the form of that
    service's errors: `code` says why, where it has codes, and the message how much was asked for and how much there is.

    Args:
        client: Of an SDK that sends through httpx or httpx2: openai 1 and up, and what is made of it such as
            `AsyncAzureOpenAI`; anthropic; groq; together; cohere; mistralai; google-genai; ollama; litellm's handlers.
            Or an httpx or httpx2 client itself. Its key, address, timeouts, retries and connections stay what they are.
        limits: A `Limiter` for all of its requests together; its units may be `requests`, `tokens`, `input_tokens`,
            `output_tokens`, `images`, and one for places in flight. Output is estimated, and settled when the answer
            says what it used. Or a function of the (HTTP) request that returns one, such as
            `lambda request: org & per_user[user.get()]`. Or "auto", the default: per model, or per deployment of
            Azure's, learned from the answers. One request is then in flight until the first answer has come. Clients of
            one address and key share what they learn.
        tier: Instead of `limits`: the limits published for a usage tier, per model; "tier-1" to "tier-5".
        account: Instead of `limits`: the limits of the early guide for an account, per model; see
            `penstock.openai.limits`.
        cost: What a request costs: "bytes", OpenAI's own rule; "tiktoken", what `usage` will say went in; "bytes +
            output", where `max_tokens` is charged on top (Azure, Bedrock); "bytes or output", whichever is more;
            "total", where what really came out is charged too (Groq, Mistral, Together): it is estimated, and settled
            by `usage`; or a function of path and body, see `penstock.llm.tokens`.
        max_wait: Longest wait for a turn, in seconds or as a timedelta, 0 or more; None: any.
        max_pause: Longest wait that the service may ask for, in seconds or as a timedelta, 0 or more. If it asks for
            more, its error is raised.
        on_event: Called with a record of each request when its answer is over (`penstock.events.Answered`), of those
            that were refused here, and of limits when they are learned: a `penstock.usage.Ledger`, or a function of
            yours.
        store: Where processes that send to one address with one key keep the limits together which "auto" has learned,
            such as `penstock.stores.RedisStore(url)`. Each process learns what the service says by its first request;
            what the service does not say, it measures for itself. Not with a `Limiter`, which has a store of its own.

    Raises:
        TypeError: It is no such client; `store` is no store; or `cost` is a function that would have to be awaited.
        ValueError: More than one of limits, tier and account; `store` with anything but "auto"; an unknown tier or
            account; a number that is out of its range; a client that is limited already.
    """
    rules = rules_for(
        limits,
        tier=tier,
        account=account,
        cost=cost,
        max_wait=max_wait,
        max_pause=max_pause,
        on_event=on_event,
        store=store,
    )
    limited: Client | None = _limited(client, rules)
    if limited is None:
        raise TypeError(
            "limit_client needs a client of an SDK that sends through httpx, such as openai.AsyncOpenAI(), "
            f"or an httpx client, not {type(client).__qualname__}: for another HTTP library, "
            "enter a Limiter around its calls"
        )
    return limited


def limits_of(client: Any) -> Mapping[str, Endpoint]:
    """What is known of the limits of a client that `limit_client` returned: per model, an endpoint with `statistics()`.

    Of one that `penstock.http.limit_http_client` returned, per host.

    A copy of it, such as `client.with_options(timeout=60)`, has the same ones, whatever its HTTP client.

    With one limiter for all, its name is "every model", or "every host". With a function of the request this is empty:
    ask the limiters that the function returns.

    Raises:
        ValueError: The client is not limited.
    """
    for inner in http_clients_in(client):
        endpoints: Endpoints | Accounts | None = endpoints_under(inner)
        if endpoints is not None:
            return endpoints.made()
    raise ValueError(f"{repr_of(client)} is not limited: give limits_of what limit_client returned")


def _limited(client: Any, rules: Rules) -> Any:
    """A copy of a client, with limits under each HTTP client that it has; None if it has none."""
    if library_of(client) is not None and hasattr(client, "_transport"):
        return limited_client(client, rules)
    http_client = getattr(client, "_client", None)
    if library_of(http_client) is not None and _copies_itself(type(client)):
        limited = client.copy(http_client=limited_client(http_client, rules))
        for part in _AZURE:
            if hasattr(client, part):
                setattr(limited, part, getattr(client, part))
        return minding(limited, _limited_by(rules)) if hasattr(client, "request") else limited
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    if "cohere" in packages:
        rules = replace(rules, raises=_coheres_own)
    rules = replace(rules, owner=client)  # which may close its connections when it is collected
    limited = copied(client, lambda inner: limited_client(inner, rules))
    if limited is not None and isinstance(getattr(limited, "_executor", None), Executor):
        limited._executor = Carrying(limited._executor)
    if limited is not None and "google" in packages:
        _keep_google_to_httpx(limited)
    minds = hasattr(limited, "request") and hasattr(limited, "with_options")
    return minding(limited, _limited_by(rules)) if minds else limited


def _limited_by(rules: Rules) -> Callable[[Any], Any]:
    """What makes of an HTTP client one under these rules. One that is limited already, and anything else, stays."""

    def limited(http_client: Any) -> Any:
        is_free = library_of(http_client) is not None and endpoints_under(http_client) is None
        return limited_client(http_client, rules) if is_free else http_client

    return limited


def _copies_itself(kind: Any) -> bool:
    """Whether its `copy` makes a client with another HTTP client. That of ollama copies a model.

    And that of an SDK cannot call the `__init__` of a user's subclass.
    """
    method = getattr(kind, "copy", None)
    try:
        takes_one = "http_client" in inspect.signature(method).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return takes_one and _package_of(method) == _package_of(kind.__init__)


def _package_of(function: Any) -> str:
    return str(function.__module__).partition(".")[0]


def _coheres_own(refusal: Refusal) -> BaseException:
    """Cohere's error: its SDK sends again whatever is answered with 429, after the wait that was just refused."""
    errors = sys.modules["cohere"]
    kinds = {400: errors.BadRequestError, 429: errors.TooManyRequestsError, 503: errors.ServiceUnavailableError}
    kind = kinds[refusal.status]
    error: BaseException = kind(body=refusal.body, headers=dict(refusal.headers))
    return error


def _keep_google_to_httpx(limited: Any) -> None:
    """Have its async calls sent through httpx.

    Where aiohttp is installed it takes that, unless it was given a client.
    """
    inner = getattr(limited, "_api_client", None)
    options = getattr(inner, "_http_options", None)
    if inner is not None and options is not None and getattr(inner, "_async_httpx_client", None) is not None:
        inner._http_options = options.model_copy(update={"httpx_async_client": inner._async_httpx_client})


class _Counted(NamedTuple):
    """What was read in a request."""

    path: str
    body: Body | None
    charged: Mapping[str, float] | None
    """None: it is not limited, or a function of the user's is still to say what it costs."""
    model: str | None
    output: float | None
    """The most tokens that its answer may have, 0 if it does not say. None: it generates nothing."""


def rules_for(
    limits: Any,
    *,
    tier: str | None,
    account: str | None,
    cost: Any,
    max_wait: Seconds | None,
    max_pause: Seconds,
    on_event: Callable[[Any], object] | None = None,
    store: Store | None = None,
) -> Rules:
    """What `limit_client` decides about the requests of a client."""
    if callable(cost):
        check_plain("limit_client", "cost", cost)
        rule: Cost = cost
    elif isinstance(cost, str) and cost in _COSTS:
        rule = _COSTS[cost]
    else:
        raise ValueError(
            f"cost must be one of {', '.join(map(repr, _COSTS))}, or a function of path and body, not {repr_of(cost)}"
        )
    endpoints, endpoint_of = _endpoints(limits, tier, account, store)
    learns = isinstance(endpoints, Accounts)
    answers = _Answers(total=cost == "total", estimates=not callable(cost))

    def count(request: Any) -> _Counted:
        path, body = request.url.path, json_object(content_of(request))
        charged = None if callable(cost) else checked_cost(rule(path, body))
        output = most_output(body, 0.0) if body and answers_with_tokens(path, body) else None
        return _Counted(path, body, charged, model_of(path, body), output)

    def plan(request: Any, counted: _Counted) -> RequestPlan | None:
        if callable(cost):  # called in the loop, as any function of the user's: it may use what belongs there
            counted = counted._replace(charged=checked_cost(rule(counted.path, counted.body)))
        if counted.charged is None:
            return None
        model = counted.model or None
        if learns:
            deployment = _DEPLOYMENT.search(counted.path)
            model = deployment[1] if deployment else model or unnamed(counted.path, counted.body)
        endpoint = endpoint_of(request, model)
        return None if endpoint is None else answers.plan(endpoint, counted)

    if on_event is not None:
        check_plain("limit_client", "on_event", on_event)
    heavy = _is_heavy_for_tiktoken if cost == "tiktoken" else _is_heavy
    return Rules(
        count,
        plan,
        heavy=lambda request: heavy(content_of(request)),
        max_wait=read_wait(max_wait),
        max_pause=checked_pause(max_pause),
        listener=None if on_event is None else Listener(on_event),
        endpoints=endpoints,
    )


def _is_heavy(content: bytes, most: int = _HEAVY["bytes"]) -> bool:
    """Whether a body takes longer to count than an event loop should stand still."""
    size = len(content)
    if size <= _OBJECTS or size > most:
        return size > most
    objects = content.count(b"{") + content.count(b"[") / 2
    return size / most + objects / _OBJECTS + content.count(b",") / _NUMBERS > 1


def _is_heavy_for_tiktoken(content: bytes) -> bool:
    """The same where tokens are counted; the first time for a model, ranks are loaded."""
    if _is_heavy(content, _HEAVY["tiktoken"]):
        return True
    found = _MODEL.search(content)
    return not ranks_are_loaded("" if found is None else found[1].decode("utf-8", "replace"))


class _Answers:
    """How much the answers have, by model: what is estimated of them before, and settled afterwards."""

    def __init__(self, *, total: bool, estimates: bool) -> None:
        self._total = total
        self._estimates = estimates
        self._known: dict[str | None, OutputEstimate] = {}

    def plan(self, endpoint: Endpoint, counted: _Counted) -> RequestPlan:
        charged, limited = dict(counted.charged or {}), endpoint.limits
        tokens = charged.get("tokens", 0.0)
        if "input_tokens" in limited and self._estimates:
            charged["input_tokens"] = tokens
        learns = endpoint.learns
        # Of a server that stated nothing yet, what comes out may be limited as well.
        if self._estimates and ("output_tokens" in limited or (learns and not limited)):
            charged["output_tokens"] = 0.0
        settled = {"input_tokens", "output_tokens"} & charged.keys() & (limited.keys() or {"output_tokens"})
        if self._total and not learns:
            settled |= {"tokens"}
        if not counted.body or not settled:
            return RequestPlan(endpoint, charged, counted.model)
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        estimate = self._known.setdefault(counted.model, OutputEstimate())
        if self._estimates and counted.output is not None:
            output = estimate.of(counted.output)
            charged |= {"output_tokens": output, "tokens": tokens + output if self._total and not learns else tokens}

        def settle(usage: Usage) -> dict[str, float]:
            used = {"input_tokens": usage.input, "output_tokens": usage.output, "tokens": usage.total}
            if usage.output is not None and counted.output is not None:
                estimate.heard(usage.output)
            return {unit: amount for unit, amount in used.items() if amount is not None and unit in settled}

        return RequestPlan(endpoint, charged, counted.model, settle)


def _endpoints(
    limits: Any, tier: str | None, account: str | None, store: Any
) -> tuple[Endpoints | Accounts, Callable[[Any, str | None], Endpoint | None]]:
    if sum(given is not None for given in (limits, tier, account)) > 1:
        raise ValueError("give one of limits=, tier= and account=: they would contradict each other")
    if store is not None:
        if not isinstance(store, Store | MemoryStore):
            raise TypeError(
                f"store must be a SQLiteStore, a RedisStore or another store, or None, not {repr_of(store)}"
            )
        if limits not in (None, "auto") or tier is not None or account is not None:
            raise ValueError(
                'store= is where limits that are learned are kept, limits="auto": for limits of yours, give a Limiter '
                "that has the store"
            )
    if isinstance(limits, Limiter):
        only = GivenEndpoint(limits)
        endpoints = Endpoints(lambda _: only)
        endpoints.of(_EVERY_MODEL)
        return endpoints, lambda _, __: only
    if tier is not None or account is not None:
        made = published(checked_account(account, tier))

        def endpoint_of(_: Any, model: str | None) -> Endpoint | None:
            if model is None:  # a list of models, a file: what services count there, they do not say
                return None
            try:
                return made.of(model)
            except ValueError as error:
                raise NoLimitsKnown(str(error)) from error

        return made, endpoint_of
    if limits is None or limits == "auto":
        accounts = Accounts(None if isinstance(store, MemoryStore) else store)
        return accounts, lambda request, model: accounts.of(request, model) if model else None
    if callable(limits):
        check_plain("limit_client", "limits", limits)
        of = by_limiter(limits)
        return Endpoints(nothing_to_see), lambda request, _: of(request)
    raise ValueError(f'limits must be a Limiter, a function that returns one, or "auto", not {repr_of(limits)}')


def checked_account(account: str | None, tier: str | None) -> str:
    """The tier or the account that was asked for, once the table of its kind has it."""
    if tier is not None and tier not in tables.tiers():
        raise ValueError(f"there is no tier {repr_of(tier)}: there are {', '.join(tables.tiers())}")
    if account is not None and account not in tables.accounts():
        raise ValueError(f"there is no account {repr_of(account)}: there are {', '.join(tables.accounts())}")
    chosen = tier or account
    assert chosen is not None
    return chosen


def model_of(path: str, body: Body | None) -> str | None:
    """The model that a request is for: of its body, or of its path, where Azure and Gemini name it."""
    model = (body or {}).get("model")
    if isinstance(model, str):
        return model.removeprefix("models/")  # as Gemini has it, whose paths do not
    found = _MODEL_IN_PATH.search(path)
    return found[1] if found else None


_VERSION = re.compile(r"v\d\w*")


def unnamed(path: str, body: Body | None) -> str | None:
    """What stands for the model where a request leaves it to the service, or to an agent: the kind of request.

    None: it is no request to a model.
    """
    if not body or not (answers_with_tokens(path, body) or by_bytes(path, body)["tokens"]):
        return None
    words = [word for word in path.split("/") if word]
    version = next((at for at, word in enumerate(words) if _VERSION.fullmatch(word)), -1)
    return words[version + 1] if version + 1 < len(words) else path


def json_object(content: bytes) -> Body | None:
    """A body that is a JSON object; None for anything else."""
    if content.lstrip()[:1] != b"{":
        return None
    try:
        body = json.loads(content, **(_in_steps() if len(content) > _HEAVY["bytes"] else {}))
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to be read
        return None
    return body if isinstance(body, dict) else None


def _in_steps() -> dict[str, Any]:
    """Have a large body read in steps, so that an event loop runs in between: one step would hold the interpreter."""
    steps = 0

    def step(value: Any) -> Any:
        nonlocal steps
        steps += 1
        if not steps % _STEPS:
            time.sleep(0)
        return value

    return {
        "object_hook": step,
        "parse_int": lambda text: step(int(text)),
        "parse_float": lambda text: step(float(text)),
    }
