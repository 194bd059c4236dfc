"""Running the application: in a thread beside the program that uses it, or as the program itself.

The thread has a loop of its own, so it serves callers of asyncio, trio and plain threads alike, and a busy caller does
not slow its clock down.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio.lowlevel
import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from penstock import clock
from penstock.simulator._account import Account, Statistics
from penstock.simulator._app import ABORT, create_app
from penstock.simulator._bodies import SILENCE
from penstock.simulator._simulation import Fault, Simulation


def serve(simulation: Simulation, *, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Make a server that runs in a thread from entering to leaving it, with `async with` or `with`.

    Args:
        simulation: What to simulate.
        host: Address to listen on.
        port: Port to listen on; 0: any free one, see `Server.base_url`.
    """
    return Server(simulation, host, port)


def run(
    simulation: Simulation,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> Statistics:
    """Serve until Ctrl-C or SIGTERM, in this thread, which must be the main one; then say what happened.

    Args:
        simulation: What to simulate.
        host: Address to listen on.
        port: Port to listen on; 0: any free one.
        on_ready: Called with the base URL as soon as clients can connect.

    Raises:
        OSError: The address cannot be used, as when another program listens there.
    """
    app = create_app(simulation)
    with _listen(host, port) as listener:
        server = _Uvicorn(app)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn hands the signal on at its end
        try:
            if on_ready is not None:
                on_ready(_base_url(listener))
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # this is how it ends
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    account: Account = app.state.account
    return account.statistics()


class Server:
    """A simulated service that runs in a thread; made by `serve`.

    Entering it returns as soon as clients can connect. Leaving it closes every connection at once, answered or not, and
    returns when the thread has ended: there is no await in it, so a cancellation cannot leave the thread behind.

    Every method may be called from any thread, also after the end.
    """

    def __init__(self, simulation: Simulation, host: str, port: int) -> None:
        self._app = create_app(simulation)
        self._account: Account = self._app.state.account
        self._host = host
        self._port = port
        self._listener: socket.socket | None = None
        self._server: _Uvicorn | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """`http://HOST:PORT/v1`, as clients want it.

        Raises:
            RuntimeError: The server was not entered yet.
        """
        if self._listener is None:
            raise RuntimeError("the server has no address yet: use `async with simulator.serve(…) as server`")
        return self._url

    def statistics(self) -> Statistics:
        """What happened so far."""
        return self._account.statistics()

    def inject(self, fault: Fault, times: int = 1) -> None:
        """Let the next `times` requests have this fault.

        Raises:
            ValueError: There is no such fault, or `times` is not in 0..1,000,000.
        """
        self._account.inject(fault, times)

    def consume(self, *, requests: int = 0, tokens: int = 0) -> None:
        """Take from the limits what another client of the account used; never more than there is.

        Raises:
            ValueError: A number is not whole, or below 0.
        """
        self._account.consume(requests=requests, tokens=tokens)

    def __enter__(self) -> Self:
        """Start to serve.

        Raises:
            OSError: The address cannot be used, as when another program listens there.
            RuntimeError: It ran before, or time is virtual.
        """
        if self._listener is not None:
            raise RuntimeError("a server runs once: make another with `simulator.serve(…)`")
        if not clock.is_real():
            raise RuntimeError(
                "a server in a thread lives in real time, and the clock is virtual: call the application in-process, "
                "httpx2.ASGITransport(simulator.create_app(simulation))"
            )
        self._listener = _listen(self._host, self._port)
        self._url = _base_url(self._listener)
        self._server = _Uvicorn(self._app)
        # A daemon, so that a program which forgets to leave can still end.
        self._thread = threading.Thread(
            target=self._server.run_and_tell, args=(self._listener,), name="penstock-simulator", daemon=True
        )
        self._thread.start()
        self._server.ready.wait()
        if not self._server.started:
            self.__exit__(None, None, None)
            raise RuntimeError("the simulator's thread ended before it could serve: see its traceback above")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        assert self._listener is not None
        self._server.stop()
        self._thread.join()
        self._listener.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class _Connection(H11Protocol):
    """A connection that the application can cut."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(SILENCE, self._close_if_silent)
        self.app_state = {**self.app_state, ABORT: transport.abort}

    def _close_if_silent(self) -> None:
        """Close a connection on which no request has come, or half of its head."""
        cycle: object = self.cycle
        if cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """A uvicorn that starts and ends within a millisecond or so: its own waits for a tenth of a second, twice."""

    def __init__(self, app: Starlette) -> None:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                pass  # by our own `shutdown`: no client is connected any more, and nothing went wrong

        options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "ws": "none"}
        # By itself uvicorn closes connections that were idle for 5 s, just when clients that pace themselves use them
        # again.
        options |= {"lifespan": "off", "timeout_keep_alive": 600}
        super().__init__(uvicorn.Config(application, http=_Connection, **options))
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()

    def run_and_tell(self, listener: socket.socket) -> None:
        """Run, and be `ready` when clients can connect, or when it is clear that they never will."""
        try:
            self.run(sockets=[listener])
        finally:
            self.ready.set()

    def stop(self) -> None:
        """End soon; from any thread."""
        self.should_exit = True
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:
                pass  # a tick saw it before us, and the loop is closed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await anyio.lowlevel.checkpoint()  # loads what the first request would wait for, and meet the limits late
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks % 10):
            ticks += 1
            try:
                await asyncio.wait_for(self._wake.wait(), 0.1)
            except TimeoutError:
                pass  # a tick: a signal may have come, which can only leave a note

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # lets the connections learn of it before their requests do
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    listener.setblocking(False)
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
