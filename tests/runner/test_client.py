"""What goes over the wire, against servers of our own on real sockets."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import ssl
import threading
import time
import zlib
from contextlib import asynccontextmanager

import pytest
import trustme

from penstock.runner import http
from penstock.runner.batch.http import BatchHttp
from penstock.runner.client import Lost, NotSent, Server, Unreadable, headers_of, url_of
from penstock.runner.http import Http

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(answer, tls=None):
    """A server that hands each request's head and body to `answer`, which returns what to send, or None to hang up."""
    seen = []

    async def handle(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                seen.append((head.decode(), await reader.readexactly(length)))
                said = answer(*seen[-1])
                if said is None:
                    break
                async for part in said if hasattr(said, "__aiter__") else _once(said):
                    writer.write(part)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


async def _once(said):
    yield said


def reply(status, content=b"{}", headers=""):
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{headers}\r\n".encode() + content


async def sent(base, **options):
    left = []
    async with Http(Server(base, direct=True, **options)) as client:
        return await client.send("/v1/chat/completions", b'{"a":1}', lambda: left.append(1)), left


async def test_a_request_carries_its_headers_and_its_query():
    async with serving(lambda *_: reply(200, b'{"b":2}', "x-request-id: r1\r\n")) as (base, seen):
        said, left = await sent(
            f"{base}/openai?api-version=1", headers={"api-key": "secret", "openai-organization": "org"}
        )
    assert (said.status, said.content, said.headers.get("X-Request-Id"), left) == (200, b'{"b":2}', "r1", [1])
    head, body = seen[0]
    assert head.startswith("POST /openai/chat/completions?api-version=1 HTTP/1.1\r\n")
    assert "api-key: secret" in head
    assert "openai-organization: org" in head.lower()
    assert body == b'{"a":1}'


@pytest.mark.parametrize("status", [307, 308])
async def test_redirects_that_keep_the_method_are_followed(status):
    answers = iter([reply(status, b"", "location: /elsewhere/x?y=1\r\n"), reply(200)])
    async with serving(lambda *_: next(answers)) as (base, seen):
        said, left = await sent(base, headers={"authorization": "Bearer k"})
    assert (said.status, left) == (200, [1])
    assert seen[1][0].startswith("POST /elsewhere/x?y=1 ")
    assert "Bearer k" in seen[1][0]
    assert seen[1][1] == b'{"a":1}'


async def test_a_redirect_to_another_host_does_not_take_the_key_along():
    async with (
        serving(lambda *_: reply(200)) as (other, theirs),
        serving(lambda *_: reply(307, b"", f"location: {other}/v1/x\r\n")) as (base, _),
    ):
        said, _ = await sent(base, headers={"authorization": "Bearer k", "x-team": "t"})
    assert said.status == 200
    assert "Bearer" not in theirs[0][0]
    assert "x-team: t" in theirs[0][0].lower()


async def test_redirects_have_an_end_and_others_are_not_followed():
    async with serving(lambda *_: reply(307, b"", "location: /again\r\n")) as (base, seen):
        said, _ = await sent(base)
    assert (said.status, len(seen)) == (307, 11)
    async with serving(lambda *_: reply(302, b"", "location: /again\r\n")) as (base, seen):
        said, _ = await sent(base)
    assert (said.status, len(seen)) == (302, 1)


@pytest.mark.parametrize("content", [gzip.compress(b'{"c":3}'), b"not gzip at all"])
async def test_what_was_compressed_is_read_and_what_cannot_be_is_kept(content):
    async with serving(lambda *_: reply(200, content, "content-encoding: gzip\r\n")) as (base, _):
        said, _ = await sent(base)
    assert said.content in {b'{"c":3}', b"not gzip at all"}


@pytest.mark.parametrize(
    ("content", "coding"),
    [
        (gzip.compress(gzip.compress(b'{"c":3}')), "gzip, gzip"),
        (gzip.compress(b'{"c"') + gzip.compress(b":3}"), "gzip"),
        (gzip.compress(b'{"c":3}')[:-8], "gzip"),
        (gzip.compress(b'{"c":3}')[:-8] + b"12345678", "gzip"),
        (gzip.compress(b'{"c":3}') + b"\0" * 5, "x-gzip"),
        (zlib.compress(b'{"c":3}')[2:-4], "deflate"),
        (zlib.compress(b'{"c":3}')[:-4], "deflate"),
        (b'{"c":3}', "br"),
    ],
    ids=[
        "twice",
        "two members",
        "no checksum",
        "a wrong one",
        "padded",
        "no head",
        "cut",
        "by a name that was not asked for",
    ],
)
async def test_what_was_paid_for_is_read_however_it_was_compressed(content, coding):
    async with serving(lambda *_: reply(200, content, f"content-encoding: {coding}\r\n")) as (base, _):
        assert (await sent(base))[0].content == b'{"c":3}'


@pytest.mark.parametrize("target", ["http://[::1", "ftp://x/", "http://", "mailto:me", "http://a:b:c/"])
async def test_a_redirect_to_nowhere_is_an_answer(target):
    """Nothing was billed, and nothing is in doubt."""
    async with serving(lambda *_: reply(307, b"", f"location: {target}\r\n")) as (base, _):
        assert (await sent(base))[0].status == 307


async def test_a_long_header_costs_no_answer():
    async with serving(lambda *_: reply(200, b"{}", f"x-long: {'a' * 500_000}\r\n")) as (base, _):
        assert (await sent(base))[0].content == b"{}"


async def test_many_headers_cost_no_answer():
    many = "".join(f"x-{number}: a\r\n" for number in range(2_000))
    async with serving(lambda *_: reply(200, b"{}", many)) as (base, _):
        assert (await sent(base))[0].content == b"{}"


@pytest.mark.parametrize("header", ["content-length: 2", "transfer-encoding: chunked", "x y: 1", "x", "x: \0"])
async def test_an_answer_that_breaks_http_was_an_answer(header):
    """Sent twice by a proxy, for example; whatever it was, the service may have billed it."""
    async with serving(lambda *_: reply(200, b"{}", f"{header}\r\n")) as (base, _):
        with pytest.raises(Unreadable, match="the answer breaks HTTP: "):
            await sent(base)


def endless(_head, _body):
    async def parts():
        yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        while True:
            yield b"400\r\n" + b" " * 1024 + b"\r\n"

    return parts()


@pytest.mark.parametrize(
    "answer",
    [
        endless,
        lambda *_: b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n",
        lambda *_: reply(200, gzip.compress(b" " * 10_000_000), "content-encoding: gzip\r\n"),
        lambda *_: reply(200, zlib.compress(b" " * 10_000_000), "content-encoding: deflate\r\n"),
    ],
    ids=["endless", "announced", "gzip", "deflate"],
)
async def test_an_answer_that_has_no_end_takes_no_memory(monkeypatch, answer):
    """It may have been billed, and the next one would be as large."""
    monkeypatch.setattr(http, "LARGEST", 1024 * 1024)
    async with serving(answer) as (base, _):
        with pytest.raises(Unreadable, match="the answer has more than 1 MiB"):
            await sent(base)


async def test_what_is_no_http_at_all_is_no_answer():
    async with serving(lambda *_: b"\x15\x03\x03\x00\x02\x02\x32") as (base, _):  # an alert of TLS
        with pytest.raises(Lost, match="what answers there is no HTTP: is it the address") as raised:
            await sent(base)
    assert not isinstance(raised.value, Unreadable)


async def test_a_server_that_takes_no_connection_is_left_soon(monkeypatch):
    """However long an answer may take."""

    async def never(*_):
        await asyncio.Event().wait()

    monkeypatch.setattr(http, "LONGEST_CONNECT", 0.05)
    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", never)
    with pytest.raises(NotSent, match=r"no connection within 0\.05 s"):
        await sent("http://127.0.0.1:9")


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_a_proxy_may_be_named_without_its_scheme(monkeypatch, scheme):
    """As curl takes it."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving(lambda *_: reply(200)) as (base, seen):
        monkeypatch.setenv("http_proxy", base.replace("http://", scheme))
        async with Http(Server("http://service.test/v1")) as client:
            assert (await client.send("/v1/x", b"{}", lambda: None)).status == 200
    assert seen[0][0].startswith("POST http://service.test/v1/x HTTP/1.1")


async def test_no_connection_is_no_use():
    with pytest.raises(NotSent, match=r"cannot connect to 127.0.0.1:1: "):
        await sent("http://127.0.0.1:1/v1")
    with pytest.raises(NotSent, match=r"cannot connect to no-such-host\.invalid"):
        await sent("http://no-such-host.invalid/v1")


@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere.example"])
async def test_a_certificate_is_trusted_if_somebody_known_vouches_for_it(tmp_path, monkeypatch, name):
    """Else nothing is sent, and it is said that to try again is no use, and what is."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    async with serving(lambda *_: reply(200), tls) as (base, seen):
        with pytest.raises(
            NotSent, match=r"the certificate of 127.0.0.1:\d+ is not trusted \(.+\): SSL_CERT_FILE"
        ) as told:
            await sent(base)
        assert told.value.is_lasting
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        if name == "127.0.0.1":
            assert (await sent(base))[0].status == 200
        else:
            with pytest.raises(NotSent, match="not trusted"):
                await sent(base)
    assert len(seen) == (name == "127.0.0.1")


@pytest.mark.parametrize(
    "head", [b"content-length: 9000\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n2328\r\n"], ids=["length", "chunks"]
)
async def test_a_file_of_answers_that_is_cut_in_the_middle_is_no_file(head):
    async def cut():
        yield b"HTTP/1.1 200 OK\r\n" + head + b'{"custom_id":"a"}\n' * 100
        raise ConnectionError

    async with serving(lambda *_: cut()) as (base, _), BatchHttp(Server(base, direct=True)) as client:
        with pytest.raises(Lost):
            await client.download("/v1/files/f/content", io.BytesIO())


@pytest.mark.parametrize(("method", "status"), [("GET", 302), ("GET", 308), ("POST", 307), ("POST", 308)])
async def test_redirects_of_files_and_batches_are_followed_too(tmp_path, method, status):
    """As from http:// to https://: what `penstock run` reached, `--via batch` did not. The key stays where it belongs."""
    (tmp_path / "form").write_bytes(b"a file")
    async with serving(lambda *_: reply(200, b"the answer")) as (other, seen):
        moved = reply(status, b"", f"location: {other.replace('127.0.0.1', 'localhost')}/x\r\n")
        async with serving(lambda *_: moved) as (base, _):
            server = Server(base, {"authorization": "Bearer k"}, direct=True)
            async with BatchHttp(server) as client:
                with (tmp_path / "form").open("rb") as form:
                    said = await client.request(method, "/v1/files", form if method == "POST" else None)
    assert (said.status, said.content) == (200, b"the answer")
    ((head, body),) = seen
    assert head.startswith(f"{method} /x ")
    assert "Bearer" not in head
    assert body == (b"a file" if method == "POST" else b"")


async def test_redirects_of_files_have_an_end():
    into, again = io.BytesIO(), reply(302, b"", "location: /again\r\n")
    async with serving(lambda *_: again) as (base, seen), BatchHttp(Server(base, direct=True)) as client:
        assert ((await client.download("/v1/files/f/content", into)).status, into.getvalue()) == (302, b"")
    assert len(seen) == 1 + http.MAX_REDIRECTS


async def test_a_server_that_hangs_up_may_have_taken_the_request():
    async with serving(lambda *_: None) as (base, _):
        with pytest.raises(Lost, match="closed the connection without an answer"):
            await sent(base)
    async with serving(lambda *_: b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nhalf") as (base, _):
        with pytest.raises(Lost):
            await sent(base, timeout=1)


async def test_an_answer_that_came_while_this_process_stood_still_is_taken():
    """Stopped for longer than an attempt may take: it was paid for."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                time.sleep(0.8)
                connection.sendall(reply(200, b'{"choices":[1]}'))

        server = threading.Thread(target=answer)
        server.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with Http(Server(address, timeout=1.0)) as client:

            def left():  # the request goes out behind this, and then nothing runs for a while
                asyncio.get_running_loop().call_later(0.3, time.sleep, 3.0)

            found = await client.send("/v1/x", b"{}", left)
        server.join()
    assert found.content == b'{"choices":[1]}'


async def test_a_server_that_does_not_answer_is_left_though_this_process_stood_still():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with Http(Server(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.3)) as client:
            loop = asyncio.get_running_loop()
            with pytest.raises(Lost, match=r"no answer within 0\.3 s"):
                await client.send("/v1/x", b"{}", lambda: loop.call_later(0.1, time.sleep, 1.0))


async def test_blank_lines_for_ever_end():
    """A service keeps connections alive that way; it must not keep them for ever."""

    async def blank(*_):
        yield b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n"
        while True:
            yield b"1\r\n\n\r\n"
            await asyncio.sleep(0.02)

    async with serving(blank) as (base, _):
        with pytest.raises(Lost, match=r"no answer within 0\.3 s"):
            await sent(base, timeout=0.3)


async def test_an_answer_in_pieces_is_read_to_its_end():
    """Without a length, as services send what takes them long."""
    chunked = b'HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'
    async with serving(lambda *_: chunked) as (base, _):
        said, _ = await sent(base)
    assert (said.status, said.content) == (200, b'{"a":1}')


async def test_large_answers_and_many_at_once_are_read():
    content = json.dumps({"text": "x" * 3_000_000}).encode()
    async with serving(lambda *_: reply(200, content)) as (base, _), Http(Server(base, direct=True)) as client:
        many = [client.send("/v1/x", b"{}", lambda: None) for _ in range(20)]
        assert {len(one.content) for one in await asyncio.gather(*many)} == {len(content)}


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://host/v1", "/v1beta/models", "https://host/v1/v1beta/models"),
        ("https://host/v1", "/v1", "https://host/v1"),
        ("https://host", "/v1beta/x", "https://host/v1beta/x"),
        (
            "https://host/openai?api-version=1",
            "/v1/chat/completions",
            "https://host/openai/chat/completions?api-version=1",
        ),
        ("https://host/v1/?a=1", "/v1/x?b=2", "https://host/v1/x?a=1&b=2"),
        ("https://host?a=1", "/v1/x", "https://host/v1/x?a=1"),
    ],
)
def test_an_address_is_the_servers_with_the_path_of_the_row(base, path, url):
    assert url_of(base, path) == url


def test_secrets_are_known_by_their_headers():
    server = Server("http://x", headers={"Authorization": "Bearer abc", "api-key": "def", "x-team": "t"})
    assert set(server.secrets) == {b"abc", b"def"}


@pytest.mark.parametrize("pair", ["a", ": b", "a b: c", "a: b\nc: d", "ä: b"])
def test_a_header_that_is_none_is_refused(pair):
    with pytest.raises(ValueError, match=r"write it like|no header may have"):
        headers_of([pair])
