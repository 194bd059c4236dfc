"""TLS, users, passwords and whatever provides them reach every connection that a store opens.

The servers that come as wheels are built without TLS. So each test has TLS in a proxy in front of one, as it is in many
installations; and, where there is a server that speaks TLS (Debian's does, and `make environment` unpacks it without
root), that one too.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import anyio
import pytest
import redis
import redis.asyncio
import redis.sentinel
import valkey as valkey_py
import valkey.sentinel

from penstock import Limiter, StoreError, per_second
from penstock.stores import RedisStore
from tests.stores.admissions import PATIENCE
from tests.stores.proxy import Proxy

servers = sys.modules["penstock_test_servers"]

pytestmark = pytest.mark.anyio

USER, PASSWORD, ADMIN = "penstock", "p@ss/w?r#d[%41ö", "of the administrator"
NEEDED = ("+eval", "+evalsha", "+get", "+set", "+hmget", "+hset", "+expire", "+time", "+publish", "+subscribe")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", params=["in front of the server", "the server's own"])
def where(request):
    """Where TLS is, and the server to start for that."""
    if request.param == "in front of the server":
        return servers.binaries()["valkey"], False
    binary, why_not = servers.with_tls()
    if binary is None:
        pytest.skip(f"there is no server that speaks TLS: {why_not}")
    return binary, True


def restrict(server, *allowed):
    """Leave one user who may do what is needed, and an administrator."""
    server.command("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~p*:*", "&p*:*", "-@all", *allowed)
    server.command("ACL", "SETUSER", "default", f">{ADMIN}")
    server.password = ADMIN


def query(certificates, **more):
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in {**certificates.of_client, **more}.items())


@contextlib.contextmanager
def started(make, *arguments, **options):
    made = make(*arguments, **options)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def secured(where, certificates):
    """A server that wants a client's certificate, a user and a password, and gives that user no more than is needed."""
    binary, its_own = where
    port = servers.free_port()
    options = ("--tls-port", str(port), *map(str, certificates.of_server)) if its_own else ()
    with started(servers.Server, binary, *options) as server, contextlib.ExitStack() as stack:
        if not its_own:
            port = stack.enter_context(started(Proxy, server.port, tls=certificates.context())).port
        restrict(server, *NEEDED)
        login = {"username": USER, "password": PASSWORD}
        yield SimpleNamespace(
            server=server,
            port=port,
            login=login,
            options={"host": "127.0.0.1", "port": port, "ssl": True, **certificates.of_client},
            url=f"rediss://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/0?{query(certificates)}",
        )


async def assert_all_connections_work(server, names=("x",)):
    """Calls, and what others announce: each on connections of their own."""
    prefix = f"p{next(_prefixes)}"
    stores = [RedisStore(server, prefix=prefix, timeout=PATIENCE) for _ in range(2)]
    try:
        for name in names:
            mine, theirs = (Limiter(requests=per_second(1000), name=name, store=store) for store in stores)
            await mine.acquire()
            await theirs.acquire()
        with anyio.fail_after(PATIENCE):
            while not stores[1].hears:
                await anyio.sleep(0.01)
        mine.reconfigure(requests=per_second(2000))
        with anyio.fail_after(PATIENCE):
            while theirs.limits["requests"][0] != per_second(2000):
                await anyio.sleep(0.01)
    finally:
        for store in stores:
            store.close()


_prefixes = itertools.count()


class OwnConnection(redis.SSLConnection):
    """A class of the user's."""


CLIENTS = {
    "a URL": lambda to: to.url,
    "a URL of Valkey": lambda to: to.url.replace("rediss", "valkeys"),
    "redis-py": lambda to: redis.Redis(**to.options, **to.login),
    "redis-py of a URL": lambda to: redis.Redis.from_url(to.url),
    "redis-py with a credential provider": lambda to: redis.Redis(
        **to.options, credential_provider=redis.UsernamePasswordCredentialProvider(USER, PASSWORD)
    ),
    "redis-py with a pool": lambda to: redis.Redis(
        connection_pool=redis.BlockingConnectionPool.from_url(to.url, decode_responses=True, protocol=3)
    ),
    "redis-py with connections of its own": lambda to: redis.Redis(
        connection_pool=redis.ConnectionPool.from_url(to.url.replace("rediss", "redis"), connection_class=OwnConnection)
    ),
    "redis-py, asyncio": lambda to: redis.asyncio.Redis(**to.options, **to.login),
    "valkey-py": lambda to: valkey_py.Valkey(**to.options, **to.login),
}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_whatever_names_the_server_is_enough(client, secured):
    await assert_all_connections_work(client(secured))


# A cluster


@pytest.fixture(scope="module")
def secured_cluster(where, certificates):
    """The same of a cluster of three. Its nodes call each other, and clients, by the ports of TLS."""
    binary, its_own = where
    with contextlib.ExitStack() as stack:
        ports = []

        def options_of(port):
            if its_own:
                ports.append(servers.free_port(55_000))
                return "--tls-port", str(ports[-1]), "--tls-cluster", "yes", *map(str, certificates.of_server)
            ports.append(stack.enter_context(started(Proxy, port, tls=certificates.context())).port)
            return "--cluster-announce-port", str(ports[-1]), "--cluster-announce-bus-port", str(port + 10_000)

        nodes = servers.cluster(binary, options_of=options_of)
        for node in nodes:
            stack.callback(node.stop)
            restrict(node, *NEEDED, "+cluster|slots", "+command")
        yield SimpleNamespace(
            nodes=nodes,
            login={"username": USER, "password": PASSWORD},
            options={"host": "127.0.0.1", "port": ports[0], "ssl": True, **certificates.of_client},
            url=f"rediss://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{ports[0]}/0?{query(certificates)}",
        )


CLUSTERS = {
    "a URL": lambda to: to.url,
    "redis-py": lambda to: redis.RedisCluster(**to.options, **to.login),
    "redis-py of a URL": lambda to: redis.RedisCluster.from_url(to.url.replace("/0?", "?")),
    "redis-py with a credential provider": lambda to: redis.RedisCluster(
        **to.options, credential_provider=redis.UsernamePasswordCredentialProvider(USER, PASSWORD)
    ),
    "redis-py, asyncio": lambda to: redis.asyncio.RedisCluster(**to.options, **to.login),
    "valkey-py": lambda to: valkey_py.ValkeyCluster(**to.options, **to.login),
}


@pytest.mark.parametrize("client", CLUSTERS.values(), ids=CLUSTERS)
async def test_every_node_of_a_cluster_gets_all_of_it(client, secured_cluster):
    await assert_all_connections_work(client(secured_cluster), names="abcdefgh")


# Sentinels


@pytest.fixture(scope="module")
def secured_sentinel(where, certificates, tmp_path_factory):
    """A Sentinel with a password of its own, which names a server that wants a user and another password."""
    binary, its_own = where
    port, admin_port = servers.free_port(), servers.free_port()
    tls_port = servers.free_port()
    options = ("--tls-port", str(tls_port), *map(str, certificates.of_server)) if its_own else ()
    with started(servers.Server, binary, *options) as primary, contextlib.ExitStack() as stack:
        restrict(primary, *NEEDED)
        lines = [
            f"port {admin_port}",
            f"sentinel monitor main 127.0.0.1 {tls_port if its_own else primary.port} 1",
            f'sentinel auth-pass main "{ADMIN}"',
            'requirepass "of the sentinel"',
        ]
        if its_own:
            settings = [str(option).removeprefix("--") for option in certificates.of_server]
            pairs = zip(settings[::2], settings[1::2], strict=True)
            lines = [f"tls-port {port}", "tls-replication yes", *map(" ".join, pairs), *lines]
        configuration = Path(tmp_path_factory.mktemp("sentinel")) / "sentinel.conf"
        configuration.write_text("\n".join(lines))
        sentinel = stack.enter_context(
            started(servers.Sentinel, binary, configuration, admin_port, password="of the sentinel")
        )
        if not its_own:
            front = stack.enter_context(started(Proxy, primary.port, tls=certificates.context()))
            said_for = (b"%d" % primary.port, b"%d" % front.port)
            port = stack.enter_context(
                started(Proxy, sentinel.port, tls=certificates.context(), said_for=said_for)
            ).port
        yield SimpleNamespace(
            where=("127.0.0.1", port),
            login={"username": USER, "password": PASSWORD},
            options={"ssl": True, **certificates.of_client},
            query=query(certificates),
            url=f"rediss+sentinel://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/main?"
            + query(certificates, sentinel_password="of the sentinel"),
        )


def made_by(library, to):
    sentinel = library.sentinel.Sentinel(
        [to.where], sentinel_kwargs={**to.options, "password": "of the sentinel"}, **to.options, **to.login
    )
    return sentinel.master_for("main")


SENTINELS = {
    "a URL": lambda to: to.url,
    "a URL of Valkey": lambda to: to.url.replace("rediss", "valkeys"),
    "redis-py": lambda to: made_by(redis, to),
    "redis-py, asyncio": lambda to: made_by(redis.asyncio, to),
    "valkey-py": lambda to: made_by(valkey_py, to),
}


@pytest.mark.parametrize("client", SENTINELS.values(), ids=SENTINELS)
async def test_sentinels_get_their_own_and_the_primary_its(client, secured_sentinel):
    await assert_all_connections_work(client(secured_sentinel))


async def test_a_sentinel_that_refuses_us_is_one_clear_error(secured_sentinel):
    url = secured_sentinel.url.replace(quote("of the sentinel"), "wrong")
    message = await said(RedisStore(url, patience=0.1))
    assert re.match(r"rediss\+sentinel://127\.0\.0\.1:\d+/main: its Sentinels refused us", message)
    assert "sentinel_password=" in message


# Who is trusted


async def said(store):
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    try:
        with pytest.raises(StoreError) as caught, anyio.fail_after(PATIENCE):
            await limiter.acquire()
    finally:
        store.close(timeout=1)
    return str(caught.value)


async def test_a_certificate_that_nobody_trusts_is_one_clear_error(secured):
    """And nothing is sent to whoever shows it."""
    message = await said(RedisStore(secured.url.replace("ssl_ca_certs", "ssl_ca_path"), timeout=PATIENCE, patience=0.2))
    assert "certificate verify failed" in message


async def test_without_its_certificate_a_client_is_refused(secured):
    url = secured.url.replace("ssl_certfile", "client_name").split("&ssl_keyfile")[0]
    assert "does not answer" in await said(RedisStore(url, timeout=0.5, patience=0.1))


async def test_a_certificate_for_another_host_is_trusted_only_if_the_url_says_so(certificates, valkey, prefix):
    with started(
        Proxy, int(valkey.rpartition(":")[2].split("/")[0]), tls=certificates.context("elsewhere.example")
    ) as proxy:
        url = f"{proxy.url}?{query(certificates)}"
        assert "certificate verify failed" in await said(RedisStore(url, timeout=PATIENCE, patience=0.1))
        await assert_all_connections_work(f"{url}&ssl_check_hostname=false")


async def test_a_server_without_tls_is_one_clear_error(valkey):
    message = await said(RedisStore(valkey.replace("redis://", "rediss://"), timeout=0.5, patience=0.2))
    assert "does not answer" in message


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (lambda: redis.sentinel.Sentinel([("127.0.0.1", 1)]), r"master_for\(…\)"),
        (lambda: redis.sentinel.Sentinel([("127.0.0.1", 1)]).slave_for("main"), "not slave_for"),
        (object, "must be a URL or a redis-py client, not a object"),
        (
            lambda: redis.asyncio.Redis(
                connection_pool=redis.asyncio.ConnectionPool(
                    connection_class=type("Mine", (redis.asyncio.Connection,), {})
                )
            ),
            "Mine cannot be made in a thread: give RedisStore a URL, or a redis.Redis",
        ),
        (lambda: redis.asyncio.Redis(redis_connect_func=said), "redis_connect_func must be a plain function here"),
        (
            lambda: redis.Redis(connection_pool=redis.ConnectionPool(sockets=2)),
            "has an option that cannot be taken over: .*'sockets'. Give RedisStore a URL",
        ),
    ],
)
def test_a_client_that_names_no_server_is_refused(client, says):
    with pytest.raises(ValueError, match=says):
        RedisStore(client())


async def test_what_a_client_does_when_it_connects_is_done_here_too(valkey, prefix):
    connected = []

    def connect(connection):
        connected.append(connection)
        connection.on_connect()

    client = redis.Redis.from_url(valkey, redis_connect_func=connect)
    store = RedisStore(client, prefix=prefix)
    await Limiter(requests=per_second(5), name="x", store=store).acquire()
    assert connected
    store.close()


@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        ("one,two:5", [("one", 26379), ("two", 5)]),
        ("[::1],[::2]:5", [("::1", 26379), ("::2", 5)]),
    ],
)
def test_sentinels_have_their_usual_port_unless_the_url_says_another(hosts, nodes):
    sentinels = RedisStore(f"redis+sentinel://{hosts}/main")._server.sentinels.each
    assert [(options["host"], options["port"]) for _, options in sentinels] == nodes


class Mad:
    """A client that raises whatever a server made it raise."""

    def execute_command(self, *_):
        raise ValueError("invalid literal: s3cret")


def test_what_a_server_makes_a_client_raise_is_told_without_the_password_and_not_shown(monkeypatch):
    store = RedisStore("redis://:s3cret@h")
    monkeypatch.setattr(store, "_client", Mad())
    with pytest.raises(
        StoreError, match=r"does not answer as Redis does \(ValueError\('invalid literal: \*\*\*'\)"
    ) as told:
        store.exchange(["x"], None)
    assert told.value.__cause__ is told.value.__context__ is None


async def test_user_and_password_are_in_the_url(server, prefix):
    """A user of its own who may do no more than the error for lack of permission names; and characters that a URL must
    escape."""
    server.command(
        "ACL", "SETUSER", "penstock", "on", ">p@ss/wörd", f"~{prefix}:*", f"&{prefix}:*",
        "-@all", "+eval", "+evalsha", "+get", "+set", "+hmget", "+hset", "+expire", "+time", "+publish", "+subscribe",
    )  # fmt: skip
    server.command("ACL", "SETUSER", "default", "off")
    where = f"127.0.0.1:{server.port}/0"
    store = RedisStore(f"redis://penstock:p%40ss%2Fw%C3%B6rd@{where}", prefix=prefix)
    async with Limiter(requests=per_second(5), name="x", store=store):
        pass
    store.close()
    for user in ("penstock:wrong@", ":wrong@", "nobody:p%40ss@", ""):
        message = await said(RedisStore(f"redis://{user}{where}", prefix=prefix))
        assert message.startswith(f"redis://{where} refused us: ")
        assert message.endswith("Check the user and the password in the URL")
    message = await said(RedisStore(f"redis://penstock:p%40ss%2Fw%C3%B6rd@{where}", prefix="theirs"))
    assert "this user may not do what is needed" in message
    assert (
        "Allow it ~theirs:* &theirs:* -@all +eval +evalsha +get +set +hmget +hset +expire +time +publish +subscribe"
        in message
    )


@pytest.mark.parametrize("password", ["a", "no", "the"])
async def test_a_short_password_is_struck_out_and_words_that_hold_it_are_not(password, server, prefix):
    with pytest.raises(ValueError, match=r"__init__\(\) got an unexpected keyword argument 'client_port'"):
        RedisStore(f"redis://:{password}@localhost/0?client_port=5")
    store = RedisStore(f"redis://:{password}@127.0.0.1:{server.port}/0", prefix=prefix)
    text = "AUTH '{0}' of redis://{0}@127.0.0.1 is no authentication of the other"
    assert store._server.without_secrets(text.format(password)) == text.format("***")
    assert "Check the user and the password in the URL" in await said(store)


@pytest.mark.parametrize("command", ["eval", "evalsha", "get", "set", "hmget", "hset", "expire", "time"])
async def test_a_user_who_lacks_one_command_is_told_what_to_allow(command, server, prefix):
    """Also where the script calls it, which the server says in other words."""
    needed = {"eval", "evalsha", "get", "set", "hmget", "hset", "expire", "time", "publish", "subscribe"}
    allowed = [f"+{each}" for each in needed - {command}]
    server.command("ACL", "SETUSER", "user", "on", ">secret", f"~{prefix}:*", f"&{prefix}:*", "-@all", *allowed)
    message = await said(RedisStore(f"redis://user:secret@127.0.0.1:{server.port}/0", prefix=prefix))
    assert f"no permissions to run the '{command}' command" in message
    assert f"Allow it ~{prefix}:* &{prefix}:* -@all +eval" in message
