"""What a type checker sees of decorated functions: their own signatures. `make check` runs mypy and pyright on this;
nothing runs it.

A line that must be wrong says so by an ignore: both are told to complain about an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import assert_type

from penstock import (
    Adaptive,
    Attempt,
    Batcher,
    Budget,
    Limiter,
    Pipeline,
    Retry,
    amap,
    circuit_breaker,
    constant,
    exponential,
    fallback,
    hedge,
    pausing,
    retry_after,
    timeout,
)
from penstock.mapping import Results

retry = Retry(on=OSError)
limiter = Limiter(requests="10/s", tokens="100/s")
pipe = Pipeline(retry, circuit_breaker(on=OSError), hedge(1), limiter(tokens=5), timeout(20), fallback("", on=OSError))


def tokens_of(url: str, depth: int = 1) -> int:
    return len(url) * depth


@retry
async def fetched(url: str, depth: int = 1) -> bytes:
    return url.encode() * depth


@retry
def fetched_in_a_thread(url: str) -> bytes:
    return url.encode()


async def rest_of_the_lines(last: str, url: str) -> AsyncIterator[str]:
    yield url + last


@retry(resume=rest_of_the_lines)
async def lines(url: str) -> AsyncIterator[str]:
    yield url


@pipe
async def piped(url: str, depth: int = 1) -> bytes:
    return url.encode() * depth


@limiter(tokens=tokens_of, settle=lambda reply: {"tokens": len(reply)})
async def limited(url: str, depth: int = 1) -> bytes:
    return url.encode() * depth


@hedge("p95")
@circuit_breaker(on=OSError)
@timeout(5)
@pausing(limiter, on=OSError)
@fallback(b"", on=OSError)
async def layered(url: str, depth: int = 1) -> bytes:
    return url.encode() * depth


class Client:
    @retry
    async def get(self, url: str) -> bytes:
        return url.encode()

    @classmethod
    @retry
    async def made(cls, url: str) -> Client:
        return cls()

    @staticmethod
    @pipe
    async def count(url: str) -> int:
        return len(url)


async def a_decorated_function_keeps_its_signature() -> None:
    for function in (fetched, piped, limited, layered):
        assert_type(await function("x", depth=2), bytes)
    assert_type(fetched_in_a_thread("x"), bytes)
    async for line in lines("x"):
        assert_type(line, str)
    await fetched(5)  # type: ignore[arg-type]
    await piped()  # type: ignore[call-arg]
    await limited("x", width=1)  # type: ignore[call-arg]
    await layered("x", "y")  # type: ignore[arg-type]
    fetched_in_a_thread(b"x")  # type: ignore[arg-type]


async def so_do_methods() -> None:
    client = Client()
    assert_type(await client.get("x"), bytes)
    assert_type(await Client.made("x"), Client)
    assert_type(await client.count("x"), int)
    await client.get(1)  # type: ignore[arg-type]


async def a_call_is_checked_against_the_function() -> None:
    assert_type(await retry.call(fetched, "x", depth=2), bytes)
    assert_type(await retry.call(tokens_of, "x"), int)
    assert_type(retry.call_sync(tokens_of, "x"), int)
    await retry.call(fetched, 5)  # type: ignore[call-overload]
    retry.call_sync(tokens_of, url=b"x")  # type: ignore[arg-type]


async def the_loop_forms_give_attempts() -> None:
    async for attempt in retry:
        with attempt:
            assert_type(attempt, Attempt)
            assert_type(attempt.number, int)
            assert_type(attempt.previous, Exception | None)
            assert_type(attempt.idempotency_key, str)
        async with attempt as entered, limiter(tokens=5):
            assert_type(entered, Attempt)
    for attempt in retry:
        with attempt:
            pass


def what_counts_is_said_by_types_or_a_function() -> None:
    Retry(on=(OSError, ValueError), attempts=6, within=300, backoff=exponential(first=1, cap=60, jitter="full"))
    Retry(on=OSError, backoff=constant(2, jitter="equal"), budget=Budget(ratio=0.2))
    Retry(on=lambda error: isinstance(error, OSError))
    Retry(on=lambda error: 2.5)
    Retry(on=lambda error: timedelta(seconds=2))
    pausing(limiter(tokens=5), on=OSError)  # type: ignore[arg-type]
    Retry(on=BaseException)  # type: ignore[arg-type]
    Retry()  # type: ignore[call-arg]
    Retry(OSError, 3)  # type: ignore[call-arg]
    exponential(jitter="some")  # type: ignore[arg-type]
    assert_type(retry_after(ValueError()), float | None)


def spans_are_seconds_or_timedeltas() -> None:
    minute = timedelta(minutes=1)
    timeout(minute)
    hedge(minute, initial=minute)
    circuit_breaker(on=OSError, window=minute, open_for=minute, max_open=minute, hint=lambda error: minute)
    pausing(limiter, on=OSError, max_pause=minute, hint=lambda error: 5)
    Adaptive(limiter, on=OSError, cooldown=minute)
    timeout("5")  # type: ignore[arg-type]
    pausing(limiter, on=OSError, max_pause="1h")  # type: ignore[arg-type]
    Retry(on=OSError, within=minute, attempt_timeout=minute, max_hint=minute, hint=lambda error: minute)
    Retry(on=OSError, within=60, backoff=exponential(first=minute, cap=minute), budget=Budget(ttl=minute))
    Retry(on=OSError, backoff=constant(minute))
    Retry(on=OSError, within="60")  # type: ignore[arg-type]
    constant("60")  # type: ignore[arg-type]


@retry
@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[bytes]:
    yield url.encode()


@retry
@contextmanager
def connected_in_a_thread(url: str) -> Generator[bytes]:
    yield url.encode()


async def a_retried_context_manager_keeps_its_type() -> None:
    async with connected("x") as connection:
        assert_type(connection, bytes)
    with connected_in_a_thread("x") as connection:
        assert_type(connection, bytes)
    connected(5)  # type: ignore[arg-type]


async def many_items() -> None:
    async def send(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    embed = Batcher(send, max_delay=timedelta(milliseconds=5), cost={"tokens": len}, split_on=(ValueError, KeyError))
    assert_type(await embed("x"), int)
    await embed(5)  # type: ignore[arg-type]

    results = amap(fetched, ["x", "y"])
    assert_type(results, Results[bytes])
    async for reply in results:
        assert_type(reply, bytes)
    async for reply_or_error in amap(fetched, ["x"], return_errors=True):
        assert_type(reply_or_error, bytes | Exception)
    async for length in amap(embed, ["x"], ordered=False, on_progress=lambda progress: progress.done):
        assert_type(length, int)
    amap(fetched, [1, 2])  # type: ignore[arg-type]
