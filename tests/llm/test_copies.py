"""A limited copy of an SDK's client, wherever the SDK keeps its HTTP client; the original stays as it was."""

from __future__ import annotations

import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import httpx2
import openai
import pytest

from penstock import Limiter, per_minute, turn
from penstock.llm.clients import limit_client, limits_of
from penstock.llm.copies import copied, library_of

URL = "http://api.test/v1/things"
ANY = Limiter(requests=per_minute(60))


class Settings:
    """What an SDK's objects share, and what nobody copies."""

    def __init__(self):
        self.key, self.lock = "key", threading.Lock()


class Wrapper:
    """Keeps an HTTP client in a slot, as some SDKs' own wrappers do."""

    __slots__ = ("__dict__", "_private", "http")

    def __init__(self, http):
        self.http, self._private = http, "kept"

    def send(self):
        return self.http.get(URL).status_code


class Resource:
    """Has the client that it belongs to, as resources of SDKs do, or only a way to send."""

    def __init__(self, client, send):
        self.client, self.send = client, send


class SDK:
    """Hands its HTTP client around as attribute, bound method, closure, partial, list and dict."""

    def __init__(self):
        http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200)))
        self.settings = Settings()
        self.inner = Wrapper(http)
        self.inner.__dict__["http_again"] = http
        self.resource = Resource(self, http.get)
        self.closed_over = lambda: http.get(URL).status_code
        self.partial = functools.partial(http.get, URL)
        self.listed = [http, "a"]
        self.named = {"sync": http}
        self.tuple = (1, (http,))
        self.of_itself = []
        self.of_itself.append(self.of_itself)
        settings = self.settings
        self.about = lambda: settings.key


WAYS = {
    "bound method": lambda sdk: sdk.resource.send(URL),
    "of its owner": lambda sdk: sdk.resource.client.closed_over(),
    "closure": lambda sdk: sdk.closed_over(),
    "partial": lambda sdk: sdk.partial(),
    "list": lambda sdk: sdk.listed[0].get(URL),
    "dict": lambda sdk: sdk.named["sync"].get(URL),
    "tuple": lambda sdk: sdk.tuple[1][0].get(URL),
    "slot": lambda sdk: sdk.inner.send(),
    "below": lambda sdk: sdk.inner.http_again.get(URL),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_the_http_client_is_limited_and_the_originals_is_not(way):
    sdk, limiter = SDK(), Limiter(requests=per_minute(60))
    limited = limit_client(sdk, limiter)
    way(sdk)
    assert limiter.statistics().granted == 0
    way(limited)
    assert limiter.statistics().granted == 1


def test_a_copy_has_the_type_of_its_original_and_shares_what_is_no_way_to_the_http_client():
    sdk = SDK()
    before = dict(vars(sdk))
    limited = limit_client(sdk, ANY)
    assert type(limited) is SDK
    assert limited.settings is sdk.settings
    assert limited.about is sdk.about
    assert limited.of_itself is sdk.of_itself
    assert limited.resource.client is limited
    assert limited.inner._private == "kept"
    assert vars(sdk) == before
    assert list(limits_of(limited)) == ["every model"]


def test_one_http_client_becomes_one_limited_client_however_often_it_is_referred_to():
    limited = limit_client(SDK(), ANY)
    assert limited.listed[0] is limited.named["sync"] is limited.tuple[1][0] is limited.inner.http_again


class Closing(SDK):
    """Closes its connections when it is collected, as litellm's handlers do."""

    def __del__(self):
        self.listed[0].close()


def test_a_copy_that_is_dropped_closes_nothing():
    sdk = Closing()
    limited = limit_client(sdk, ANY)
    assert isinstance(limited, Closing)
    del limited
    assert sdk.closed_over() == 200


def test_the_original_is_kept_for_as_long_as_its_copy_uses_its_connections():
    limited = limit_client(Closing(), ANY)
    assert limited.closed_over() == 200


class Nothing:
    """No client of anything."""

    def __init__(self):
        self.inside = SDK  # a class is no object of an SDK's


@pytest.mark.parametrize("thing", [Nothing(), object(), None, 5, httpx.Response(200)])
def test_what_has_no_http_client_is_refused_and_says_what_is_needed(thing):
    with pytest.raises(TypeError, match="an SDK that sends through httpx"):
        limit_client(thing, ANY)
    assert copied(thing, lambda client: client) is None


def test_a_client_of_a_users_own_class_is_known_by_what_it_is_made_of(lib):
    class Mine(lib.AsyncClient):
        pass

    assert library_of(Mine()) == lib.__name__
    assert library_of(lib.Response(200)) is None


class Tenant(openai.OpenAI):
    """An SDK's client that a user makes in a way of their own."""

    def __init__(self, tenant, **options):
        super().__init__(base_url=f"http://{tenant}.test/v1", api_key="any", **options)
        self.tenant = tenant


def test_a_subclass_that_its_sdk_could_not_copy_is_limited_all_the_same():
    """The SDK's `copy` calls `__init__` with its own arguments."""
    answers = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json={"data": []})))
    given, limiter = Tenant("acme", http_client=answers), Limiter(requests=per_minute(100))
    given.models.list()  # makes what refers to the client, and is to refer to the copy
    client = limit_client(given, limiter)
    client.models.list()
    assert type(client) is Tenant
    assert client.tenant == "acme"
    assert limiter.statistics().granted == 1
    assert list(limits_of(client)) == ["every model"]


class Threads(SDK):
    """Sends from threads of its own, as Cohere's does to embed many texts."""

    def __init__(self, executor):
        super().__init__()
        self._executor = executor

    def embed(self):
        return list(self._executor.map(lambda _: self.inner.send(), range(2)))


def test_a_turn_holds_in_the_threads_that_an_sdk_sends_from():
    limiter = Limiter(requests=per_minute(60))
    with ThreadPoolExecutor(2) as executor:
        given = Threads(executor)
        client = limit_client(given, limiter)
        assert client.embed() == [200, 200]
        limiter.pause(30)
        with turn(max_wait=0):
            assert client.embed() == [429, 429]
        assert given._executor is executor


class CoheresError(Exception):
    """As Cohere's SDK makes its errors."""

    def __init__(self, *, body, headers):
        super().__init__(body)
        self.headers = headers


def test_what_coheres_sdk_would_send_again_is_raised_as_its_own_error(monkeypatch):
    """It sends again whatever is answered with 429: a wait that was refused, and what no wait mends."""
    kinds = {name: type(name, (CoheresError,), {}) for name in ("BadRequestError", "TooManyRequestsError")}
    monkeypatch.setitem(sys.modules, "cohere", SimpleNamespace(**kinds, ServiceUnavailableError=CoheresError))
    used_up = {"message": "You are using a Trial key, which is limited to 1000 API calls / month."}
    given, limiter = type("Client", (SDK,), {"__module__": "cohere.client"})(), Limiter(requests=per_minute(60))
    given.inner.http._transport = httpx.MockTransport(lambda _: httpx.Response(429, json=used_up))
    client = limit_client(given, limiter)
    with pytest.raises(kinds["TooManyRequestsError"], match="Trial key"):
        client.inner.send()
    limiter.pause(30)
    with turn(max_wait=0), pytest.raises(kinds["TooManyRequestsError"], match="requests") as refused:
        client.inner.send()
    assert float(refused.value.headers["retry-after"]) > 20


class PerLoop(httpx.AsyncClient):
    """Keeps connections for each event loop, as the client of google-genai does."""

    _per_loop = True

    def __init__(self):
        super().__init__()
        self.own = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)))

    def _client_for_running_loop(self):
        return self.own


class Options:
    """As pydantic's models are copied."""

    httpx_async_client = None

    def model_copy(self, *, update):
        made = Options()
        vars(made).update(update)
        return made


@pytest.mark.anyio
@pytest.mark.parametrize("options", [Options(), None])
async def test_googles_client_sends_through_the_connections_of_its_loop_and_not_through_aiohttp(options):
    """Where aiohttp is installed it would take that, unless it was given a client."""
    given, limiter = type("Client", (), {"__module__": "google.genai.client"})(), Limiter(requests=per_minute(60))
    given._api_client = type("Inner", (), {"__module__": "google.genai._api_client"})()
    given._api_client._http_options, given._api_client._async_httpx_client = options, PerLoop()
    inner = limit_client(given, limiter)._api_client
    assert (await inner._async_httpx_client.get(URL)).status_code == 200
    assert limiter.statistics().granted == 1
    if options is not None:
        assert inner._http_options.httpx_async_client is inner._async_httpx_client
        assert options.httpx_async_client is None


class Slotted:
    """Has nothing but slots."""

    __slots__ = ("__http", "other")

    def __init__(self):
        self.__http = SDK().inner.http

    def send(self):
        return self.__http.get(URL).status_code


def test_a_client_that_has_nothing_but_slots_is_limited():
    given, limiter = Slotted(), Limiter(requests=per_minute(60))
    client = limit_client(given, limiter)
    assert (given.send(), limiter.statistics().granted) == (200, 0)
    assert (client.send(), limiter.statistics().granted) == (200, 1)
    assert list(limits_of(client)) == ["every model"]
