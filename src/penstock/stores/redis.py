"""State on a Redis or Valkey server (6.2 or later; alone, behind Sentinel, or a cluster), for any number of machines.

One script decides a batch, at one moment of the server's own clock. The dispatcher's thread owns the connection, with redis-py's plain
blocking client: so asyncio, trio and threads are all the same to this store, and no reply is ever lost to a cancelled task.

Nothing is sent twice by accident. The client's own retries are off, since they would execute a script again; a batch whose reply was lost is
sent again under its number, and the script then repeats what it answered (it remembers each process's last answer for ten
minutes). A server that lost its scripts is given them anew; one that lost its memory is what `on_state_loss` is about.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
import struct
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import unquote
from weakref import ref

from penstock.errors import StoreError
from penstock.stores._redis_url import Address, made_from
from penstock.stores.contract import Batch, Recipe, Reply, Row, Store, Terms, Unreachable, damaged_row

__all__ = ["RedisStore"]

OLDEST = (6, 2)
"""The first version with what the script needs (`EXPIRE` inside scripts that are replicated by effect, and RESP as it is now)."""


KEPT_IF_EMPTY = 30 * 86_400
"""Seconds for which idle rows are kept where an absent row counts as used up."""

CANNOT_NOW = frozenset(
    {
        "LOADING",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "BUSY",
        "UNKILLABLE",
        "NOREPLICAS",
        "MISCONF",
        "MOVED",
        "ASK",
        "IOERR",
    }
)
"""Codes of errors that pass: the server is there, and cannot decide at the moment."""

SMALLEST_ACL = "-@all +eval +evalsha +get +set +hmget +hset +expire +time +publish +subscribe"
"""What a user must be allowed, beside the keys and channels."""

_abandoned: list[Any] = []


class _Script:
    """The text of a script, and its name on servers."""

    def __init__(self, file: str) -> None:
        self.text = files("penstock.stores").joinpath(file).read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisStore(Store):
    """The limits of many machines, on a Redis or Valkey server.

    Args:
        server: A URL, or your own redis-py client, of which the address and the credentials are taken, not the connections.
            `redis://[user:password@]host[:port][/db]`, `rediss://` for TLS, `unix://path`, and
            `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`. A cluster is recognised by any of its nodes.
        prefix: What all keys begin with.
        group: Cluster only: a function of a limiter's name; names of one group live together, and can be joined with `&`.
        timeout: Seconds to wait for a connection, and for a reply.
        on_state_loss: After the server has lost what it knew of a limiter (a restart, an eviction, a key that somebody deleted), it begins "full"
            (at most one burst too much each time), or "empty" (never too much; costs one burst, at the very first start too, and
            after 30 days without use).
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
        timeout: float = 1.0,
        on_state_loss: str = "full",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if on_state_loss not in ("full", "empty"):
            raise ValueError(f'on_state_loss must be "full" or "empty", not {on_state_loss!r}')
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a finite number of seconds above 0, not {timeout!r}")
        if "{" in prefix or "}" in prefix:
            raise ValueError(
                f"the prefix {prefix!r} has a brace, which would tell Redis Cluster where to put it: use other characters"
            )
        try:
            import redis
        except ImportError as error:
            raise StoreError("RedisStore needs redis-py: pip install 'penstock[redis]'") from error
        self._redis = redis
        self.timeout: float = float(timeout)
        self.prefix = prefix
        self._group = group
        self.lost_is_empty: bool = on_state_loss == "empty"
        self._options: dict[str, Any] = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,  # enough for what we ask, and servers that are too old for 3 can still tell their version
        }
        self._made_from = made_from(server)
        self._make = self._maker(server)
        self._client: Any = None
        self._is_cluster = False
        self._nodes: list[
            tuple[str, int]
        ] = []  # of a cluster: all ever heard of, as the URL's may be the one that dies
        self._cluster_options: dict[str, Any] = {}
        self._subscriber: _Subscriber | None = None
        self._heard: Callable[[str], None] | None = None
        self._decide = _Script("decide.lua")
        self._exchange = _Script("exchange.lua")

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
                f"{self!r} was made of a client object and cannot be pickled: give RedisStore a URL, best from an environment variable "
                "that every process has"
            )
        options = {**self.options(), "prefix": self.prefix, "group": self._group, "timeout": self.timeout}
        options["on_state_loss"] = "empty" if self.lost_is_empty else "full"
        return Recipe(type(self), (self._made_from,), options)

    # Who the server is

    def _maker(self, server: Any) -> Callable[..., Any]:
        """How to make a client for `server`. Options: as of `redis.Redis`, where the client is a plain one.

        Raises:
            ValueError: It is no address of a server. The message holds no secret.
        """
        if not isinstance(server, str):
            return self._maker_like(server)
        url = Address(server)
        self._address = url.shown
        if url.scheme == "redis+sentinel":
            return self._sentinel(url)
        if url.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"{self._address!r} is no address of a Redis server: use redis://host:6379/0, rediss:// for TLS, unix:// or "
                "redis+sentinel://host:26379/service"
            )
        redis = self._redis

        def pool() -> Any:
            ours = {key: value for key, value in self._options.items() if url.scheme != "unix" or "connect" not in key}
            made = redis.ConnectionPool.from_url(server, **ours, retry=self._no_retry())
            made.connection_kwargs.update(ours)  # also over what the URL says
            return made

        problem = ""
        try:
            first = pool()
            first.connection_class(**first.connection_kwargs)  # connects to nothing; finds options that there are not
        except (TypeError, ValueError) as error:
            problem = url.without_secrets(str(error))
        if problem:
            raise ValueError(f"{self._address!r} has an option that redis-py does not take: {problem}")
        return lambda **more: redis.Redis(connection_pool=pool(), **more)

    def _no_retry(self) -> Any:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return Retry(NoBackoff(), 0)

    def _sentinel(self, url: Address) -> Callable[..., Any]:
        user, _, password = url.credentials.partition(":")
        service, _, db = url.path.strip("/").partition("/")
        if not service:
            raise ValueError(f"{self._address!r} names no service: use redis+sentinel://host:26379/mymaster")
        if db and not db.isdecimal():
            raise ValueError(f"{self._address!r}: the db behind the service must be a number, not {db!r}")
        sentinels = []
        for host in url.hosts.split(","):
            name, _, port = host.rpartition(":") if ":" in host else (host, "", "")
            sentinels.append((name, int(port or 26379)))
        options = {
            **self._options,
            "db": int(db or 0),
            "username": unquote(user) or None,
            "password": unquote(password) or None,
        }
        timeouts = {"socket_timeout": self.timeout, "socket_connect_timeout": self.timeout}

        def make(**_: Any) -> Any:
            sentinel = self._redis.sentinel.Sentinel(sentinels, sentinel_kwargs=timeouts, **options)
            return sentinel.master_for(service, retry=self._no_retry())

        return make

    def _maker_like(self, client: Any) -> Callable[..., Any]:
        """A client of our own for the server of the user's."""
        redis = self._redis
        pool = getattr(client, "connection_pool", None)
        if pool is None and hasattr(client, "get_default_node"):  # a cluster: any node will do, it names the others
            node = client.get_default_node()
            nodes = getattr(client, "nodes_manager", None)
            given = dict(getattr(nodes, "connection_kwargs", None) or getattr(client, "connection_kwargs", {}))
            self._address = f"redis://{node.host}:{node.port}"
            keep = {
                key: given[key]
                for key in ("username", "password", "ssl", "ssl_ca_certs", "ssl_cert_reqs")
                if given.get(key)
            }
            return lambda **_: redis.Redis(
                host=node.host, port=node.port, **keep, **self._options, retry=self._no_retry()
            )
        if pool is None or not hasattr(pool, "connection_kwargs"):
            raise ValueError(f"server must be a URL or a redis-py client, not a {type(client).__name__}")
        given = dict(pool.connection_kwargs)
        for key in ("retry", "retry_on_error", "retry_on_timeout", "parser_class", "encoder_class", "event_dispatcher", "connection_pool",
                    "himport_connection_pool", "maint_notifications_config", "maint_notifications_pool_handler"):  # fmt: skip
            given.pop(key, None)
        given = {key: value for key, value in given.items() if not key.startswith(("oss_", "maint", "orig_"))}
        self._address = f"redis://{given.get('host', 'localhost')}:{given.get('port', 6379)}"
        name = pool.connection_class.__name__
        if "Sentinel" in type(pool).__name__:
            manager = pool.sentinel_manager
            self._address = f"redis+sentinel://{pool.service_name}"
            sentinels = [
                (kwargs["host"], kwargs["port"])
                for kwargs in (s.connection_pool.connection_kwargs for s in manager.sentinels)
            ]
            timeouts = {"socket_timeout": self.timeout, "socket_connect_timeout": self.timeout}
            plain = {key: given[key] for key in ("db", "username", "password") if key in given} | self._options
            return lambda **_: redis.sentinel.Sentinel(sentinels, sentinel_kwargs=timeouts, **plain).master_for(
                pool.service_name, retry=self._no_retry()
            )
        kinds = {
            "SSLConnection": redis.connection.SSLConnection,
            "UnixDomainSocketConnection": redis.connection.UnixDomainSocketConnection,
        }
        connection = kinds.get(name, redis.connection.Connection)
        options = {**given, **self._options}
        if connection is redis.connection.UnixDomainSocketConnection:
            options.pop("socket_connect_timeout")
            self._address = f"unix://{given.get('path')}"
        return lambda **more: redis.Redis(
            connection_pool=redis.ConnectionPool(connection_class=connection, **options, retry=self._no_retry()), **more
        )

    def _connect(self) -> Any:
        if not self._is_cluster:
            client = self._make(single_connection_client=True)  # one thread speaks: no pool to go through
            try:
                info = client.info("server")
                cluster = client.info("cluster").get("cluster_enabled") == 1
            except self._redis.exceptions.NoPermissionError:  # it may do no more than it must: so be it
                info, cluster = {}, False
            version = str(info.get("valkey_version") or info.get("redis_version") or "99.0")
            if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
                raise StoreError(f"{self._address} is Redis {version}: RedisStore needs 6.2 or later, or any Valkey")
            if not cluster:
                self._client = client
                return client
            pool = client.connection_pool
            given = {**pool.connection_kwargs, "ssl": pool.connection_class is self._redis.connection.SSLConnection}
            self._cluster_options = {
                key: given[key]
                for key in ("username", "password", "ssl", "ssl_ca_certs", "ssl_cert_reqs")
                if given.get(key) is not None
            }
            self._nodes = [(given.get("host", "localhost"), given.get("port", 6379))]
            client.close()
            self._is_cluster = True
        library: Any = self._redis.cluster
        random.shuffle(self._nodes)
        self._client = client = library.RedisCluster(
            startup_nodes=[library.ClusterNode(host, port) for host, port in self._nodes],
            require_full_coverage=False,  # names whose nodes are there can be decided, whatever others lack
            **self._cluster_options,
            **self._options,
            retry=self._no_retry(),
        )
        self._nodes = list({*self._nodes, *((node.host, node.port) for node in client.get_nodes())})
        return client

    def _make_subscriber(self) -> Any:
        """A client that can hear what is announced: of any node, as a cluster passes it on to all."""
        if not self._nodes:
            return self._make()
        host, port = random.choice(self._nodes)
        return self._redis.Redis(host=host, port=port, **self._cluster_options, **self._options, retry=self._no_retry())

    def prepare(self) -> None:
        """Connect, and find out whether it is a cluster. See `Store.prepare`."""
        with self._explained():
            self._client or self._connect()

    # What is asked

    def _key(self, name: str, kind: str = "") -> str:
        group = self._group(name) if self._group is not None else name
        return f"{self.prefix}:{{{group}}}:{kind}{'' if kind else name}"

    def group_of(self, name: str) -> object:
        """In a cluster, the hash tag. See `Store.group_of`."""
        if not self._is_cluster:
            return None
        return self._group(name) if self._group is not None else name

    def _run(self, script: _Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        client = self._client or self._connect()
        try:
            return client.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except self._redis.exceptions.NoScriptError:
            return client.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

    def decide(self, batch: Batch) -> Reply:
        """Decide by the script. See `Store.decide`."""
        return self.decide_at(batch, 0.0)

    def decide_at(self, batch: Batch, now: float) -> Reply:
        """`decide`, at a moment of the caller's choice, in microseconds since 1970; 0: the server's. For tests of the arithmetic."""
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
        with self._explained([one.name for one in terms]):
            answer = self._run(
                self._decide, keys, [struct.pack(f">{len(numbers)}d", *numbers), *(one.text for one in terms)]
            )
        try:
            return self._read(answer, terms, limits)
        except (struct.error, IndexError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{self._address} answers nonsense: {str(answer)[:80]!r}. Is it a Redis server?"
            ) from error

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

    def exchange(
        self, names: Sequence[str], decide: Callable[[list[Row | None], float], list[tuple[Row, float] | None]]
    ) -> None:
        """Run a transaction over the rows. See `Store.exchange`."""
        if len(names) != 1:
            raise StoreError("RedisStore exchanges one row at a time: several are for its script to decide")
        key = self._key(names[0])
        with self._explained():
            client = self._client or self._connect()
            for _ in range(100):
                seconds, micros = (
                    client.execute_command("TIME", target_nodes=client.get_node_from_key(key))  # the row's own clock
                    if self._is_cluster
                    else client.time()
                )
                terms, row = client.hmget(key, "t", "r")
                (new,) = decide(
                    [(terms.decode(), row) if terms is not None and row is not None else None],
                    int(seconds) * 1e6 + int(micros),
                )
                if new is None:
                    return
                (text, written), keep = new
                if self._run(
                    self._exchange,
                    [key],
                    [
                        terms or b"",
                        row or b"",
                        text,
                        written,
                        int(keep) + (KEPT_IF_EMPTY if self.lost_is_empty else 3601),
                    ],
                ):
                    return
        raise Unreachable(
            f"{self._address}: the row of {names[0]!r} was changed by others a hundred times while it was read"
        )

    # What goes wrong

    @contextlib.contextmanager
    def _explained(self, names: Sequence[str] = ()) -> Any:
        """Turn what the client raises into our errors. `names`: of the rows that were asked for, in their order."""
        try:
            yield
        except StoreError:
            self._drop()
            raise
        except Exception as error:
            answer = self._explain(error, names)
            if not isinstance(error, self._redis.exceptions.ResponseError) or isinstance(answer, Unreachable):
                self._drop()
            raise answer from error

    def _explain(self, error: Exception, names: Sequence[str]) -> StoreError:
        """Our error for one of the client's. It has taken the code off some of the server's errors, and left it on others."""
        errors, text = self._redis.exceptions, str(error)
        codes = {word.strip("-:") for word in text.split() if word.strip("-:").isupper()}
        if isinstance(error, errors.AuthenticationError) or codes & {"WRONGPASS", "NOAUTH"}:
            return StoreError(f"{self._address} refused us: {text}. Check the user and the password in the URL")
        if isinstance(error, errors.NoPermissionError | errors.AuthorizationError) or "NOPERM" in codes:
            return StoreError(
                f"{self._address}: this user may not do what is needed ({text}). Allow it ~{self.prefix}:* &{self.prefix}:* {SMALLEST_ACL}"
            )
        if isinstance(error, errors.ReadOnlyError) or "READONLY" in codes:
            return Unreachable(
                f"{self._address} is a read-only replica: give RedisStore the address of the primary, or of its Sentinels"
            )
        if isinstance(error, errors.OutOfMemoryError) or "OOM" in codes:
            return Unreachable(f"{self._address} has no memory left: nothing was granted. Raise its maxmemory ({text})")
        cannot_now = (errors.BusyLoadingError, errors.ClusterDownError, errors.TryAgainError, errors.AskError)
        if isinstance(error, cannot_now) or codes & CANNOT_NOW:
            return Unreachable(f"{self._address} cannot answer now: {text}")
        if text.startswith("DAMAGED ") and names:
            return damaged_row(self._address, names[int(text.split()[1]) - 1])
        if isinstance(error, errors.ResponseError):
            return StoreError(f"{self._address} says {text}")
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            return StoreError(
                f"{self._address} shows a certificate that is not trusted here: {text}. Name the authority that signed it, as "
                "rediss://…?ssl_ca_certs=/path/to/ca.pem, or a host name that the certificate is for"
            )
        if isinstance(error, errors.RedisError | errors.RedisClusterException | OSError):
            why = text or type(error).__name__
            return Unreachable(
                f"{self._address} does not answer: {why}. Is the server running, and is the address right?"
            )
        return StoreError(f"{self._address} answers nonsense ({error!r}). Is it a Redis server?")

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(self._redis.exceptions.RedisError, OSError):
                client.close()

    # What others say

    @property
    def hears(self) -> bool:  # type: ignore[override]  # it depends
        """Whether other processes' changes are heard at once."""
        return self._subscriber is not None and self._subscriber.hears

    def listen(self, heard: Callable[[str], None]) -> None:
        """Subscribe, in a thread. See `Store.listen`."""
        if self._subscriber is not None:
            self._subscriber.stop()
        self._subscriber = _Subscriber(self, heard)

    def announce(self, names: Sequence[str]) -> None:
        """Publish. See `Store.announce`."""
        for name in names:
            try:
                (self._client or self._connect()).publish(f"{self.prefix}:changes", name)
            except (self._redis.exceptions.RedisError, OSError, StoreError):
                self._drop()  # whoever asks the store next will be told all the same
                return

    def disconnect(self) -> None:
        """Close the connection. See `Store.disconnect`."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.stop()
        self._drop()

    def forget(self) -> None:
        """Let go of the parent's connection. See `Store.forget`."""
        _abandoned.append(
            (self._client, self._subscriber)
        )  # the parent's: to close them would take locks that its threads hold
        self._client = self._subscriber = None


class _Subscriber:
    """A thread that hears what other processes announce. It holds the store only while it connects."""

    def __init__(self, store: RedisStore, on_announced: Callable[[str], None]) -> None:
        self.hears = False
        self._stopped = threading.Event()
        self._store = ref(store)
        self._on_announced = on_announced
        self._missed = False
        threading.Thread(target=self._run, name=f"penstock hears {store!r}", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            store = self._store()
            if store is None:
                return
            errors = store._redis.exceptions
            client = None
            try:
                client = store._make_subscriber()
                channel = f"{store.prefix}:changes"
                store = None
                self._listen(client, channel)
                pause = 0.05
            except (errors.RedisError, OSError, ValueError, AttributeError):
                self._stopped.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 0.5)
            finally:
                if self.hears:
                    pause = 0.05
                self.hears = False
                self._missed = True
                if client is not None:
                    with contextlib.suppress(errors.RedisError, OSError):
                        client.close()

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
                        self._on_announced("")  # whatever was said meanwhile
                elif message["type"] == "message":
                    self._on_announced(message["data"].decode(errors="replace"))
