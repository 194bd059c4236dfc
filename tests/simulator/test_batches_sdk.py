"""The real SDK, sync and async, with files and batches of the simulated service over a real socket."""

from __future__ import annotations

import io
import json
import time

import anyio
import openai
import pytest

from penstock import simulator
from penstock.simulator import Batches, Simulation
from tests.simulator.test_batches import jsonl, row

RULES = Batches(validating=0.01, duration=0.02, finalizing=0.01)


def test_the_sync_sdk_runs_a_batch():
    """Every object comes out as the SDK's own type, and nothing that the service sends is unknown to it."""
    with simulator.serve(Simulation(batches=RULES)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0)
        file = client.files.create(file=("in.jsonl", io.BytesIO(jsonl(map(row, range(50))))), purpose="batch")
        assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "in.jsonl", "processed")
        assert client.files.retrieve(file.id) == file
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"run": "a"}
        )
        assert (made.status, made.metadata, made.endpoint) == ("validating", {"run": "a"}, "/v1/chat/completions")
        assert made.expires_at - made.created_at == 86_400
        while (batch := client.batches.retrieve(made.id)).status != "completed":
            time.sleep(0.01)
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (50, 50, 0)
        assert batch.completed_at >= batch.finalizing_at >= batch.in_progress_at >= batch.created_at
        assert not batch.model_extra
        assert not file.model_extra
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in answers] == [f"row-{n}" for n in range(50)]
        parsed = openai.types.chat.ChatCompletion.model_validate(answers[0]["response"]["body"])
        assert parsed.usage.total_tokens > 0
        assert [each.id for each in client.batches.list()] == [made.id]
        assert {each.id for each in client.files.list()} == {file.id, batch.output_file_id}
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
            client.batches.cancel(made.id)
        client.close()


@pytest.mark.anyio
async def test_the_async_sdk_cancels_a_batch_and_sees_one_fail():
    async with simulator.serve(Simulation(batches=Batches(validating=0.01, duration=60, finalizing=0.01))) as server:
        http = openai.DefaultAsyncHttpxClient(verify=False)
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0, http_client=http) as client:
            wrong = await client.files.create(file=("in.jsonl", b"{torn\n"), purpose="batch")
            right = await client.files.create(file=("in.jsonl", jsonl([row(1)])), purpose="batch")
            ids = []
            for file in (wrong, right):
                batch = await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
                ids.append(batch.id)
            await anyio.sleep(0.05)
            failed = await client.batches.retrieve(ids[0])
            assert (failed.status, failed.errors.data[0].code, failed.errors.data[0].line) == (
                "failed",
                "invalid_json_line",
                1,
            )
            assert (await client.batches.cancel(ids[1])).status == "cancelling"
            await anyio.sleep(0.05)
            assert (await client.batches.retrieve(ids[1])).status == "cancelled"
            assert [each.id async for each in client.batches.list(limit=1)] == ids[::-1]
