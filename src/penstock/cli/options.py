"""What the options of the command line mean: servers, changes of requests. Limits: see `limits`."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.cli.terminal import Fault
from penstock.runner.client import Server, headers_of, is_address
from penstock.runner.source import Change, ChangeError

__all__ = ["change_of", "server_of", "servers_of"]

OPENAI = "https://api.openai.com/v1"

_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")


# Servers --------------------------------------------------------------------------------------------------------------


def servers_of(
    base_urls: Sequence[str], key_variables: Sequence[str], headers: Sequence[str], timeout: float
) -> dict[str, Server]:
    """The servers of a pool, by what to call them: each address with the key of the variable that was given for it.

    Raises:
        Fault: As `server_of`; and one that is named twice, or keys that cannot be paired with servers.
    """
    if len(base_urls) > 1 and len(key_variables) > 1 and len(base_urls) != len(key_variables):
        raise Fault("--api-key-env: give one for each --base-url, in their order, or one for all of them")
    addresses: list[str | None] = [*base_urls] or [None]
    keys: list[str | None] = [*key_variables] or [None]
    many = max(len(addresses), len(keys))
    found: dict[str, Server] = {}
    for address, key in zip(addresses * (many // len(addresses)), keys * (many // len(keys)), strict=True):
        server = server_of(address, headers, timeout, key)
        name = urllib.parse.urlsplit(server.base_url).netloc
        is_shared = (many > 1 and len(addresses) == 1) or addresses.count(address) > 1 or name in found
        label = f"{name} ({key or server.base_url})" if is_shared else name
        if label in found or server in found.values():
            raise Fault(f"{label} is named twice: a server is in a pool once for each key")
        found[label] = server
    return found


def server_of(base_url: str | None, headers: Iterable[str], timeout: float, key_variable: str | None = None) -> Server:
    """The server that the options and the environment name, with the key that it wants.

    Args:
        base_url: Its address; None: the environment has it.
        headers: `Name: value` pairs to send.
        timeout: Seconds an attempt may take.
        key_variable: The variable of the environment that holds the key; None: the usual one.

    Raises:
        Fault: There is no such address, no key, or a header that is none.
    """
    if not math.isfinite(timeout):
        raise Fault(f"--timeout: {timeout} is not a number of seconds; write it like 600")
    address = _address(base_url)
    try:
        given = headers_of(map(_from_environment, headers))
    except ValueError as error:
        raise Fault(f"--header: {error}") from None
    names = {name.lower() for name in given}
    found: dict[str, str] = {}
    if not names & {"authorization", "api-key", "x-api-key"}:
        found |= _credentials(address, key_variable)
    for variable, name in (("OPENAI_ORG_ID", "openai-organization"), ("OPENAI_PROJECT_ID", "openai-project")):
        value = os.environ.get(variable, "").strip()
        if value and name not in names:
            found[name] = _sendable(value, variable)
    return Server(address, headers=found | given, timeout=timeout)


def _from_environment(header: str) -> str:
    """`Name: $VARIABLE`, quoted from the shell: a command line is seen by everybody on the machine."""
    name, _, value = header.partition(":")
    variable = re.fullmatch(r"\s*((?:Bearer )?)\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?\s*", value)
    if variable is None:
        return header
    found = os.environ.get(variable[2], "").strip()
    if not found:
        raise ValueError(f"{variable[2]}, which {name} names, is not set")
    return f"{name}: {variable[1]}{_sendable(found, variable[2])}"


def _address(given: str | None) -> str:
    # An empty option is a variable that was not set: the requests, and the key, are not for the default service.
    address = given if given is not None else os.environ.get("OPENAI_BASE_URL") or OPENAI
    where = "--base-url" if given is not None else "OPENAI_BASE_URL"
    if not is_address(address):
        raise Fault(f"{where}: {address!r} is not the address of a server; write it like http://localhost:8000/v1")
    if "@" in urllib.parse.urlsplit(address).netloc:
        raise Fault(
            f"{where}: it holds a name or a password, which everybody on the machine sees: give a --header instead"
        )
    if "#" in address:
        raise Fault(f"{where}: {address!r} has a #, and what follows it is never sent: leave it out")
    return address


def _credentials(address: str, variable: str | None) -> dict[str, str]:
    """The header that carries the key; none for a server of this network without one."""
    host = (urllib.parse.urlsplit(address).hostname or "").lower()
    is_azure = host.endswith(_AZURE)
    usual = ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY") if is_azure else ("OPENAI_API_KEY",)
    names = usual if variable is None else (variable,)
    for name in names:
        key = os.environ.get(name, "").strip()
        if key:
            _sendable(key, name)
            if " " in key:
                raise Fault(f"{name} holds characters that no key has: check how it was exported")
            return {"api-key": key} if is_azure else {"authorization": f"Bearer {key}"}
    if variable is None and _is_near(host):
        return {}
    raise Fault(f"{names[0]} is not set: export it (any value will do for a server that asks for none)")


def _sendable(value: str, where: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise Fault(f"{where} holds characters that no key has: check how it was exported")
    return value


def _is_near(host: str) -> bool:
    """Whether a server is on this machine or in this network, where many ask for no key."""
    if host.endswith((".localhost", ".local", ".internal", ".lan")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host  # localhost, or a service of a network of containers
    return address.is_loopback or address.is_private or address.is_link_local


# Changes of requests --------------------------------------------------------------------------------------------------


def change_of(model: str | None, settings: Iterable[str]) -> tuple[Change | None, bytes]:
    """What `--model` and `--set path=value` do to each body, and bytes that stand for it; (None, b"") for nothing.

    Raises:
        Fault: One of them cannot be read.
    """
    changes: list[tuple[tuple[str, ...], Any]] = [] if model is None else [(("model",), model)]
    for text in settings:
        path, equals, value = text.partition("=")
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            raise Fault(f"--set: cannot read {text!r}: write it like temperature=0 or reasoning.effort=low")
        changes.append((keys, _value(value)))
    if not changes:
        return None, b""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = body
        for keys, value in changes:
            changed = _with(changed, keys, value)
        return changed

    return change, hashlib.blake2b(repr(changes).encode(), digest_size=8).digest()


def _with(inside: Any, keys: tuple[str, ...], value: Any) -> Any:
    """The same with a value at a path; a number is a place in a list, and what is no object is replaced by one."""
    if not keys:
        return value
    name, *below = keys
    if isinstance(inside, list):
        if not name.isdecimal() or int(name) >= len(inside):
            raise ChangeError(f"--set: a list of {len(inside)} has no place {name!r}; the first is 0")
        at = int(name)
        return [*inside[:at], _with(inside[at], tuple(below), value), *inside[at + 1 :]]
    there = inside if isinstance(inside, Mapping) else {}
    return {**there, name: _with(there.get(name), tuple(below), value)}


def _value(text: str) -> Any:
    """JSON where it is some, else the text as it is."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> Any:
    raise ValueError(name)
