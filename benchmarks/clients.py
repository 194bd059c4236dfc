"""Which HTTP client a run should send through, and how near `penstock run` comes to a bare loop over it.

A server in a process of its own answers every request at once with the same 300 bytes. Each client sends the same
request with so many in flight; CPU is that of the client's process alone. Then `penstock run` sends as many rows,
without limits, to the same server.

Besides the cost it matters whether a client reports when a request's first byte leaves, which the learning of limits
needs (httpx2 and aiohttp do; pyreqwest, httpr, rnet and primp, at 47 to 110 µs a request, do not), and who maintains
it.

    python benchmarks/clients.py [requests]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import httpx2
from _report import table, verdict, where

BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "question " + "x" * 100}]}).encode()
HEADERS = {"content-type": "application/json", "authorization": "Bearer x"}

SERVER = r"""
import asyncio
import sys
LATENCY = float(sys.argv[1])
ANSWER = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"'
    + b"z" * 200
    + b'"}}],"usage":{"total_tokens":20}}'
)
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.begun = transport, b""
    def data_received(self, data):
        self.begun += data
        while (end := self.begun.find(b"\r\n\r\n")) >= 0:
            head = self.begun[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.begun) < end + 4 + length:
                return
            self.begun = self.begun[end + 4 + length :]
            if LATENCY:
                asyncio.get_running_loop().call_later(LATENCY, self.transport.write, REPLY)
            else:
                self.transport.write(REPLY)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def served(latency=0.0):
    """The base URL of such a server, which answers after so many seconds."""
    command = [sys.executable, "-c", SERVER, str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        finally:
            server.terminate()


async def over_aiohttp(url, count, in_flight):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send():
            async with session.post(url, data=BODY, headers=HEADERS) as response:
                await response.read()

        await pour(send, count, in_flight)


async def over_httpx2(url, count, in_flight):
    limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def send():
            await client.post(url, content=BODY, headers=HEADERS)

        await pour(send, count, in_flight)


async def pour(send, count, in_flight):
    left = count

    async def worker():
        nonlocal left
        while left > 0:
            left -= 1
            await send()

    await asyncio.gather(*(worker() for _ in range(in_flight)))


def bare(client, url, count, in_flight):
    """(requests per second, µs of CPU a request)."""
    began, cpu = time.perf_counter(), time.process_time()
    asyncio.run(client(url, count, in_flight))
    return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6


def penstock_run(base, count, in_flight):
    """Rows per second, by the run's own makespan: without what starting Python takes."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "in.jsonl"), count)
        _, summary = run(folder, base, in_flight)
        return count / summary["makespan"]


def write_rows(path, count):
    """A file of requests with names."""
    with path.open("wb") as file:
        file.writelines(b'{"custom_id":"r%d","body":%b}\n' % (number, BODY) for number in range(count))


def run(folder, base, in_flight, *options):
    """Run `in.jsonl` of a folder; what the process used, and the summary."""
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", base, "--max-in-flight", str(in_flight), "-q"]
    # A limit that is never reached: what is learned of a server that tells nothing begins slowly.
    command += ["--limits", "requests=1000000/s", *options]
    process = subprocess.Popen([sys.executable, "-m", "penstock", *command], cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"it ended with {process.returncode}"
    return used, json.loads(Path(folder, "out.summary.json").read_text(encoding="utf-8"))


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    where("aiohttp", "httpx2")
    lines, ratios = [], []
    with served() as base:
        url = f"{base}/chat/completions"
        for in_flight in (50, 200, 1_000):
            of_aiohttp = bare(over_aiohttp, url, count, in_flight)
            of_httpx2 = bare(over_httpx2, url, count // 10, in_flight) if in_flight < 1_000 else None
            ours = penstock_run(base, count, in_flight)
            again = bare(over_aiohttp, url, count, in_flight)
            fastest = (of_aiohttp[0] + again[0]) / 2
            ratios.append(ours / fastest)
            lines.append(
                [
                    in_flight,
                    f"{fastest:,.0f}",
                    f"{(of_aiohttp[1] + again[1]) / 2:.0f}",
                    "–" if of_httpx2 is None else f"{of_httpx2[0]:,.0f}",
                    "–" if of_httpx2 is None else f"{of_httpx2[1]:.0f}",
                    f"{ours:,.0f}",
                    f"{ratios[-1]:.2f}",
                ]
            )
    table(["in flight", "aiohttp/s", "µs CPU", "httpx2/s", "µs CPU", "penstock run/s", "of aiohttp"], lines)
    verdict("a bare aiohttp loop is so many times as fast at worst", 1 / min(ratios), 1 / 0.3)


if __name__ == "__main__":
    main()
