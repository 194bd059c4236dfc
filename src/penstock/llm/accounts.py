"""Which learned limits a request falls under: those of its address, its key, and its model.

Clients of one address and key share what they learn, for as long as one of them is there.
"""

from __future__ import annotations

import weakref
from typing import Any

from penstock._concurrency.locks import new_lock
from penstock.llm.discovered import discovered
from penstock.llm.endpoints import Endpoint, Endpoints
from penstock.llm.shared_limits import shared
from penstock.stores import Store

__all__ = ["Accounts"]

_KEYS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_Where = tuple[str, str, Store | None]
_shared: weakref.WeakValueDictionary[_Where, _Account] = weakref.WeakValueDictionary()
_lock = new_lock()


class _Account:
    """What is learned at one address with one key, and in which store it is kept."""

    def __init__(self, address: str, key: str, store: Store | None) -> None:
        self.endpoints: Endpoints = discovered() if store is None else shared(store, address, key)


class Accounts:
    """The accounts that one client uses: one as a rule. With a store, their limits are kept there."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._used: dict[_Where, _Account] = {}

    def of(self, request: Any, model: str) -> Endpoint:
        """The endpoint of a request, of httpx or httpx2."""
        key = next((value for name in _KEYS if (value := request.headers.get(name))), "")
        where = f"{request.url.scheme}://{request.url.netloc.decode('ascii', 'replace')}", key, self._store
        account = self._used.get(where)
        if account is None:
            with _lock:
                account = _shared.get(where)
                if account is None:
                    account = _shared[where] = _Account(*where)
                self._used[where] = account
        return account.endpoints.of(model)

    def made(self) -> dict[str, Endpoint]:
        """All endpoints by now, by model; of several addresses or keys, by model and address."""
        used = list(self._used.items())
        if len(used) == 1:
            return used[0][1].endpoints.made()
        found: dict[str, Endpoint] = {}
        for number, ((address, *_), account) in enumerate(used):
            for model, endpoint in account.endpoints.made().items():
                name = f"{model} at {address}"
                found[name if name not in found else f"{name} ({number})"] = endpoint
        return found
