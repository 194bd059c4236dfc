"""A TCP proxy that does to a connection what networks do: loses replies, resets, delays, swallows."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Between a client and `port` of this machine. `mode` says what happens to what passes:

    "pass"    nothing
    "cut"     the next reply is lost, and its connection with it, after the server has executed what was asked
    "hole"    everything is swallowed, in both directions
    "deaf"    what the server says is swallowed
    "twice"   the next reply is said twice
    "refuse"  connections are closed as soon as they are made

    With `tls`, a server's `ssl.SSLContext`, it speaks TLS to whoever comes, as programs that end TLS before a server
    do. `said_for` replaces bytes in what the server says: the address of another server by the one of another proxy.
    """

    def __init__(self, port, tls=None, said_for=(b"", b"")):
        self.target = port
        self.said_for = said_for
        self.tls = tls
        self.mode = "pass"
        self.latency = 0.0
        self.cuts = 0
        self._writers = set()
        self._serving = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    @property
    def url(self):
        return f"{'rediss' if self.tls else 'redis'}://127.0.0.1:{self.port}/0"

    def _run(self, ready):
        async def begin():
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.run_until_complete(begin())
        self._loop.run_forever()

    def _accept(self, reader, writer):
        """No coroutine: one that `stop` cancels before its first step would leave the connection open."""
        self._writers.add(writer)
        serving = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader, writer):
        if self.mode == "refuse":
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(up_writer)
        with contextlib.suppress(asyncio.CancelledError):  # by `stop`; asyncio would log it as a failure of ours
            await asyncio.gather(self._pump(reader, up_writer, up=True), self._pump(up_reader, writer, up=False))

    async def _pump(self, reader, writer, *, up):
        try:
            while data := await reader.read(65536):
                if self.latency:
                    await asyncio.sleep(self.latency)
                if self.mode == "hole" or (self.mode == "deaf" and not up):
                    continue
                if self.mode == "cut" and not up and data[:1] == b"$" and len(data) > 40:  # the answer to a batch
                    self.cuts += 1
                    self.mode = "pass"
                    writer.transport.abort()
                    return
                writer.write(data if up or not self.said_for[0] else data.replace(*self.said_for))
                if self.mode == "twice" and not up and data[:1] == b"$" and len(data) > 40:
                    self.mode = "pass"
                    writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def reset(self):
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self):
        for writer in self._writers:
            with contextlib.suppress(AttributeError):  # of a TLS connection that is closed, in Python 3.11.2
                writer.transport.abort()

    def stop(self):

        async def end():
            # asyncio forgets a connection that it accepted in the step before `close`: nobody comes, then one step more.
            for listener in self._server.sockets:
                self._loop.remove_reader(listener)
            await asyncio.sleep(0)
            self._server.close()
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.sleep(0)  # in which a connection that was ready begins a task of ours
            self._abort()
            await asyncio.sleep(0)  # in which they are closed

        try:
            asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
