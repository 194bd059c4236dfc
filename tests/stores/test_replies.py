"""What a server may say instead of an answer: each is sorted, none grants, none hangs."""

from __future__ import annotations

import anyio
import pytest

from penstock import Limiter, StoreError, per_second
from penstock.stores import RedisStore
from tests.stores.talker import Talker

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Faults happen to the dispatcher's thread, whichever loop it works for; `test_contract` has both."""
    return "asyncio"


SAID = {
    "LOADING Redis is loading the dataset in memory": "cannot answer now",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "cannot answer now",
    "CLUSTERDOWN The cluster is down": "cannot answer now",
    "CLUSTERDOWN Hash slot not served": "cannot answer now",
    "TRYAGAIN Multiple keys request during rehashing of slot": "cannot answer now",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "cannot answer now",
    "NOREPLICAS Not enough good replicas to write.": "cannot answer now",
    "MISCONF Redis is configured to save RDB snapshots, but is currently not able to persist on disk.": "cannot answer now",
    "READONLY You can't write against a read only replica.": "read-only replica",
    "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only replica.": "read-only",
    "OOM command not allowed when used memory > 'maxmemory'.": "no memory left",
    "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'.": "no memory left",
    "ERR max number of clients reached": "does not answer",
    "NOPERM User penstock has no permissions to run the 'evalsha' command": "may not do what is needed",
    "ERR ACL failure in script: User penstock has no permissions to run the 'hset' command": "may not do what is needed",
    "NOAUTH Authentication required.": "refused us",
    "WRONGPASS invalid username-password pair or user is disabled.": "refused us",
    "ERR invalid password": "refused us",
    "ERR unknown command 'EVALSHA'": "says unknown command",
    "WRONGTYPE Operation against a key holding the wrong kind of value": "says WRONGTYPE",
    "CROSSSLOT Keys in request don't hash to the same slot": "says",
    "ERR Protocol error: unauthenticated bulk length": "says Protocol error",
}  # fmt: skip

OUTAGES = ("cannot answer now", "read-only", "no memory left", "does not answer")


@pytest.fixture
def talker():
    made = Talker()
    yield made
    made.stop()


@pytest.mark.parametrize(("words", "says"), SAID.items(), ids=lambda text: text[:40])
async def test_what_a_server_says_is_sorted(words, says, talker):
    """What passes is an outage, for which `on_outage` says what happens; what somebody must mend is an error at
    once."""
    talker.answer = b"-%b\r\n" % words.encode()
    events = []
    store = RedisStore(talker.url, timeout=5, patience=0.1, on_outage="open", on_event=events.append)
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    if says.startswith(OUTAGES):
        with anyio.fail_after(20):
            await limiter.acquire()
        message = events[0].reason
        assert says in message
    else:
        with anyio.fail_after(20), pytest.raises(StoreError, match=says) as caught:
            await limiter.acquire()
        assert events == []
        message = str(caught.value)
    assert ".." not in message, "what the server says may end like a sentence"
    store.close(timeout=1)


ODD = [b"$3\r\nabc\r\n", b":5\r\n", b"*0\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*3\r\n$8\r\n00000000\r\n:7\r\n$1\r\nb\r\n", b"+OK\r\n", b"$-1\r\n", b"*-1\r\n",
     b"$8\r\n00000000\r\n", b"$16\r\n" + b"\xff" * 16 + b"\r\n", b"$800\r\n" + b"\x7f\xf0" * 400 + b"\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"%1\r\n", b"$9999999999\r\n",
     b"*1000000000\r\n", b"-\r\n", b"\r\n\r\n", b"-DAMAGED 9\r\n", b"-DAMAGED x\r\n", b"-DAMAGED \r\n"]  # fmt: skip


@pytest.mark.parametrize("answer", ODD, ids=repr)
async def test_an_odd_reply_is_an_error_and_no_grant(answer, talker):
    talker.answer = answer
    store = RedisStore(talker.url, timeout=0.3, patience=0.1)
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    for _ in range(2):
        with anyio.fail_after(20), pytest.raises(StoreError):
            await limiter.acquire()
    store.close(timeout=1)
