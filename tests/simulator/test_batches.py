"""Files and batches of the simulated service, in virtual time: their life, their limits, and what comes out."""

from __future__ import annotations

import json

import anyio
import pytest

from penstock import clock
from penstock.simulator import Batches, Faults, Simulation, fingerprint
from tests.simulator.in_process import CHAT, Client

pytestmark = pytest.mark.anyio


def row(number, model="m", **more):
    body = {"model": model, "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": body, **more}


def jsonl(rows):
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in rows)


async def upload(client, rows, purpose="batch"):
    form = {"purpose": purpose}
    return await client.http.post("/v1/files", files={"file": ("in.jsonl", jsonl(rows))}, data=form)


async def create(client, rows, **more):
    file = (await upload(client, rows)).json()
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **more}
    return (await client.post("/v1/batches", wanted)).json()


async def look(client, batch):
    return (await client.http.get(f"/v1/batches/{batch['id']}")).json()


async def lines(client, file):
    return [json.loads(line) for line in (await client.http.get(f"/v1/files/{file}/content")).text.splitlines()]


async def test_a_batch_goes_from_validating_to_completed(virtual_time):
    """Its counts grow row by row, and its output answers every row, each by its custom_id."""
    client = Client(batches=Batches(validating=5, duration=60, per_row=1, finalizing=10))
    batch = await create(client, map(row, range(20)), metadata={"run": "a"})
    assert (batch["status"], batch["metadata"], batch["request_counts"]["total"]) == ("validating", {"run": "a"}, 0)
    seen = []
    for wait in (6, 61, 19, 10):
        await anyio.sleep(wait)
        now = await look(client, batch)
        seen.append((now["status"], now["request_counts"]["completed"]))
    assert seen == [("in_progress", 0), ("in_progress", 2), ("finalizing", 20), ("completed", 20)]
    assert now["completed_at"] - now["created_at"] == 95
    assert (now["error_file_id"], now["errors"], now["model"]) == (None, None, "m")
    for n, line in enumerate(await lines(client, now["output_file_id"])):
        assert (line["custom_id"], line["error"], line["response"]["status_code"]) == (f"row-{n}", None, 200)
        content = line["response"]["body"]["choices"][0]["message"]["content"]
        assert content.startswith(fingerprint(f"question {n}"))


async def test_a_batch_is_told_as_of_one_moment(virtual_time, monkeypatch):
    """Also where the clock passes its end while the service looks at it: what is completed is counted, and has output."""
    client = Client(batches=Batches(validating=1, duration=1, finalizing=1))
    started = clock.wall()
    ticks = iter(range(1_000_000))
    monkeypatch.setattr(clock, "wall", lambda: started + next(ticks) * 0.4)
    batch = await create(client, map(row, range(3)))
    seen = []
    while batch["status"] != "completed":
        batch = await look(client, batch)
        seen.append(batch["status"])
        assert (batch["output_file_id"] is not None) == (batch["status"] == "completed")
        assert (batch["request_counts"]["total"] == 3) == (batch["status"] != "validating")
        assert (batch["request_counts"]["completed"] == 3) == (batch["status"] in {"finalizing", "completed"})
    assert set(seen) == {"validating", "in_progress", "finalizing", "completed"}


async def test_rows_that_fail_are_in_the_error_file(virtual_time):
    """A wrong row with its 400, others with the server's own trouble; sent again, they may well succeed."""
    client = Client(batches=Batches(faults=Faults(server_error=0.5)))
    streaming = row("y", body=row(0)["body"] | {"stream": True})
    rows = [*map(row, range(40)), row("x", body={"model": "m"}), streaming]
    batch = await create(client, rows)
    await anyio.sleep(10)
    batch = await look(client, batch)
    failed = {line["custom_id"]: line for line in await lines(client, batch["error_file_id"])}
    assert batch["request_counts"] == {"total": 42, "completed": 42 - len(failed), "failed": len(failed)}
    assert 10 < len(failed) < 30
    assert failed.pop("row-x")["response"]["body"]["error"]["code"] == "missing_required_parameter"
    assert failed.pop("row-y")["response"]["body"]["error"]["message"].startswith("Streaming is not supported")
    assert {line["response"]["status_code"] for line in failed.values()} == {500}


async def test_rows_beyond_the_window_expire(virtual_time):
    client = Client(batches=Batches(validating=0, duration=0, per_row=10, window=100))
    batch = await create(client, map(row, range(25)))
    await anyio.sleep(101)
    batch = await look(client, batch)
    assert (batch["status"], batch["request_counts"]) == ("expired", {"total": 25, "completed": 10, "failed": 15})
    errors = await lines(client, batch["error_file_id"])
    assert {(e["response"], e["error"]["code"]) for e in errors} == {(None, "batch_expired")}
    done = {line["custom_id"] for line in await lines(client, batch["output_file_id"])}
    assert done | {e["custom_id"] for e in errors} == {f"row-{n}" for n in range(25)}
    assert client.app.state.library.executed.total() == 10


async def test_a_cancelled_batch_keeps_what_is_done(virtual_time):
    client = Client(batches=Batches(validating=0, duration=0, per_row=1, finalizing=5))
    batch = await create(client, map(row, range(25)))
    await anyio.sleep(7.5)
    assert (await client.post(f"/v1/batches/{batch['id']}/cancel", {})).json()["status"] == "cancelling"
    assert (await client.post(f"/v1/batches/{batch['id']}/cancel", {})).status_code == 409
    await anyio.sleep(6)
    batch = await look(client, batch)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", 7)
    assert len(await lines(client, batch["error_file_id"])) == 18
    early = await create(client, [row(1)])
    await client.post(f"/v1/batches/{early['id']}/cancel", {})
    await anyio.sleep(6)
    assert (await look(client, early))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ([], "empty_file", None),
        ([b"\n"], "empty_file", None),
        ([row(1), b"{torn\n"], "invalid_json_line", 2),
        ([row(1), row(2), row(1)], "duplicate_custom_id", 3),
        ([row(1, custom_id=7)], "missing_required_parameter", 1),
        ([row(1, method="GET")], "invalid_method", 1),
        ([row(1, url="/v1/embeddings")], "invalid_url", 1),
        ([row(1), row(2, model="other")], "mismatched_model", 2),
        ([row(1, model="strange")], "model_not_found", 1),
        ([row(1, body=[])], "missing_required_parameter", 1),
        ([row(n) for n in range(5)], "too_many_requests", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_wrong_file_fails_when_it_is_checked(virtual_time, rows, code, line):
    """With the code and the line of what is wrong; nothing is worked on."""
    client = Client(models=("m", "other"), batches=Batches(max_rows=4))
    batch = await create(client, rows)
    assert batch["status"] == "validating"
    await anyio.sleep(1)
    batch = await look(client, batch)
    assert (batch["status"], batch["errors"]["data"][0]["code"], batch["errors"]["data"][0]["line"]) == (
        "failed",
        code,
        line,
    )
    assert (batch["output_file_id"], batch["error_file_id"], batch["in_progress_at"]) == (None, None, None)


async def test_of_a_file_that_is_wrong_throughout_a_hundred_errors_are_told(virtual_time):
    client = Client(batches=Batches())
    batch = await create(client, [row(n, method="GET") for n in range(120)])
    await anyio.sleep(1)
    assert [error["line"] for error in (await look(client, batch))["errors"]["data"]] == list(range(1, 101))


async def test_the_tokens_of_a_models_queue_are_limited(virtual_time):
    """A batch above what is left fails when it is checked; other models have their own; what ended makes room."""
    client = Client(batches=Batches(enqueued_tokens=100, validating=1, duration=50, finalizing=0))
    first = await create(client, map(row, range(10)))  # 7 tokens each
    await anyio.sleep(2)
    second, other = await create(client, map(row, range(10))), await create(client, [row(1, model="other")])
    await anyio.sleep(2)
    second = await look(client, second)
    assert (await look(client, other))["status"] == (await look(client, first))["status"] == "in_progress"
    assert second["errors"]["data"] == [
        {
            "code": "token_limit_exceeded",
            "message": "Enqueued token limit reached for m in organization org-simulated. "
            "Limit: 100 enqueued tokens. Please "
            "try again once some in_progress batches have been completed.",
            "param": None,
            "line": None,
        }
    ]
    await anyio.sleep(50)
    third = await create(client, map(row, range(10)))
    await anyio.sleep(2)
    assert (await look(client, third))["status"] == "in_progress"


async def test_lists_come_in_pages_newest_first(virtual_time):
    client = Client()
    made = [(await create(client, [row(n)]))["id"] for n in range(5)]
    page = (await client.http.get("/v1/batches", params={"limit": 2})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[4], made[3]], True)
    page = (await client.http.get("/v1/batches", params={"limit": 100, "after": made[3]})).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[2], made[1], made[0]], False)
    assert (await client.http.get("/v1/batches", params={"limit": 101})).status_code == 400
    files = (await client.http.get("/v1/files", params={"purpose": "batch"})).json()["data"]
    assert len(files) == 5


async def test_what_is_not_there_or_wrong_is_said(virtual_time):
    client = Client(api_keys=("k",), batches=Batches(max_bytes=100))
    assert (await upload(client, map(row, range(9)))).json()["error"]["message"] == "File is too large."
    assert (await upload(client, map(row, range(9)), "user_data")).status_code == 200
    assert (await client.http.get("/v1/files/file-x")).status_code == 404
    assert (await client.http.delete("/v1/files/file-x")).status_code == 404
    assert (await client.http.get("/v1/batches/batch_x")).status_code == 404
    assert (await client.post("/v1/batches/batch_x/cancel", {})).status_code == 404
    assert (await client.http.get("/v1/batches", headers={"authorization": "Bearer no"})).status_code == 401
    assert (await client.post("/v1/files", {})).status_code == 400
    assert (await client.http.post("/v1/files", files={"file": ("f", b"{}")})).status_code == 400  # for what purpose?
    file, other = (await upload(client, [b"{}\n"])).json(), (await upload(client, [b"{}\n"], "user_data")).json()
    right = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    wrongs = (
        {"input_file_id": "file-x"},
        {"input_file_id": other["id"]},
        {"endpoint": "/v1/files"},
        {"completion_window": "1h"},
        {"metadata": {"a": 1}},
    )
    for wrong in wrongs:
        assert (await client.post("/v1/batches", right | wrong)).status_code == 400
    assert (await client.http.post("/v1/batches", content=b"[")).status_code == 400


async def test_faults_happen_to_these_endpoints_too(virtual_time):
    """A dropped connection may well have done what was asked for."""
    client = Client(batches=Batches())
    file = (await upload(client, [row(1)])).json()
    client.account.inject("overloaded")
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert (await client.post("/v1/batches", wanted)).status_code == 503
    client.account.inject("dropped")
    with pytest.raises(ConnectionResetError):
        await client.post("/v1/batches", wanted)
    assert len((await client.http.get("/v1/batches")).json()["data"]) == 1


@pytest.mark.parametrize(
    ("fault", "status", "content"),
    [
        ("slow_down", 429, b"slow_down"),
        ("insufficient_quota", 429, b"insufficient_quota"),
        ("bad_gateway", 502, b"<html>"),
        ("error_in_200", 200, b"Provider returned error"),
        ("empty", 200, b""),
        ("null", 200, b"null"),
        ("no_choices", 200, b'"data":[]'),
        ("truncated", 200, None),
        ("gzip", 200, None),
    ],
)
async def test_whatever_can_go_wrong_goes_wrong_with_files(virtual_time, fault, status, content):
    """A refused upload keeps no file; of one that was kept, the answer is what the fault makes of it."""
    client = Client()
    kept = (await upload(client, [row(1)])).json()["id"]
    client.account.inject(fault, 3)
    listed, content_of = [await client.http.get(f"/v1/files{path}") for path in ("", f"/{kept}/content")]
    assert (listed.status_code, content_of.status_code) == (status, status)
    whole = jsonl([row(1)])
    if content is None:
        assert content_of.content == (whole if fault == "gzip" else whole[: len(whole) // 2])
    else:
        assert content in listed.content
    await upload(client, [row(2)])
    files = (await client.http.get("/v1/files")).json()["data"]
    assert len(files) == (1 if status == 429 else 2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b\r\nno-name: x\r\n\r\n1\r\n--b--",
        b"--b\r\n\r\n1\r\n--b",
        b"x" * 99,
        b"--b\r\ncontent-disposition: form-data\r\n\r\n1\r\n--b--",
    ],
)
async def test_a_form_that_is_none_is_refused(virtual_time, body):
    client = Client()
    head = {"content-type": "multipart/form-data; boundary=b"}
    assert (await client.http.post("/v1/files", content=body, headers=head)).status_code == 400


def test_rules_of_batches_are_numbers():
    with pytest.raises(ValueError, match="batches: window must be a finite number of seconds, 0 or more, not -1"):
        Batches(window=-1)
    assert Simulation().batches == Batches()
