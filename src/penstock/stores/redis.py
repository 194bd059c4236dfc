"""State on a Redis or Valkey server (6.2 or later; alone, behind Sentinel, or a cluster), for any number of machines.

One script decides a batch, at one moment of the server's own clock. The dispatcher's thread owns the connection, with
redis-py's plain blocking client: so asyncio, trio and threads are all the same to this store, and no reply is ever lost
to a cancelled task.

Nothing is sent twice by accident. The client's own retries are off, since they would execute a script again; a batch
whose reply was lost is sent again under its number, and the script then repeats what it answered (it remembers each
process's last answer for ten minutes). A server that lost its scripts is given them anew; one that lost its memory is
what `on_state_loss` is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar
from weakref import finalize, ref

from penstock._chance import CHANCE
from penstock._introspect import why_not_plain
from penstock._numbers import Seconds
from penstock._text import repr_of
from penstock.errors import StoreError
from penstock.stores._connections import outlive
from penstock.stores._redis_errors import explain
from penstock.stores._redis_server import ask, let_go, server_at, server_of
from penstock.stores._redis_url import made_from
from penstock.stores.contract import (
    KEPT_IF_EMPTY,
    Batch,
    Decide,
    Recipe,
    Reply,
    Row,
    Store,
    Terms,
    Unreachable,
    begins_empty,
    check_part_of_key,
    damaged_row,
    seconds_of,
)

__all__ = ["RedisStore"]

OLDEST = (6, 2)
"""The first version with what the script needs (`EXPIRE` inside scripts that are replicated by effect, and RESP as it
is now)."""


_T = TypeVar("_T")

_abandoned: list[Any] = []


DECIDE = ("format", "asked", "plain", "rows", "limits", "flows", "bookings", "decide")
"""The files of the script that decides a batch, in their order."""


_CHECKSUM = 16
"""Bytes at the end of a row that tell it from one that was damaged."""


def _sealed(row: bytes, key: str, terms: bytes) -> bytes:
    """A row with a checksum of it, its key and its terms, as `format.lua` has it."""
    whole = row + key.encode() + terms
    return row + hashlib.sha1(whole, usedforsecurity=False).hexdigest()[:_CHECKSUM].encode()


class _Script:
    """A script on a server: its text, which is that of some files one after the other, and its name there."""

    def __init__(self, *names: str) -> None:
        folder = files("penstock.stores").joinpath("scripts")
        self.text = "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _a_voice() -> str:
    """What a process knows its own announcements by."""
    return f"{CHANCE.getrandbits(64):x}"


def _prefix_of(prefix: Any) -> str:
    """The prefix of all keys; ValueError where no key can begin with it."""
    if not isinstance(prefix, str):
        raise ValueError(f"prefix must be a text, which all keys begin with, not {repr_of(prefix)}")
    check_part_of_key("prefix", prefix)
    return prefix


def _check_group(group: Any) -> None:
    if group is not None and (not callable(group) or why_not_plain(group)):
        raise ValueError(
            f"group must be a plain function of a limiter's name that returns a text, not {repr_of(group)}"
        )


class RedisStore(Store):
    """The limits of many machines, on a Redis or Valkey server.

    Args:
        server: A URL, or your own redis-py client, of which the address and the credentials are taken, not the
            connections. `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix://path`, and
            `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`; `valkey` is the same word as
            `redis`. A cluster is recognised by any of its nodes.
        prefix: What all keys begin with.
        group: Cluster only: a function of a limiter's name; names of one group live together, and can be joined with
            `&`.
        timeout: Seconds to wait for a connection, and for a reply, or a `timedelta`; above 0.
        on_state_loss: After the server has lost what it knew of a limiter (a restart, an eviction, a key that a person
            deleted), it begins "full" (at most one burst too much each time), or "empty" (never too much; costs one
            burst, at the very first start too, and after 30 days without use).
        options: As for every shared store: `place_ttl`, `patience`, `on_outage`, `share`, `on_event`.

    Raises:
        ValueError: An option or the URL is wrong. What is wrong with the server is found at first use, as `StoreError`.
    """

    batch = 128
    quiet_at_fork = False

    def __init__(
        self,
        server: str | Any,
        *,
        prefix: str = "penstock",
        group: Callable[[str], str] | None = None,
        timeout: Seconds = 1.0,
        on_state_loss: str = "full",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lost_is_empty: bool = begins_empty(on_state_loss)
        self.timeout: float = seconds_of("timeout", timeout)
        self.prefix: str = _prefix_of(prefix)
        _check_group(group)
        try:
            import encodings.idna  # noqa: F401 - redis-py would, in a thread of ours: a fork meanwhile would leave the child half of it
            import secrets  # noqa: F401 - so too

            import redis
        except ImportError as error:
            raise StoreError("RedisStore needs redis-py: pip install 'penstock[redis]'") from error
        self._redis = redis
        self._group = group
        self._made_from = made_from(server)
        if isinstance(server, str):
            self._server = server_at(server.strip(), self.timeout)  # a file's last line ends with a newline
        else:
            self._server = server_of(server, self.timeout)
        self._address = self._server.shown
        self._client: Any = None
        self._kept: finalize[..., Any] | None = None
        self._last_answer: tuple[int, Any] = (0, None)  # and the number of its batch
        self._nodes = self._server.nodes  # of a cluster: all ever heard of, as the URL's may be the one that dies
        self._is_cluster = bool(self._nodes)
        self._subscriber: _Subscriber | None = None
        self._voice = _a_voice()
        self._decide = _Script(*DECIDE)
        self._exchange = _Script("exchange")

    def __repr__(self) -> str:
        return f"RedisStore({self._address!r})"

    def slowest_answer(self) -> float:
        """The patience, and one call: a connection and a reply. See `Store.slowest_answer`."""
        return self.patience + 2 * self.timeout + 0.5

    def recipe(self) -> Recipe:
        """The same server. A password that the environment holds travels by the variable's name. See `Store.recipe`.

        Raises:
            TypeError: It was made of a client.
        """
        if self._made_from is None:
            raise TypeError(
                f"{self!r} was made of a client object and cannot be pickled: "
                "give RedisStore a URL, best from an environment variable that every process has"
            )
        options = {**self.options(), "prefix": self.prefix, "group": self._group, "timeout": self.timeout}
        options["on_state_loss"] = "empty" if self.lost_is_empty else "full"
        return Recipe(type(self), (self._made_from,), options)

    # The connection

    def _connect(self) -> Any:
        if not self._is_cluster:
            client = self._server.client()
            try:
                self._is_cluster = self._found_out(client)
            except BaseException:
                let_go(client)
                raise
            if not self._is_cluster:
                return self._keep(client)
            let_go(client)
            self._nodes = [self._server.first_node]
        CHANCE.shuffle(self._nodes)
        client = self._keep(self._server.cluster(self._nodes))
        self._nodes = list({*self._nodes, *((node.host, node.port) for node in client.get_nodes())})
        return client

    def _keep(self, client: Any) -> Any:
        self._client, self._kept = client, outlive(self, client)
        return client

    def _found_out(self, client: Any) -> bool:
        """Whether the server is one of a cluster; StoreError where it is too old."""
        errors = self._redis.exceptions
        try:
            info = client.info("server")
            cluster = bool(client.info("cluster").get("cluster_enabled") == 1)
        except errors.NoPermissionError:  # it may do no more than it must: so be it
            info = {}
            try:
                cluster = bool(client.execute_command("CLUSTER SLOTS"))  # a user of a cluster must be allowed that
            except errors.ResponseError:
                cluster = False
        version = str(info.get("valkey_version") or info.get("redis_version") or "99.0")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise StoreError(f"{self._address} is Redis {version}: RedisStore needs 6.2 or later, or any Valkey")
        return cluster

    def make_subscriber(self) -> Any:
        """A client that can hear what is announced: of any node, as a cluster passes it on to all."""
        return self._server.subscriber(CHANCE.choice(self._nodes) if self._nodes else None)

    def prepare(self) -> None:
        """Connect, and find out whether it is a cluster. See `Store.prepare`."""
        self._asked(lambda: self._client or self._connect())

    # What is asked

    def _key(self, name: str, kind: str = "") -> str:
        group = self._group(name) if self._group is not None else name
        return f"{self.prefix}:{{{group}}}:{kind}{'' if kind else name}"

    def group_of(self, name: str) -> object:
        """In a cluster, the hash tag. See `Store.group_of`."""
        if not self._is_cluster:
            return None
        return self._group(name) if self._group is not None else name

    def node_of(self, name: str) -> object:
        """In a cluster, the node that has the hash slot of a name now. See `Store.node_of`."""
        if not self._is_cluster or self._client is None:
            return None
        try:
            node = self._client.get_node_from_key(self._key(name))
        except self._redis.exceptions.RedisClusterException:
            return None  # no server has it
        return node.host, node.port

    def beside(self) -> RedisStore:
        """A client of its own. See `Store.beside`."""
        other = object.__new__(type(self))  # copy.copy would return this one: a store is an address
        other.__dict__.update(self.__dict__)
        other._client = other._kept = other._subscriber = other.dispatcher = None
        other._nodes = list(self._nodes)
        other.in_use = False
        return other

    def _run(self, script: _Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        client = self._client or self._connect()
        try:
            return ask(client, "EVALSHA", script.sha, len(keys), *keys, *arguments)
        except self._redis.exceptions.NoScriptError:
            return ask(client, "EVAL", script.text, len(keys), *keys, *arguments)

    def decide(self, batch: Batch) -> Reply:
        """Decide by the script. See `Store.decide`."""
        return self.decide_at(batch, 0.0)

    def decide_at(self, batch: Batch, now: float) -> Reply:
        """`decide`, at a moment of the caller's choice, in microseconds since 1970; 0: the server's.

        For tests of the arithmetic.
        """
        terms = batch.terms
        numbers: list[float] = [now, batch.owner, batch.number, 1.0 if self.lost_is_empty else 0.0, len(terms)]
        limits = 0
        for one in terms:
            kinds = one.numbers(batch.now)
            numbers.append(len(kinds))
            limits += len(kinds)
            for kind in kinds:
                numbers += kind
        numbers += batch.operations
        told = self._key(terms[0].name, f"told:{batch.owner:.0f}")
        keys = [told, *(self._key(one.name) for one in terms)]
        arguments = [struct.pack(f">{len(numbers)}d", *numbers), *(one.text for one in terms)]
        asked_again = False
        while True:
            answer = self._asked(lambda: self._run(self._decide, keys, arguments), [one.name for one in terms])
            number, last = self._last_answer
            if answer == last and batch.number != number and not now:  # no two have the same time: it was said twice
                self._drop()
                raise Unreachable(f"{self._address} repeats an answer. Is there a proxy in front of it?")
            try:
                reply = self._read(answer, terms, limits)
            except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
                self._drop()  # this may be another question's reply, and the next one too
                if asked_again:
                    raise StoreError(
                        f"{self._address} does not answer as Redis does: {str(answer)[:80]!r}. Is it a Redis server?"
                    ) from error
                asked_again = True  # the batch may have been decided: what was answered is repeated by its number
            else:
                self._last_answer = batch.number, answer
                return reply

    @staticmethod
    def _read(answer: Any, terms: Sequence[Terms], limits: int) -> Reply:
        """Take the answer of the script apart."""
        if isinstance(answer, list):
            others = {
                terms[int(index) - 1].name: text.decode()
                for index, text in zip(answer[1::2], answer[2::2], strict=True)
            }
            return Reply(struct.unpack(">d", answer[0])[0], others, (), (), ())
        values = struct.unpack(f">{len(answer) // 8}d", answer)
        first, last = 1 + len(terms), len(values) - 3 * limits
        if last < first:
            raise ValueError("it is too short")
        return Reply(values[0], {}, values[1:first], values[first:last], values[last:])

    def exchange(self, names: Sequence[str], decide: Decide) -> None:
        """Run a transaction over the rows. See `Store.exchange`."""
        if len(names) != 1:
            raise StoreError("RedisStore exchanges one row at a time: several are for its script to decide")
        key = self._key(names[0])
        for _ in range(100):
            seconds, micros, terms, row = self._asked(partial(self._run, self._exchange, [key], ()), names)
            known = terms is not None or row is not None
            (new,) = decide([self._opened(names[0], terms, row) if known else None], int(seconds) * 1e6 + int(micros))
            if new is None:
                return
            (text, written), keep = new
            keep = int(keep) + (KEPT_IF_EMPTY if self.lost_is_empty else 3601)
            arguments = [terms or b"", row or b"", text, _sealed(written, key, text.encode()), keep]
            if self._asked(partial(self._run, self._exchange, [key], arguments), names):
                return
        raise Unreachable(
            f"{self._address}: the row of {names[0]!r} was changed by others a hundred times while it was read"
        )

    def _opened(self, name: str, terms: bytes | None, row: bytes | None) -> Row:
        """A row without its checksum; StoreError where it is not what was once written."""
        if terms is None or row is None or _sealed(row[:-_CHECKSUM], self._key(name), terms) != row:
            raise damaged_row(self._address, name)
        return terms.decode(), row[:-_CHECKSUM]

    def names(self, prefix: str) -> list[str]:
        """Scan the keys, on all nodes of a cluster. See `Store.names`."""
        begin = f"{self.prefix}:{{"
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", begin) + "*}:" + re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        keys = self._asked(
            lambda: list((self._client or self._connect()).scan_iter(match=pattern, count=1_000, _type="hash"))
        )
        return sorted({key.decode("utf-8", "replace").partition("}:")[2] for key in keys})

    # What goes wrong

    def _asked(self, ask: Callable[[], _T], names: Sequence[str] = ()) -> _T:
        """The answer of the server. `names`: of the rows that it is asked for, in their order.

        Raises:
            Unreachable, StoreError: What the client raised, as ours. An error of the client's that tells a password is
                left out.
        """
        try:
            return ask()
        except StoreError as error:
            problem = error
            self._drop()
        except Exception as error:  # noqa: BLE001 - a hostile server can make a client raise anything
            problem = explain(error, self._server, self.prefix, names)
            if not isinstance(error, self._redis.exceptions.ResponseError) or isinstance(problem, Unreachable):
                one_node = names and isinstance(problem, Unreachable) and self.node_of(names[0]) is not None
                if not one_node or isinstance(error, self._redis.exceptions.RedisClusterException):
                    self._drop()  # else the client has found the other nodes already, and goes on with them
            if not self._server.tells_secrets(error):
                problem.__cause__ = error
        raise problem  # not in an `except`: it would take the client's error along

    def _drop(self) -> None:
        client = self._disown()
        if client is not None:
            let_go(client)

    def _disown(self) -> Any:
        """The client, if there is one, of which the store knows nothing any more."""
        client, self._client, kept, self._kept = self._client, None, self._kept, None
        if kept is not None:
            kept.detach()
        return client

    # What others say

    @property
    def hears(self) -> bool:  # type: ignore[override]  # it depends
        """Whether other processes' changes are heard at once."""
        return self._subscriber is not None and self._subscriber.hears

    def listen(self, heard: Callable[[str, float], None]) -> None:
        """Subscribe, in a thread. See `Store.listen`."""
        self._subscriber = _Subscriber(self, heard)

    def announce(self, names: Sequence[str]) -> None:
        """Publish. See `Store.announce`."""
        for name in names:
            self.announce_freed(name, 0.0)

    def announce_freed(self, name: str, seconds: float) -> None:
        """Publish. See `Store.announce_freed`."""

        def publish() -> None:
            client = self._client or self._connect()
            where = {"target_nodes": client.get_node_from_key(self._key(name))} if self._is_cluster else {}
            client.execute_command("PUBLISH", f"{self.prefix}:changes", f"{seconds:.17g} {self._voice} {name}", **where)

        with contextlib.suppress(StoreError):  # the next caller of the store is told all the same
            self._asked(publish)

    def disconnect(self) -> None:
        """Close the connection. See `Store.disconnect`."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.stop()
        self._drop()

    def forget(self) -> None:
        """Let go of the parent's connection. See `Store.forget`."""
        # The parent's: to close them would take locks that its threads hold.
        _abandoned.append((self._disown(), self._subscriber))
        self._subscriber = None
        self._voice = _a_voice()


class _Subscriber:
    """A thread that hears what other processes announce, and tells its listener. Holds the store only to connect."""

    def __init__(self, store: RedisStore, on_announced: Callable[[str, float], None]) -> None:
        self.hears = False
        self._stopped = threading.Event()
        self._store = ref(store)
        self._on_announced = on_announced
        self._voice = store._voice
        self._missed = False
        threading.Thread(target=self._run, name=f"penstock hears {repr_of(store)}", daemon=True).start()

    def stop(self) -> None:
        """Tell the thread to end."""
        self._stopped.set()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            store = self._store()
            if store is None:
                return
            client, channel, store = store.make_subscriber(), f"{store.prefix}:changes", None
            try:
                self._listen(client, channel)
                pause = 0.05
            except Exception:  # noqa: BLE001 - whatever a server makes the client raise: what was missed is asked for
                self._stopped.wait(pause * CHANCE.uniform(0.5, 1.0))
                pause = min(2 * pause, 0.5)
            finally:
                if self.hears:
                    pause = 0.05
                self.hears = False
                self._missed = True
                let_go(client)

    def _listen(self, client: Any, channel: str) -> None:
        with contextlib.closing(client.pubsub(ignore_subscribe_messages=False)) as pubsub:
            pubsub.subscribe(channel)
            while not self._stopped.is_set() and self._store() is not None:
                message = pubsub.get_message(timeout=0.5)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self.hears = True
                    if self._missed:
                        self._on_announced("", 0.0)  # whatever was said meanwhile
                else:
                    with contextlib.suppress(ValueError):  # another program's
                        seconds, voice, name = message["data"].decode(errors="replace").split(" ", 2)
                        if voice != self._voice or not float(seconds):  # what we gave back, we have asked for
                            self._on_announced(name, float(seconds))
