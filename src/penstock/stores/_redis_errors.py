"""What a Redis server or its client says instead of an answer, sorted.

What passes by itself, and what a person must mend.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.errors import StoreError
from penstock.stores._redis_server import RedisServer
from penstock.stores.contract import Unreachable, damaged_row

SMALLEST_ACL = "-@all +eval +evalsha +get +set +hmget +hset +expire +time +publish +subscribe"
"""What a user must be allowed, beside the keys and channels; in a cluster `+cluster|slots +command` too."""

_CANNOT_NOW = frozenset(
    {
        "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNKILLABLE", "NOREPLICAS", "MISCONF", "MOVED",
        "ASK", "IOERR",
    }
)  # fmt: skip
"""Codes of errors that pass: the server is there, and cannot decide at the moment."""


def explain(error: Exception, server: RedisServer, prefix: str, names: Sequence[str]) -> StoreError:
    """Our error for one of the client's. It takes the code off some errors of the server's, and leaves it on others.

    `names`: of the rows that were asked for, in their order.
    """
    from redis import exceptions as errors

    problems = getattr(error, "problems", None)
    if problems is not None:
        return _no_primary(server, problems)
    where, said = server.shown, str(error)
    text = server.without_secrets(said).rstrip(".")
    codes = {word.strip("-:") for word in said.split() if word.strip("-:").isupper()}
    if isinstance(error, errors.AuthenticationError) or codes & {"WRONGPASS", "NOAUTH"}:
        return StoreError(f"{where} refused us: {text}. Check the user and the password in the URL")
    no_permission = "NOPERM" in codes or "ACL failure in script" in said  # the latter is said without a code
    if no_permission or isinstance(error, errors.NoPermissionError | errors.AuthorizationError):
        return StoreError(
            f"{where}: this user may not do what is needed ({text}). Allow it ~{prefix}:* &{prefix}:* {SMALLEST_ACL}, "
            "and in a cluster +cluster|slots +command; for another db than 0 +select"
        )
    if isinstance(error, errors.ReadOnlyError) or "READONLY" in codes:
        return Unreachable(
            f"{where} is a read-only replica: give RedisStore the address of the primary, or of its Sentinels"
        )
    if isinstance(error, errors.OutOfMemoryError) or "OOM" in codes:
        return Unreachable(f"{where} has no memory left: nothing was granted. Raise its maxmemory ({text})")
    if "CROSSSLOT" in codes or said.endswith("must map to the same key slot"):  # until now it was not known to be one
        return StoreError(f"{where} is a cluster with {', '.join(names)} in different hash slots: give them one group")
    cannot_now = (errors.BusyLoadingError, errors.ClusterError, errors.TryAgainError, errors.AskError)
    if isinstance(error, cannot_now) or codes & _CANNOT_NOW:
        return Unreachable(f"{where} cannot answer now: {text}")
    damaged = re.match(r"DAMAGED ([0-9]{1,4})\b", said)
    if damaged and 0 < int(damaged[1]) <= len(names):
        return damaged_row(where, names[int(damaged[1]) - 1])
    if isinstance(error, errors.ResponseError):
        return StoreError(f"{where} says {text}")
    if "CERTIFICATE_VERIFY_FAILED" in said or "certificate verify failed" in said:
        return StoreError(
            f"{where} shows a certificate that is not trusted here: {text}. Name the authority that signed it, as "
            "rediss://…?ssl_ca_certs=/path/to/ca.pem, or a host name that the certificate is for"
        )
    if isinstance(error, errors.RedisError | errors.RedisClusterException | OSError):
        why = text or type(error).__name__
        return Unreachable(f"{where} does not answer: {why}. Is the server running, and is the address right?")
    shown = server.without_secrets(repr(error))
    return StoreError(f"{where} does not answer as Redis does ({shown}). Is it a Redis server?")


def _no_primary(server: RedisServer, problems: Sequence[Exception]) -> StoreError:
    """Why the Sentinels name no primary: `problems` is what those said that gave no answer."""
    from redis import exceptions as errors

    where, said = server.shown, server.without_secrets("; ".join(map(str, problems)))
    if any(isinstance(problem, errors.AuthenticationError | errors.NoPermissionError) for problem in problems):
        return StoreError(
            f"{where}: its Sentinels refused us: {said}. "
            "Their own user and password go into the URL as sentinel_username= and sentinel_password="
        )
    return Unreachable(
        f"{where} does not answer: no Sentinel names a primary ({said or 'none of them knows one'}). "
        "Are they running, and is the name of the service right?"
    )
