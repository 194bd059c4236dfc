"""How a Redis server is reached.

Every connection of a store is made here, with all that its URL or the user's own client says.

That is: the address, TLS, user and password, or what provides them; for the server itself, for every node of a cluster,
for what listens to announcements, and for Sentinels what was said of those. Time-outs, encoding and retries are the
store's own everywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from penstock import clock
from penstock.stores._redis_url import Address, host_and_port, without

Options = dict[str, Any]
Node = tuple[str, int]

_NOT_TAKEN = frozenset(
    {
        "retry", "retry_on_error", "retry_on_timeout", "parser_class", "encoder_class", "event_dispatcher",
        "connection_pool", "legacy_responses", "driver_info", "lib_name", "lib_version", "max_connections",
        "response_callbacks", "command_packer", "client_cache", "connection_class", "connection_pool_class",
        "queue_class", "ssl",
    }
)  # fmt: skip
"""What a client says of itself, and not of how its server is reached."""

_NOT_TAKEN_BEGIN = ("oss_", "maint", "orig_", "himport", "cache")


class RedisServer:
    """A server, a cluster, or a service of Sentinels.

    Attributes:
        shown: Its address, without secrets.
        nodes: Of what is known to be a cluster: some of its nodes.
    """

    def __init__(self, shown: str, kind: Any, options: Mapping[str, Any], secrets: Iterable[str] = ()) -> None:
        self.shown = shown
        self.nodes: list[Node] = []
        self.sentinels: _Sentinels | None = None
        self.remap: Callable[[Node], Node] | None = None
        self._kind = kind
        self._options = dict(options)
        self._secrets = {*secrets, *_passwords(options)}

    @property
    def first_node(self) -> Node:
        """The address, of a server that has one."""
        return self._options.get("host") or "localhost", int(self._options.get("port") or 6379)

    def without_secrets(self, text: str) -> str:
        """A text that the server sent, safe to be shown."""
        return without(self._secrets, text)

    def tells_secrets(self, error: BaseException | None) -> bool:
        """Whether an error, or one behind it, has a password in its text."""
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            text = f"{error} {error!r}"
            if self.without_secrets(text) != text or self.tells_secrets(error.__context__):
                return True
            error = error.__cause__
        return False

    def client(self) -> Any:
        """A client of the server, or of the primary that the Sentinels name."""
        kind = _bounded(self._kind, self._options)
        if self.sentinels is not None:
            return self.sentinels.primary(kind, self._options)
        return _client(kind, self._options, single_connection_client=True)  # one thread speaks: no pool to go through

    def subscriber(self, node: Node | None) -> Any:
        """A client to hear with what is announced, also long after it has asked; of this node of a cluster."""
        if node is not None:
            host, port = node
            return _client(*self._of_nodes(), host=host, port=port)
        if self.sentinels is not None:
            return self.sentinels.primary(self._kind, self._options)
        return _client(self._kind, self._options)

    def cluster(self, nodes: Sequence[Node]) -> Any:
        """A client of the cluster, which will hear of its other nodes from these.

        It hands known options alone to the connections of the nodes; so the class of those connections adds all.
        """
        library = _library("cluster")
        kind, options = self._of_nodes()
        on_connect = options.pop("redis_connect_func", None)
        return library.RedisCluster(
            url=f"redis://{_bracketed(nodes[0][0])}:{nodes[0][1]}",
            startup_nodes=[library.ClusterNode(host, port) for host, port in nodes[1:]],
            connection_class=_with_options(_bounded(kind, options), options),
            require_full_coverage=False,  # names whose nodes are there can be decided, whatever others lack
            retry=options["retry"],
            protocol=options["protocol"],
            redis_connect_func=on_connect,
            credential_provider=options.get("credential_provider"),
            address_remap=self.remap,
        )

    def _of_nodes(self) -> tuple[Any, Options]:
        """The class and the options of the connections to the nodes of a cluster."""
        from redis.connection import Connection, UnixDomainSocketConnection

        kind = Connection if issubclass(self._kind, UnixDomainSocketConnection) else self._kind
        return kind, {key: value for key, value in self._options.items() if key not in {"host", "port", "path", "db"}}


class _Sentinels:
    """The servers that know which one is the primary."""

    def __init__(
        self, service: str, each: list[tuple[Any, Options]], least: int = 0, force_ip: str | None = None
    ) -> None:
        self.service = service
        self.each = each
        self.least = least
        self.force_ip = force_ip

    def primary(self, kind: Any, options: Options) -> Any:
        """A client of the primary."""
        manager = _manager(
            [_client(_bounded(its_kind, its), its) for its_kind, its in self.each], self.least, self.force_ip
        )
        pool = _library("sentinel").SentinelConnectionPool(
            self.service, manager, connection_class=_managed(kind), **options
        )
        return _library("client").Redis(connection_pool=pool)


def _manager(sentinels: list[Any], least: int, force_ip: str | None) -> Any:
    """redis-py's list of Sentinels; its error, where none names a primary, has what each said instead as `problems`.

    redis-py's own has their text, among all options of their clients, and stops at the first that lacks a permission.
    """
    sentinel, errors = _library("sentinel"), _library("exceptions")

    class Manager(sentinel.Sentinel):  # type: ignore[misc, name-defined]  # a module that is imported late
        def discover_master(self, service_name: str) -> tuple[str, int]:
            problems: list[Exception] = []
            for one in list(self.sentinels):
                try:
                    state = one.sentinel_masters().get(service_name)
                except errors.RedisError as error:
                    problems.append(error)
                    continue
                if state and self.check_master_state(state, service_name):
                    self.sentinels.remove(one)
                    self.sentinels.insert(0, one)  # it will be asked first
                    return self._force_master_ip or state["ip"], state["port"]
            unknown = sentinel.MasterNotFoundError(f"no primary of {service_name!r} was named")
            unknown.problems = problems
            raise unknown

    manager = Manager([], min_other_sentinels=least)
    manager.sentinels, manager._force_master_ip = sentinels, force_ip
    return manager


def ask(client: Any, *command: Any) -> Any:
    """The answer to a command, straight from a client's only connection: in a third of redis-py's own time."""
    connection = getattr(client, "connection", None)
    if connection is None:
        return client.execute_command(*command)
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    packed = b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in words]])
    connection.send_packed_command([packed], check_health=False)
    return connection.read_response()


def let_go(client: Any) -> None:
    pools = [getattr(node.redis_connection, "connection_pool", None) for node in _nodes_of(client)]
    pools.append(getattr(client, "connection_pool", None))
    manager = getattr(pools[-1], "sentinel_manager", None)
    pools += [one.connection_pool for one in getattr(manager, "sentinels", ())]
    with contextlib.suppress(Exception):
        client.close()
    for pool in pools:
        if pool is not None:
            with contextlib.suppress(Exception):
                pool.disconnect()


def _nodes_of(cluster: Any) -> list[Any]:
    manager = getattr(cluster, "nodes_manager", None)
    return [] if manager is None else list(manager.nodes_cache.values())


# From a URL


def server_at(url: str, timeout: float) -> RedisServer:
    """The server of a URL; ValueError if it is no address of one, in words that hold no secret."""
    from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

    url = re.sub(r"^valkey(?=s?(\+sentinel)?://)", "redis", url)
    address = Address(url)
    kinds = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}
    if address.scheme in ("redis+sentinel", "rediss+sentinel"):
        return _sentinel(address, timeout)
    if address.scheme not in kinds:
        raise ValueError(
            f"{address.shown!r} is not the address of a Redis server: "
            "use redis://host:6379/0, rediss:// for TLS, unix:// or redis+sentinel://host:26379/service"
        )
    kind = kinds[address.scheme]
    options = {**_read(url, address), **_ours(kind, timeout)}
    _check(kind, options, address)
    return RedisServer(address.shown, kind, options, address.secrets)


def _read(url: str, address: Address) -> Options:
    """The options that redis-py reads in a URL."""
    problem, options = "", {}
    try:
        options = dict(_library("connection").parse_url(url))
    except (TypeError, ValueError) as error:
        problem = str(error)
    if problem:
        raise _wrong_option(address, problem)
    return {key: value for key, value in options.items() if key not in _NOT_TAKEN}


def _check(kind: Any, options: Options, address: Address) -> None:
    """Refuse options that there are not."""
    problem = _try(kind, options)
    if problem:
        raise _wrong_option(address, problem)


def _wrong_option(address: Address, problem: str) -> ValueError:
    return ValueError(
        f"{address.shown!r} has an option that redis-py does not take: {without(address.secrets, problem)}"
    )


def _sentinel(address: Address, timeout: float) -> RedisServer:
    """The primary of a service. Options `sentinel_…` are about the Sentinels, and all of TLS about both."""
    service, _, db = address.path.strip("/").partition("/")
    if not service:
        raise ValueError(f"{address.shown!r} names no service: use redis+sentinel://host:26379/mymaster")
    if db and not db.isdecimal():
        raise ValueError(
            f"'{address.scheme}://{address.hosts}/{service}/…': "
            "what stands behind the service is the number of a db, such as /0"
        )
    theirs = {
        key.removeprefix("sentinel_"): value for key, value in address.options.items() if key.startswith("sentinel_")
    }
    plain = {key: value for key, value in address.options.items() if not key.startswith("sentinel_")}
    tls = address.scheme.startswith("rediss")
    theirs = {**{key: value for key, value in plain.items() if key.startswith("ssl")}, **theirs}
    options = {"db": int(db or 0), "username": address.user or None, "password": address.password or None}
    kind, mine = _kind_and_options(plain, address, timeout, tls=tls)
    kind_there, there = _kind_and_options(theirs, address, timeout, tls=tls)
    made = RedisServer(address.shown, kind, {**options, **mine}, {*address.secrets, *_passwords(there)})
    each = []
    for host in address.hosts.split(","):
        name, port = host_and_port(host, 26379)
        each.append((kind_there, {"host": name, "port": port, **there}))
    made.sentinels = _Sentinels(service, each)
    return made


def _kind_and_options(
    written: Mapping[str, str], address: Address, timeout: float, *, tls: bool
) -> tuple[Any, Options]:
    from redis.connection import Connection, SSLConnection

    tls = {"1": True, "true": True, "yes": True}.get(written.get("ssl", str(tls)).lower(), False)
    kind = SSLConnection if tls else Connection
    options = {key: value for key, value in written.items() if key != "ssl" and (tls or not key.startswith("ssl_"))}
    options = {**_read(f"redis://localhost/?{urlencode(options)}", address), **_ours(kind, timeout)}
    options.pop("host", None)
    _check(kind, options, address)
    return kind, options


# From a client of the user's


def server_of(client: Any, timeout: float) -> RedisServer:
    """The server of a client of redis-py (plain, cluster, Sentinel's, asyncio) or of valkey-py; else ValueError."""
    if getattr(client, "nodes_manager", None) is not None:
        return _cluster_of(client, timeout)
    pool = getattr(client, "connection_pool", None)
    if pool is None or not hasattr(pool, "connection_kwargs"):
        hint = ": give it what its master_for(…) returns" if hasattr(client, "master_for") else ""
        raise ValueError(f"server must be a URL or a redis-py client, not a {type(client).__name__}{hint}")
    kind = _kind_here(pool.connection_class)
    options = _options_of(pool.connection_kwargs, kind, timeout)
    if hasattr(pool, "sentinel_manager"):
        return _sentinel_of(pool, kind, options, timeout)
    made = RedisServer("", kind, options)
    made.shown = (
        f"unix://{options['path']}" if "path" in options else f"{_scheme(kind)}://{_shown_host(made.first_node)}"
    )
    return made


def _sentinel_of(pool: Any, kind: Any, options: Options, timeout: float) -> RedisServer:
    if not pool.is_master:
        raise ValueError("a replica cannot be written: give RedisStore what master_for(…) returns, not slave_for(…)")
    manager = pool.sentinel_manager
    each = []
    for one in manager.sentinels:
        there = _kind_here(one.connection_pool.connection_class)
        each.append((there, _options_of(one.connection_pool.connection_kwargs, there, timeout)))
    secrets = {secret for _, given in each for secret in _passwords(given)}
    made = RedisServer(f"{_scheme(kind)}+sentinel://{pool.service_name}", kind, options, secrets)
    force_ip = getattr(manager, "_force_master_ip", None)
    made.sentinels = _Sentinels(pool.service_name, each, manager.min_other_sentinels, force_ip)
    return made


def _cluster_of(client: Any, timeout: float) -> RedisServer:
    from redis.connection import Connection, SSLConnection

    manager = client.nodes_manager
    given = dict(getattr(client, "connection_kwargs", None) or manager.connection_kwargs)
    theirs = given.get("connection_class")
    kind = _kind_here(theirs) if theirs is not None else SSLConnection if given.get("ssl") else Connection
    for name in ("redis_connect_func", "valkey_connect_func"):
        given.pop(name, None)  # the client's own
    given["redis_connect_func"] = getattr(client, "user_on_connect_func", None)
    options = _options_of(given, kind, timeout)
    nodes = {(node.host, node.port) for node in [*manager.startup_nodes.values(), *manager.nodes_cache.values()]}
    made = RedisServer("", kind, options)
    made.nodes = sorted(nodes)
    made.shown = f"{_scheme(kind)}://{_shown_host(made.nodes[0])}"
    made.remap = getattr(manager, "address_remap", None)
    return made


def _options_of(given: Mapping[str, Any], kind: Any, timeout: float) -> Options:
    """What a client's connections are made with; ValueError if a connection of redis-py's does not take it."""
    from redis.connection import SSLConnection

    options = {
        key: value for key, value in given.items() if key not in _NOT_TAKEN and not key.startswith(_NOT_TAKEN_BEGIN)
    }
    on_connect = options.pop("valkey_connect_func", None) or options.pop("redis_connect_func", None)
    if inspect.iscoroutinefunction(on_connect):
        raise ValueError(
            "redis_connect_func must be a plain function here: the store's connections are in a thread of their own"
        )
    if on_connect is not None:
        options["redis_connect_func"] = on_connect
    if not issubclass(kind, SSLConnection):
        options = {key: value for key, value in options.items() if not key.startswith("ssl_")}
    options = {**options, **_ours(kind, timeout)}
    problem = without(_passwords(options), _try(kind, options))
    if problem:
        raise ValueError(f"this client has an option that cannot be taken over: {problem}. Give RedisStore a URL")
    return options


def _kind_here(theirs: Any) -> Any:
    """The class of connections for a client's: its own, or redis-py's blocking one of that name; else ValueError."""
    from redis import connection, sentinel

    if issubclass(theirs, connection.AbstractConnection):
        return theirs
    known = {"Connection", "SSLConnection", "UnixDomainSocketConnection"}
    managed = {"SentinelManagedConnection", "SentinelManagedSSLConnection"}
    if theirs.__module__.startswith(("redis.asyncio.", "valkey.")) and theirs.__name__ in known | managed:
        return getattr(connection if theirs.__name__ in known else sentinel, theirs.__name__)
    raise ValueError(
        f"connections of the class {theirs.__module__}.{theirs.__name__} cannot be made in a thread: "
        "give RedisStore a URL, or a redis.Redis"
    )


# Connections


def _library(module: str) -> Any:
    """A module of redis-py, whose types say less than is so."""
    return importlib.import_module(f"redis.{module}")


def _ours(kind: Any, timeout: float) -> Options:
    """What the store itself says of all of its connections."""
    from redis.backoff import NoBackoff
    from redis.connection import Connection
    from redis.retry import Retry

    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "decode_responses": False,
        "encoding": "utf-8",
        "encoding_errors": "strict",
        "health_check_interval": 0,
        "protocol": 2,  # enough for what we ask, and servers that are too old for 3 can still tell their version
        "retry": Retry(NoBackoff(), 0),  # it would execute a script twice
    }
    if not issubclass(kind, Connection):
        del options["socket_connect_timeout"]  # a Unix socket knows none
    return options


class _BoundedSocket:
    """A socket that bounds whole answers: one byte now and then would keep a plain one waiting for ever."""

    __slots__ = ("_socket", "_timeout", "_until")

    def __init__(self, socket: Any, timeout: float) -> None:
        self._socket = socket
        self._timeout = timeout
        self._until = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        self._until = clock.now() + self._timeout
        self._socket.sendall(data)

    def recv(self, size: int) -> bytes:
        self._check()
        data: bytes = self._socket.recv(size)
        return data

    def recv_into(self, buffer: Any) -> int:
        self._check()
        count: int = self._socket.recv_into(buffer)
        return count

    def _check(self) -> None:
        if clock.now() > self._until:
            raise TimeoutError(f"the answer was not complete after {self._timeout:g} s")


def _bounded(kind: Any, options: Options) -> Any:
    """A class of connections that gives a whole answer, not each of its bytes, the time-out of these options."""

    def connect(self: Any) -> Any:
        return _BoundedSocket(kind._connect(self), options["socket_timeout"])

    return type(kind.__name__, (kind,), {"_connect": connect})


def _client(kind: Any, options: Mapping[str, Any], *, single_connection_client: bool = False, **more: Any) -> Any:
    from redis import ConnectionPool, Redis

    pool = ConnectionPool(connection_class=kind, **{**options, **more})
    return Redis(connection_pool=pool, single_connection_client=single_connection_client)


def _try(kind: Any, options: Options) -> str:
    """What is wrong with the options of a connection. It connects to nothing."""
    from redis.sentinel import SentinelManagedConnection

    managed = {"connection_pool": None} if issubclass(kind, SentinelManagedConnection) else {}
    try:
        kind(**options, **managed)
    except Exception as error:  # noqa: BLE001 - whatever it is, an option is wrong
        return str(error) or repr(error)
    return ""


def _with_options(kind: Any, options: Options) -> Any:
    """A class of connections that are all made with these options, beside those that they are given."""

    def make(self: Any, **given: Any) -> None:
        kind.__init__(self, **{**given, **options})

    return type(kind.__name__, (kind,), {"__init__": make})


def _managed(kind: Any) -> Any:
    """A class of connections whose address the Sentinels say."""
    from redis import connection, sentinel

    if issubclass(kind, sentinel.SentinelManagedConnection):
        return kind
    known = {
        connection.Connection: sentinel.SentinelManagedConnection,
        connection.SSLConnection: sentinel.SentinelManagedSSLConnection,
    }
    return known.get(kind) or type(kind.__name__, (sentinel.SentinelManagedConnection, kind), {})


def _passwords(options: Mapping[str, Any]) -> set[str]:
    return {value for key, value in options.items() if "password" in key and isinstance(value, str) and value}


def _scheme(kind: Any) -> str:
    from redis.connection import SSLConnection

    return "rediss" if issubclass(kind, SSLConnection) else "redis"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _shown_host(node: Node) -> str:
    return f"{_bracketed(node[0])}:{node[1]}"
