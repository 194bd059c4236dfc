"""What SDKs can ask beside chat, against a server of scripted answers: charged, settled, and waited for."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import penstock
from penstock import Limiter, sliding
from penstock.llm import limit_client, limits_of, rate_limit_info

sys.path.insert(0, str(Path(__file__).parent))
from adapters import ADAPTERS
from calls import CALLS
from conftest import Field

ROWS = list(CALLS.get(Field.environment, lambda: ())())
pytestmark = pytest.mark.skipif(not ROWS, reason="chat is asked elsewhere")
over_every_call = pytest.mark.parametrize(
    ("make", "call", "answer", "used"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
REFUSED = {
    "error": {"message": "Too many requests", "code": 429, "status": "RESOURCE_EXHAUSTED"},
    "message": "Too many requests",
}


@contextlib.contextmanager
def server(*answers):
    """Answers one after the other, the last for ever; its address, and what it was asked."""
    waiting, asked = list(answers), []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(self.path)
            status, content = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            body = ("\n".join(content) + "\n" if isinstance(content, list) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()


@over_every_call
def test_what_a_call_used_is_settled(make, call, answer, used):
    limiter = Limiter(requests="600/min", tokens=sliding(10_000, per=86_400))
    with server((200, answer)) as (url, _):
        call(limit_client(make(url), limiter, cost="total"))
    assert 10_000 - limiter.statistics().limits["tokens"].level == used


@over_every_call
def test_a_refused_call_is_waited_for_though_nobody_named_a_limit(make, call, answer, used):
    with server((429, REFUSED), (200, answer)) as (url, asked):
        client = limit_client(make(url))
        call(client)
    assert len(asked) == 2
    assert len(limits_of(client)) == 1


@over_every_call
def test_a_turn_holds_for_each_call(make, call, answer, used):
    limiter = Limiter(requests="60/min")
    limiter.pause(30)
    adapter = next(iter(ADAPTERS[Field.environment]()))
    with server((200, answer)) as (url, asked):
        began = time.monotonic()
        with penstock.turn(max_wait=1), pytest.raises(adapter.refusal) as caught:
            call(limit_client(make(url), limiter))
        assert time.monotonic() - began < 10
    assert asked == []
    assert 15 < rate_limit_info(caught.value).wait <= 30
    assert rate_limit_info(caught.value).unit == "pause"


@pytest.mark.skipif(Field.environment != "cohere", reason="the only SDK that sends again whatever was refused")
def test_what_never_will_do_is_sent_once():
    words = "You are using a Trial key, which is limited to 1000 API calls / month."
    for _, make, call, *_ in ROWS:
        with server((429, {"message": words})) as (url, asked):
            with pytest.raises(next(iter(ADAPTERS["cohere"]())).refusal, match="1000 API calls"):
                call(limit_client(make(url), Limiter(requests="60/min")))
            assert len(asked) == 1
